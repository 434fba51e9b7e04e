"""
Every loader against files that were valid once: a loader gives what a reader finds that goes row by row, or says which
rows are bad, by number; it neither loses a row in silence nor fails in another way.
"""

import csv
import gzip
import io
import json
import math
import re
from itertools import islice

import pandas as pd
import pyarrow.parquet
import pytest
from datasets import Dataset
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from ilrec_trl import Interactions
from tests.data import interaction_sources as sources


FAST = settings(
    max_examples=25, deadline=None, database=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
PIECES = [b"\n", b"\r\n", b"\n\n", b"\t", b",", b":", b"::", b"\xff", b"x", b"5", b" ", b"-", b".", b"e9", b"{", b"}",
          b"null", b"\xc3", b"'", b"[", b"]", b"NaN",
          b"0x1", b"true", b'\\ud800']  # fmt: skip

rows = st.lists(
    st.tuples(st.sampled_from("abcä"), st.sampled_from(["B1", "B2", "é", "7"]), st.integers(1, 5), st.integers(0, 9)),
    min_size=2,
    max_size=8,
)
edits = st.lists(
    st.tuples(st.sampled_from(["insert", "delete", "replace", "cut"]), st.floats(0, 0.999), st.sampled_from(PIECES)),
    max_size=3,
)


def mutate(data, changes, start=0):
    """Change bytes after the first `start`."""
    for kind, where, piece in changes:
        place = start + int(where * (len(data) - start))
        if kind == "insert":
            data = data[:place] + piece + data[place:]
        elif kind == "replace":
            data = data[:place] + piece + data[place + len(piece) :]
        elif kind == "delete":
            data = data[:place] + data[place + 1 :]
        else:
            data = data[:place] + data[place + 7 :]
    return data


def sequences_of(interactions):
    return {
        user: list(zip(times, items, strict=True))
        for user, items, times in zip(interactions.users, interactions.sequences, interactions.timestamps, strict=True)
    }


def check(source, twin, **options):
    """The loader agrees with its twin, stops at bad rows naming the first, and drops all of them if told to."""
    if twin.bad:
        with pytest.raises(
            ValueError, match=rf"(line|row|record)s? ([\d, ]*\b)?{twin.bad[0]}\b|begin with lines of JSON"
        ):
            Interactions.load(source, **options)
    elif not twin.rows:
        with pytest.raises(ValueError, match=r"has no interactions|begin with lines of JSON"):
            Interactions.load(source, **options)
    else:
        assert sequences_of(Interactions.load(source, **options)) == twin.sequences()
    if twin.bad and twin.rows:
        loaded = Interactions.load(source, bad_rows="drop", **options)
        assert sequences_of(loaded) == twin.sequences()
        assert list(loaded.users) == list(twin.sequences())
        assert sorted(number for numbers in loaded.bad_rows.numbers.values() for number in numbers) == twin.bad


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz")


def write(path, data):
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "wb") as file:
        file.write(data)
    return path


LINES = {
    "recbole": ("x.inter", "\t", "user_id:token\titem_id:token\trating:float\ttimestamp:float"),
    "movielens": ("ratings.dat", "::", None),
    "movielens 100k": ("u.data", "\t", None),
    "tsv": ("x.tsv.gz", "\t", "user\titem\tstars\ttime"),
}


@FAST
@pytest.mark.parametrize("case", LINES)
@given(rows=rows, changes=edits)
def test_lines_of_fields(case, folder, rows, changes):
    name, delimiter, header = LINES[case]
    data = mutate(sources.delimited(rows, delimiter, header), changes, len(header) + 1 if header else 0)
    twin = sources.delimited_twin(data, delimiter, 4, (0, 1, 3), header)
    check(write(folder / name, data), twin)


@FAST
@pytest.mark.parametrize("header", ["user,item,stars,time", "userId,movieId,rating,timestamp"])
@given(rows=rows, changes=edits, quotes=st.lists(st.floats(0, 0.999), max_size=3))
@example(rows=[("a", "7", 3, 2), ("ä", "B1", 2, 1)], changes=[("insert", 0.5, b"\r\n")] * 2, quotes=[])  # "\r\r\n\n"
def test_csv(folder, header, rows, changes, quotes):
    changes = [*changes, *(("insert", where, b'"') for where in quotes)]
    data = mutate(sources.delimited(rows, ",", header), changes, len(header) + 1)
    if quotes:  # a mark in the middle of a character, taken out again, would make it whole
        data = data.decode(errors="ignore").encode()
    path, twin = write(folder / "x.csv", data), sources.csv_twin(data, (0, 1, 3), 4)
    if twin is None:
        with pytest.raises(ValueError, match=r"quotation marks of the row that ends at line \d+ do not match"):
            Interactions.load(path)
    else:
        check(path, twin)


