"""Sources of every format, the options of loading, and what is refused before a row is read."""

import gzip
import json

import pandas as pd
import pyarrow as pa
import pyarrow.parquet
import pytest
from datasets import Dataset

from ilrec_trl import Interactions
from tests.data import interaction_sources as sources


ROWS = [("ann", "i2", 5, 300), ("bob", "i1", 2, 100), ("ann", "i1", 4, 200), ("ann", "i3", 1, 300)]
SEQUENCES = {"ann": ["i1", "i2", "i3"], "bob": ["i1"]}


def as_dict(interactions):
    return dict(zip(interactions.users, interactions.sequences, strict=True))


def write(path, data):
    path.parent.mkdir(parents=True, exist_ok=True)
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "wb") as file:
        file.write(data if isinstance(data, bytes) else data.encode())
    return path


RECBOLE = sources.delimited(ROWS, "\t", "user_id:token\titem_id:token\trating:float\ttimestamp:float")
FILES = {
    "ml.inter": RECBOLE,
    "ratings.dat": sources.delimited(ROWS, "::"),
    "u.data": sources.delimited(ROWS, "\t"),
    "ratings.csv": sources.delimited(ROWS, ",", "userId,movieId,rating,timestamp"),
    "shop.csv.gz": sources.delimited(ROWS, ",", "user,item,rating,time"),
    "shop.tsv": sources.delimited(ROWS, "\t", "user\titem\trating\ttime"),
    "Instruments_5.json.gz": sources.json_lines(ROWS, ["reviewerID", "asin", "overall", "unixReviewTime"]),
    "shop.jsonl": sources.json_lines(ROWS, ["user", "item", "rating", "time"]),
}


