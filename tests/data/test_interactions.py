import gzip
import json
import time
from pathlib import Path

import pandas as pd
import pytest

from ilrec_trl import Interactions
from ilrec_trl.data.splits import NextItemExample, Splits, UserSequence


INSTRUMENTS = Path(__file__).parents[2] / ".." / "shared" / "data" / "instruments"


class TestInteractionsLoading:
    def test_integers_become_strings_and_repeats_count(self):
        interactions = Interactions.from_sequences({7: [2, 10, 2], "x": [10]})
        assert interactions.users == ["7", "x"]
        assert interactions.sequences == [["2", "10", "2"], ["10"]]
        assert interactions.items == ["10", "2"]
        assert interactions.num_interactions == 4
        assert len(interactions) == 2

    @pytest.mark.parametrize("name", ["inter.json", "inter.json.gz", "Games.inter.json", "Games.inter.json.gz"])
    def test_lc_rec_folder_under_each_name(self, tmp_path, name):
        opener = gzip.open if name.endswith(".gz") else open
        with opener(tmp_path / name, "wt") as file:
            json.dump({"0": [5, 6]}, file)
        assert Interactions.load(tmp_path, format="lc_rec").sequences == [["5", "6"]]

    def test_lc_rec_folder_refuses_nothing_several_and_other_forms(self, tmp_path):
        with pytest.raises(FileNotFoundError, match="expected `inter.json`"):
            Interactions.load(tmp_path, format="lc_rec")
        (tmp_path / "inter.json").write_text("[1, 2]")
        with pytest.raises(ValueError, match="not of the form"):
            Interactions.load(tmp_path, format="lc_rec")
        (tmp_path / "a.inter.json").write_text("{}")
        with pytest.raises(ValueError, match=r"holds a\.inter\.json, inter\.json"):
            Interactions.load(tmp_path, format="lc_rec")

    def test_dataframe_is_sorted_by_time_and_ties_keep_their_order(self):
        frame = pd.DataFrame(
            {"user": ["a", "b", "a", "a"], "item": [1, 2, 3, 4], "timestamp": [30, 5, 10, 30]},
        )
        interactions = Interactions.load(frame)
        assert interactions.users == ["a", "b"]
        assert interactions.sequences == [["3", "1", "4"], ["2"]]
        assert interactions.timestamps == [[10.0, 30.0, 30.0], [5.0]]

    def test_dates_become_seconds_whatever_their_resolution(self):
        dates = pd.to_datetime(["2020-01-01 00:00:02", "2020-01-01 00:00:01"])
        for resolution in ("s", "us", "ns"):
            frame = pd.DataFrame({"user": [1, 1], "item": [1, 2], "timestamp": dates.as_unit(resolution)})
            interactions = Interactions.load(frame)
            assert interactions.timestamps == [[1577836801.0, 1577836802.0]]
            assert interactions.sequences == [["2", "1"]]

    def test_dataframe_refusals(self):
        frame = pd.DataFrame({"user": [1.0, 2.0], "item": ["a", None], "time": [1, 2]})
        with pytest.raises(ValueError, match=r"No column 'timestamp' among \['user', 'item', 'time'\]"):
            Interactions.load(frame, columns={"time": "timestamp"})
        with pytest.raises(ValueError, match="'user' are floats"):
            Interactions.load(frame, columns={"time": "time"})
        with pytest.raises(ValueError, match=r"1 bad row in the table: 1 without an item \(row 1\)"):
            Interactions.load(frame.astype({"user": int}))

    def test_constructor_refusals(self):
        with pytest.raises(ValueError, match="2 users and 1 sequences"):
            Interactions(["a", "b"], [["1"]])
        with pytest.raises(ValueError, match="'a' appears more than once"):
            Interactions(["a", "a"], [["1"], ["2"]])
        with pytest.raises(ValueError, match="1 users have no items, the first is 'b'"):
            Interactions.from_sequences({"a": ["1"], "b": []})
        with pytest.raises(ValueError, match="one time for every interaction"):
            Interactions(["a"], [["1", "2"]], [[1.0]])
        with pytest.raises(ValueError, match="'a' are not in order"):
            Interactions(["a"], [["1", "2"]], [[2.0, 1.0]])
        with pytest.raises(ValueError, match="'a' are not in order"):
            Interactions(["a"], [["1", "2"]], [[2.0, float("nan")]])
        for wrong in (None, 1.5, True, ("1",)):
            with pytest.raises(ValueError, match="expected ids that are text or whole numbers"):
                Interactions.from_sequences({"a": ["1", wrong]})
        with pytest.raises(ValueError, match="is not valid UTF-8"):
            Interactions.from_sequences({"a": ["\ud800"]})


