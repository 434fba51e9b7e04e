import gzip
import json
import tempfile
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet
import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from ilrec_trl import ItemCatalog, read_titles
from ilrec_trl.items.titles import clean_title


AMAZON_2018 = [
    {"asin": "B1", "title": "Lute &amp; bow", "brand": "Lyon", "price": "$1"},
    {"asin": "B2", "title": "Harp", "category": [["Music"]]},
]
AMAZON_2023 = [
    {
        "parent_asin": "B1",
        "title": "Lute &amp; bow",
        "store": "Lyon",
        "details": {"Colour": "red"},
        "rating_number": 3,
    },
    {"parent_asin": "B2", "title": "Harp", "store": None},
]
CSV = 'item_id,title,brand\nB1,"Lute &amp; bow",Lyon\nB2,Harp,\n'
RECBOLE = "item_id:token\tmovie_title:token_seq\tbrand:token\nB1\tLute &amp; bow\tLyon\nB2\tHarp\t\n"
MOVIES = "B1::Lute &amp; bow::Comedy|Drama\nB2::Harp::Drama\n"
FILES = {
    "meta.jsonl": "\n".join(map(json.dumps, AMAZON_2018)),
    "meta_Music.json": "\n".join(map(json.dumps, AMAZON_2018)) + "\n",
    "meta_2023.jsonl": "\n".join(map(json.dumps, AMAZON_2023)),
    "music.item": RECBOLE,
    "items.csv": CSV,
    "items.tsv": "id\tname\nB1\tLute &amp; bow\nB2\tHarp\n",
    "movies.dat": MOVIES,
    "movies.csv": "movieId,title,genres\nB1,Lute &amp; bow,Drama\nB2,Harp,\n",
    "u.item": "B1|Lute &amp; bow" + "|0" * 22 + "\nB2|Harp" + "|0" * 22 + "\n",
}


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("name", FILES)
def test_every_layout_gives_the_same_titles(name, packed, tmp_path):
    content = FILES[name].encode()
    path = tmp_path / (name + ".gz" if packed else name)
    path.write_bytes(gzip.compress(content) if packed else content)
    found = read_titles(path)
    assert found.titles == {"B1": "Lute & bow", "B2": "Harp"}
    assert found.brands == ({"B1": "Lyon"} if "Lyon" in FILES[name] else {})
    assert not len(found.bad_rows)
    assert ItemCatalog.from_titles(found.titles).text("B1") == "Lute & bow"


def test_tables_and_columns_of_other_names(tmp_path):
    columns = {"sku": [1, 2], "label": ["Lute", "Harp"]}
    names = {"item": "sku", "title": "label"}
    pa.parquet.write_table(pa.table(columns), tmp_path / "items.parquet")
    for source in (tmp_path / "items.parquet", pa.table(columns), pd.DataFrame(columns), Dataset.from_dict(columns)):
        assert read_titles(source, columns=names).titles == {"1": "Lute", "2": "Harp"}
    with pytest.raises(ValueError, match=r"No column 'item' or .* among \['sku', 'label'\]; name yours with columns="):
        read_titles(pa.table(columns))
    with pytest.raises(ValueError, match=r"`columns` names \['rating'\]"):
        read_titles(pa.table(columns), columns={"rating": "x"})


def test_further_fields(tmp_path):
    columns = {"parent_asin": ["B1", "B2"], "title": ["Lute", "Harp"], "store": ["Lyon", None], "year": [1995, 1996]}
    pa.parquet.write_table(pa.table(columns), tmp_path / "items.parquet")
    (tmp_path / "items.jsonl").write_text(
        '{"parent_asin": "B1", "title": "Lute", "store": "Lyon", "year": 1995}\n'
        '{"parent_asin": "B2", "title": "Harp", "store": null, "year": 1996}\n{"title": "Drum"}\n'
    )
    (tmp_path / "items.item").write_text(
        "item_id:token\ttitle:token_seq\tstore:token\tyear:token\nB1\tLute\tLyon\t1995\nB2\tHarp\t\t1996\n"
    )
    for name in ("items.parquet", "items.jsonl", "items.item"):
        # The brand is read from `store`, which is asked for by its own name too
        found = read_titles(tmp_path / name, fields=["store", "year", "title"], bad_rows="drop")
        assert found.brands == {"B1": "Lyon"}
        assert found.fields == {"B1": {"store": "Lyon", "year": "1995"}, "B2": {"year": "1996"}}
    with pytest.raises(ValueError, match=r"No column 'price' among .*set `fields` to names"):
        read_titles(tmp_path / "items.item", fields=["price"])


LISTS = [
    {"asin": "B1", "title": "Lute", "category": ["Music", None, "Strings"], "about": None},
    {"asin": "B2", "title": "Harp", "category": [], "about": ["Of wood."]},
]


