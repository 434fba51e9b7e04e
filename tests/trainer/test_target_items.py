"""Which tokens are a target: every layout of a row, and the prefixes that the trie is asked for."""

import pytest
import torch

from ilrec_trl.items.item_trie import ItemTrie
from ilrec_trl.trainer import targets as target_items
from ilrec_trl.trainer.targets import TargetMarker, target_prefixes, token_offsets


def row(prompt, completion, **columns):
    return {
        "input_ids": [*prompt, *completion],
        "labels": [*[-100] * len(prompt), *completion],
        **columns,
    }


@pytest.fixture
def fixed(tokenizer):
    """Two codes an item, ended by nothing."""
    return ItemTrie.from_sequences({"a": [6, 10], "b": [6, 11], "c": [7, 10]})


@pytest.fixture
def titles(tokenizer):
    """Titles of one to three tokens, ended by the end-of-sequence token (1)."""
    return ItemTrie.from_sequences({"pen": [6], "pen set": [6, 7], "ink": [8, 9, 10]}, end_token_id=1)


def mark(tokenizer, trie, example, **options):
    return TargetMarker(tokenizer, trie, "train", **options)(example, 0)["target_items"]


def test_one_item_and_its_end(tokenizer, fixed):
    assert mark(tokenizer, fixed, row([7, 10], [6, 11, 1], item="b")) == [0, 0, 1, 1, -1]
    assert mark(tokenizer, fixed, row([7, 10], [6, 11, 1])) == [0, 0, 1, 1, -1]
    assert mark(tokenizer, fixed, row([7, 10], [6, 11])) == [0, 0, 1, 1]


def test_titles_of_every_length(tokenizer, titles):
    assert mark(tokenizer, titles, row([9], [6, 1], item="pen")) == [0, 1, -1]
    assert mark(tokenizer, titles, row([9], [6, 7, 1])) == [0, 1, 1, -1]
    assert mark(tokenizer, titles, row([9], [8, 9, 10, 1, 6, 1], item=["ink", "pen"])) == [0, 1, 1, 1, -1, 2, -2]


def test_several_items_with_and_without_separators(tokenizer, fixed):
    assert mark(tokenizer, fixed, row([6, 10], [6, 11, 7, 10, 1], item=["b", "c"])) == [0, 0, 1, 1, 2, 2, -2]
    assert mark(tokenizer, fixed, row([6, 10], [6, 11, 7, 10, 1])) == [0, 0, 1, 1, 2, 2, -2]
    separated = row([6, 10], [6, 11, 15, 7, 10, 1], item=["b", "c"])
    assert mark(tokenizer, fixed, separated) == [0, 0, 1, 1, 0, 2, 2, -2]


def test_the_tokens_of_a_chat_template_are_no_target(tokenizer, fixed):
    example = row([3, 7, 10, 5], [4, 6, 11, 5], item="b")
    assert mark(tokenizer, fixed, example, templated=True) == [0, 0, 0, 0, 0, 1, 1, 0]
    del example["item"]
    assert mark(tokenizer, fixed, example, templated=True) == [0, 0, 0, 0, 0, 1, 1, 0]


def test_without_a_catalogue_the_completion_is_the_target(tokenizer):
    assert mark(tokenizer, None, row([7, 10], [6, 11, 12, 1])) == [0, 0, 1, 1, 1, -1]


def test_labels_on_the_prompt_make_it_no_target(tokenizer, fixed):
    example = {"input_ids": [7, 10, 6, 11, 1], "labels": [7, 10, 6, 11, 1], "completion_mask": [0, 0, 1, 1, 1]}
    assert mark(tokenizer, fixed, example) == [0, 0, 1, 1, -1]


@pytest.mark.parametrize(
    ("completion", "columns", "message"),
    [
        ([6, 12, 1], {}, "is not an item of `item_trie`"),
        ([6], {}, "is not an item of `item_trie`"),
        ([6, 11, 9, 1], {}, "is not an item of `item_trie`"),
        ([15, 6, 11, 1], {"item": "b"}, "is not the row's item 'b'"),
        ([6, 11, 15, 1], {"item": "b"}, "is not the row's item 'b'"),
        ([6, 11, 1], {"item": ["b", "c"]}, r"is not the row's item \['b', 'c'\]"),
        ([6, 11, 1], {"item": 7}, r"the target item 7 \(int\) is not an item"),
        ([6, 11, 7, 10, 1], {"history": ["a"]}, "holds 2 items, .*`item` as a list"),
        ([], {}, "no tokens with a label"),
    ],
)
def test_other_completions_are_refused(completion, columns, message, tokenizer, fixed):
    with pytest.raises(ValueError, match=f"train row 0: .*{message}"):
        mark(tokenizer, fixed, row([7, 10], completion, **columns))


