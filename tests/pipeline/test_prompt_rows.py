"""Prompts and training rows by the options of a command, to the end: trained, saved, evaluated, recommended."""

import json
from collections import Counter

import pytest

from ilrec_trl.cli import main, parse_options
from ilrec_trl.data.prompt_tokens import tokenize_rows
from ilrec_trl.pipeline.evaluate import evaluator_of
from ilrec_trl.pipeline.options import DataOptions, EvaluationOptions, InputError, ModelOptions, PrepareOptions
from ilrec_trl.pipeline.prepare import prepare
from ilrec_trl.pipeline.prepared_data import PreparedData


CHAT_TEMPLATE = (
    "{% for m in messages %}<{{ m['role'] }}>{% if m['role'] == 'assistant' %}<thought>{% endif %}"
    "{{ m['content'] }}<end>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% if thought is false %}<thought>{% endif %}{% endif %}"
)


@pytest.fixture(scope="module")
def chat_model(data_folder, tmp_path_factory):
    """A folder with a tokenizer that has a chat template."""
    folder = tmp_path_factory.mktemp("chat")
    tokenizer = prepare(DataOptions(data=str(data_folder), item_format="titles", vocab_size=400)).tokenizer
    tokenizer.add_tokens(["<user>", "<system>", "<assistant>", "<thought>", "<end>"], special_tokens=True)
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.save_pretrained(folder)
    return str(folder)


def lengths(prepared, rows):
    kwargs = prepared.renderer.chat_template_kwargs
    return [len(row) for row in tokenize_rows(prepared.tokenizer, rows["prompt"][:], rows["completion"][:], kwargs)]


def test_flags_and_a_configuration_file(tmp_path):
    flags = [
        "--template",
        "introductions",
        "{{ history | join }}",
        "--tasks",
        '{"next_item": 1}',
        "--max_length",
        "64",
    ]
    data, *_ = parse_options("prepare", "", [DataOptions, ModelOptions, PrepareOptions], flags)
    assert data.template == ["introductions", "{{ history | join }}"]
    assert (data.tasks, data.max_length) == ('{"next_item": 1}', 64)
    (tmp_path / "c.yaml").write_text("template: introductions\ntasks:\n  next_item: 1\n  item_to_title: 0.5\n")
    data, *_ = parse_options(
        "prepare", "", [DataOptions, ModelOptions, PrepareOptions], ["--config", str(tmp_path / "c.yaml")]
    )
    rows = prepare(data).training_rows()
    assert Counter(rows["task"])["item_to_title"] == 150  # half of the store's items
    assert len({row["prompt"].splitlines()[0] for row in rows if row["task"] == "next_item"}) == 4


def test_histories_are_cut_by_tokens_in_training_and_in_questions(data_folder):
    for item_format, max_length in (("semantic_ids", 9), ("titles", 40)):
        for rows_option in ("sequences", "targets"):
            options = DataOptions(
                data=str(data_folder), item_format=item_format, max_length=max_length, rows=rows_option
            )
            prepared = prepare(options)
            assert prepared.max_length() == max_length
            whole = prepare(DataOptions(data=str(data_folder), item_format=item_format, rows=rows_option))
            for got, uncut in (
                (prepared.training_rows(), whole.training_rows()),
                (prepared.questions(prepared.splits.test), whole.questions(whole.splits.test)),
            ):
                assert max(lengths(prepared, got)) <= max_length < max(lengths(whole, uncut))
                targets = [item if isinstance(item, list) else [item] for item in got["item"]]
                assert sum(targets, []) == sum(([i] if isinstance(i, str) else i for i in uncut["item"]), [])


def test_templates_are_kept_when_their_files_change(data_folder, tmp_path):
    file = tmp_path / "mine.jinja"
    file.write_text("Mine:\n{% for item in history %}{{ item }}{{ separator }}{% endfor -%}\n")
    prepared = prepare(DataOptions(data=str(data_folder), template=[str(file), "introductions"]))
    prepared.save(tmp_path / "data")
    file.write_text("{{ nothing }}")
    loaded = PreparedData.load(tmp_path / "data")
    assert loaded.training_rows().to_list() == prepared.training_rows().to_list()
    assert loaded.renderer.prompts([["1"]])[0].startswith("Mine:\n")
    assert len(loaded.renderer.templates) == 5