class TestInteractionsCleaning:
    def test_filter_counts_after_removal_and_keeps_times_aligned(self):
        interactions = Interactions(["a", "b"], [["1", "2", "2", "1"], ["2", "3"]], [[1, 2, 3, 4], [5, 6]])
        kept = interactions.filter(items={"1", "2"}, min_items=2, drop_repeats=True)
        assert kept.users == ["a"]
        assert kept.sequences == [["1", "2", "1"]]
        assert kept.timestamps == [[1, 2, 4]]
        assert interactions.filter(users=["b"]).sequences == [["2", "3"]]

    def test_repeat_is_judged_after_removal(self):
        interactions = Interactions.from_sequences({"a": ["1", "9", "1"]})
        assert interactions.filter(items=["1"], drop_repeats=True).sequences == [["1"]]

    def test_k_core_needs_several_rounds(self):
        # Item 4 goes first; then user d has one item left and goes; then item 3 has one user left and goes.
        interactions = Interactions.from_sequences(
            {"a": ["1", "2"], "b": ["2", "1"], "c": ["1", "2", "3"], "d": ["3", "4"]}
        )
        core = interactions.k_core(2)
        assert core.users == ["a", "b", "c"]
        assert core.sequences == [["1", "2"], ["2", "1"], ["1", "2"]]
        with pytest.raises(ValueError, match="4-core is empty"):
            interactions.k_core(4)


class TestInteractionsSplits:
    def test_leave_one_out(self):
        splits = Interactions.from_sequences({"a": "1234", "b": "567"}).leave_one_out()
        assert splits.train == [UserSequence("a", ["1", "2"]), UserSequence("b", ["5"])]
        assert splits.validation == [NextItemExample("a", ["1", "2"], "3"), NextItemExample("b", ["5"], "6")]
        assert splits.test == [NextItemExample("a", ["1", "2", "3"], "4"), NextItemExample("b", ["5", "6"], "7")]
        assert splits.train_examples() == [NextItemExample("a", ["1"], "2")]

    def test_short_users_are_refused_or_listed(self):
        interactions = Interactions.from_sequences({"a": "123", "b": "45", "c": "6"})
        with pytest.raises(
            ValueError, match=r"2 users have fewer than 3 items, the first is 'b'.*filter\(min_items=3\)"
        ):
            interactions.leave_one_out()
        splits = interactions.leave_one_out(short_users="train")
        assert splits.users_without_test == ["b", "c"]
        assert splits.train[1:] == [UserSequence("b", ["4", "5"]), UserSequence("c", ["6"])]
        assert len(splits.test) == 1
        with pytest.raises(ValueError, match="short_users='drop'"):
            interactions.leave_one_out(short_users="drop")

    def test_global_time_accounts_for_every_interaction(self):
        interactions = Interactions(
            ["a", "b", "c", "d"],
            [["1", "2", "3", "4"], ["5", "6"], ["7", "8"], ["9"]],
            [[1, 10, 20, 21], [1, 2], [12, 30], [25]],
        )
        splits = interactions.global_time(10, 20)
        assert splits.train == [UserSequence("a", ["1"]), UserSequence("b", ["5", "6"])]
        assert splits.validation == [NextItemExample("a", ["1"], "2")]
        assert splits.test == [
            NextItemExample("a", ["1", "2"], "3"),
            NextItemExample("a", ["1", "2", "3"], "4"),
            NextItemExample("c", ["7"], "8"),
        ]
        assert splits.without_history == [("c", "7"), ("d", "9")]
        assert splits.users_without_test == ["b"]
        asked = len(splits.validation) + len(splits.test) + len(splits.without_history)
        assert sum(len(items) for _, items in splits.train) + asked == interactions.num_interactions

    def test_global_time_refusals(self):
        with pytest.raises(ValueError, match="needs timestamps"):
            Interactions.from_sequences({"a": "123"}).global_time(1, 2)
        timed = Interactions(["a"], [["1", "2", "3"]], [[1, 2, 3]])
        with pytest.raises(ValueError, match="test must be later"):
            timed.global_time(2, 2)
        with pytest.raises(ValueError, match=r"\(1, 2, 0\) entries"):
            timed.global_time(2, 9)
        with pytest.raises(ValueError, match="either `validation_start` and `test_start`, or"):
            timed.global_time(2, test_share=0.1)
        with pytest.raises(ValueError, match="expected shares above 0 that leave some"):
            timed.global_time(validation_share=0.5, test_share=0.5)
        with pytest.raises(ValueError, match="no interactions to split"):
            timed.filter(users=[]).global_time(1, 2)
        # However small its share, test has the latest moment.
        assert timed.global_time(validation_share=0.4, test_share=1e-9).test == [("a", ["1", "2"], "3")]

    def test_moments_as_dates(self):
        day = 86_400
        timed = Interactions(["a"], [["1", "2", "3"]], [[0, day, 2 * day]])
        splits = timed.global_time("1970-01-02", "1970-01-03T01:00+01:00")
        assert (splits.validation[0].item, splits.test[0].item) == ("2", "3")
        with pytest.raises(ValueError, match="Got the time '2.1.1970'; expected a date such as"):
            timed.global_time("2.1.1970", "1970-01-03")
        milliseconds = Interactions(["a"], [["1", "2"]], [[1.6e12, 1.7e12]])
        with pytest.raises(ValueError, match='needs times in seconds.*`time_unit`, such as "ms"'):
            milliseconds.filter(start="2020-01-01")
        with pytest.raises(ValueError, match="needs timestamps"):
            Interactions.from_sequences({"a": "12"}).filter(end=5)
        with pytest.raises(ValueError, match="have no times"):
            Interactions.from_sequences({"a": "12"}).filter(drop_repeats="exact")
        with pytest.raises(ValueError, match="drop_repeats='all'; expected False"):
            timed.filter(drop_repeats="all")
        with pytest.raises(ValueError, match="min_items=1 and max_items=0"):
            timed.filter(max_items=0)


