"""Rows of several tasks: what each shows and asks, how many there are, and that only items are targets."""

from collections import Counter

import pytest

from ilrec_trl import ItemCatalog, PromptRenderer, next_item_dataset, sequence_dataset, task_dataset
from ilrec_trl.data.splits import NextItemExample, UserSequence
from ilrec_trl.data.tasks import TASKS
from ilrec_trl.trainer.targets import TargetMarker


IDS = {str(n): [f"<a_{n % 3}>", f"<b_{n}>"] for n in range(8)}
CATALOG = ItemCatalog(list(IDS), [f"Thing number {n}" for n in IDS], list(IDS.values()), kind="semantic_ids")
SEQUENCES = [UserSequence("ann", ["0", "1", "2", "3"]), UserSequence("bob", ["4", "5"]), UserSequence("eve", ["6"])]
EXAMPLES = [("ann", ["0"], "1"), ("ann", ["0", "1"], "2"), ("ann", ["0", "1", "2"], "3"), ("bob", ["4"], "5")]


def tokenizer():
    made = CATALOG.as_kind("titles").build_tokenizer(400)
    CATALOG.add_tokens(made)
    return made


def code(item):
    return CATALOG.text(item)


def title(item):
    return f"Thing number {item}"


def test_every_task_shows_and_asks_what_it_says():
    rows = task_dataset(SEQUENCES, CATALOG, list(TASKS))
    assert rows.column_names == ["prompt", "completion", "history", "item", "user", "task"]
    assert Counter(rows["task"]) == {
        "next_item": 4, "next_title": 4, "next_item_from_titles": 4, "item_to_title": 8, "title_to_item": 8
    }  # fmt: skip
    for name, task in TASKS.items():
        shown, asked = (code if words == "semantic_ids" else title for words in (task.shows, task.asks))
        examples = [(None, [item], item) for item in IDS] if task.one_item else EXAMPLES
        got = [row for row in rows if row["task"] == name]
        for user, history, item in examples:
            [row] = [r for r in got if r["completion"] == asked(item)]
            assert row["user"] == user
            assert row["history"] == (None if task.one_item else history)
            assert row["item"] == (item if task.asks == "semantic_ids" else None)
            places = [row["prompt"].find(shown(each)) for each in history]
            assert places == sorted(places)
            assert places[0] >= 0
            assert not any(shown(other) in row["prompt"] for other in set(IDS) - set(history))
            assert name == "next_item" or row["prompt"].endswith("\n")


def test_the_next_item_alone_is_the_rows_of_the_plain_functions():
    examples = [NextItemExample(*example) for example in EXAMPLES]
    for whole, expected in (
        (False, next_item_dataset(examples, CATALOG)),
        (True, sequence_dataset(SEQUENCES, CATALOG)),
    ):
        rows = task_dataset(SEQUENCES, CATALOG, ["next_item"], whole_sequences=whole).remove_columns("task")
        assert sorted(rows.to_list(), key=str) == sorted(expected.to_list(), key=str)


def test_numbers_multiply_the_rows_or_count_them():
    multiplied = task_dataset(
        SEQUENCES, CATALOG, {"next_item": 1, "item_to_title": 0.5, "title_to_item": 2.25}, seed=0
    )
    assert Counter(multiplied["task"]) == {"next_item": 4, "item_to_title": 4, "title_to_item": 18}
    times = Counter(row["item"] for row in multiplied if row["task"] == "title_to_item")
    assert set(times) == set(IDS)
    assert sorted(times.values()) == [2] * 6 + [3] * 2
    counted = task_dataset(SEQUENCES, CATALOG, {"next_item": 6, "item_to_title": 3}, counts=True)
    assert Counter(counted["task"]) == {"next_item": 6, "item_to_title": 3}
    whole = task_dataset(SEQUENCES, CATALOG, {"next_item": 2, "item_to_title": 1}, counts=True, whole_sequences=True)
    assert Counter(whole["task"])["item_to_title"] == 1


def test_the_seed_decides_and_tasks_do_not_disturb_each_other():
    amounts = {"next_item": 1, "item_to_title": 0.5, "title_to_item": 1}
    drawn = [task_dataset(SEQUENCES, CATALOG, amounts, seed=seed).to_list() for seed in (3, 3, 4)]
    assert drawn[0] == drawn[1] != drawn[2]
    alone = task_dataset(SEQUENCES, CATALOG, {"item_to_title": 0.5}, seed=3)
    key = ("prompt", "completion")
    together = [row for row in drawn[0] if row["task"] == "item_to_title"]
    assert sorted(tuple(row[name] for name in key) for row in alone) == sorted(
        tuple(row[name] for name in key) for row in together
    )
    assert [row["task"] for row in drawn[0]] != sorted(row["task"] for row in drawn[0])