def test_tasks_to_the_end(data_folder, tmp_path):
    """From the command to a list: text rows, targets without history, rewards, every one in one training."""
    tasks = json.dumps(dict.fromkeys(["next_item", "next_title", "next_item_from_titles", "item_to_title"], 1))
    data, model = str(tmp_path / "data"), str(tmp_path / "model")
    arguments = ["--data", str(data_folder), "--tasks", tasks, "--vocab_size", "400", "--template", "introductions"]
    assert main(["prepare", *arguments, "--output_dir", data]) == 0
    prepared = PreparedData.load(data)
    rows = prepared.training_rows()
    assert max(lengths(prepared, rows)) <= prepared.max_length()
    sasrec = ["--sasrec_hidden_size", "16", "--sasrec_epochs", "2", "--sasrec_folds", "1"]
    assert main(["sasrec", "--prepared", data, "--output_dir", str(tmp_path / "sasrec"), *sasrec]) == 0
    small = [
        "--hidden_size",
        "16",
        "--intermediate_size",
        "32",
        "--num_hidden_layers",
        "3",
        "--num_attention_heads",
        "2",
    ]
    small += ["--num_train_epochs", "2", "--validation_users", "20", "--learning_rate", "0.01"]
    teacher = ["--sasrec", str(tmp_path / "sasrec")]
    assert main(["train", "--prepared", data, "--output_dir", model, *small, *teacher]) == 0
    log = [entry for entry in json.loads((tmp_path / "model/log.json").read_text()) if "eval_ndcg@10" in entry]
    assert len(log) == 2
    assert main(["recommend", "--prepared", data, "--model", model, "--user", "3", "--top_k", "3"]) == 0


def test_conversations(data_folder, chat_model):
    kwargs = {"conversational": True, "rows": "targets", "system_prompt": "Be brief.", "template": ["instructions"]}
    kwargs |= {"chat_template_kwargs": '{"thought": false}', "item_format": "titles"}
    prepared = prepare(DataOptions(data=str(data_folder), **kwargs), chat_model)
    rows = prepared.training_rows()
    assert rows[0]["chat_template_kwargs"] == {"thought": False}
    assert [message["role"] for message in rows[0]["prompt"]] == ["system", "user"]
    assert max(lengths(prepared, rows)) <= prepared.max_length()
    evaluator = evaluator_of(prepared, prepared.splits.test, EvaluationOptions())
    assert evaluator.chat_template_kwargs == {"thought": False}
    histories = [example.history for example in prepared.splits.test]
    assert prepared.renderer.prompts(histories) == prepared.questions(prepared.splits.test)["prompt"][:]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"template": ["instruction"]}, "neither Jinja text .* nor one of the shipped"),
        ({"template": ["instructions"]}, "a template that only appends"),
        ({"template": ["instructions"], "item_format": "titles"}, "no template writes {{ separator }}"),
        ({"tasks": "{"}, "--tasks is not JSON"),
        ({"tasks": '["next_item"]'}, r"--tasks is \['next_item'\], not a mapping"),
        ({"tasks": '{"next": 1}'}, "Got the task 'next'"),
        ({"tasks": '{"next_title": 1}', "item_format": "titles"}, "needs a catalogue of kind 'semantic_ids'"),
        ({"max_length": 4}, "more than max_length=4"),
        ({"conversational": True}, "give --rows targets with --conversational"),
        ({"conversational": True, "rows": "targets"}, "no chat template"),
        (
            {"chat_template_kwargs": "{}", "system_prompt": "x"},
            "prompts are text without --conversational; leave out --system_prompt",
        ),
    ],
)
def test_what_cannot_be_used_is_refused_when_data_is_prepared(options, message, data_folder):
    options = DataOptions(data=str(data_folder), **options)
    with pytest.raises(InputError, match=message) as caught:
        prepare(options)
    assert "\n" not in str(caught.value)


def test_a_thinking_model_is_told_not_to_think(data_folder, chat_model):
    options = DataOptions(data=str(data_folder), conversational=True, rows="targets", item_format="titles")
    with pytest.raises(InputError, match="'enable_thinking': False"):
        prepare(options, chat_model)
