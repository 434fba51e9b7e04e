"""Stopping, resuming, publishing: what happens to a run besides its steps."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers.trainer
from trl import TrlParser

from ilrec_trl.trainer.ilrec_config import ILRecConfig
from ilrec_trl.trainer.ilrec_trainer import ILRecTrainer

from .workbench import SETTINGS, make_model, make_trainer, with_rewards


ROOT = Path(__file__).parents[2]
SAVING = {"max_steps": 6, "save_strategy": "steps", "save_steps": 2}


def dropout_model():
    """Random numbers in every step, so that resuming has to restore their state too."""
    return make_model(attention_dropout=0.3)


def run(folder, resume=None, **options):
    arguments = {"model": dropout_model(), **with_rewards()}
    with make_trainer(ILRecTrainer, {"output_dir": str(folder), **SAVING, **options}, arguments) as trainer:
        trainer.train(resume_from_checkpoint=resume)
    return trainer


def step_logs(trainer):
    """Without the count of tokens, which TRL starts again when it resumes."""
    logs = [log for log in trainer.state.log_history if "loss" in log]
    return [{key: value for key, value in log.items() if key != "num_tokens"} for log in logs]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    return folder, run(folder)


def copy_checkpoints(source, target, steps):
    for step in steps:
        shutil.copytree(source / f"checkpoint-{step}", target / f"checkpoint-{step}")


def assert_same_run(resumed, whole):
    assert step_logs(resumed) == step_logs(whole)
    for got, expected in zip(resumed.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(got, expected)


def test_resuming_is_bit_equal(uninterrupted, tmp_path):
    folder, whole = uninterrupted
    copy_checkpoints(folder, tmp_path, [2])
    resumed = run(tmp_path, resume=True)
    assert len(step_logs(resumed)) == 6
    assert_same_run(resumed, whole)


@pytest.mark.parametrize("damage", ["no state", "half a state", "no optimizer"])
def test_a_kill_while_saving_leaves_the_last_whole_checkpoint(damage, uninterrupted, tmp_path):
    folder, whole = uninterrupted
    copy_checkpoints(folder, tmp_path, [2, 4])
    broken = tmp_path / "checkpoint-4"
    if damage == "half a state":
        state = (broken / "trainer_state.json").read_text()
        (broken / "trainer_state.json").write_text(state[: len(state) // 2])
    else:
        (broken / "trainer_state.json").unlink()
    if damage == "no optimizer":
        (broken / "optimizer.pt").unlink()
    resumed = run(tmp_path, resume=True)
    assert_same_run(resumed, whole)


def test_a_killed_run_is_resumed_bit_equal(uninterrupted, tmp_path):
    command = [sys.executable, "-m", "tests.compatibility.killed_run", str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, timeout=300, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr[-3000:]
    assert (tmp_path / "checkpoint-4" / "model.safetensors").is_file()
    resumed = run(tmp_path, resume=True)
    assert_same_run(resumed, uninterrupted[1])


def test_without_a_whole_checkpoint_resuming_is_refused(uninterrupted, tmp_path):
    copy_checkpoints(uninterrupted[0], tmp_path, [2])
    (tmp_path / "checkpoint-2" / "trainer_state.json").unlink()
    with pytest.raises(ValueError, match=r"no whole checkpoint in .*checkpoint-2.*resume_from_checkpoint=None"):
        run(tmp_path, resume=True)


def test_the_callbacks_and_data_skipping_options_are_the_parents(uninterrupted, tmp_path):
    copy_checkpoints(uninterrupted[0], tmp_path, [2])
    options = {"ignore_data_skip": True, "restore_callback_states_from_checkpoint": True}
    resumed = run(tmp_path, resume=str(tmp_path / "checkpoint-2"), **options)
    assert resumed.state.global_step == 6


def test_the_model_card_names_method_paper_and_settings(uninterrupted):
    card = (uninterrupted[0] / "README.md").read_text()
    header, body = card.split("---\n")[1:3]
    for tag in ("trl", "ilrec", "recommendation"):
        assert f"- {tag}\n" in header
    assert "2602.17410" in body
    assert "ILRec" in body
    for setting in ("cpo_beta", "cpd_weight", "crr_weight", "intermediate_layers"):
        assert setting in body
    assert "ilrec/cpo_loss" in body


class Hub:
    """A hub in a folder: what is uploaded is copied."""

    def __init__(self, root):
        self.root, self.created = root, []

    def create_repo(self, repo_id, **kwargs):
        self.created.append((repo_id, kwargs.get("private")))
        name = repo_id if "/" in repo_id else f"me/{repo_id}"
        return type("Url", (str,), {"repo_id": name})(f"https://hub/{name}")

    def upload_folder(self, repo_id, folder_path, **kwargs):
        shutil.copytree(folder_path, self.root / repo_id, dirs_exist_ok=True)
        return None


def test_push_to_hub(monkeypatch, tmp_path):
    hub = Hub(tmp_path / "hub")
    monkeypatch.setattr(transformers.trainer, "hf_api", lambda: hub)
    options = {
        "output_dir": str(tmp_path / "out"),
        "max_steps": 1,
        "push_to_hub": True,
        "hub_model_id": "me/recommender",
        "hub_strategy": "end",
        "hub_private_repo": True,
        "hub_token": "none",
        "hub_always_push": True,
    }
    with make_trainer(ILRecTrainer, options, with_rewards()) as trainer:
        trainer.train()
        trainer.push_to_hub(dataset_name="me/histories")
    assert hub.created[0] == ("me/recommender", True)
    pushed = tmp_path / "hub" / "me" / "recommender"
    assert (pushed / "model.safetensors").is_file()
    assert "- ilrec\n" in (pushed / "README.md").read_text()
    config = json.loads((pushed / "config.json").read_text())
    assert config["model_type"] == "llama"


def test_a_yaml_file_as_trl_reads_it(tmp_path):
    path = tmp_path / "config.yaml"
    fields = {**SETTINGS, "output_dir": str(tmp_path / "out"), "intermediate_layers": [0, 1], "cpo_beta": 0.5}
    path.write_text("".join(f"{name}: {json.dumps(value)}\n" for name, value in fields.items()))
    (config,) = TrlParser(ILRecConfig).parse_args_and_config(["--config", str(path), "--cpd_weight", "0.2"])
    assert (config.intermediate_layers, config.cpo_beta, config.cpd_weight) == ([0, 1], 0.5, 0.2)
    with make_trainer(ILRecTrainer, {**vars_of(config), "max_steps": 1}, with_rewards()) as trainer:
        trainer.train()
    assert trainer.intermediate_layers == [0, 1]


def vars_of(config):
    return {name: getattr(config, name) for name in (*SETTINGS, "intermediate_layers", "cpo_beta", "cpd_weight")}
