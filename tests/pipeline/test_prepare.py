"""Reading a data folder, every way it can be wrong, and what is kept for later stages."""

import json
import shutil

import pytest

from ilrec_trl import Interactions
from ilrec_trl.pipeline.options import DataOptions, InputError
from ilrec_trl.pipeline.prepare import prepare
from ilrec_trl.pipeline.prepared_data import PreparedData
from tests.pipeline.conftest import NUM_ITEMS, NUM_USERS


@pytest.fixture(params=["semantic_ids", "titles"])
def prepared(request, data_folder):
    vocab_size = {"vocab_size": 300} if request.param == "titles" else {}
    return prepare(DataOptions(data=str(data_folder), item_format=request.param, **vocab_size))


def test_summary(data_folder):
    prepared = prepare(DataOptions(data=str(data_folder)))
    summary = prepared.summary()
    assert (summary.name, summary.users, summary.items) == (data_folder.name, NUM_USERS, NUM_ITEMS)
    assert summary.test_users == NUM_USERS
    assert summary.notes == [
        "1 items share all their tokens with an earlier item; ranks are expected ranks.",
        "No user has an item twice, so leaving the history out of the ranking (--exclude_history) can only help.",
    ]


def test_an_item_bought_again_leaves_the_history_in_the_ranking(data_folder, tmp_path):
    shutil.copytree(data_folder, tmp_path / "data")
    sequences = json.loads((data_folder / "inter.json").read_text())
    user, items = next(iter(sequences.items()))
    edit(tmp_path / "data", "inter.json", sequences | {user: [*items, items[0]]})
    notes = prepare(DataOptions(data=str(tmp_path / "data"))).notes
    assert not any("--exclude_history" in note for note in notes)


def test_save_and_load_give_the_same(prepared, tmp_path):
    prepared.save(tmp_path)
    loaded = PreparedData.load(tmp_path)
    assert loaded.options == prepared.options
    assert loaded.summary() == prepared.summary()
    assert loaded.splits == prepared.splits
    assert loaded.item_trie.item_ids == prepared.item_trie.item_ids
    assert loaded.training_rows().to_list() == prepared.training_rows().to_list()
    assert loaded.questions(loaded.splits.test).to_list() == prepared.questions(prepared.splits.test).to_list()
    text = prepared.renderer.prompts([["3", "4"]])[0]
    assert loaded.tokenizer(text)["input_ids"] == prepared.tokenizer(text)["input_ids"]