def test_whole_sequences_and_single_targets_share_a_column():
    rows = task_dataset(SEQUENCES, CATALOG, ["next_item", "title_to_item", "item_to_title"], whole_sequences=True)
    by_task = {name: [row["item"] for row in rows if row["task"] == name] for name in set(rows["task"])}
    assert sorted(by_task["next_item"]) == [["1", "2", "3"], ["5"]]
    assert sorted(by_task["title_to_item"]) == [[item] for item in IDS]
    assert by_task["item_to_title"] == [None] * 8


def test_the_trainer_finds_targets_in_items_alone():
    """Every row as SFTTrainer tokenizes it, marked against the trie."""
    made = tokenizer()
    trie = CATALOG.trie(made)
    for whole in (False, True):
        rows = task_dataset(SEQUENCES, CATALOG, list(TASKS), whole_sequences=whole, tokenizer=made, max_length=200)
        mark = TargetMarker(made, trie, "train", needs_history=True)
        for number, row in enumerate(rows):
            prompt = made(row["prompt"])["input_ids"]
            ids = made(row["prompt"] + row["completion"] + made.eos_token)["input_ids"]
            assert ids[: len(prompt)] == prompt
            labels = [-100] * len(prompt) + ids[len(prompt) :]
            marked = mark({**row, "input_ids": ids, "labels": labels}, number)["target_items"]
            count = len(row["item"]) if whole and row["item"] else row["item"] is not None
            assert max(marked) == count
            assert sum(map(bool, marked)) == (2 * count + 1 if count else 0)  # and the end


def test_templates_of_ones_own_and_what_all_tasks_share():
    rows = task_dataset(
        SEQUENCES,
        CATALOG,
        ["next_item", "item_to_title", "next_title"],
        template="Next after {{ history | join }}:",
        templates={"item_to_title": ["One {{ item }}:\n", "Two {{ item }}:\n"]},
        max_history=1,
        conversational=True,
        system_prompt="Be brief.",
        chat_template_kwargs={"think": False},
    )
    assert {row["prompt"][1]["content"][:3] for row in rows if row["task"] == "item_to_title"} == {"One", "Two"}
    assert {len(row["history"]) for row in rows if row["history"] is not None} == {1}
    assert {row["prompt"][0]["content"] for row in rows} == {"Be brief."}
    assert all(row["chat_template_kwargs"] == {"think": False} for row in rows)
    assert all(row["prompt"][1]["content"].startswith("Next after") for row in rows if row["task"] == "next_item")


def test_histories_are_shortened_for_the_title_that_is_asked():
    made = tokenizer()
    renderer = PromptRenderer(CATALOG, tokenizer=made, max_length=140)
    rows = task_dataset([UserSequence("ann", [*IDS, *IDS])], renderer, ["next_title", "next_item_from_titles"])
    lengths = [len(made(row["prompt"] + row["completion"] + made.eos_token)["input_ids"]) for row in rows]
    assert 130 < max(lengths) <= 140
    assert min(len(row["history"]) for row in rows if len(row["history"]) > 1) < 15


@pytest.mark.parametrize(
    ("tasks", "options", "message"),
    [
        (["next"], {}, "Got the task 'next'; expected some of next_item, next_title"),
        ([], {}, "Got no task"),
        ({"next_item": 0}, {}, "Got 0 for the task next_item; expected how many times its rows are taken, above 0"),
        ({"next_item": float("nan")}, {}, "Got nan for the task next_item"),
        ({"next_item": 1.5}, {"counts": True}, "Got 1.5 for the task next_item; expected a positive whole number"),
        (["next_item"], {"counts": True}, "With counts=True `tasks` must say"),
        (["next_item"], {"templates": {"next_title": "titles"}}, r"Got templates for \['next_title'\]"),
        (["item_to_title"], {"templates": {"item_to_title": "{{ history | join }}\n"}, "max_history": 3}, None),
        (["item_to_title"], {"templates": {"item_to_title": "{{ item }} is "}}, "End it with a new line"),
        (["title_to_item"], {"tokenizer": tokenizer(), "max_length": 5}, "Task title_to_item: Row . .*max_length=5"),
    ],
)
def test_refusals(tasks, options, message):
    if message is None:
        assert len(task_dataset(SEQUENCES, CATALOG, tasks, **options)) == 8
        return
    with pytest.raises(ValueError, match=message):
        task_dataset(SEQUENCES, CATALOG, tasks, **options)


def test_a_catalogue_without_titles_or_ids_and_users_without_targets_are_refused():
    for catalog in (ItemCatalog.from_semantic_ids(IDS), CATALOG.as_kind("titles")):
        with pytest.raises(
            ValueError, match="item_to_title needs a catalogue of kind 'semantic_ids' that knows titles"
        ):
            task_dataset(SEQUENCES, catalog, ["item_to_title"])
    with pytest.raises(ValueError, match="no row for the task next_item"):
        task_dataset(SEQUENCES[2:], CATALOG, ["next_item"])
