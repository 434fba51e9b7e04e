"""Cleaning, splitting and saving against twins that go interaction by interaction."""

import pickle
from collections import Counter

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from ilrec_trl import Interactions


FAST = settings(max_examples=60, deadline=None, database=None)
# Few users, items and moments, so that repeats and ties are common.
events = st.lists(
    st.tuples(st.sampled_from("abcd"), st.sampled_from(["1", "2", "3", "10", "ä"]), st.integers(0, 6)),
    min_size=1,
    max_size=30,
)


def load(events):
    users, items, times = zip(*events, strict=True)
    return Interactions.load(pa.table({"user": users, "item": items, "time": times}))


def by_user(events):
    """`{user: [(item, time), ...]}` in time order; ties as they stand."""
    grouped = {}
    for user, item, time in events:
        grouped.setdefault(user, []).append((item, float(time)))
    return {user: sorted(mine, key=lambda event: event[1]) for user, mine in grouped.items()}


def content(interactions):
    return {
        user: list(zip(items, times, strict=True))
        for user, items, times in zip(interactions.users, interactions.sequences, interactions.timestamps, strict=True)
    }


def check_columns(interactions):
    """What every `Columns` promises."""
    columns = interactions.columns
    assert columns.item_codes.dtype == np.int32
    assert columns.offsets.dtype == np.int64
    assert columns.offsets[0] == 0
    assert columns.offsets[-1] == len(columns.item_codes) == len(columns.times)
    assert (np.diff(columns.offsets) > 0).all()
    assert interactions.items == sorted(set(interactions.items))
    assert {item for items in interactions.sequences for item in items} == set(interactions.items)


@FAST
@given(events=events)
def test_rows_are_grouped_and_sorted_and_ties_keep_their_order(events):
    interactions = load(events)
    check_columns(interactions)
    assert content(interactions) == by_user(events)
    assert interactions.users == list(by_user(events))
    assert interactions == Interactions(
        interactions.users, list(interactions.sequences), list(interactions.timestamps)
    )


@FAST
@given(events=events)
def test_save_and_load_round_trip(events, tmp_path_factory):
    folder = tmp_path_factory.getbasetemp() / "saved"
    for interactions in (load(events), Interactions.from_sequences(dict(zip("ab", [["x"], ["y", "x"]], strict=True)))):
        interactions.save(folder)
        loaded = Interactions.load(folder)
        assert loaded == interactions
        assert isinstance(loaded.columns.item_codes, np.memmap)
        assert pickle.loads(pickle.dumps(loaded)) == interactions
        assert loaded.sequences == interactions.sequences
    assert loaded.timestamps is None


def test_saved_interactions_can_be_cleaned_and_saved_in_their_own_folder(tmp_path):
    interactions = Interactions.from_sequences({"a": ["1", "2", "1"], "b": ["3"]})
    interactions.save(tmp_path)
    mapped = Interactions.load(tmp_path)
    mapped.save(tmp_path)
    mapped.filter(min_items=2).save(tmp_path)
    assert mapped == interactions
    assert Interactions.load(tmp_path).sequences == [["1", "2", "1"]]


