"""Positions of a batch by level, against plain loops over its tokens."""

import pytest
import torch

from ilrec_trl.items.item_trie import ItemTrie
from ilrec_trl.trainer import target_rewards
from ilrec_trl.trainer.target_rewards import ShareCache, share_rewards
from ilrec_trl.trainer.targets import TargetPositions
from tests import references


SEQUENCES = {"a": [3, 5, 9], "b": [3, 6, 9], "c": [4, 5, 8], "d": [3, 5, 8]}
ITEMS = [["a", "b"], ["c"], ["d", "a"]]


@pytest.fixture
def trie():
    return ItemTrie.from_sequences(SEQUENCES)


def batch():
    """Rows of a history token, items one after the other, and an end; the end of the second is no label."""
    rows = [[7, *(token for item in items for token in SEQUENCES[item]), 1] for items in ITEMS]
    input_ids = torch.tensor([row + [0] * (8 - len(row)) for row in rows])
    numbers, number = torch.zeros_like(input_ids), 0
    for row, items in enumerate(ITEMS):
        for place in range(len(items)):
            number += 1
            numbers[row, 1 + 3 * place : 4 + 3 * place] = number
        numbers[row, 1 + 3 * len(items)] = -number
    labels = torch.where(numbers != 0, input_ids, -100)
    labels[1, 4] = -100
    return input_ids, labels, numbers


@pytest.mark.parametrize("by_level", [False, True])
def test_every_label_is_in_one_group_with_what_the_catalogue_says_of_it(trie, by_level):
    input_ids, labels, numbers = batch()
    targets = TargetPositions.from_batch(input_ids, labels, numbers, trie, by_level=by_level)
    assert len(targets.groups) == (4 if by_level else 2)
    found, number = {}, 0
    for group in targets.groups:
        for row, position in zip(group.rows.tolist(), group.positions.tolist(), strict=True):
            token = position + 8  # counted from the end of the 7 positions; the next token is one further
            assert (row, token) not in found
            found[row, token] = number if group.is_target else None
            number += group.is_target
            if group.tokens is not None:
                assert group.tokens[targets.token_indices[found[row, token]]] == labels[row, token]
    expected = {tuple(place) for place in (labels != -100).nonzero().tolist()}
    assert set(found) == expected
    for (row, token), n in found.items():
        if labels[row, token] == 1:
            assert n is None
            continue
        level = (token - 1) % 3
        prefix = input_ids[row, token - level : token].tolist()
        assert targets.target_ids[n] == labels[row, token]
        assert targets.items[n] == numbers[row, token] - 1
        assert trie.nodes([prefix]).tolist() == [targets.nodes[n]]
        following = references.naive_next_tokens(SEQUENCES, prefix)
        assert targets.edge_bounds[n + 1] - targets.edge_bounds[n] == len(following)


@pytest.mark.parametrize("at_once", [1, 8, 10**6])
@pytest.mark.parametrize("by_level", [False, True])
def test_shares_are_those_of_the_twin_however_many_targets_are_scored_at_once(trie, by_level, at_once, monkeypatch):
    monkeypatch.setitem(target_rewards._SCORES_AT_ONCE, "cpu", at_once)
    monkeypatch.setattr(target_rewards, "_LEAST_TARGETS", 1)
    targets = TargetPositions.from_batch(*batch(), trie, by_level=by_level)
    histories = [["a"], ["b"], ["c"], ["d"], None]
    scores = {item: torch.rand(4, generator=torch.Generator().manual_seed(n)) for n, item in enumerate("abcd")}

    def reward_func(histories):
        return torch.stack([scores[history[0]] for history in histories])

    shares = share_rewards(reward_func, {"history": histories}, targets, trie)
    assert len(shares) == targets.edge_bounds[-1]
    for n, node in enumerate(targets.nodes.tolist()):
        part = shares[targets.edge_bounds[n] : targets.edge_bounds[n + 1]]
        history = histories[targets.items[n]]
        if history is None:
            assert (part == 0).all()
            continue
        named = dict(zip(trie.item_ids, scores[history[0]].tolist(), strict=True))
        twin = references.naive_token_rewards(SEQUENCES, named, trie.arrays.path(node))
        torch.testing.assert_close(part.tolist(), list(twin.values()), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("mib", [0.0, 0.0005, 1.0])
def test_kept_shares_are_those_computed_anew(trie, mib):
    """In batches of changing targets, some of them twice in one, some without a history, with room for all or few."""
    generator = torch.Generator().manual_seed(0)
    table, asked = torch.rand(4, len(trie), generator=generator), []

    def reward_func(histories, user):
        asked.extend((history[0], name) for history, name in zip(histories, user, strict=True))
        pairs = zip(histories, user, strict=True)
        return torch.stack([table["abcd".index(history[0])] ** len(name) for history, name in pairs])

    cache, seen = ShareCache(mib), set()
    for turn in range(12):
        targets = TargetPositions.from_batch(*batch(), trie, by_level=turn % 2 == 0)
        draws = torch.randint(4, (5, 2), generator=generator).tolist()
        columns = {"history": [["abcd"[n]] if turn % 3 or n else None for n, _ in draws]}
        columns["user"] = ["u" * (1 + m) for _, m in draws]
        fresh = share_rewards(reward_func, columns, targets, trie)
        asked.clear()
        kept = share_rewards(reward_func, columns, targets, trie, cache)
        assert torch.equal(kept, fresh)
        histories = [history and history[0] for history in columns["history"]]
        prefixes = [tuple(SEQUENCES[item][:-1]) for row in ITEMS for item in row]  # a and d have the same positions
        expected = [
            (history, user)
            for history, user, prefix in zip(histories, columns["user"], prefixes, strict=True)
            if history is not None and (mib < 1 or (history, user, prefix) not in seen)
        ]
        seen.update(zip(histories, columns["user"], prefixes, strict=True))
        if mib != 0.0005:
            assert asked == expected
        else:
            assert len(asked) <= len(expected)
    assert cache.room >= 0
    assert len(cache.places) == (len(seen) if mib == 1 else 2 if mib else 0)


def test_a_batch_of_plain_text_has_no_target(trie):
    input_ids, labels, numbers = batch()
    targets = TargetPositions.from_batch(input_ids, labels, torch.zeros_like(numbers), trie, by_level=True)
    assert [len(group.rows) for group in targets.groups] == [0, 0, 0, int((labels != -100).sum())]
    assert len(share_rewards(lambda histories: None, {"history": []}, targets, trie)) == 0


def test_a_target_that_is_in_no_item_is_refused(trie):
    input_ids, labels, numbers = batch()
    input_ids[0, 2] = labels[0, 2] = 8
    with pytest.raises(ValueError, match="2 of 15 target tokens of the batch are in no item of `item_trie`"):
        TargetPositions.from_batch(input_ids, labels, numbers, trie)
