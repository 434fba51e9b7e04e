"""LC-Rec's and MiniOneRec's files: what is written is read again, exactly."""

import gzip
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ilrec_trl import ItemCatalog
from ilrec_trl.items.semantic_id_files import read_index, write_lc_rec, write_minionerec
from ilrec_trl.items.titles import clean_title


INDEX = {"7": ["<a_1>", "<b_0>"], "x y": ["<a_0>", "<b_12>"]}
ITEMS = {"7": {"title": "Pen &amp; ink\t2", "brand": "B"}, "x y": {"title": "Übel"}}
TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1)
WORD = TEXT.filter(lambda text: len(text.split()) == 1 and text == text.strip())
CODES = st.lists(st.integers(0, 300), min_size=1, max_size=4).map(
    lambda codes: [f"<{letter}_{code}>" for letter, code in zip("abcd", codes, strict=False)]
)


@settings(deadline=None)
@given(st.dictionaries(TEXT, st.tuples(CODES, TEXT), min_size=1))
def test_lc_rec_round_trip(tmp_path_factory, items):
    folder = tmp_path_factory.mktemp("lc-rec")
    index = {item: codes for item, (codes, _) in items.items()}
    write_lc_rec(folder, index, {item: {"title": title} for item, (_, title) in items.items()}, name="Arts")
    assert read_index(folder / "Arts.index.json") == index
    catalog = ItemCatalog.from_lc_rec(folder)
    assert dict(zip(catalog.item_ids, catalog.semantic_ids, strict=True)) == index


@settings(deadline=None)
@given(st.dictionaries(WORD, st.tuples(CODES, TEXT.filter(clean_title)), min_size=1))
def test_minionerec_round_trip(tmp_path_factory, items):
    folder = tmp_path_factory.mktemp("minionerec")
    index = {item: codes for item, (codes, _) in items.items()}
    write_minionerec(folder, "Arts", index, {item: {"title": title} for item, (_, title) in items.items()})
    lines = (folder / "info" / "Arts.txt").read_text(encoding="utf-8").removesuffix("\n").split("\n")
    assert [line.split("\t") for line in lines] == [
        ["".join(codes), clean_title(title), item] for item, (codes, title) in items.items()
    ]
    assert read_index(folder / "Arts.index.json") == index


def test_the_lines_of_minionerec(tmp_path):
    index = {"7": INDEX["7"]}
    write_minionerec(tmp_path, "Arts", index, ITEMS)
    assert (tmp_path / "info" / "Arts.txt").read_text() == "<a_1><b_0>\tPen & ink 2\t7\n"
    with pytest.raises(ValueError, match="Item 'x y' .*white space"):
        write_minionerec(tmp_path, "Arts", INDEX, ITEMS)
    with pytest.raises(ValueError, match="Item '7' has no title"):
        write_minionerec(tmp_path, "Arts", index, {})


def test_compressed_and_bad_index_files(tmp_path):
    with gzip.open(tmp_path / "index.json.gz", "wt") as file:
        json.dump(INDEX, file)
    assert read_index(tmp_path / "index.json.gz") == INDEX
    for content, message in (
        ("[1]", "holds a list"),
        ("{", "is not JSON"),
        ('{"1": []}', "item '1' has"),
        ('{"1": "<a_1>"}', "expected a list of tokens"),
        ('{"1": ["<a_1>", ""]}', "item '1'"),
    ):
        (tmp_path / "bad.json").write_text(content)
        with pytest.raises(ValueError, match=message):
            read_index(tmp_path / "bad.json")