@pytest.mark.parametrize(
    ("mode", "max_length", "cut"),
    [("keep_start", 5, False), ("keep_start", 4, True), ("keep_end", 3, False), ("keep_end", 2, True)],
)
def test_truncation_may_cut_the_prompt_alone(mode, max_length, cut, tokenizer, fixed):
    example = row([7, 10], [6, 11, 1])
    options = {"max_length": max_length, "truncation_mode": mode}
    if cut:
        with pytest.raises(ValueError, match=f"`max_length={max_length}`.*at least 5"):
            mark(tokenizer, fixed, example, **options)
    else:
        expected = [0, 0, 1, 1, -1]
        assert mark(tokenizer, fixed, example, **options) == (
            expected[-max_length:] if mode == "keep_end" else expected
        )


def test_prefixes_are_the_tokens_before_a_position_in_its_own_item():
    input_ids = torch.tensor([[5, 6, 7, 8, 9, 1], [4, 3, 1, 0, 0, 0]])
    target_items = torch.tensor([[0, 1, 1, 2, 2, -2], [0, 3, -3, 0, 0, 0]])
    places = target_items.flatten().nonzero().flatten()
    assert target_prefixes(input_ids, token_offsets(target_items), places, 3).tolist() == [
        [-1, -1, -1],
        [6, -1, -1],
        [-1, -1, -1],
        [8, -1, -1],
        [8, 9, -1],
        [-1, -1, -1],
        [3, -1, -1],
    ]


def test_truncation_shortens_the_numbers_of_an_unlabelled_tail(tokenizer, fixed):
    example = {"input_ids": [7, 10, 6, 11, 1, 8, 8], "labels": [-100, -100, 6, 11, 1, -100, -100]}
    assert mark(tokenizer, fixed, example, max_length=6) == [0, 0, 1, 1, -1, 0]


def test_an_empty_history_is_refused_where_rewards_need_one(tokenizer, fixed):
    example = row([7, 10], [6, 11, 1], history=[], item="b")
    assert mark(tokenizer, fixed, example) == [0, 0, 1, 1, -1]
    with pytest.raises(ValueError, match=r"train row 0: the history is \[\].*set its `history` to None"):
        mark(tokenizer, fixed, example, needs_history=True)
    assert mark(tokenizer, fixed, {**example, "history": None}, needs_history=True) == [0, 0, 1, 1, -1]


def test_a_completion_that_is_marked_as_text_holds_no_target(tokenizer, fixed):
    text = row([7, 10], [15, 9, 6, 11, 1], item=None, history=["a"])
    assert mark(tokenizer, fixed, text, needs_history=True) == [0] * 7
    assert mark(tokenizer, fixed, text, templated=True) == [0] * 7
    with pytest.raises(ValueError, match="train row 0: the history holds 'ghost'"):
        mark(tokenizer, fixed, {**text, "history": ["ghost"]})
    with pytest.raises(ValueError, match="`max_length=6`.*at least 7"):
        mark(tokenizer, fixed, text, max_length=6)
    # Without a catalogue `item` may be anything, and the completion is the target
    assert mark(tokenizer, None, text) == [0, 0, 1, 1, 1, 1, -1]


def test_text_of_the_template_before_the_item_is_warned_of(tokenizer, fixed, monkeypatch):
    warned = []
    monkeypatch.setattr(target_items.logger, "warning_once", warned.append)
    mark(tokenizer, fixed, row([3, 7, 10, 5, 4], [6, 11, 5], item="b"), templated=True)
    assert warned == []
    mark(tokenizer, fixed, row([3, 7, 10, 5], [4, 6, 11, 5], item="b"), templated=True)
    assert "'<assistant>' between the prompt and the item" in warned[0]
