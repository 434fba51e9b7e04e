import gzip
import json
import random
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ilrec_trl import ItemTrie
from ilrec_trl.items.item_ids import ItemIds
from tests.references import naive_items, naive_next_tokens, naive_token_rewards


DATA = Path(__file__).parents[3] / "shared" / "data"
END = 9
VOCAB_SIZE = 10


@st.composite
def catalogues(draw):
    """Sequences of one length, or of several lengths with an end token; some items share a sequence."""
    fixed = draw(st.booleans())
    length = draw(st.integers(1, 4))
    tokens = st.integers(0, draw(st.integers(0, 8)))
    one = st.lists(tokens, min_size=length if fixed else 1, max_size=length)
    sequences = draw(st.lists(one, min_size=1, max_size=25))
    return {f"item{number}": sequence for number, sequence in enumerate(sequences)}, None if fixed else END


def all_prefixes(sequences):
    return [list(p) for p in sorted({tuple(s[:end]) for s in sequences.values() for end in range(len(s) + 1)})]


@settings(max_examples=150, deadline=None)
@given(catalogues(), st.randoms(use_true_random=False))
def test_all_queries_equal_the_naive_ones(catalogue, rng):
    sequences, end = catalogue
    trie = ItemTrie.from_sequences(sequences, end_token_id=end)
    whole = {item: [*tokens, end] if end else tokens for item, tokens in sequences.items()}
    assert len(trie) == len(sequences)
    assert trie.item_ids == sorted(whole, key=lambda item: (whole[item], list(whole).index(item)))
    assert {item: trie.sequence(item) for item in trie.item_ids} == whole
    assert trie.depth == max(map(len, whole.values()))
    assert trie.num_nodes == len(all_prefixes(whole))

    prefixes = [*all_prefixes(whole), [8, 8, 8, 8, 8], [END, END]]
    mask = trie.allowed_mask(prefixes, VOCAB_SIZE)
    nodes = trie.nodes(prefixes)
    scores = torch.tensor([[rng.random() for _ in trie.item_ids] for _ in range(2)], dtype=torch.float64)
    rows = torch.tensor([rng.randrange(2) for _ in prefixes])
    rewards = trie.token_rewards(scores, prefixes, VOCAB_SIZE, rows=rows)
    for number, prefix in enumerate(prefixes):
        assert trie.next_tokens(prefix) == naive_next_tokens(whole, prefix)
        assert set(trie.items(prefix)) == naive_items(whole, prefix)
        assert mask[number].nonzero().flatten().tolist() == naive_next_tokens(whole, prefix)
        assert (nodes[number] >= 0) == bool(naive_items(whole, prefix))
        by_item = dict(zip(trie.item_ids, scores[rows[number]].tolist(), strict=True))
        expected = torch.zeros(VOCAB_SIZE, dtype=torch.float64)
        for token, share in naive_token_rewards(whole, by_item, prefix).items():
            expected[token] = share
        torch.testing.assert_close(rewards[number].double(), expected, rtol=1e-6, atol=1e-7)


class PrefixDictionary:
    """A trie as a dictionary of prefixes, to compare the arrays with."""

    def __init__(self, sequences):
        self.tokens, self.items = {}, {}
        for item, sequence in sequences.items():
            for end in range(len(sequence) + 1):
                self.items.setdefault(tuple(sequence[:end]), []).append(item)
                self.tokens.setdefault(tuple(sequence[:end]), set()).update(sequence[end : end + 1])


def rectangle(sequences):
    width = max(map(len, sequences.values()))
    return np.array([[*tokens, *[-1] * (width - len(tokens))] for tokens in sequences.values()])