def test_prompts_in_training_and_evaluation_agree(prepared):
    row = prepared.training_rows()[0]
    user = prepared.interactions.users.index(row["user"])
    history = prepared.interactions.sequences[user][:-2]
    # All training items of the user, of which the last is the row's last target.
    assert row["prompt"] + row["completion"] == prepared.renderer.prompts([history[:-1]])[0] + prepared.catalog.text(
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


def test_a_share_of_the_users_is_trained_on(data_folder, tmp_path):
    prepared = prepare(DataOptions(data=str(data_folder), train_users_share=0.25, train_users_seed=1))
    assert (len(prepared.splits.train), len(prepared.splits.validation), len(prepared.splits.test)) == (15, 60, 60)
    assert "Trained on 15 users (25%), drawn by chance; all users are asked." in prepared.notes
    prepared.save(tmp_path)
    assert PreparedData.load(tmp_path).splits == prepared.splits
    with pytest.raises(InputError, match="share of 2"):
        prepare(DataOptions(data=str(data_folder), train_users_share=2))


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
        (lambda folder: edit(folder, "item.json", {"0": "x"}), {"item_format": "titles"}, "another form than"),
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


@pytest.fixture
def shop(data_folder, tmp_path):
    """A CSV file of the same walks, with ratings and days, beside which there is no catalogue."""
    sequences = json.loads((data_folder / "inter.json").read_text())
    lines = [
        f"{user},{item},{1 + (step + int(user)) % 5},2020-01-{1 + step + int(user) % 7:02}"
        for user, items in sequences.items()
        for step, item in enumerate(items)
    ]
    path = tmp_path / "shop.csv"
    path.write_text("\n".join(["who,item,rating,time", *lines, "0,99,5,2020-01-01"]) + "\n")
    return path


def test_other_sources_are_cleaned_and_split_by_time(data_folder, shop, tmp_path):
    options = DataOptions(
        data=str(shop),
        items=str(data_folder),
        user_column="who",
        bad_rows="drop",
        min_rating=2,
        start="2020-01-02",
        end="2020-01-13",
        drop_repeats="keep_last",
        max_items=6,
        k_core=2,
        split="global_time",
        validation_start="2020-01-08",
        test_start="2020-01-10",
    )
    prepared = prepare(options)
    assert prepared.name == "shop.csv"
    last = len(shop.read_text().splitlines())
    assert prepared.notes[0] == f"Left out 1 bad row in shop.csv: 1 of an unknown item (line {last})."
    loaded = Interactions.load(
        shop, columns={"user": "who"}, min_rating=2, bad_rows="drop", items=prepared.catalog.item_ids
    )
    window = loaded.filter(start="2020-01-02", end="2020-01-13", drop_repeats="keep_last", max_items=6)
    assert prepared.interactions == window.k_core(2)
    assert prepared.splits == prepared.interactions.global_time("2020-01-08", "2020-01-10")
    assert "Split by time" in " ".join(prepared.notes)
    prepared.save(tmp_path / "out")
    again = PreparedData.load(tmp_path / "out")
    assert again.interactions == prepared.interactions
    assert again.splits == prepared.splits
    shares = prepare(DataOptions(data=str(shop), items=str(data_folder), user_column="who", bad_rows="drop",
                                 split="global_time", validation_share=0.2, test_share=0.2))  # fmt: skip
    assert shares.splits == shares.interactions.global_time(validation_share=0.2, test_share=0.2)


def test_titles_from_a_file(shop, tmp_path):
    titles = tmp_path / "titles.csv"
    titles.write_text("item_id,title\n" + "".join(f"{item},Thing {item}\n" for item in range(NUM_ITEMS)))
    options = {"data": str(shop), "items": str(titles), "user_column": "who", "bad_rows": "drop"}
    prepared = prepare(DataOptions(**options, item_format="titles"))
    assert prepared.catalog.text("3") == "Thing 3"
    assert prepared.summary().test_users == NUM_USERS
    with pytest.raises(InputError, match="titles alone; add --item_format titles"):
        prepare(DataOptions(**options))
    titles.write_text(titles.read_text().replace("item_id,title", "sku,product"))
    named = prepare(DataOptions(**options, item_format="titles", items_columns='{"item": "sku", "title": "product"}'))
    assert named.catalog.texts == prepared.catalog.texts


@pytest.mark.parametrize("item_format", ["semantic_ids", "titles"])
def test_items_that_nobody_has(data_folder, tmp_path, item_format):
    """They are ranked and spoken of, or left out."""
    shutil.copytree(data_folder, tmp_path / "data")
    (tmp_path / "data/inter.json").write_text(json.dumps({"a": [1, 2, 3], "b": [2, 3, 1]}))
    options = {"data": str(tmp_path / "data"), "item_format": item_format}
    kept = prepare(DataOptions(**options))
    assert len(kept.item_trie) == NUM_ITEMS == 24
    assert (
        "21 of 24 items occur in no interaction; they are ranked too (--unused_items drop leaves them out)."
        in kept.notes
    )
    left = prepare(DataOptions(**options, unused_items="drop"))
    assert set(left.catalog.item_ids) == set(left.item_trie.item_ids) == {"1", "2", "3"}
    assert "21 of 24 items occur in no interaction and were left out." in left.notes
    assert left.splits == kept.splits


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "1 of an unknown item"),
        ({"bad_rows": "drop", "user_column": "user"}, "No column 'user' among"),
        ({"bad_rows": "drop", "items": None}, "holds no index.json"),
        ({"bad_rows": "drop", "start": "2021-01-01"}, "no interactions are left after cleaning"),
        ({"bad_rows": "drop", "start": "yesterday"}, "Got the time 'yesterday'; expected a date"),
        ({"bad_rows": "drop", "k_core": 99}, "99-core is empty"),
        ({"bad_rows": "drop", "test_start": "2020-01-01"}, "are for --split global_time"),
        ({"bad_rows": "drop", "split": "global_time"}, "needs either `validation_start` and `test_start`"),
        ({"data": None, "min_rating": 3.0}, "about data of your own; leave out --items"),
        ({"items_columns": '{"item": "sku"}'}, "names columns of a table, and .* is a folder"),
        ({"items_columns": "sku"}, "--items_columns is not JSON"),
        ({"items_columns": '{"item": 1}'}, "expected names of columns, such as"),
        ({"items": "/does/not/exist.csv"}, "no file or folder /does/not/exist.csv; give --items one"),
    ],
)
def test_options_of_a_source_that_do_not_fit(data_folder, shop, options, message):
    given = {"data": str(shop), "items": str(data_folder), "user_column": "who"} | options
    with pytest.raises(InputError, match=message):
        prepare(DataOptions(**given))


def test_a_folder_of_an_older_version_is_refused(data_folder, tmp_path):
    prepare(DataOptions(data=str(data_folder))).save(tmp_path)
    about = json.loads((tmp_path / "prepare.json").read_text())
    (tmp_path / "prepare.json").write_text(json.dumps(about | {"format": 1}))
    with pytest.raises(InputError, match="another version; run `ilrec prepare` again"):
        PreparedData.load(tmp_path)
