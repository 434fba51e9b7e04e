"""DPO, softmax-DPO and GRPO: their budget and rows, and that training does what it says."""

import dataclasses
import json
import re

import pytest
import torch

from benchmarks.accuracy import preference
from benchmarks.accuracy.grpo import ItemGRPOTrainer, item_match_reward
from benchmarks.accuracy.preference import ComparedTrainingOptions, preference_rows, preference_steps
from benchmarks.accuracy.training import main, settings_of, train_method
from ilrec_trl.cli import main as ilrec
from ilrec_trl.pipeline.options import DataOptions, EvaluationOptions, InputError, ModelOptions
from ilrec_trl.pipeline.prepare import prepare
from ilrec_trl.pipeline.train import build_model, trainer_arguments


MODEL = ModelOptions(hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2)
SMALL = {"per_device_train_batch_size": 16, "learning_rate": 1e-2, "num_train_epochs": 2.0, "preference_start": 1.0}


@pytest.fixture(scope="module")
def prepared(data_folder):
    return prepare(DataOptions(data=str(data_folder)))


def train(method, prepared, folder, **options):
    model = build_model(prepared, MODEL, seed=0)
    training = ComparedTrainingOptions(**SMALL | options)
    return train_method(method, prepared, model, training, EvaluationOptions(validation_users=20), folder, seed=0)


class TestPreferenceSteps:
    def test_all_methods_make_equally_many_updates(self):
        assert preference_steps(ComparedTrainingOptions(num_train_epochs=6, preference_start=2), 10) == 40
        assert preference_steps(ComparedTrainingOptions(num_train_epochs=2.5, preference_start=0), 7) == 18
        assert (
            preference_steps(ComparedTrainingOptions(num_train_epochs=3 + round(4 / 7, 6), preference_start=3), 7) == 4
        )

    def test_fewer_where_they_cost_too_much_never_more(self):
        assert preference_steps(ComparedTrainingOptions(preference_steps=5), 10) == 5
        assert preference_steps(ComparedTrainingOptions(preference_steps=500), 10) == 30

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"num_train_epochs": 3.0}, "--preference_start 3 epochs leave nothing of --num_train_epochs 3"),
            ({"preference_start": -1.0}, "expected 0 epochs or more"),
            ({"preference_steps": 0}, "expected 1 or more"),
        ],
    )
    def test_refusals(self, options, message):
        with pytest.raises(InputError, match=message):
            preference_steps(ComparedTrainingOptions(**options), 10)


@pytest.mark.parametrize("options", [{}, {"item_format": "titles", "vocab_size": 300}, {"rows": "targets"}])
def test_rows_are_those_of_training_with_other_items(data_folder, options):
    prepared = prepare(DataOptions(data=str(data_folder), **options))
    examples = list(prepared.splits.train_examples())[:40]
    rows = preference_rows(prepared, examples, 2, ComparedTrainingOptions(), seed=0)
    questions = prepared.questions(examples)
    assert rows["prompt"][:] == questions["prompt"][:]
    assert rows["chosen"][:] == questions["completion"][:]
    texts = {prepared.catalog.text(item): item for item in prepared.catalog.item_ids}
    for example, rejected in zip(examples, rows["rejected"], strict=True):
        items = [texts[text] for text in rejected]
        assert len(set(items)) == 2
        assert not {*example.history, example.item} & set(items)


def test_conversations_are_preferred_whole(data_folder):
    prepared = prepare(DataOptions(data=str(data_folder), rows="targets"))
    prepared.tokenizer.chat_template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    prepared = dataclasses.replace(prepared, options=dataclasses.replace(prepared.options, conversational=True))
    rows = preference_rows(prepared, prepared.splits.validation[:3], 1, ComparedTrainingOptions(), seed=0)
    assert rows[0]["chosen"][0]["role"] == rows[0]["rejected"][0][0]["role"] == "assistant"


@pytest.mark.parametrize("method", ["dpo", "softmax_dpo"])
def test_preferences_start_from_sft_and_raise_the_margin(prepared, tmp_path, monkeypatch, method):
    started = {}
    original = preference.preference_trainer

    def spy(method, prepared, model, *rest):
        started.update({name: value.clone() for name, value in model.state_dict().items()})
        trainer = original(method, prepared, model, *rest)
        for name, value in trainer.ref_model.state_dict().items():
            assert torch.equal(value, started[name])
        return trainer

    monkeypatch.setattr("benchmarks.accuracy.training.preference_trainer", spy)
    trained = train(method, prepared, tmp_path / method, num_train_epochs=4.0, preference_learning_rate=3e-3)
    alone = train("sft", prepared, tmp_path / "sft", num_train_epochs=1.0)
    for name, value in alone.model.state_dict().items():
        torch.testing.assert_close(value, started[name])
    settings = trained.settings
    assert (settings["updates_an_epoch"], settings["preference_steps"]) == (4, 12)
    margins = [entry["eval_rewards/margins"] for entry in trained.history if "eval_rewards/margins" in entry]
    assert len(margins) == 3
    assert margins[-1] > 0.02
    assert [entry["step"] for entry in trained.history if "eval_ndcg@10" in entry] == [8, 12, 16]
    assert settings["best_epoch"] in (2.0, 3.0, 4.0)
    assert (tmp_path / method / "model.safetensors").is_file()