def attempt(source):
    """What is loaded, or the message of the refusal."""
    try:
        return Interactions.load(source), ""
    except ValueError as error:
        return None, str(error)


AMAZON = {
    "2018": ("reviews.json.gz", ["reviewerID", "asin", "overall", "unixReviewTime"], 1),
    "2023": ("reviews.jsonl", ["user_id", "parent_asin", "rating", "timestamp"], 1000),
}


@FAST
@pytest.mark.parametrize("year", AMAZON)
@given(rows=rows, changes=edits)
def test_amazon_json_lines(year, folder, rows, changes):
    name, names, per_second = AMAZON[year]
    data = mutate(sources.json_lines(rows, names), changes)
    twin = sources.json_twin(data, (names[0], names[1], names[3]), per_second)
    path = write(folder / name, data)
    if "No column" not in attempt(path)[1]:  # the few lines of a fuzzed file may lack a field altogether
        check(path, twin)


@FAST
@pytest.mark.parametrize("case", [*LINES, *AMAZON, "parquet"])
@given(rows=rows, where=st.floats(0, 0.99))
def test_a_packed_file_cut_short_is_refused(case, folder, rows, where):
    path = folder / "cut" / "x.parquet"
    path.parent.mkdir(exist_ok=True)
    if case == "parquet":
        pyarrow.parquet.write_table(sources.table(rows, ["user", "item", "rating", "time"]), path)
    elif case in LINES:
        name, delimiter, header = LINES[case]
        path = write(path.with_name(name.removesuffix(".gz") + ".gz"), sources.delimited(rows, delimiter, header))
    else:
        name, names, _ = AMAZON[case]
        path = write(path.with_name(name.removesuffix(".gz") + ".gz"), sources.json_lines(rows, names))
    path.write_bytes(path.read_bytes()[: int(where * path.stat().st_size)])
    with pytest.raises(ValueError, match=r"line \d|line 1|no Parquet file|no interactions"):
        Interactions.load(path)


cells = st.lists(
    st.tuples(
        st.sampled_from(["a", "b", "ä", "", None]),
        st.sampled_from(["B1", "B2", "é", "", None]),
        st.integers(1, 5),
        st.sampled_from([0.5, 1.0, 2.0, 3.0, math.nan, math.inf, None]),
    ),
    min_size=1,
    max_size=8,
)


@FAST
@pytest.mark.parametrize("kind", ["parquet", "folder of parquet", "pyarrow", "pandas", "datasets"])
@given(cells=cells)
def test_tables(folder, kind, cells):
    names = ["user", "item", "rating", "time"]
    table, twin = sources.table(cells, names), sources.cell_twin(cells, (0, 1, 3))
    table = table.cast(
        pyarrow.schema([("user", "string"), ("item", "string"), ("rating", "int64"), ("time", "double")])
    )
    source, options = table, {}
    if kind == "parquet":
        source = folder / "one" / "x.parquet"
        source.parent.mkdir(exist_ok=True)
        pyarrow.parquet.write_table(table, source)
    if kind == "folder of parquet":
        source = folder / "several"
        source.mkdir(exist_ok=True)
        for number in range(2):
            pyarrow.parquet.write_table(
                table.slice(number * 3, 3 if not number else None), source / f"{number}.parquet"
            )
    if kind == "pandas":
        source = pd.DataFrame(dict(zip(names, map(list, zip(*cells, strict=True)), strict=True)))
    if kind == "datasets":
        # An order of its own, as after shuffling.
        source = Dataset(table).select(range(len(cells)))
    check(source, twin, **options)


def lc_rec_twin(text):
    pairs = json.loads(text, object_pairs_hook=tuple)
    if not isinstance(pairs, tuple) or not all(isinstance(items, list) for _, items in pairs):
        raise ValueError("form")
    if len({user for user, _ in pairs}) < len(pairs):
        raise ValueError("repeated")
    good = {
        user: [str(item) for item in items if type(item) in (str, int) and item != ""] for user, items in pairs if user
    }
    bad = sum(max(1, len(items)) if not user else len(items) - len(good[user]) + (not items) for user, items in pairs)
    return {user: items for user, items in good.items() if items}, bad


