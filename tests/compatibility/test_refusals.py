"""Refusals that need more than a row's arguments."""

from types import SimpleNamespace

import pytest

from ilrec_trl.trainer.ilrec_trainer import ILRecTrainer, refuse_unsupported

from .workbench import make_trainer, with_rewards


@pytest.mark.parametrize("kind", ["cp", "sp"])
def test_context_and_sequence_parallelism_are_refused(kind):
    with make_trainer(ILRecTrainer, {}, with_rewards()) as trainer:
        enabled = {"cp_enabled": False, "sp_enabled": False, f"{kind}_enabled": True}
        trainer.accelerator.state.parallelism_config = SimpleNamespace(**enabled)
        try:
            with pytest.raises(ValueError, match="cut apart. Disable them"):
                refuse_unsupported(trainer)
        finally:
            trainer.accelerator.state.parallelism_config = None