class TestFormats:
    @pytest.mark.parametrize("name", FILES)
    def test_text_files(self, tmp_path, name):
        interactions = Interactions.load(write(tmp_path / name, FILES[name]))
        assert as_dict(interactions) == SEQUENCES
        assert interactions.timestamps == [[200, 300, 300], [100]]
        assert as_dict(Interactions.load(str(tmp_path / name), min_rating=4)) == {"ann": ["i1", "i2"]}

    @pytest.mark.parametrize("name", ["ml.inter", "ratings.dat", "u.data", "ratings.csv"])
    def test_folders_with_one_known_file(self, tmp_path, name):
        write(tmp_path / name, FILES[name])
        write(tmp_path / "README.txt", "movies.dat is not here")
        assert as_dict(Interactions.load(tmp_path)) == SEQUENCES

    def test_amazon_2023_counts_milliseconds_and_parents(self, tmp_path):
        names = ["user_id", "parent_asin", "rating", "timestamp"]
        rows = [(user, item, stars, 1_600_000_000_000 + time) for user, item, stars, time in ROWS]
        expected = [[1_600_000_000.2, 1_600_000_000.3, 1_600_000_000.3], [1_600_000_000.1]]
        data = b"".join(
            json.dumps(json.loads(line) | {"asin": "variant"}).encode() + b"\n"
            for line in sources.json_lines(rows, names).splitlines()
        )
        pyarrow.parquet.write_table(sources.table(rows, names), tmp_path / "reviews.parquet")
        for path in (write(tmp_path / "reviews.jsonl", data), tmp_path / "reviews.parquet"):
            interactions = Interactions.load(path)
            assert as_dict(interactions) == SEQUENCES
            assert interactions.timestamps == expected
        assert Interactions.load(tmp_path / "reviews.jsonl", columns={"item": "asin"}).items == ["variant"]

    def test_amazon_2018_as_parquet(self, tmp_path):
        table = sources.table(ROWS, ["reviewerID", "asin", "overall", "unixReviewTime"])
        pyarrow.parquet.write_table(table, tmp_path / "x.parquet")
        assert as_dict(Interactions.load(tmp_path / "x.parquet", min_rating=2)) == {
            "ann": ["i1", "i2"],
            "bob": ["i1"],
        }

    def test_a_folder_of_parquet_is_read_in_the_order_of_names(self, tmp_path):
        table = sources.table(ROWS, ["user", "item", "rating", "time"])
        for place in range(4):
            pyarrow.parquet.write_table(table.slice(place, 1), tmp_path / f"part-{place}.parquet")
        assert as_dict(Interactions.load(tmp_path)) == SEQUENCES

    def test_tables_in_memory(self):
        names = ["user", "item", "rating", "time"]
        table = sources.table(ROWS, names)
        shuffled = Dataset(table.take([3, 1, 2, 0])).select([3, 1, 2, 0])
        frame = table.to_pandas().set_index(pd.Index([7, 7, 8, 9]))
        for source in (table, shuffled, frame, frame.astype({"user": "category", "item": "string"})):
            assert as_dict(Interactions.load(source)) == SEQUENCES
        with pytest.raises(ValueError, match="Got a list; expected a path"):
            Interactions.load([("ann", "i1")])

    def test_mixed_ids_of_a_data_frame(self):
        frame = pd.DataFrame({"user": ["a", 1, 2.5, True], "item": ["x", 2, "y", "z"], "time": [1, 2, 3, 4]})
        with pytest.raises(ValueError, match=r"2 whose user is of a wrong type \(rows 2, 3\)"):
            Interactions.load(frame)
        assert as_dict(Interactions.load(frame, bad_rows="drop")) == {"a": ["x"], "1": ["2"]}

    def test_a_data_set_by_name(self, tmp_path):
        # `load_dataset` takes a folder as it takes a name on the Hub.
        write(tmp_path / "shop" / "test.csv", FILES["ratings.csv"])
        loaded = Interactions.load(str(tmp_path / "shop"), format="hub", split="test")
        assert as_dict(loaded) == SEQUENCES
        with pytest.raises(ValueError, match='Unknown split "train"'):
            Interactions.load(str(tmp_path / "shop"), format="hub")

    def test_mini_one_rec(self, tmp_path):
        header = "user_id:token\titem_id_list:token_seq\titem_id:token"
        parts = {
            "train": [("0", "5", "6"), ("1", "6", "7"), ("0", "5 6", "7")],
            "valid": [("0", "6 7", "8")],  # a history of two at most
            "test": [("1", "6 7", "5"), ("2", "9", "5")],
        }
        for part, rows in parts.items():
            write(tmp_path / f"Games.{part}.inter", sources.delimited(rows, "\t", header))
        interactions = Interactions.load(tmp_path)
        assert as_dict(interactions) == {"0": ["5", "6", "7", "8"], "1": ["6", "7", "5"], "2": ["9", "5"]}
        # The parts come back as a split by time.
        splits = interactions.global_time(1, 2)
        assert splits.validation == [("0", ["5", "6", "7"], "8")]
        assert splits.test == [("1", ["6", "7"], "5"), ("2", ["9"], "5")]
        write(tmp_path / "Games.valid.inter", sources.delimited([("0", "5 9", "8")], "\t", header))
        with pytest.raises(ValueError, match=r"history is not what .* \(line 2 of Games\.valid\.inter\)"):
            Interactions.load(tmp_path)
        (tmp_path / "Games.test.inter").unlink()
        with pytest.raises(FileNotFoundError, match=r"`\*\.test\.inter`"):
            Interactions.load(tmp_path)

    def test_mini_one_rec_csv_and_longest_first(self, tmp_path):
        header = "user_id,history_item_title,history_item_id,item_id,item_sid"
        rows = ["A1,\"['One, two', 'Three']\",\"[1, 2]\",3,<a_1>", "A1,\"['One, two']\",[1],2,<a_0>"]
        write(tmp_path / "train/G.csv", "\n".join([header, *rows]))
        write(tmp_path / "valid/G.csv", header + '\nA1,"[]","[1, 2, 3]",4,x\n')
        write(tmp_path / "test/G.csv", header + "\n")
        assert as_dict(Interactions.load(tmp_path)) == {"A1": ["1", "2", "3", "4"]}


