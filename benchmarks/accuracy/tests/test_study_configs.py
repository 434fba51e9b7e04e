"""The committed studies: every option, method and name of the declared grids is understood."""

import re
from pathlib import Path

import pytest

from benchmarks.accuracy.study_options import StudyOptions
from benchmarks.accuracy.study_plan import read_study
from ilrec_trl.cli import parse_options


CONFIGS = sorted((Path(__file__).parents[1] / "configs").glob("*.yaml"))


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.stem)
def test_the_studies_are_understood(config, tmp_path):
    """Every option, method and name of the declared grids, which only the folder of the data is missing from."""
    given = tmp_path / "study.yaml"
    text = config.read_text()
    for name in ("PATH/TO/instruments", "PATH/TO/industrial", "PATH/TO/ml-100k", "runs/industrial_ids"):
        text = text.replace(f"data: {name}", f"data: {tmp_path}")
    baselines = re.compile(r"runs/rectools_\w+/(\w+\.parquet)")  # from files
    for ranks in baselines.findall(text):
        (tmp_path / ranks).touch()
    text = baselines.sub(rf"{tmp_path}/\1", text)
    given.write_text(text)
    (options,) = parse_options("study", "", [StudyOptions], ["--config", str(given), "--jobs", "2"])
    plan = read_study(options)
    assert plan.options.jobs == 2
    for data in plan.data.values():
        numbers = {name: len(method.candidates) for name, method in data.methods.items()}
        # Five take the rate that SFT chose in another; what is trained further has two rates of its own for that, but
        # in one, which is about a rate that was chosen before
        further = [name for name in ("DPO", "softmax-DPO", "GRPO") if name in numbers]
        if config.stem.removeprefix("study_instruments_") in ("alternatives", "more_alternatives", "grpo"):
            rates = 1 if config.stem == "study_instruments_grpo" else 2
            assert [numbers.pop(name) for name in further] == [rates] * len(further)
            assert numbers["SFT"] == 1
        else:
            chosen_before = ("study_instruments_methods", "study_movielens_item_tokens")
            assert numbers["SFT"] > 1 or config.stem in chosen_before
        assert numbers["SFT"] == max(numbers.values())
    assert ("GRPO" if config.stem.endswith("_grpo") else "ILRec", "SFT") in plan.compare
