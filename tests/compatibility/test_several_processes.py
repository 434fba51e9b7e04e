"""Two CPU processes on gloo, with the engines that exist, against one process."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from .two_processes import data_parallel, fully_sharded
from .zero_processes import losses


ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.filterwarnings("ignore:.*is deprecated and will be removed in v6:FutureWarning")


def launch(module, folder):
    path = folder / "results.json"
    run = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command = [*run, "-m", f"tests.compatibility.{module}", str(path)]
    python_path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": python_path}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(path.read_text())


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    return launch("two_processes", tmp_path_factory.mktemp("two"))


@pytest.fixture(scope="module")
def one():
    return data_parallel(1)


def assert_one_trajectory(got, expected, tolerance=1e-4):
    assert len(got["logs"]) == len(expected["logs"]) == 4
    for mine, theirs in zip(got["logs"], expected["logs"], strict=True):
        assert {key: mine[key] for key in theirs} == pytest.approx(theirs, rel=tolerance)
    assert got["weights"] == pytest.approx(expected["weights"], rel=tolerance, abs=tolerance)


@pytest.mark.parametrize("case", ["ilrec 1 step", "ilrec 2 steps", "text rows", "lora reentrant"])
def test_data_parallel_is_one_trajectory(case, one, two):
    assert two["ddp"][case]["wrapper"] == "DistributedDataParallel"
    assert_one_trajectory(two["ddp"][case], one[case])
    if case == "ilrec 2 steps":
        assert_one_trajectory(two["ddp"][case], one["ilrec 1 step"])


def test_own_tokens_of_each_process_are_counted_as_the_parent_does(two):
    sft, zero = (two["ddp"][f"{name} own tokens"] for name in ("sft", "zero"))
    assert_one_trajectory(zero, sft, 1e-6)
    ours = two["ddp"]["almost zero own tokens"]
    assert_one_trajectory(ours, sft)


def test_fully_sharded_gives_the_gradients_of_one_process(two):
    expected = fully_sharded()
    assert two["fsdp2"]["loss"] == pytest.approx(expected["loss"], rel=1e-5)
    assert two["fsdp2"]["gradients"] == pytest.approx(expected["gradients"], rel=1e-4, abs=1e-7)


@pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="needs the extra `deepspeed`")
def test_zero_gives_the_losses_of_one_process(tmp_path):
    expected = losses(0)
    assert expected[-1] < expected[0]
    for got in launch("zero_processes", tmp_path).values():
        assert got == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("path", sorted((ROOT / "examples" / "accelerate").glob("*.yaml")), ids=lambda path: path.stem)
def test_the_example_is_a_configuration_that_accelerate_reads(path):
    from accelerate.commands.config.config_args import ClusterConfig

    config = ClusterConfig.from_yaml_file(path)
    assert config.num_processes == 2
    kind = {"ddp": "MULTI_GPU", "ddp_cpu": "MULTI_CPU", "fsdp2": "FSDP"}.get(path.stem, "DEEPSPEED")
    assert config.distributed_type == kind
    if path.stem == "fsdp2":
        assert config.fsdp_config["fsdp_version"] == 2
    if kind == "DEEPSPEED":
        assert config.deepspeed_config["zero_stage"] == int(path.stem[-1])
    assert yaml.safe_load(path.read_text())
