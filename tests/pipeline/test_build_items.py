"""`ilrec items`: what it writes, what new items get, and that the folder is a data set."""

import gzip
import json
from pathlib import Path

import numpy as np
import pytest

from ilrec_trl import Interactions, ItemCatalog, SemanticIds
from ilrec_trl.cli import main
from ilrec_trl.pipeline.prepared_data import PreparedData
from tests.pipeline.conftest import NUM_ITEMS


DATA = Path(__file__).parents[3] / "shared" / "data" / "industrial"
KINDS = ["lute", "screw", "paper"]
ITEMS = {str(n): {"title": f"{KINDS[n % 3]} number {n}", "brand": KINDS[n % 3]} for n in range(NUM_ITEMS)}
CODES = ["--levels", "2", "--codebook_size", "3", "20"]


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "shop").mkdir()
    with gzip.open(tmp_path / "shop" / "Arts.item.json.gz", "wt") as file:
        json.dump(ITEMS, file)
    sequences = {str(user): [(user + step) % NUM_ITEMS for step in range(5)] for user in range(30)}
    (tmp_path / "shop" / "Arts.inter.json").write_text(json.dumps(sequences))
    return tmp_path


def run(*arguments):
    assert main(["items", *map(str, arguments)]) == 0


def test_build_writes_a_data_set_and_new_items_join_it(folder, capsys):
    run("build", "--items", folder / "shop", "--output_dir", folder / "ids", *CODES, "--minionerec", "Arts")
    assert "0 of them with the ID of an item before them" in capsys.readouterr().out
    catalog, ids = ItemCatalog.from_lc_rec(folder / "ids"), SemanticIds.load(folder / "ids")
    assert catalog.semantic_ids == ids.tokens
    assert catalog.titles == [about["title"] for about in ITEMS.values()]
    assert len(Interactions.load(folder / "ids")) == 30
    kinds = {(row[0], int(item) % 3) for item, row in zip(ids.item_ids, ids.codes.tolist(), strict=True)}
    assert len(kinds) == 3  # one code a kind
    info = (folder / "ids" / "minionerec" / "info" / "Arts.txt").read_text()
    assert [line.split("\t") for line in info.splitlines()] == [
        ["".join(tokens), title, item]
        for item, tokens, title in zip(ids.item_ids, ids.tokens, catalog.titles, strict=True)
    ]
    assert main(["prepare", "--data", str(folder / "ids"), "--output_dir", str(folder / "prepared")]) == 0

    # A file of old and new items, as a shop has it the next day.
    new = {"new": {"title": "lute for children"}, "0": {"title": "a new title"}}
    (folder / "new.json").write_text(json.dumps(new))
    run("add", "--semantic_ids", folder / "ids", "--items", folder / "new.json", "--output_dir", folder / "more")
    more = SemanticIds.load(folder / "more")
    assert more.to_dict() == ids.to_dict() | {"new": more.tokens[-1]}
    assert more.codes[-1, 0] == ids.codes[0, 0]
    about = json.loads((folder / "more" / "item.json").read_text())
    assert about == ITEMS | {"new": new["new"]}
    # ... and once more, in place
    (folder / "new.json").write_text(json.dumps({"newer": {"title": "paper"}}))
    run("add", "--semantic_ids", folder / "more", "--items", folder / "new.json", "--output_dir", folder / "more")
    assert SemanticIds.load(folder / "more").item_ids == [*ids.item_ids, "new", "newer"]


RECBOLE_ITEMS = "item_id:token\tmovie_title:token_seq\tyear:token\tclass:token_seq\n" + "".join(
    f"{n}\tNumber {n}\t1995\t{KINDS[n % 3]} {KINDS[n % 3]}s\n" for n in range(NUM_ITEMS)
)