@FAST
@given(rows=rows, changes=edits)
def test_lc_rec(folder, rows, changes):
    sequences = {}
    for user, item, stars, _ in rows:
        sequences.setdefault(user, []).append(item if stars > 2 else stars)
    data = mutate(json.dumps(sequences, ensure_ascii=False).encode(), changes)
    path = write(folder / "inter.json", data)
    try:
        expected, bad = lc_rec_twin(data.decode())
        json.dumps(expected, ensure_ascii=False).encode()
    except ValueError:
        with pytest.raises(ValueError, match=r"inter\.json"):
            Interactions.load(path)
        return
    if bad:
        with pytest.raises(ValueError, match=rf"{bad} bad rows? in inter\.json.*user"):
            Interactions.load(path)
    if not expected:
        with pytest.raises(ValueError, match=r"bad row|no interactions"):
            Interactions.load(path, bad_rows="drop")
        return
    loaded = Interactions.load(path, bad_rows="drop")
    assert dict(zip(loaded.users, loaded.sequences, strict=True)) == expected
    assert len(loaded.bad_rows) == bad


def windows(rows, limit, falling):
    """MiniOneRec's rows of each user: up to `limit` items and the one after them, and the users' whole sequences."""
    sequences, lines = {}, []
    for user, item, _, _ in rows:
        sequences.setdefault(user, []).append(item)
    for user, items in sequences.items():
        mine = [(user, items[max(0, end - limit) : end], items[end]) for end in range(1, len(items))]
        lines += mine[::-1] if falling else mine
    return lines, {user: items for user, items in sequences.items() if len(items) > 1}


MINI = {
    "inter": ("mini/x.{}.inter", "user_id:token\titem_id_list:token_seq\titem_id:token", "{0}\t{1}\t{2}"),
    "csv": ("mini-csv/{}/x.csv", "user_id,history_item_title,history_item_id,item_id", '{0},"a, b","{1}",{2}'),
}


def windows_of(data, layout):
    """(user, history, item) of each line, read naively; None for a line that is none."""
    text = data.decode("latin-1")
    lines = (line.split("\t") for line in re.split(r"\r\n|\r|\n", text))
    # A line may end inside quotation marks
    for fields in islice(lines if layout == "inter" else csv.reader(io.StringIO(text, newline="")), 1, None):
        if not any(fields):
            if len(fields) > 1:
                yield None
            continue
        try:
            user, past, item = (fields[place].encode("latin-1").decode() for place in (0, -2, -1))
        except (ValueError, IndexError):
            yield None
            continue
        history = [one for one in re.split(r"[\[\]'\",\s]+", past) if one]
        yield (user, history, item) if user and item and len(fields) == (3 if layout == "inter" else 4) else None


def joined(parts):
    """The users' sequences, or None where a history is not what came before it."""
    sequences = {}
    for mine in parts:
        users = dict.fromkeys(user for user, _, _ in mine)
        for user in users:
            rows_of_user = [row for row in mine if row[0] == user]
            if len(rows_of_user[0][1]) > len(rows_of_user[-1][1]):
                rows_of_user.reverse()
            for _, history, item in rows_of_user:
                sequence = sequences.setdefault(user, list(history))
                if len(history) > len(sequence) or sequence[len(sequence) - len(history) :] != history:
                    return None
                sequence.append(item)
    return sequences


LINE_END_IN_QUOTES = {
    "rows": [("c", "B1", 1, 0), *[("a", "B1", 1, 0)] * 3, *[("b", "7", 1, 0)] * 2, ("c", "B1", 1, 0)],
    "changes": [("insert", 0.171875, b"\n")],
    "falling": True,
}


@FAST
@pytest.mark.parametrize("layout", MINI)
@given(rows=rows, changes=edits, falling=st.booleans())
@example(**LINE_END_IN_QUOTES)
def test_mini_one_rec(layout, folder, rows, changes, falling):
    lines, sequences = windows(rows, 3, falling)
    cut = len(lines) if falling else len(lines) - len(lines) // 3
    parts = {"train": lines[:cut], "valid": lines[cut : cut + 1], "test": lines[cut + 1 :]}
    name, header, form = MINI[layout]
    found = []
    for part, mine in parts.items():
        text = "\n".join([header, *(form.format(user, " ".join(past), item) for user, past, item in mine)]) + "\n"
        data = mutate(text.encode(), changes if part == "train" else [], len(header) + 1)
        path = folder / name.format(part)
        path.parent.mkdir(exist_ok=True, parents=True)
        write(path, data)
        found.append(list(windows_of(data, layout)))
    expected = None if any(row is None for mine in found for row in mine) else joined(found)
    loaded, error = attempt(folder / name.split("/")[0])
    if not changes:
        assert expected == sequences
    if "quotation marks" in error:
        assert layout == "csv"
    elif not expected:
        assert loaded is None
        assert re.search(r"\d+ of x|no interactions|line", error)
    else:
        assert dict(zip(loaded.users, loaded.sequences, strict=True)) == expected
        first = set(loaded.columns.offsets.tolist())
        asked = [time for place, time in enumerate(loaded.columns.times) if place not in first]
        if not changes:  # where windows of the training part are lost, validation tells of their items first
            assert asked.count(1.0) == len(parts["valid"])
