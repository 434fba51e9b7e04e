"""Packed rows hold the same targets, with the same prefixes and the same loss, as the rows they are made of."""

import pytest
import torch
from datasets import Dataset

from ilrec_trl.trainer.ilrec_config import ILRecConfig
from ilrec_trl.trainer.ilrec_trainer import ILRecTrainer
from ilrec_trl.trainer.targets import TargetPositions, pack_with_targets


CPU = {"output_dir": "out", "use_cpu": True, "bf16": False, "report_to": "none"}


def pack(rows, max_length, strategy):
    columns = ("input_ids", "labels", "target_items")
    rows = Dataset.from_list([dict(zip(columns, (tokens, tokens, numbers), strict=True)) for tokens, numbers in rows])
    config = ILRecConfig(**CPU, max_length=max_length, packing=True, packing_strategy=strategy)
    return pack_with_targets(rows, config)


def test_items_are_numbered_anew_in_a_packed_row():
    rows = [([5, 6, 7, 8, 9, 1], [0, 1, 1, 2, 2, -2]), ([5, 6, 1], [0, 1, -1])]
    packed = pack(rows, 9, "bfd")
    assert packed["target_items"] == [[0, 1, 1, 2, 2, -2, 0, 3, -3]]
    assert packed["seq_lengths"] == [[6, 3]]


def test_the_tail_of_a_cut_item_is_plain_text_and_its_head_is_not():
    rows = [([5, 6, 7, 8, 1], [0, 1, 1, 1, -1]), ([5, 6, 7, 8, 1], [0, 1, 1, 1, -1])]
    packed = pack(rows, 4, "wrapped")
    assert packed["input_ids"] == [[5, 6, 7, 8], [1, 5, 6, 7], [8, 1]]
    assert packed["target_items"] == [[0, 1, 1, 1], [0, 0, 1, 1], [0, 0]]
    split = pack([([5, 6, 7, 8, 9, 1], [0, 1, 1, 1, 1, -1]), ([5, 6, 1], [0, 1, -1])], 4, "bfd_split")
    rows = dict(zip(map(tuple, split["input_ids"]), split["target_items"], strict=True))
    assert rows == {(5, 6, 7, 8): [0, 1, 1, 1], (5, 6, 1): [0, 1, -1], (9, 1): [0, 0]}


def test_packing_without_a_length_is_refused():
    with pytest.raises(ValueError, match="`max_length` can't be `None`"):
        pack([([5, 6], [0, 1])], None, "bfd")


def test_a_masked_first_token_still_stands_before_the_rest_of_its_item(tokenizer, trie, sequences):
    """Padding-free rows mask the first label of each sequence, here the first token of an item."""
    item = sequences["i3"]
    input_ids = torch.tensor([[*item, *item]])
    labels = torch.tensor([[-100, *item[1:], -100, *item[1:]]])
    targets = TargetPositions.from_batch(input_ids, labels, torch.tensor([[1, 1, 1, 2, 2, 2]]), trie)
    assert targets.target_ids.tolist() == [*item[1:], *item[1:]]
    expected = trie.locate(torch.tensor([[item[0], -1], item[:2]] * 2))
    assert targets.nodes.tolist() == expected.tolist()
    assert (expected >= 0).all()


@pytest.mark.parametrize("strategy", ["bfd", "wrapped"])
def test_the_loss_of_packed_rows_is_that_of_the_rows(strategy, make_model, settings, items, tokenizer, trie):
    """Several targets a row; every one is mined as if it stood alone."""
    users = [["i0", "i1", "i2", "i3"], ["i7", "i4"], ["i5", "i9", "i6"]]
    join = lambda chosen: "".join("".join(items[item]) for item in chosen)  # noqa: E731
    rows = [
        {"prompt": join(ids[:1]), "completion": join(ids[1:]), "history": ids[:1], "item": ids[1:]} for ids in users
    ]
    terms = []
    for options in ({}, {"packing": True, "packing_strategy": strategy, "max_length": 64}):
        trainer = ILRecTrainer(
            make_model().double(),
            args=ILRecConfig(**{**settings, **options}),
            train_dataset=Dataset.from_list(rows),
            processing_class=tokenizer,
            item_trie=trie,
        )
        batch = trainer.data_collator(list(trainer.train_dataset))
        trainer.compute_loss(trainer.model, batch, num_items_in_batch=torch.tensor(1))
        sums = {name: value.item() for name, value in trainer._sums["train"].items()}
        terms.append({name: sums[name] for name in ("positions", "negatives")} if strategy == "wrapped" else sums)
    assert terms[0]["positions"] == 18
    assert terms[0]["negatives"] > 0
    if strategy == "bfd":  # wrapped rows also attend to the rows before them
        assert terms[1] == pytest.approx(terms[0])
    else:
        assert terms[1]["positions"] == 18
        assert terms[1]["negatives"] > 0
