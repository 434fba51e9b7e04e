"""Each row of the matrix: SFTTrainer and ILRecTrainer on one script, equal at zero weights, learning otherwise."""

import gc
import math
import warnings

import pytest
import torch
from trl import SFTTrainer

from ilrec_trl.trainer.ilrec_trainer import ILRecTrainer

from .matrix import MATRIX
from .workbench import ALMOST_ZERO, ZERO, make_trainer


# PEFT 0.21 and TRL 1.16 use names that transformers 5.23 deprecates (peft/peft_model.py, trl/models/).
pytestmark = pytest.mark.filterwarnings("ignore:.*is deprecated and will be removed in v6:FutureWarning")

#: Steps in which a row sees all of its data; losses of different batches are not compared.
EPOCH = 2
#: Logged values that a clock decides, and those that SFTTrainer does not know.
NOT_COMPARED = ("runtime", "per_second", "total_flos", "ilrec/")
SHARES = ("negative_mass", "without_negatives", "top1_layer_")


@pytest.fixture(autouse=True, scope="module")
def little_to_collect():
    """Training ends with a garbage collection, which is slow over all that is imported."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


def named(rows):
    return [pytest.param(row, id=f"{row.area}: {row.name}") for row in rows]


def train(trainer_class, row, weights=(), ilrec=False):
    arguments = {**row.arguments(), **(row.ilrec() if ilrec else {})}
    with make_trainer(trainer_class, {**row.options, **dict(weights)}, arguments) as trainer:
        trainer.train()
        if row.check is not None and ilrec and not weights:
            row.check(trainer)
    return trainer


def logs(trainer):
    return [log for log in trainer.state.log_history if "train_loss" not in log]


def assert_equal_logs(got, expected, tolerance):
    assert len(got) == len(expected) > 0
    for mine, theirs in zip(got, expected, strict=True):
        for key, value in theirs.items():
            if isinstance(value, float) and not any(word in key for word in NOT_COMPARED):
                # Rounding in half precision may tip one of the 32 tokens of a step
                absolute = 1 / 32 if "accuracy" in key and tolerance >= 1e-2 else tolerance / 10
                assert mine[key] == pytest.approx(value, rel=tolerance, abs=absolute), key


@pytest.mark.parametrize("row", named(row for row in MATRIX if row.is_trained))
def test_row_works(row):
    with warnings.catch_warnings():
        if row.warns:
            warnings.filterwarnings("ignore", message=row.warns)
        zero = train(ILRecTrainer, row, ZERO)
        sft = zero if row.parent_fails else train(SFTTrainer, row)
        assert_equal_logs(logs(zero), logs(sft), 1e-6)
        for (name, expected), got in zip(sft.model.named_parameters(), zero.model.parameters(), strict=True):
            torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-6, msg=name)
        assert_equal_logs(logs(train(ILRecTrainer, row, ALMOST_ZERO, ilrec=True)), logs(sft), row.tolerance)
        ours = train(ILRecTrainer, row, ilrec=True)
    steps = [log for log in logs(ours) if "loss" in log]
    losses = [log["loss"] for log in steps]
    assert sum(losses[-EPOCH:]) < sum(losses[:EPOCH])
    for log in logs(ours):
        assert_sensible(log)


def assert_sensible(log):
    metrics = {key.split("ilrec/")[1]: value for key, value in log.items() if "ilrec/" in key}
    assert len(metrics) >= 7
    assert all(math.isfinite(value) for value in metrics.values())
    assert metrics["cpo_loss"] > 0
    assert metrics["cpd_loss"] > 0
    assert metrics.get("crr_loss", 1) > 0
    assert metrics["negatives"] > 0
    for name, value in metrics.items():
        assert not name.startswith(SHARES) or 0 <= value <= 1, name


@pytest.mark.parametrize("row", named(row for row in MATRIX if row.refused))
def test_row_is_refused_at_construction(row):
    with warnings.catch_warnings():
        if row.warns:
            warnings.filterwarnings("ignore", message=row.warns)
        with pytest.raises((ValueError, TypeError), match=row.refused):
            with make_trainer(ILRecTrainer, row.options, {**row.arguments(), **row.ilrec()}):
                pass
    assert row.remedy