@pytest.mark.parametrize("name", ["interactions.json", "item_codes.npy", "offsets.npy", "times.npy", "users.arrow"])
def test_a_saved_folder_that_is_not_whole_is_refused(tmp_path, name):
    load([("a", "1", 1), ("a", "2", 2)]).save(tmp_path)
    data = (tmp_path / name).read_bytes()
    for size in (0, len(data) // 2, len(data) - 3):
        (tmp_path / name).write_bytes(data[:size])
        with pytest.raises(ValueError, match="save .* again"):
            Interactions.load(tmp_path)
    if name != "interactions.json":
        (tmp_path / name).unlink()
        with pytest.raises(ValueError, match="save them again"):
            Interactions.load(tmp_path)


def kept(mine, rule):
    """Positions that stay in one user's events."""
    if rule == "consecutive":
        return [at for at, (item, _) in enumerate(mine) if not at or mine[at - 1][0] != item]
    if rule == "exact":
        return [at for at, event in enumerate(mine) if event not in mine[:at]]
    if rule == "keep_first":
        return [at for at, (item, _) in enumerate(mine) if item not in [other for other, _ in mine[:at]]]
    return [at for at, (item, _) in enumerate(mine) if item not in [other for other, _ in mine[at + 1 :]]]


@FAST
@given(
    events=events,
    rule=st.sampled_from([False, True, "consecutive", "exact", "keep_first", "keep_last"]),
    window=st.tuples(st.none() | st.integers(0, 6), st.none() | st.integers(0, 7)),
    items=st.none() | st.sets(st.sampled_from(["1", "2", "3", "99"])),
    users=st.none() | st.sets(st.sampled_from("abz")),
    max_items=st.none() | st.integers(1, 4),
    min_items=st.integers(1, 3),
)
def test_filter(events, rule, window, items, users, max_items, min_items):
    start, end = window
    expected = {}
    for user, mine in by_user(events).items():
        if users is not None and user not in users:
            continue
        mine = [(item, time) for item, time in mine if items is None or item in items]
        mine = [(i, time) for i, time in mine if (start is None or time >= start) and (end is None or time < end)]
        if rule is not False:
            mine = [mine[at] for at in kept(mine, "consecutive" if rule is True else rule)]
        mine = mine if max_items is None else mine[-max_items:]
        if mine and len(mine) >= min_items:
            expected[user] = mine
    filtered = load(events).filter(
        items=items, users=users, min_items=min_items, drop_repeats=rule, start=start, end=end, max_items=max_items
    )
    assert content(filtered) == expected
    check_columns(filtered)


@FAST
@given(events=events, k=st.integers(1, 4))
def test_k_core(events, k):
    left = list(events)
    while True:
        users, items = Counter(user for user, _, _ in left), Counter(item for _, item, _ in left)
        fewer = [event for event in left if users[event[0]] >= k and items[event[1]] >= k]
        if fewer == left:
            break
        left = fewer
    if left:
        core = load(events).k_core(k)
        assert content(core) == by_user(left)
        check_columns(core)
    else:
        with pytest.raises(ValueError, match=f"The {k}-core is empty"):
            load(events).k_core(k)


@FAST
@given(events=events)
def test_leave_one_out_asks_the_last_two_and_trains_on_the_rest(events):
    splits = load(events).leave_one_out(short_users="train")
    users = {user: [item for item, _ in mine] for user, mine in by_user(events).items()}
    long = {user: items for user, items in users.items() if len(items) > 2}
    assert splits.train == [(user, items[:-2] if user in long else items) for user, items in users.items()]
    assert splits.validation == [(user, items[:-2], items[-2]) for user, items in long.items()]
    assert splits.test == [(user, items[:-1], items[-1]) for user, items in long.items()]
    assert splits.users_without_test == [user for user in users if user not in long]
    assert splits.train_examples() == [
        (user, items[:place], items[place]) for user, items in splits.train for place in range(1, len(items))
    ]
    whole = splits.with_validation_in_training()
    assert whole.train == [(user, items[:-1] if user in long else items) for user, items in users.items()]


@FAST
@given(events=events, moments=st.tuples(st.integers(0, 6), st.integers(0, 6)))
def test_global_time_leaks_nothing_into_training(events, moments):
    first, second = sorted(moments)
    assume(first < second)
    interactions = load(events)
    times = [time for _, _, time in events]
    try:
        splits = interactions.global_time(first, second)
    except ValueError as error:
        assert "entries; choose other moments" in str(error)  # noqa: PT017
        return
    grouped = by_user(events)
    # Training is exactly what lies before validation begins: no question's item, and nothing later than any question.
    before = {user: [item for item, time in mine if time < first] for user, mine in grouped.items()}
    assert dict(splits.train) == {user: items for user, items in before.items() if items}
    for questions, start, end in ((splits.validation, first, second), (splits.test, second, float("inf"))):
        expected = [
            (user, [item for item, _ in mine[:place]], item)
            for user, mine in grouped.items()
            for place, (item, time) in enumerate(mine)
            if start <= time < end and place
        ]
        assert questions == expected
    # Every interaction is in one place.
    asked = len(splits.validation) + len(splits.test) + len(splits.without_history)
    assert sum(len(items) for _, items in splits.train) + asked == len(times)
    assert splits.users_without_test == [user for user, mine in grouped.items() if mine[-1][1] < second]
    # The order of the users' rows in the file changes nothing, as long as each user's rows keep theirs.
    shuffled = sorted(events, key=lambda event: event[0])
    again = load(shuffled).global_time(first, second)
    assert sorted(again.train) == sorted(splits.train)
    assert sorted(again.test) == sorted(splits.test)


@FAST
@given(events=events, shares=st.tuples(st.floats(0.05, 0.45), st.floats(0.05, 0.45)))
def test_shares_of_time_part_no_moment(events, shares):
    interactions = load(events)
    times = sorted(float(time) for _, _, time in events)
    validation_share, test_share = shares
    moments = [times[int(round(len(times) * (1 - part), 6))] for part in (validation_share + test_share, test_share)]
    try:
        splits = interactions.global_time(validation_share=validation_share, test_share=test_share)
    except ValueError as error:
        assert "choose other moments" in str(error) or moments[0] == moments[1]  # noqa: PT017
        return
    assert splits == interactions.global_time(*moments)


def test_rows_that_are_made_when_asked_for_are_sequences():
    sequences = {name: [str(item) for item in range(number)] for number, name in enumerate("abcdef", start=3)}
    splits = Interactions.from_sequences(sequences).leave_one_out()
    test = splits.test
    assert test[-1] == test[5] == ("f", [str(item) for item in range(7)], "7")
    assert test[1:3] == [test[1], test[2]]
    assert [test[0]] == test[:1]
    assert test[::-1][0] == test[-1]
    assert test != test[:2]
    assert test[np.int64(2)] == list(test)[2]
    assert len(test[10:]) == 0
    assert test != "no list"
    with pytest.raises(IndexError):
        test[6]
    assert pickle.loads(pickle.dumps(splits)) == splits
    assert repr(test[:1]) == "[NextItemExample(user='a', history=['0', '1'], item='2')]"
    assert repr(test).endswith("...] (6 entries)")
    assert repr(Interactions.from_sequences(sequences)) == (
        "Interactions(6 users, 8 items, 33 interactions, without timestamps)"
    )
