"""Tokens of each level of a trie, against sets made with plain loops."""

import pytest
import torch

from ilrec_trl.items.item_trie import ItemTrie


CODES = {"a": [3, 5, 9], "b": [3, 6, 9], "c": [4, 5, 8]}
TITLES = {"a": [3, 5, 9, 1], "b": [3, 6, 1], "c": [4, 5, 8, 1], "d": [5, 1]}
SHARED_ENDS = {"a": [3, 5, 7], "b": [4, 6, 3]}  # the last level joins the first, the middle one stands alone


@pytest.mark.parametrize(
    ("sequences", "groups"),
    [(CODES, [[0], [1], [2]]), (TITLES, [[0, 1, 2, 3]]), (SHARED_ENDS, [[1], [0, 2]])],
    ids=["codes", "titles", "shared"],
)
def test_levels_that_share_tokens_are_one_group(sequences, groups):
    vocabulary = ItemTrie.from_sequences(sequences).arrays.level_vocabulary
    found = [(vocabulary.group_of_level == number).nonzero().flatten().tolist() for number in range(len(groups))]
    assert found == groups
    for levels, tokens in zip(found, vocabulary.tokens, strict=True):
        expected = {path[level] for path in sequences.values() for level in levels if level < len(path)}
        assert tokens.tolist() == sorted(expected)
        assert vocabulary.index_of_token[tokens].tolist() == list(range(len(tokens)))


def test_a_copy_of_the_trie_has_its_vocabulary():
    trie = ItemTrie.from_sequences(CODES)
    expected = trie.arrays.level_vocabulary
    copy = trie.to(torch.device("meta")).arrays.level_vocabulary
    assert [tokens.shape for tokens in copy.tokens] == [tokens.shape for tokens in expected.tokens]
    assert copy.index_of_token.device.type == "meta"
