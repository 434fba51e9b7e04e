"""Reading a data folder, every way it can be wrong, and what is kept for later stages."""

import json
import shutil

import pytest

from ilrec_trl.pipeline.options import DataOptions, InputError
from ilrec_trl.pipeline.prepare import PreparedData, prepare
from tests.pipeline.conftest import NUM_ITEMS, NUM_USERS


@pytest.fixture(params=["semantic_ids", "titles"])
def prepared(request, data_folder):
    return prepare(DataOptions(data=str(data_folder), item_format=request.param, vocab_size=300))


def test_summary(data_folder):
    prepared = prepare(DataOptions(data=str(data_folder)))
    summary = prepared.summary()
    assert (summary["name"], summary["users"], summary["items"]) == (data_folder.name, NUM_USERS, NUM_ITEMS)
    assert summary["test_users"] == NUM_USERS
    assert summary["notes"] == ["1 items share all their tokens with an earlier item; ranks are expected ranks."]


def test_save_and_load_give_the_same(prepared, tmp_path):
    prepared.save(tmp_path)
    loaded = PreparedData.load(tmp_path)
    assert loaded.options == prepared.options
    assert loaded.summary() == prepared.summary()
    assert loaded.splits == prepared.splits
    assert loaded.item_trie.item_ids == prepared.item_trie.item_ids
    assert loaded.training_rows().to_list() == prepared.training_rows().to_list()
    assert loaded.questions(loaded.splits.test).to_list() == prepared.questions(prepared.splits.test).to_list()
    text = prepared.prompts([["3", "4"]])[0]
    assert loaded.tokenizer(text)["input_ids"] == prepared.tokenizer(text)["input_ids"]


def test_prompts_in_training_and_evaluation_agree(prepared):
    row = prepared.training_rows()[0]
    user = prepared.interactions.users.index(row["user"])
    history = prepared.interactions.sequences[user][:-2]
    # All training items of the user, of which the last is the row's last target.
    assert row["prompt"] + row["completion"] == prepared.prompts([history[:-1]])[0] + prepared.catalog.text(
        history[-1]
    )


def test_no_row_is_longer_than_max_length(prepared):
    limit = prepared.max_length()
    for row in prepared.training_rows():
        assert len(prepared.tokenizer(row["prompt"] + row["completion"])["input_ids"]) + 1 <= limit


def test_one_row_a_target(data_folder):
    prepared = prepare(DataOptions(data=str(data_folder), rows="targets"))
    rows = prepared.training_rows()
    assert len(rows) == sum(len(items) - 1 for _, items in prepared.splits.train)
    assert all(isinstance(item, str) for item in rows["item"])


def test_max_users_is_in_the_notes(data_folder):
    prepared = prepare(DataOptions(data=str(data_folder), max_users=10))
    assert len(prepared.splits.test) == 10
    assert prepared.notes[0] == "Smoke run: 10 of 60 users, drawn by chance."


def test_short_users_are_listed(data_folder, tmp_path):
    shutil.copytree(data_folder, tmp_path / "data")
    (tmp_path / "data/inter.json").write_text(json.dumps({"a": [1, 2, 3], "b": [1, 2]}))
    prepared = prepare(DataOptions(data=str(tmp_path / "data")))
    assert len(prepared.splits.test) == 1
    assert prepared.notes[0] == "1 users with fewer than 3 items are trained on, not tested."


def edit(folder, name, content):
    (folder / name).write_text(content if isinstance(content, str) else json.dumps(content))


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (shutil.rmtree, {}, "there is no file or folder"),
        (lambda folder: (folder / "inter.json").unlink(), {}, "inter.json"),
        (lambda folder: (folder / "index.json").unlink(), {}, "no index.json"),
        (lambda folder: (folder / "item.json").unlink(), {"item_format": "titles"}, "no item.json"),
        (lambda folder: edit(folder, "inter.json", "{"), {}, "Expecting"),
        (lambda folder: edit(folder, "inter.json", [1, 2]), {}, "not of the form"),
        (lambda folder: edit(folder, "inter.json", {"a": [1, 2, 99]}), {}, "unknown item .user 'a' entry 2"),
        (lambda folder: edit(folder, "inter.json", {"a": [1, 2]}), {}, "nothing to test on"),
        (
            lambda folder: edit(folder, "item.json", {str(item): {"name": "x"} for item in range(NUM_ITEMS)}),
            {"item_format": "titles"},
            "24 items have nothing to name them by",
        ),
        (lambda folder: edit(folder, "item.json", {"0": "x"}), {"item_format": "titles"}, "expected form"),
    ],
)
def test_bad_input_is_one_clear_line(data_folder, tmp_path, change, options, message):
    folder = tmp_path / "data"
    shutil.copytree(data_folder, folder)
    change(folder)
    with pytest.raises(InputError, match=message) as caught:
        prepare(DataOptions(data=str(folder), **options))
    assert "\n" not in str(caught.value)


def test_a_folder_that_was_not_prepared_is_refused(tmp_path):
    with pytest.raises(InputError, match="ilrec prepare"):
        PreparedData.load(tmp_path)