@pytest.mark.parametrize("fields", [[], ["--fields", "title", "class"], ["--text_template", "{title}: {class}"]])
def test_items_of_recboles_files(tmp_path, fields, capsys):
    """From an `.item` file beside an `.inter` to semantic IDs by one of its columns, and to what is trained on."""
    data = tmp_path / "movies"
    data.mkdir()
    (data / "movies.item").write_text(RECBOLE_ITEMS)
    lines = [f"{user}\t{(user + step) % NUM_ITEMS}\t{step}" for user in range(30) for step in range(5)]
    (data / "movies.inter").write_text("\n".join(["user_id:token\titem_id:token\ttimestamp:float", *lines]))
    run("build", "--items", data, "--output_dir", tmp_path / "ids", *CODES, *fields)
    ids = SemanticIds.load(tmp_path / "ids")
    kinds = {(row[0], int(item) % 3) for item, row in zip(ids.item_ids, ids.codes.tolist(), strict=True)}
    assert len(kinds) == 3  # one code a class
    about = json.loads((tmp_path / "ids/item.json").read_text())
    assert about["4"] == {"title": "Number 4", "class": "screw screws"}
    (tmp_path / "new.csv").write_text("id,title,class\nnew,Number 3,paper papers\n")
    run("add", "--semantic_ids", tmp_path / "ids", "--items", tmp_path / "new.csv", "--output_dir", tmp_path / "more")
    assert SemanticIds.load(tmp_path / "more").codes[-1, 0] == ids.codes[2, 0]
    prepare = ["prepare", "--data", str(data), "--output_dir", str(tmp_path / "prepared")]
    assert main(prepare) == 2
    assert "holds no index.json" in (error := capsys.readouterr().err)
    assert "`ilrec items build`" in error
    assert main([*prepare, "--items", str(tmp_path / "ids")]) == 0
    assert PreparedData.load(tmp_path / "prepared").summary().users == 30
    assert main([*prepare, "--item_format", "titles"]) == 0  # the file of titles is found
    (data / "movies.csv").write_text("movieId,title\n1,Lute\n")
    assert main([*prepare, "--item_format", "titles"]) == 2
    assert "several files of titles, ['movies.csv', 'movies.item']" in capsys.readouterr().err
    arguments = ["items", "build", "--items", str(data / "movies.item"), "--output_dir", str(tmp_path / "x")]
    assert main([*arguments, "--fields", "genre"]) == 2
    assert "No column 'genre' among ['item_id:token'" in capsys.readouterr().err


def test_tables_of_items(tmp_path, capsys):
    """The usual fields are read by themselves; bad rows may be left out; a report needs no titles."""
    rows = [f"{n},thing,{KINDS[n % 3]}" for n in range(NUM_ITEMS)]
    (tmp_path / "items.csv").write_text("\n".join(["item_id,title,categories", *rows]))
    run("build", "--items", tmp_path / "items.csv", "--output_dir", tmp_path / "ids", *CODES)
    ids = SemanticIds.load(tmp_path / "ids")
    assert len({(row[0], int(item) % 3) for item, row in zip(ids.item_ids, ids.codes.tolist(), strict=True)}) == 3
    new = tmp_path / "new.csv"
    new.write_text("item_id,title,categories\nnew,thing,screw\nnone,,screw\n")
    add = ["add", "--semantic_ids", tmp_path / "ids", "--items", new, "--output_dir", tmp_path / "more"]
    assert main(["items", *map(str, add)]) == 2
    assert "1 without a title (line 3)" in capsys.readouterr().err
    run(*add, "--bad_rows", "drop")
    assert json.loads((tmp_path / "more/item.json").read_text())["new"] == {"title": "thing", "categories": "screw"}
    assert SemanticIds.load(tmp_path / "more").codes[-1, 0] == ids.codes[1, 0]
    (tmp_path / "ids/item.json").unlink()
    for name in ("a.item", "b.item"):
        (tmp_path / "ids" / name).write_text("item_id:token\tlatitude:float\n0\t1.5\n")
    run("report", "--data", tmp_path / "ids", "--output_dir", tmp_path / "report")


