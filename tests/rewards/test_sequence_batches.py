import random

import pytest
import torch

from ilrec_trl.rewards.sequence_batches import length_batches


def padded(lengths, batches):
    return sum(len(batch) * max(lengths[row] for row in batch) for batch in batches)


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_each_row_once_in_batches_of_like_length(device):
    draw = random.Random(0)
    lengths = [draw.randint(1, 50) for _ in range(500)]
    batches = list(length_batches(lengths, 100, torch.device(device)))
    assert sorted(row for batch in batches for row in batch) == list(range(500))
    assert all(1 <= len(batch) <= 100 for batch in batches)
    flat = [lengths[row] for batch in batches for row in batch]
    assert flat == sorted(flat)
    if device == "cpu":
        assert padded(lengths, batches) < sum(lengths) + 64 * len(batches)
    else:
        assert len(batches) == 5  # an accelerator is given whole batches


def test_few_rows_are_not_taken_apart():
    assert list(length_batches([9, 1, 5], 512, torch.device("cpu"))) == [[1, 2, 0]]
    assert list(length_batches([], 512, torch.device("cpu"))) == []
