"""Two CPU processes on gloo, with the engines that exist, against one process."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch
import yaml

from tests.torchrun import torchrun

from .two_processes import data_parallel, fully_sharded
from .zero_processes import losses


ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.filterwarnings("ignore:.*is deprecated and will be removed in v6:FutureWarning")


def results(folder, module, *arguments):
    path = folder / "results.json"
    status, ends = torchrun(f"tests.compatibility.{module}", path, *arguments, logs=folder / "logs")
    if status != 0:
        pytest.fail(ends, pytrace=False)
    return json.loads(path.read_text())


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    return results(tmp_path_factory.mktemp("two"), "two_processes", "data_parallel")


@pytest.fixture(scope="module")
def one():
    return data_parallel()


def assert_one_trajectory(got, expected, tolerance=1e-4):
    assert len(got["logs"]) == len(expected["logs"]) == 4
    assert {"loss", "grad_norm"} <= set(expected["logs"][0])
    for mine, theirs in zip(got["logs"], expected["logs"], strict=True):
        assert {key: mine[key] for key in theirs} == pytest.approx(theirs, rel=tolerance)
    torch.testing.assert_close(
        torch.tensor(got["weights"]), torch.tensor(expected["weights"]), rtol=tolerance, atol=tolerance
    )


@pytest.mark.parametrize("tokens", ["averaged", "own"])
@pytest.mark.parametrize("split", ["8x1", "2x4", "1x8"])
def test_every_split_of_a_step_is_one_trajectory(tokens, split, one, two):
    """A split of rows by accumulation steps, of each of two processes; one process alone has twice the rows."""
    expected = one[f"{tokens} 8x1"]
    assert_one_trajectory(one[f"{tokens} {split}"], expected)
    got = two[f"{tokens} {split}"]
    assert got["wrapper"] == "DistributedDataParallel"
    assert_one_trajectory(got, expected)


def test_lora_with_reentrant_checkpointing_on_two_processes(one, two):
    assert_one_trajectory(two["lora reentrant"], one["lora reentrant"])


def test_batches_without_a_target_on_one_of_the_processes(one, two):
    assert_one_trajectory(two["text rows"], one["text rows"])


def test_own_tokens_of_each_process_are_counted_as_the_parent_does(one, two):
    sft, zero, ours = (two[f"{name}, unequal rows"] for name in ("sft", "zero", "almost zero"))
    assert_one_trajectory(zero, sft, 1e-6)
    assert_one_trajectory(ours, sft)
    # ... and that is another trajectory than one process's
    assert sft["weights"] != pytest.approx(one["sft, unequal rows"]["weights"], rel=1e-4, abs=1e-4)


def test_fully_sharded_gives_the_gradients_of_one_process(tmp_path):
    expected, got = fully_sharded(), results(tmp_path, "two_processes", "fully_sharded")
    assert got["loss"] == pytest.approx(expected["loss"], rel=1e-5)
    assert got["gradients"] == pytest.approx(expected["gradients"], rel=1e-4, abs=1e-7)


@pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="needs the extra `deepspeed`")
def test_zero_gives_the_losses_of_one_process(tmp_path):
    expected = losses(0)
    assert expected[-1] < expected[0]
    for got in results(tmp_path, "zero_processes").values():
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