@pytest.mark.parametrize("more", ["", "[1]\n"], ids=["all good", "one line is none"])
def test_lists_of_texts_are_joined(more, tmp_path):
    """In lines that are read at once, in those that are read one by one, and in tables."""
    (tmp_path / "meta.jsonl").write_text("\n".join(map(json.dumps, LISTS)) + "\n" + more)
    pa.parquet.write_table(pa.Table.from_pylist(LISTS), tmp_path / "meta.parquet")
    for source in (tmp_path / "meta.jsonl", tmp_path / "meta.parquet", Dataset.from_list(LISTS)):
        found = read_titles(source, fields=["category", "about"], bad_rows="drop")
        assert found.fields == {"B1": {"category": "Music Strings"}, "B2": {"about": "Of wood."}}
    # Of other kinds, and none of an id or a title
    columns = {"asin": ["B1", "B2"], "title": ["Lute", "Harp"]}
    nested = pa.table(columns | {"category": [[["Music"], ["Lutes"]], None]})
    assert read_titles(nested, fields=["category"]).fields == {"B1": {"category": "Music Lutes"}}
    assert read_titles(pa.table(columns | {"category": [1.5, None]}), fields=["category"]).fields["B1"] == {
        "category": "1.5"
    }
    assert not read_titles(pa.table(columns | {"category": [[], []]}), fields=["category"]).fields
    for wrong in ({"title": [["Gong", "x"], ["y"]]}, {"asin": [["B", "1"], ["B2"]]}):
        with pytest.raises(ValueError, match="2 whose (title|item) is of a wrong type"):
            read_titles(pa.table(columns | wrong))
    with pytest.raises(ValueError, match="2 whose category is of a wrong type"):
        read_titles(pa.table(columns | {"category": [[b"x"], [b"y"]]}), fields=["category"])


def test_lists_of_other_things_are_bad_rows(tmp_path):
    lines = [*LISTS, {"asin": "B3", "title": "Drum", "category": [["Music", "Drums"], "Loud"]}]
    lines += [{"asin": "B4", "title": ["Gong"]}, {"asin": "B5", "title": "Bell", "category": [{"a": "b"}]}]
    (tmp_path / "meta.jsonl").write_text("\n".join(map(json.dumps, lines)))
    with pytest.raises(ValueError, match=r"1 whose title is .* \(line 4\); 1 whose category is .* \(line 5\)"):
        read_titles(tmp_path / "meta.jsonl", fields=["category"])
    found = read_titles(tmp_path / "meta.jsonl", fields=["category"], bad_rows="drop")
    assert found.fields["B3"] == {"category": "Music Drums Loud"}


def test_titles_of_movie_lens_are_latin_1(tmp_path):
    (tmp_path / "movies.dat").write_bytes("1::Misérables, Les (1995)::Drama\n".encode("latin-1"))
    assert read_titles(tmp_path / "movies.dat").titles == {"1": "Misérables, Les (1995)"}


def test_bad_rows_are_counted_and_named_by_line(tmp_path):
    lines = [
        '{"asin": "B1", "title": "Lute"}',
        '{"asin": "B2"}',
        '{"asin": "B3", "title": "<br>"}',
        '{"title": "Harp"}',
        '{"asin": "B1", "title": "Lute"}',  # the same again does no harm
        '{"asin": "B1", "title": "Drum"}',
        '["B4", "Gong"]',
        '{"asin": "B5", "title": ',
    ]
    path = tmp_path / "meta.jsonl"
    path.write_text("\n".join(lines))
    with pytest.raises(ValueError, match="6 bad rows in meta.jsonl") as error:
        read_titles(path)
    for kind, numbers in {
        "without a title": "lines 2, 3", "without an item": "line 4", "another title than a row before": "line 6",
        "no JSON objects": "line 7", "not JSON": "line 8",
    }.items():  # fmt: skip
        assert kind in str(error.value)
        assert f"({numbers})" in str(error.value)
    found = read_titles(path, bad_rows="drop")
    assert (found.titles, len(found.bad_rows)) == ({"B1": "Lute"}, 6)
    assert read_titles(path, items=["B1"], bad_rows="drop").titles == {"B1": "Lute"}
    with pytest.raises(ValueError, match=r"no title for 1 of 2 items: \['B3'\]"):
        read_titles(path, items=["B1", "B3"], bad_rows="drop")


def test_rows_of_other_items_are_passed_over(tmp_path):
    (tmp_path / "items.csv").write_text("item,title\nB1,Lute\nB2,\nB3,Harp\n")
    assert read_titles(tmp_path / "items.csv", items=["B3", "B1"]).titles == {"B1": "Lute", "B3": "Harp"}
    with pytest.raises(ValueError, match=r"1 without a title \(line 3\)"):
        read_titles(tmp_path / "items.csv", items=["B2"])