@settings(max_examples=60, deadline=None)
@given(catalogues(), st.sampled_from(["numbers", "strings", "range", "steps", "list"]), st.booleans())
def test_from_arrays_is_from_sequences(catalogue, kind, wide_tokens):
    """With ids of each kind that an array can hold, and with tokens too large for one sort key."""
    sequences, end = catalogue
    if wide_tokens:
        sequences = {item: [token * 10**7 for token in tokens] for item, tokens in sequences.items()}
    count = len(sequences)
    ids = {
        "numbers": np.arange(count)[::-1] * 7,
        "strings": np.array([f"ö{number}" * (number % 5 + 1) for number in range(count)]),
        "range": range(5, 5 + count),
        "steps": range(3 * count, 0, -3),
        "list": [f"id{number}" for number in range(count)],
    }[kind]
    plain = [item if isinstance(item, (str, int)) else item.item() for item in ids]
    tokens = rectangle(sequences).astype(np.int32 if kind == "range" else np.int64)
    before = tokens.copy()
    trie = ItemTrie.from_arrays(ids, tokens, end_token_id=end)
    assert np.array_equal(tokens, before)
    named = dict(zip(plain, sequences.values(), strict=True))
    other = ItemTrie.from_sequences(named, end_token_id=end)
    assert trie.item_ids == other.item_ids
    assert list(trie.item_ids) == other.item_ids
    for name, array in trie.arrays.state().items():
        assert array.dtype == torch.int32
        assert torch.equal(array, other.arrays.state()[name])
    assert trie.index_of(plain).tolist() == other.index_of(plain).tolist()
    assert trie.leaf_of(plain).tolist() == other.leaf_of(plain).tolist()
    for item in (*plain, *ids):
        assert item in trie
    for stranger in ("tuba", -1, 10**15, None, 2.5):
        assert stranger not in trie
    with TemporaryDirectory() as folder:
        trie.save(folder)
        loaded = ItemTrie.load(folder)
        assert loaded.item_ids == other.item_ids
        assert loaded.index_of(plain).tolist() == other.index_of(plain).tolist()
        assert {item: loaded.sequence(item) for item in plain} == {item: other.sequence(item) for item in plain}


@settings(max_examples=100, deadline=None)
@given(catalogues())
def test_walking_by_nodes_is_walking_the_dictionary(catalogue):
    """`padded_children`, `child`, `parent`, `path`, `locate`, `is_leaf` and what is known of each level."""
    sequences, end = catalogue
    arrays = ItemTrie.from_sequences(sequences, end_token_id=end).arrays
    whole = {item: [*tokens, *([] if end is None else [end])] for item, tokens in sequences.items()}
    naive = PrefixDictionary(whole)
    by_level = [sorted(p for p in naive.tokens if len(p) == level) for level in range(arrays.depth + 1)]
    assert [arrays.level_size(level) for level in range(arrays.depth + 1)] == [len(level) for level in by_level]
    assert arrays.has_leaves == [any(not naive.tokens[p] for p in level) for level in by_level]
    assert arrays.max_children == [max(len(naive.tokens[p]) for p in level) for level in by_level[:-1]]
    assert arrays.tokens.tolist() == sorted({token for tokens in whole.values() for token in tokens})
    for level, prefixes in enumerate(by_level[:-1]):
        nodes = torch.arange(*arrays.level_starts[level : level + 2])
        assert [tuple(arrays.path(node)) for node in nodes.tolist()] == prefixes
        tokens, children, reals = arrays.padded_children(torch.cat([nodes, torch.tensor([-1])])[None], level)
        assert tokens.shape == children.shape == reals.shape == (1, len(nodes) + 1, arrays.max_children[level])
        assert not reals[0, -1].any()
        for row, prefix in enumerate(prefixes):
            real = reals[0, row]
            assert tokens[0, row][real].tolist() == sorted(naive.tokens[prefix])
            for token, child in zip(tokens[0, row][real], children[0, row][real], strict=True):
                assert tuple(arrays.path(int(child))) == (*prefix, int(token))
                assert arrays.parent(child[None]).tolist() == [int(nodes[row])]
                for depth in (None, level):
                    assert arrays.child(nodes[row][None], token[None], depth).tolist() == [int(child)]
            strange = torch.tensor([t for t in range(-1, VOCAB_SIZE + 3) if t not in naive.tokens[prefix]])
            assert (arrays.child(nodes[row].expand(len(strange)), strange, level) == -1).all()
        alone = [{tuple(whole[item]) for item in naive.items[prefix]} for prefix in prefixes]
        leaves = [arrays.path(leaf) if leaf >= 0 else None for leaf in arrays.only_leaf(nodes).tolist()]
        assert leaves == [list(next(iter(found))) if len(found) == 1 else None for found in alone]
        assert arrays.is_leaf(nodes).tolist() == [not naive.tokens[prefix] for prefix in prefixes]
        assert arrays.num_items_below(nodes).tolist() == [len(naive.items[prefix]) for prefix in prefixes]


