"""The collator's target numbers and reward columns."""

import pytest
import torch

from ilrec_trl.trainer._trl import DataCollatorForLanguageModeling
from ilrec_trl.trainer.data_collator import DataCollatorForItemCompletion


ROWS = [
    {
        "input_ids": [5, 6, 7, 8, 9, 1],
        "labels": [-100, 6, 7, 8, 9, 1],
        "target_items": [0, 1, 1, 2, 2, -2],
        "history": ["a"],
        "item": ["b", "c"],
        "user": "u",
    },
    {
        "input_ids": [5, 6, 1],
        "labels": [-100, 6, 1],
        "target_items": [0, 1, -1],
        "history": ["c"],
        "item": ["a"],
        "user": "v",
    },
]


def test_targets_are_numbered_over_the_batch():
    batch = DataCollatorForItemCompletion(pad_token_id=0, eos_token_id=1)(ROWS)
    assert batch["target_items"].tolist() == [[0, 1, 1, 2, 2, -2], [0, 3, -3, 0, 0, 0]]
    assert batch["history"] == [["a"], ["a", "b"], ["c"]]
    assert batch["item"] == ["b", "c", "a"]
    assert batch["user"] == ["u", "u", "v"]


def test_everything_else_is_what_the_parent_gives():
    parent = DataCollatorForLanguageModeling(pad_token_id=0, pad_to_multiple_of=4)(ROWS)
    batch = DataCollatorForItemCompletion(pad_token_id=0, pad_to_multiple_of=4)(ROWS)
    for name, value in parent.items():
        torch.testing.assert_close(batch[name], value)
    assert batch["target_items"].shape == batch["input_ids"].shape == (2, 8)


def test_without_numbers_every_label_is_the_target():
    rows = [
        {"input_ids": [5, 6, 7, 1], "labels": [-100, -100, 7, 1], "history": ["a"], "item": "b"},
        {"input_ids": [8, 9]},
    ]
    batch = DataCollatorForItemCompletion(pad_token_id=0, eos_token_id=1)([rows[0]])
    assert batch["target_items"].tolist() == [[0, 0, 1, -1]]
    assert (batch["history"], batch["item"]) == ([["a"]], ["b"])
    batch = DataCollatorForItemCompletion(pad_token_id=0, eos_token_id=1)([rows[1]])
    assert batch["target_items"].tolist() == [[1, 1]]


def test_padding_free_rows_are_joined():
    batch = DataCollatorForItemCompletion(pad_token_id=0, eos_token_id=1, padding_free=True)(
        [{**row, "labels": row["input_ids"]} for row in ROWS]
    )
    assert batch["target_items"].tolist() == [[0, 1, 1, 2, 2, -2, 0, 3, -3]]
    assert batch["target_items"].shape == batch["input_ids"].shape


@pytest.mark.parametrize("column", ["history", "item", "user"])
def test_a_column_that_rows_lack_is_left_out(column):
    rows = [{name: value for name, value in row.items() if name != column} for row in ROWS[1:]]
    assert column not in DataCollatorForItemCompletion(pad_token_id=0)(rows)