@pytest.mark.parametrize("name", ["meta_Arts.json.gz", "meta_Arts.jsonl"])
def test_amazons_metadata(name, tmp_path, capsys):
    """JSON lines, with lists among the fields and things that no item text is made of."""
    lines = [
        {"parent_asin": f"B{n}", "title": "thing", "store": "Lyon", "categories": [KINDS[n % 3], "all"], "videos": []}
        for n in range(NUM_ITEMS)
    ] + [{"parent_asin": "none", "title": None, "store": None, "categories": []}]
    content = "\n\n".join(map(json.dumps, lines)).encode()
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    build = ["build", "--items", tmp_path / name, "--output_dir", tmp_path / "ids", *CODES]
    assert main(["items", *map(str, build)]) == 2
    assert f"1 without a title (line {2 * NUM_ITEMS + 1})" in capsys.readouterr().err
    run(*build, "--bad_rows", "drop")
    ids = SemanticIds.load(tmp_path / "ids")
    assert len({(row[0], int(item[1:]) % 3) for item, row in zip(ids.item_ids, ids.codes.tolist(), strict=True)}) == 3
    about = json.loads((tmp_path / "ids/item.json").read_text())
    assert about["B4"] == {"title": "thing", "brand": "Lyon", "categories": "screw all"}


def test_columns_of_other_names(tmp_path, capsys):
    rows = [f"{n},{KINDS[n % 3]} {n}" for n in range(NUM_ITEMS)]
    (tmp_path / "items.csv").write_text("\n".join(["sku,product", *rows]))
    build = ["build", "--items", tmp_path / "items.csv", "--output_dir", tmp_path / "ids", *CODES]
    assert main(["items", *map(str, build)]) == 2
    assert "name yours with columns={'item': ...} or --items_columns" in capsys.readouterr().err
    columns = ["--items_columns", '{"item": "sku", "title": "product"}']
    run(*build, *columns)
    assert json.loads((tmp_path / "ids/item.json").read_text())["4"] == {"title": "screw 4"}
    build = ["build", "--items", tmp_path / "ids/item.json", "--output_dir", tmp_path / "x", *CODES, *columns]
    assert main(["items", *map(str, build)]) == 2
    assert "--items_columns names columns of a table" in capsys.readouterr().err


def test_vectors_of_ones_own_in_any_order(folder, capsys):
    order = np.random.default_rng(0).permutation(NUM_ITEMS)
    vectors = np.random.default_rng(1).normal(size=(NUM_ITEMS, 4))
    np.save(folder / "vectors.npy", vectors[order])
    (folder / "ids.txt").write_text("\n".join(map(str, order)))
    own = ["--vectors", folder / "vectors.npy", "--vector_ids", folder / "ids.txt"]
    run("build", "--items", folder / "shop", "--output_dir", folder / "shuffled", *CODES, *own)
    np.save(folder / "vectors.npy", vectors)
    (folder / "ids.txt").write_text(json.dumps([*map(str, range(NUM_ITEMS))]))
    run("build", "--items", folder / "shop", "--output_dir", folder / "straight", *CODES, *own)
    ids = [SemanticIds.load(folder / name) for name in ("shuffled", "straight")]
    assert ids[0].to_dict() == ids[1].to_dict()
    assert not (folder / "straight" / "encoder.json").exists()
    (folder / "new.json").write_text(json.dumps({"new": {"title": "lute"}}))
    add = [
        "add",
        "--semantic_ids",
        folder / "straight",
        "--items",
        folder / "new.json",
        "--output_dir",
        folder / "more",
    ]
    assert main(["items", *map(str, add)]) == 2
    assert "give --vectors of the new items too" in capsys.readouterr().err
    np.save(folder / "vectors.npy", vectors[:1])
    (folder / "ids.txt").write_text("new")
    run(*add, *own)
    assert SemanticIds.load(folder / "more").item_ids == [*ids[1].item_ids, "new"]


@pytest.mark.parametrize("mode", ["concatenate", "predict"])
def test_collaborative_vectors(folder, mode, data_folder):
    main(["prepare", "--data", str(folder / "shop"), "--item_format", "titles", "--output_dir", str(folder / "data")])
    arguments = ["--sasrec_epochs", "1", "--sasrec_hidden_size", "8", "--sasrec_folds", "1"]
    main(["sasrec", "--prepared", str(folder / "data"), "--output_dir", str(folder / "sasrec"), *arguments])
    users = ["--sasrec", folder / "sasrec", "--prepared", folder / "data", "--collaborative_mode", mode]
    run("build", "--items", folder / "shop", "--output_dir", folder / "ids", *CODES, *users)
    (folder / "new.json").write_text(json.dumps({"new": {"title": "lute"}}))
    run("add", "--semantic_ids", folder / "ids", "--items", folder / "new.json", "--output_dir", folder / "more")
    assert len(SemanticIds.load(folder / "more")) == NUM_ITEMS + 1