def test_the_history_of_one_user_is_found_without_lists_of_all(tmp_path):
    users, items = 25_000, 5_000
    made = Interactions.from_sequences({f"u{n}": [f"i{(n * 7 + k) % items}" for k in range(8)] for n in range(users)})
    made.save(tmp_path)
    saved = Interactions.load(tmp_path)
    seconds = []
    for user in ("u24999", "u0", "u12345"):
        start = time.perf_counter()
        history = saved.history(user)
        seconds.append(time.perf_counter() - start)
        assert history == made.sequences[made.users.index(user)]
    assert min(seconds) < 0.02
    assert "names" not in saved.columns.__dict__  # nor were all item ids made
    assert Interactions.from_sequences({7: [1, 2]}).history("7") == ["1", "2"]
    with pytest.raises(
        ValueError, match=r"user 'ann', who is not among the 25000 users\. Ids look like 'u0', 'u1', 'u2'"
    ):
        saved.history("ann")


def test_instruments_as_published():
    if not INSTRUMENTS.exists():
        pytest.skip("the real Instruments data is not beside the project")
    interactions = Interactions.load(INSTRUMENTS)
    assert (len(interactions), len(interactions.items), interactions.num_interactions) == (24_772, 9_922, 206_153)
    # The published data is a 5-core of users and items.
    assert interactions.k_core(5).num_interactions == 206_153
    splits = interactions.leave_one_out()
    assert len(splits.train) == len(splits.validation) == len(splits.test) == 24_772
    user, history, item = splits.test[0]
    assert [*history, item] == interactions.sequences[0]
    assert user == interactions.users[0]


def test_a_last_fit_takes_every_validation_item():
    splits = Splits(
        train=[UserSequence("ann", ["a", "b"])],
        validation=[
            NextItemExample("ann", ["a", "b"], "c"),
            NextItemExample("ann", ["a", "b", "c"], "d"),
            NextItemExample("bob", ["a"], "b"),
        ],
        test=[],
    )
    assert splits.with_validation_in_training().train == [
        UserSequence("ann", ["a", "b", "c", "d"]),
        UserSequence("bob", ["b"]),
    ]


def test_a_share_of_the_users_is_trained_on_and_all_are_asked():
    interactions = Interactions.from_sequences({f"u{number}": ["a", "b", "c", "d"] for number in range(40)})
    splits = interactions.leave_one_out()
    shares = {share: splits.with_train_users(share, seed=3) for share in (0.1, 0.3, 1.0)}
    users = {share: [user for user, _ in part.train] for share, part in shares.items()}
    assert {share: len(each) for share, each in users.items()} == {0.1: 4, 0.3: 12, 1.0: 40}
    assert set(users[0.1]) < set(users[0.3]) < set(users[1.0])
    assert all(part.test == splits.test and part.validation == splits.validation for part in shares.values())
    assert all(items == ["a", "b"] for _, items in shares[0.1].train)
    assert users[1.0] == [user for user, _ in splits.train]  # their order stays
    assert users[0.3] != [user for user, _ in splits.with_train_users(0.3, seed=4).train]
    # Their validation items are trained on in a last fit, and nobody else's
    whole = splits.with_validation_in_training().with_train_users(0.3, seed=3)
    assert [user for user, _ in whole.train] == users[0.3]
    assert len(splits.with_train_users(0.001).train) == 1


@pytest.mark.parametrize("share", [0, -0.1, 1.5])
def test_a_share_of_the_users_that_cannot_be(share):
    splits = Splits(train=[UserSequence("ann", ["a"])], validation=[], test=[])
    with pytest.raises(ValueError, match="share of"):
        splits.with_train_users(share)
