"""
A run that is killed while it saves its second checkpoint, after the model and before the optimiser is written:
`python -m tests.compatibility.killed_run FOLDER`.
"""

import os
import signal
import sys
import warnings

from ilrec_trl.trainer.ilrec_trainer import ILRecTrainer

from .test_life_cycle import run


def kill(trainer, output_dir):
    if trainer.state.global_step == 4:
        os.kill(os.getpid(), signal.SIGKILL)
    return save(trainer, output_dir)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    save, ILRecTrainer._save_optimizer_and_scheduler = ILRecTrainer._save_optimizer_and_scheduler, kill
    run(sys.argv[1])