def test_the_report_of_any_ids(data_folder, tmp_path, capsys):
    run("report", "--data", data_folder, "--output_dir", tmp_path)
    assert "24 items, 1 of them with the ID of an item before them" in capsys.readouterr().out
    assert "Thing number 3" in (tmp_path / "report.md").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["build", "--items", "{none}"], "there is no file or folder"),
        (["build", "--items", "{empty}"], "holds no item.json"),
        (["build", "--items", "{shop}", "--fields", "name"], "No item has a text in ['name']"),
        (["build", "--items", "{shop}", "--levels", "2", "--codebook_size", "2"], "24 items, but 2 x 2 codes make 4"),
        (["build", "--items", "{shop}", "--sasrec", "{none}"], "--sasrec needs --prepared"),
        (["build", "--items", "{shop}", "--vectors", "{vectors}"], "--vectors needs --vector_ids"),
        (["build", "--items", "{shop}", "--vectors", "{vectors}", "--vector_ids", "{two}"], "3 rows and"),
        (["build", "--items", "{shop}", "--vectors", "{vectors}", "--vector_ids", "{three}"], "lacks 21 items"),
        (["build", "--items", "{shop}", "--output_dir", "{shop}"], "holds the items; give another folder"),
        (["build", "--items", "{list}"], "item '1' is 'Pen', expected an object"),
        (["add", "--items", "{shop}", "--semantic_ids", "{empty}"], "holds no semantic_ids.json"),
        (["report", "--data", "{shop}"], "holds no index.json"),
    ],
)
def test_what_cannot_be_used(folder, arguments, message, capsys):
    (folder / "empty").mkdir()
    np.save(folder / "vectors.npy", np.ones((3, 2)))
    (folder / "two").write_text("0\n1\n")
    (folder / "three").write_text("0\n1\n2\n")
    (folder / "list").write_text('{"1": "Pen"}')
    places = {name: folder / name for name in ("shop", "empty", "none", "two", "three", "list")}
    places["vectors"] = folder / "vectors.npy"
    filled = [argument.format(**places) for argument in arguments]
    out = [] if "--output_dir" in filled else ["--output_dir", str(folder / "out")]
    assert main(["items", *filled, *out]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_nothing_to_add(folder, capsys):
    run("build", "--items", folder / "shop", "--output_dir", folder / "ids", *CODES)
    arguments = ["--items", folder / "shop", "--semantic_ids", folder / "ids", "--output_dir", folder / "more"]
    assert main(["items", "add", *map(str, arguments)]) == 2
    assert "all 24 items have semantic IDs already" in capsys.readouterr().err


def test_real_items(tmp_path):
    if not DATA.exists():
        pytest.skip(f"real data not found: {DATA}")
    run("build", "--items", DATA, "--output_dir", tmp_path / "ids")
    ids, figures = SemanticIds.load(tmp_path / "ids"), json.loads((tmp_path / "ids" / "report.json").read_text())
    assert (figures["items"], figures["collisions"]) == (3686, 0)
    assert figures["built"]["collisions"] > 400
    assert figures["levels"][0]["entropy_bits"] > 7
    # Items of one title (the data set has some) share all but the last code.
    items = json.loads((tmp_path / "ids" / "item.json").read_text())
    by_name = {}
    for item, codes in zip(ids.item_ids, ids.codes.tolist(), strict=True):
        by_name.setdefault((items[item]["title"], items[item]["brand"]), []).append(tuple(codes[:2]))
    groups = [prefixes for prefixes in by_name.values() if len(prefixes) > 1]
    assert len(groups) > 10
    assert all(len(set(prefixes)) == 1 for prefixes in groups)