def test_what_is_no_file_of_titles_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="There is no file"):
        read_titles(tmp_path / "none.csv")
    (tmp_path / "titles.xlsx").write_text("x")
    with pytest.raises(ValueError, match="no ending that is known"):
        read_titles(tmp_path / "titles.xlsx")
    (tmp_path / "items.csv").write_text("item,title\n")
    with pytest.raises(ValueError, match=r"items.csv holds no title"):
        read_titles(tmp_path / "items.csv")
    (tmp_path / "bytes.csv").write_bytes(b"item,title\nB1,\xff\xfe\n")
    with pytest.raises(ValueError, match=r"1 whose title is not UTF-8 \(line 2\)"):
        read_titles(tmp_path / "bytes.csv")
    with pytest.raises(ValueError, match=r"1 whose title is of a wrong type \(row 1\)"):
        read_titles(pa.table({"item": ["a", "b"], "title": [None, [1]]}).slice(0, 2), items=["b"])


def naive_lines(lines):
    """The clean result of JSON lines: one loop, or `None` where any line is bad."""
    titles = {}
    for line in lines:
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError:
            return None
        if not isinstance(row, dict) or not all(isinstance(row.get(name), str) for name in ("asin", "title")):
            return None
        if not isinstance(row.get("brand"), str | None):
            return None
        title = clean_title(row["title"])
        if not row["asin"].strip() or not title or titles.setdefault(row["asin"], title) != title:
            return None
    return titles or None


texts = st.sampled_from(["B1", "B2", "", " ", "Lute", "<b>"])
values = st.one_of(texts, st.none(), st.lists(st.just(1)), st.booleans())
rows = st.dictionaries(st.sampled_from(["asin", "title", "brand", "x"]), values).map(json.dumps)
good = st.fixed_dictionaries({"asin": st.sampled_from(["B1", "B2"]), "title": st.sampled_from(["Lute", "Harp"])})
lines_of_json = st.lists(
    st.one_of(good.map(json.dumps), rows, st.sampled_from(["", "{", "[]", "null", '{"asin": "B1"}{}'])), max_size=6
)


@settings(max_examples=150, deadline=None)
@given(good, lines_of_json)
def test_fuzzed_json_lines_give_the_naive_result_or_name_a_line(first, lines):
    lines = [json.dumps(first), *lines]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "meta.jsonl"
        path.write_text("\n".join(lines))
        expected = naive_lines(lines)
        if expected is not None:
            assert read_titles(path).titles == expected
            return
        with pytest.raises(ValueError, match="line"):
            read_titles(path)


# pyarrow cannot hand over a row of too many fields that is not UTF-8, says so aside, and refuses the file (_csv.pyx)
@pytest.mark.filterwarnings("ignore:Exception ignored in:pytest.PytestUnraisableExceptionWarning")
@settings(max_examples=150, deadline=None)
@given(st.sampled_from(sorted(FILES)), st.binary(max_size=12), st.integers(0, 60), st.booleans())
def test_broken_files_are_refused_with_a_value_error(name, noise, place, cut):
    content = FILES[name].encode()
    broken = content[:place] + noise + (b"" if cut else content[place:])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_bytes(broken)
        try:
            found = read_titles(path)
        except ValueError:
            return
        assert found.titles
        assert all(isinstance(title, str) and title for title in found.titles.values())


VALID = {"index.json": {"0": ["<a_1>"], "1": ["<a_0>"]}, "item.json": {"0": {"title": "Lute"}, "1": {"title": "Harp"}}}
json_values = st.recursive(
    st.one_of(st.none(), st.integers(), st.text(max_size=3)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.sampled_from(["0", "1", "title"]), inner)),
    max_leaves=5,
)


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(sorted(VALID)), st.sampled_from(["semantic_ids", "titles"]), json_values)
def test_lc_rec_files_of_another_form_are_refused_with_a_value_error(name, kind, value):
    with tempfile.TemporaryDirectory() as folder:
        for other, content in VALID.items():
            (Path(folder) / other).write_text(json.dumps(value if other == name else content))
        try:
            catalog = ItemCatalog.from_lc_rec(folder, kind)
        except ValueError:
            return
        assert all(isinstance(text, str) and text for text in catalog.texts)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("index.json", "{", "is not JSON"),
        ("index.json", "[1]", "holds a list, expected an object"),
        (
            "index.json",
            '{"0": ["<a_1>"], "1": "<a_0>"}',
            "1 items of index.json .* the first is '1'",
        ),
        ("item.json", '{"0": {"title": 3}, "1": {}}', "1 items of item.json .* the first is '0'"),
    ],
)
def test_lc_rec_files_of_another_form(name, content, message, tmp_path):
    for other, valid in VALID.items():
        (tmp_path / other).write_text(content if other == name else json.dumps(valid))
    with pytest.raises(ValueError, match=message):
        ItemCatalog.from_lc_rec(tmp_path)