def test_grpo_samples_items_alone_and_learns(prepared, tmp_path, monkeypatch):
    seen = []
    original = ItemGRPOTrainer._generate_single_turn

    def spy(self, *args, **kwargs):
        completions = original(self, *args, **kwargs)[0]
        seen.extend(completions)
        return completions, None

    monkeypatch.setattr(ItemGRPOTrainer, "_generate_single_turn", spy)
    trained = train(
        "grpo",
        prepared,
        tmp_path,
        preference_steps=3,
        grpo_rollouts=4,
        grpo_prefix_weight=0.5,
        trainer_args='{"logging_steps": 1}',
    )
    assert len(seen) == 3 * 16 * 4
    sequences = {tuple(prepared.item_trie.sequence(item)) for item in prepared.catalog.item_ids}
    end = prepared.tokenizer.eos_token_id
    assert {tuple(token for token in tokens if token != end) for tokens in seen} <= sequences
    rewards = [entry["reward"] for entry in trained.history if "reward" in entry]
    assert len(rewards) >= 3
    assert all(0 <= reward <= 1.5 for reward in rewards)
    assert trained.settings["best_epoch"] == 1.75
    assert "generate" not in vars(trained.model)


def test_item_match_by_hand(prepared):
    trie, end = prepared.item_trie, prepared.tokenizer.eos_token_id
    target, same_level, twin = trie.sequence("22"), trie.sequence("21"), trie.sequence("23")
    assert target == twin
    assert target[0] != trie.sequence("0")[0]
    completions = [[*target, end], twin, same_level, [target[0]], trie.sequence("0")]
    plain, partial = item_match_reward(trie), item_match_reward(trie, 0.5)
    assert plain(completion_ids=completions, item=["22"] * 5, user="u") == [1, 1, 0, 0, 0]
    shared = 0.25 if same_level[0] == target[0] else 0
    assert partial(completions, ["22"] * 5) == [1.5, 1.5, shared, 0.25, 0]


def test_settings_name_what_a_method_uses():
    training = ComparedTrainingOptions()
    own = {name: set(settings_of(name, training, 0)) for name in ("sft", "ilrec", "dpo", "softmax_dpo", "grpo")}
    assert own["softmax_dpo"] - own["dpo"] == {"num_negatives"}
    assert own["grpo"] - own["dpo"] == {"grpo_rollouts", "grpo_prefix_weight"}
    assert own["dpo"] - own["sft"] == {
        *("preference_start", "preference_steps", "preference_learning_rate", "preference_beta", "negative_sampling")
    }
    assert own["ilrec"] - own["sft"] == {"intermediate_layers", "cpo_beta", "cpd_weight", "crr_weight"}


def test_fields_of_each_configuration(prepared, tmp_path):
    training = ComparedTrainingOptions(trainer_args='{"ld_alpha": 0.5}')
    assert "ld_alpha" in settings_of("dpo", training, 0)
    with pytest.raises(InputError, match="ILRecConfig has no field 'ld_alpha'"):
        trainer_arguments("sft", prepared, training, "out", 0)
    with pytest.raises(InputError, match="GRPOConfig has no field 'ld_alpha'"):
        train("grpo", prepared, tmp_path, trainer_args='{"ld_alpha": 0.5}')
    with pytest.raises(InputError, match="max_steps of trainer_args is not for dpo; give --preference_steps"):
        train("dpo", prepared, tmp_path, trainer_args='{"max_steps": 5}')
    with pytest.raises(InputError, match="--num_negatives is 0, expected 1 or more"):
        train("softmax_dpo", prepared, tmp_path, num_negatives=0)


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("softmax_dpo", {"num_negatives": 24}, "items to draw 24 negatives from; ask for fewer"),
        ("grpo", {"grpo_rollouts": 1}, "GRPO requires at least 2 generations"),
    ],
)
def test_what_cannot_work_is_refused_before_sft(prepared, tmp_path, monkeypatch, method, options, message):
    monkeypatch.setattr("benchmarks.accuracy.training.SFTTrainer", None)
    with pytest.raises(InputError, match=message):
        train(method, prepared, tmp_path, **options)


def test_the_command_trains_without_validation(data_folder, tmp_path):
    folder = tmp_path / "data"
    assert ilrec(["prepare", "--data", str(data_folder), "--train_on_validation", "--output_dir", str(folder)]) == 0
    command = ["--prepared", str(folder), "--output_dir", str(tmp_path / "dpo"), "--method", "dpo"]
    sizes = ["--hidden_size", "16", "--num_hidden_layers", "2", "--num_train_epochs", "2", "--preference_start", "1"]
    assert main([*command, *sizes, "--negative_sampling", "popularity"]) == 0
    settings = json.loads((tmp_path / "dpo/settings.json").read_text())
    assert settings["method"] == "DPO"
    assert not [name for name in settings if re.match("best|validation", name)]