class TestOptions:
    def test_named_columns_units_and_order(self, tmp_path):
        path = write(tmp_path / "x.csv", "who,what,when\nann,i2,3000\nann,i1,1500\n")
        columns = {"user": "who", "item": "what", "time": "when"}
        assert Interactions.load(path, columns=columns, time_unit="ms").timestamps == [[1.5, 3.0]]
        ordered = Interactions.load(path, columns={"user": "who", "item": "what"}, in_order=True)
        assert ordered.sequences == [["i2", "i1"]]
        assert ordered.timestamps is None
        with pytest.raises(
            ValueError, match=r"No column 'user' or .* among \['who', 'what', 'when'\]; name yours with"
        ):
            Interactions.load(path)
        with pytest.raises(ValueError, match="in_order=True"):
            Interactions.load(path, columns={"user": "who", "item": "what"})
        with pytest.raises(ValueError, match=r"names \['users'\]; expected some of user, item"):
            Interactions.load(path, columns={"users": "who"})
        with pytest.raises(ValueError, match="cannot be two things at once"):
            Interactions.load(path, columns=columns | {"item": "who"})
        with pytest.raises(ValueError, match="time_unit='h'; expected one of s, ms"):
            Interactions.load(path, columns=columns, time_unit="h")

    @pytest.mark.parametrize("zone", ["", "Z", "+00:00"])
    def test_dates_as_text(self, tmp_path, zone):
        lines = [f"a,x,1970-01-01T00:00:10{zone}", f"a,y,1970-01-01 00:00:05{zone}", "a,z,1970-02-30", "a,w,7"]
        path = write(tmp_path / "x.csv", "\n".join(["user,item,date", *lines]))
        with pytest.raises(ValueError, match=r"2 whose time is no date like the first ones \(lines 4, 5\)"):
            Interactions.load(path)
        assert Interactions.load(path, bad_rows="drop").timestamps == [[5.0, 10.0]]

    def test_columns_of_dates(self):
        dates = pd.to_datetime(["1970-01-03", "1970-01-02"])
        for column in (pa.array(dates.date), pa.array(dates), pa.array(dates).cast(pa.timestamp("ns", "UTC"))):
            table = pa.table({"user": ["a", "a"], "item": [1, 2], "time": column})
            assert Interactions.load(table).timestamps == [[86400.0, 172800.0]]

    def test_whole_numbers_beyond_a_float_keep_their_order(self):
        moments = [2**53 + 1, 2**53, 2**53 + 2]
        for column in (pa.array(moments), pa.array(map(str, moments))):
            table = pa.table({"user": ["a"] * 3, "item": ["2", "1", "3"], "time": column})
            assert Interactions.load(table, time_unit="ns").sequences == [["1", "2", "3"]]

    def test_unknown_items(self, tmp_path):
        path = write(tmp_path / "u.data", FILES["u.data"])
        with pytest.raises(ValueError, match=r"2 bad rows in u\.data: 2 of an unknown item \(lines 2, 3\)"):
            Interactions.load(path, items=["i2", "i3"])
        assert as_dict(Interactions.load(path, items={"i2", "i3"}, bad_rows="drop")) == {"ann": ["i2", "i3"]}
        write(tmp_path / "inter.json", json.dumps(SEQUENCES))
        with pytest.raises(ValueError, match="unknown item .users 'ann' entry 0, 'bob' entry 0"):
            Interactions.load(tmp_path / "inter.json", items=["i2", "i3"])
        Interactions.load(path).save(tmp_path / "saved")
        with pytest.raises(ValueError, match="1 items of .* are unknown, such as 'i1'"):
            Interactions.load(tmp_path / "saved", items=["i2", "i3"])

    def test_ratings_that_are_missing_or_wrong(self, tmp_path):
        path = write(tmp_path / "x.csv", "user,item,rating,time\na,x,,1\na,y,good,2\na,z,5,3\n")
        assert Interactions.load(path).num_interactions == 3  # not looked at
        with pytest.raises(ValueError, match=r"1 without a rating \(line 2\); 1 whose rating is no number \(line 3\)"):
            Interactions.load(path, min_rating=3)
        with pytest.raises(ValueError, match="no interactions rated 6 or higher"):
            Interactions.load(path, min_rating=6, bad_rows="drop")
        with pytest.raises(ValueError, match="no columns, ratings or units"):
            Interactions.load(write(tmp_path / "inter.json", json.dumps(SEQUENCES)), min_rating=3)

    def test_dropped_rows_are_counted_named_and_logged(self, tmp_path, caplog):
        lines = ["a,x,1", ",x,2", "a,,3", "a,y,", "a,y", "", "a,y,soon", "a,y,4"] + ["a"] * 7
        path = write(tmp_path / "x.csv", "\n".join(["user,item,time", *lines]))
        loaded = Interactions.load(path, bad_rows="drop")
        assert loaded.sequences == [["x", "y"]]
        assert loaded.bad_rows.counts == {
            "without 3 fields": 8,
            "without a user": 1,
            "without an item": 1,
            "without a time": 1,
            "whose time is no number": 1,
        }
        assert len(loaded.bad_rows) == 12
        assert loaded.bad_rows.numbers["whose time is no number"].tolist() == [8]
        assert "12 bad rows in x.csv: 8 without 3 fields (lines 6, 10, 11, 12, 13 and 3 more)" in caplog.text
        with pytest.raises(ValueError, match="bad_rows='skip'; expected"):
            Interactions.load(path, bad_rows="skip")

    @pytest.mark.parametrize(
        ("column", "message"),
        [
            ({"user": [1.0, 2.0]}, "are floats: 12 would become"),
            ({"user": [True, False]}, "of type bool; expected text or whole numbers"),
            ({"item": [["x"], ["y"]]}, "of type list"),
            ({"time": [True, False]}, "'time' is of type bool; expected numbers or dates"),
            ({"user": [None, None]}, r"2 without a user \(rows 0, 1\)"),
            ({"time": [None, None]}, r"2 without a time \(rows 0, 1\)"),
        ],
    )
    def test_columns_of_a_wrong_type(self, column, message):
        table = pa.table({"user": ["a", "b"], "item": ["x", "y"], "time": [1, 2]} | column)
        with pytest.raises(ValueError, match=message):
            Interactions.load(table)