def test_a_saved_trie_stays_in_its_file_until_it_is_used(tmp_path):
    """Loading copies nothing: the arrays are views of one mapped file."""
    ItemTrie.from_arrays(range(1000), np.arange(4000).reshape(1000, 4) % 97 + 100 * np.arange(4)).save(tmp_path)
    maps = Path("/proc/self/maps")
    if not maps.exists():
        pytest.skip("there is no /proc/self/maps here")
    loaded = ItemTrie.load(tmp_path)
    assert str(tmp_path / "trie.safetensors") in maps.read_text()
    assert loaded.item_ids[0] == 0


def test_items_are_looked_up_without_a_python_object_for_each():
    trie = ItemTrie.from_arrays(np.arange(1000) * 3, np.stack([np.arange(1000) // 50, np.arange(1000) % 50], axis=1))
    assert isinstance(trie.item_ids, ItemIds)
    assert trie.item_ids[-1] == 2997
    assert trie.item_ids[:3] == [0, 3, 6]
    assert type(trie.item_ids[5]) is int
    assert repr(trie.item_ids) == "ItemIds(1000 ids, e.g. 0)"
    assert trie.items([3]) == list(range(450, 600, 3))
    assert trie.arrays.num_bytes == 4 * (4 * trie.num_nodes + 1)
    with pytest.raises(ValueError, match=r"1 of 2 item ids are not in the catalogue of 1000 items: \['3'\]"):
        trie.index_of([3, "3"])


@pytest.mark.parametrize(
    ("ids", "tokens", "end", "error", "message"),
    [
        (range(2), [[1.0], [2.0]], None, TypeError, "tokens of type float64"),
        (range(2), [1, 2], None, TypeError, r"shape \(2,\), expected integers of shape"),
        (range(3), [[1], [2]], None, ValueError, "3 item ids and 2 token sequences"),
        (range(0), np.zeros((0, 2), dtype=int), None, ValueError, "empty catalogue"),
        (range(2), np.zeros((2, 0), dtype=int), None, ValueError, "Item 0 has no tokens"),
        (range(2), [[1, 2], [-1, -1]], None, ValueError, "Item 1 has no tokens"),
        (range(2), [[1, 2], [-1, 3]], None, ValueError, r"Item 1 has tokens \[-1, 3\].*padded with -1 at the end"),
        (range(2), [[1, 2], [-4, 3]], None, ValueError, r"Item 1 has tokens \[-4, 3\]"),
        (range(2), [[1, 2**31], [4, 3]], None, ValueError, f"token {2**31}, expected token ids below"),
        (range(2), [[1, 2], [1, -1]], None, ValueError, "item 1 is the start of that of item 0"),
        (range(2), [[1, 0], [1, -1]], 0, ValueError, "Item 0 already holds end_token_id 0"),
        (np.array(["a", "a"]), [[1], [2]], None, ValueError, "must be distinct"),
        (np.array([7, 7]), [[1], [2]], None, ValueError, "must be distinct"),
        (np.array([0.5, 1]), [[1], [2]], None, TypeError, "item ids of type float64"),
        (np.array([["a"], ["b"]]), [[1], [2]], None, TypeError, r"shape \(2, 1\), expected a range"),
    ],
)
def test_arrays_that_cannot_be_a_trie_are_refused(ids, tokens, end, error, message):
    with pytest.raises(error, match=message):
        ItemTrie.from_arrays(ids, np.array(tokens), end_token_id=end)


@pytest.fixture
def trie():
    # The order in the dict is not the sorted one, and two items share [2, 4].
    return ItemTrie.from_sequences({"lute": [1, 5], "drum": [2, 4], "harp": [1, 4], "gong": [2, 4], "horn": [3, 0]})


def test_items_are_in_the_order_of_their_tokens_and_share_leaves(trie):
    assert trie.item_ids == ["harp", "lute", "drum", "gong", "horn"]
    assert trie.index_of(["gong", "harp"]).tolist() == [3, 0]
    assert trie.items([2, 4]) == ["drum", "gong"]
    assert trie.leaf_of(["drum"]).tolist() == trie.leaf_of(["gong"]).tolist()
    assert "gong" in trie
    assert "flute" not in trie
    assert (len(trie), trie.depth, trie.num_nodes) == (5, 2, 8)


def test_nodes_are_numbered_breadth_first(trie):
    assert trie.arrays.node_tokens.tolist() == [-1, 1, 2, 3, 4, 5, 4, 0]
    assert trie.arrays.first_child.tolist() == [1, 4, 6, 7, 8, 8, 8, 8, 8]
    assert trie.arrays.item_start.tolist() == [0, 0, 2, 4, 0, 1, 2, 4]
    assert trie.arrays.item_end.tolist() == [5, 2, 4, 5, 1, 2, 4, 5]


def test_children_are_ragged_and_child_goes_down_one_edge(trie):
    rows, tokens, children = trie.children(torch.tensor([2, -1, 0, 4]))
    assert rows.tolist() == [0, 2, 2, 2]
    assert tokens.tolist() == [4, 1, 2, 3]
    assert children.tolist() == [6, 1, 2, 3]
    nodes = torch.tensor([0, 0, 1, -1, 6, 0, 0, 0])
    # Among the unknown: a leaf's child, a token beyond the catalogue's (whose key would be another edge's), and -1.
    assert trie.arrays.child(nodes, torch.tensor([2, 4, 5, 2, 4, 7, 10, -1])).tolist() == [
        2,
        -1,
        5,
        -1,
        -1,
        -1,
        -1,
        -1,
    ]
    assert trie.arrays.is_leaf(torch.tensor([0, 1, 4, 7, -1])).tolist() == [False, False, True, True, False]


def test_prefixes_come_as_lists_padded_rows_or_nodes(trie):
    lists = [[], [2], [2, 4], [1, 9]]
    padded = torch.tensor([[-1, -1], [2, -1], [2, 4], [1, 9]])
    nodes = trie.locate(padded)
    assert nodes.tolist() == [0, 2, 6, -1]
    masks = [trie.allowed_mask(form, 6).tolist() for form in (lists, padded, nodes)]
    assert masks[0] == masks[1] == masks[2]
    assert masks[0][2:] == [[False] * 6] * 2  # a complete item, and no item
    assert trie.allowed_mask([], 6).shape == (0, 6)
    with pytest.raises(ValueError, match="token after padding"):
        trie.locate(torch.tensor([[-1, 2]]))


def test_token_rewards_by_hand(trie):
    scores = torch.tensor([[0.1, 0.3, 0.2, 0.4, 0.0], [0.0, 0.0, 0.5, 0.5, 1.0]])
    rewards = trie.token_rewards(scores, [[], [1], [1], [3]], 6, rows=torch.tensor([0, 0, 1, 1]))
    expected = [[0, 0.4, 0.6, 0, 0, 0], [0, 0, 0, 0, 0.25, 0.75], [0] * 6, [1, 0, 0, 0, 0, 0]]
    torch.testing.assert_close(rewards, torch.tensor(expected))


def test_a_prefix_of_tiny_mass_keeps_its_proportions():
    """1e-20 beside 1 is lost in a prefix sum, in float64 too."""
    trie = ItemTrie.from_sequences({"big": [0, 0], "small": [1, 0], "smaller": [1, 1]})
    rewards = trie.token_rewards(torch.tensor([[1.0, 3e-20, 1e-20]]), [[1]], 2)
    torch.testing.assert_close(rewards, torch.tensor([[0.75, 0.25]]))


def test_scores_in_half_precision_are_summed_in_double():
    trie = ItemTrie.from_sequences({number: [number // 1000, number % 1000] for number in range(2000)})
    rewards = trie.token_rewards(torch.ones(1, 2000, dtype=torch.bfloat16), [[]], 1000)
    torch.testing.assert_close(rewards[0, :2], torch.tensor([0.5, 0.5]))


def test_match_reads_one_item_off_the_start():
    trie = ItemTrie.from_sequences({"a": [1], "ab": [1, 2], "ab too": [1, 2]}, end_token_id=0)
    assert trie.match([1, 0, 5]) == (["a"], 2)
    assert trie.match([1, 2, 0]) == (["ab", "ab too"], 3)
    for tokens in ([], [1], [1, 2], [2, 0], [-1], [10**12]):
        assert trie.match(tokens) is None


def test_save_and_load(trie, tmp_path):
    trie.save(tmp_path / "trie")
    assert sorted(path.name for path in (tmp_path / "trie").iterdir()) == ["trie.json", "trie.safetensors"]
    loaded = ItemTrie.load(tmp_path / "trie")
    assert loaded.item_ids == trie.item_ids
    assert loaded.end_token_id is None
    assert [loaded.sequence(item) for item in loaded.item_ids] == [trie.sequence(item) for item in trie.item_ids]
    numbered = ItemTrie.from_sequences({7: [1], 8: [1, 2]}, end_token_id=0)
    numbered.save(tmp_path)
    assert ItemTrie.load(tmp_path).item_ids == numbered.item_ids  # numbers stay numbers
    assert ItemTrie.load(tmp_path).end_token_id == 0
    (tmp_path / "trie.json").write_text(json.dumps({"format": 99}))
    with pytest.raises(ValueError, match="format 99"):
        ItemTrie.load(tmp_path)


def test_a_copy_for_another_device_is_made_once(trie):
    meta = trie.to("meta")
    assert meta.device.type == "meta"
    assert trie.to("meta") is meta
    assert meta.to("cpu") is trie
    assert trie.to("cpu") is trie


@pytest.mark.parametrize(
    ("sequences", "end", "error", "message"),
    [
        ({}, None, ValueError, "empty catalogue"),
        ({"lute": [1], "harp": []}, None, ValueError, "'harp' has no tokens"),
        ({"lute": [1], "harp": [2, -5]}, None, ValueError, "'harp' has token -5"),
        ({"lute": ["<a_1>"]}, None, TypeError, "integer token ids"),
        ({"lute": [1, 0], "harp": [1]}, 0, ValueError, "'lute' already holds end_token_id 0"),
        ({"lute": [1, 2], "drum": [3], "harp": [1]}, None, ValueError, "'harp' is the start of that of item 'lute'"),
    ],
)
def test_what_cannot_be_a_trie_is_refused(sequences, end, error, message):
    with pytest.raises(error, match=message):
        ItemTrie.from_sequences(sequences, end_token_id=end)


def test_wrong_arguments_are_refused(trie):
    scores = torch.ones(2, 5)
    with pytest.raises(ValueError, match=r"uses token 5, but the vocabulary has 5 entries"):
        trie.allowed_mask([[]], 5)
    with pytest.raises(ValueError, match=r"2 of 3 item ids are not in the catalogue of 5 items: \['tuba', 7\]"):
        trie.index_of(["harp", "tuba", 7])
    with pytest.raises(ValueError, match=r"shape \(2, 4\), expected \(B, 5\)"):
        trie.token_rewards(scores[:, :4], [[], []], 6)
    with pytest.raises(ValueError, match="Got 3 prefixes for 2 rows"):
        trie.token_rewards(scores, [[], [], []], 6)
    with pytest.raises(ValueError, match="Got 1 prefixes for 2 rows"):
        trie.token_rewards(scores, [[]], 6, rows=torch.tensor([2]))
    for wrong in (-0.5, float("nan"), float("inf")):
        bad = scores.clone()
        bad[1, 3] = wrong
        with pytest.raises(ValueError, match=r"at row 1, column 3 \(1 such scores\).*probabilities, not logits"):
            trie.token_rewards(bad, [[], []], 6)


@pytest.mark.parametrize("name", ["instruments", "industrial"])
def test_real_semantic_ids(name):
    path = DATA / name / "index.json.gz"
    if not path.exists():
        pytest.skip(f"real data not found: {path}")
    index = json.loads(gzip.open(path).read())
    vocabulary = {token: number for number, token in enumerate(sorted({t for ids in index.values() for t in ids}))}
    sequences = {item: [vocabulary[token] for token in tokens] for item, tokens in index.items()}
    trie = ItemTrie.from_sequences(sequences)
    assert trie.num_nodes == len({tuple(s[:end]) for s in sequences.values() for end in range(len(s) + 1)})
    rng = random.Random(0)
    scores = torch.rand(1, len(trie), dtype=torch.float64, generator=torch.Generator().manual_seed(0)) ** 8
    by_item = dict(zip(trie.item_ids, scores[0].tolist(), strict=True))
    for item in rng.sample(sorted(sequences), 8):
        prefix = sequences[item][: rng.randrange(trie.depth)]
        assert set(trie.items(prefix)) == naive_items(sequences, prefix)
        rewards = trie.token_rewards(scores, [prefix], len(vocabulary))[0]
        expected = naive_token_rewards(sequences, by_item, prefix)
        assert trie.next_tokens(prefix) == sorted(expected)
        assert set(rewards.nonzero().flatten().tolist()) <= set(expected)  # shares below 1e-16 may be 0
        torch.testing.assert_close(rewards[sorted(expected)], torch.tensor([expected[t] for t in sorted(expected)]))