class TestRefusals:
    def test_paths(self, tmp_path):
        with pytest.raises(FileNotFoundError, match='There is no file or folder .* needs format="hub"'):
            Interactions.load("someone/reviews")
        with pytest.raises(
            ValueError, match=r"holds nothing that is known by its name \(interactions.json, inter.json"
        ):
            Interactions.load(tmp_path)
        path = write(tmp_path / "x.xlsx", b"PK")
        with pytest.raises(ValueError, match="no ending that is known; give `format`, one of saved, lc_rec"):
            Interactions.load(path)
        with pytest.raises(ValueError, match="format='excel'; expected one of"):
            Interactions.load(path, format="excel")

    @pytest.mark.parametrize(
        ("name", "data", "message"),
        [
            ("x.csv", b"", "line 1: expected a header"),
            ("x.csv", b"user,item,time\n", "has no interactions"),
            ("x.csv", b"us\xffer,item,time\na,b,1\n", "line 1: the header is not UTF-8"),
            ("x.csv", b"user,item,user,time\n", "line 1: the header names 'user' more than once"),
            ("ratings.dat", b"", "is empty"),
            ("x.jsonl", b"", "does not begin with lines of JSON"),
            ("x.jsonl", b"null\n" * 3, "does not begin with lines of JSON"),
            ("x.jsonl", b'[{"user": 1}]', "does not begin with lines of JSON"),
            ("x.parquet", b"PAR1", "no Parquet file"),
            ("x.csv.gz", b"not packed", "broken gzip file .* line 0"),
            ("inter.json", b'{"a": [1], "a": [2]}', "user 'a' appears more than once"),
            ("inter.json", b'{"a": [1\n, \xff]}', "line 2: not UTF-8"),
            ("inter.json", b'{"a": [1],\n"b": }', "not JSON: Expecting value: line 2"),
            ("inter.json", b"[" * 100_000, "not JSON"),
        ],
    )
    def test_files_that_are_nothing(self, tmp_path, name, data, message):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(ValueError, match=message):
            Interactions.load(tmp_path / name)

    def test_null_among_json_lines(self, tmp_path):
        good = b'{"user": "a", "item": "x", "time": 1}\n'
        for line in (b"null\n", b'{"user": "b"} null\n', b"nullx\n"):
            path = write(tmp_path / "x.jsonl", good + line + good)
            with pytest.raises(ValueError, match="not JSON|no JSON objects"):
                Interactions.load(path)
            assert Interactions.load(path, bad_rows="drop").num_interactions == 2
