"""A bug of ours keeps its traceback, whatever stage it is in; what is wrong with the input is one line."""

import pytest

from ilrec_trl.cli import main
from ilrec_trl.pipeline.options import InputError, input_errors


SMALL = [
    *("--hidden_size", "16", "--intermediate_size", "32", "--num_hidden_layers", "3", "--num_attention_heads", "2"),
    *("--num_train_epochs", "1", "--validation_users", "5"),
]
BUGS = [AttributeError("bug"), KeyError("bug"), TypeError("bug"), IndexError("bug"), ValueError("bug")]


@pytest.fixture(scope="module")
def folders(data_folder, tmp_path_factory):
    root = tmp_path_factory.mktemp("stages")
    prepared, model, sasrec = (str(root / name) for name in ("data", "model", "sasrec"))
    assert main(["prepare", "--data", str(data_folder), "--output_dir", prepared]) == 0
    assert main(["sasrec", "--prepared", prepared, "--output_dir", sasrec, "--sasrec_folds", "1",
                 "--sasrec_epochs", "1", "--sasrec_hidden_size", "8"]) == 0  # fmt: skip
    assert main(["train", "--prepared", prepared, "--output_dir", model, "--crr_weight", "0", *SMALL]) == 0
    return {"data": str(data_folder), "prepared": prepared, "model": model, "sasrec": sasrec, "root": str(root)}


STAGES = {
    "prepare": ("pipeline.prepare.split", ["prepare", "--data", "{data}", "--output_dir", "{root}/new"]),
    "read": ("data.interactions.Interactions.load", ["prepare", "--data", "{data}", "--output_dir", "{root}/new"]),
    "sasrec": (
        "pipeline.teacher.train_sasrec_group",
        ["sasrec", "--prepared", "{prepared}", "--output_dir", "{root}/s"],
    ),
    "rewards": (
        "pipeline.train.teacher_reward",
        ["train", "--prepared", "{prepared}", "--sasrec", "{sasrec}", "--output_dir", "{root}/m", *SMALL],
    ),
    "train": (
        "trainer.ilrec_trainer.ILRecTrainer.compute_loss",
        ["train", "--prepared", "{prepared}", "--output_dir", "{root}/m", "--crr_weight", "0", *SMALL],
    ),
    "construct": (
        "trainer.ilrec_trainer.ILRecTrainer.__init__",
        ["train", "--prepared", "{prepared}", "--output_dir", "{root}/m", "--crr_weight", "0", *SMALL],
    ),
    "evaluate": (
        "evaluation.evaluator.RecommendationEvaluator.__call__",
        ["evaluate", "--prepared", "{prepared}", "--model", "{model}"],
    ),
    "recommend": (
        "evaluation.recommender.Recommender.recommend",
        ["recommend", "--prepared", "{prepared}", "--model", "{model}", "--user", "7"],
    ),
    "export": (
        "pipeline.export.recommender_of",
        ["export", "--prepared", "{prepared}", "--model", "{model}", "--output_dir", "{root}/e"],
    ),
    "items": (
        "pipeline.build_items.build_semantic_ids",
        ["items", "build", "--items", "{data}/item.json", "--output_dir", "{root}/ids", "--codebook_size", "8"],
    ),
}


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: type(bug).__name__)
@pytest.mark.parametrize("stage", STAGES)
def test_a_bug_keeps_its_traceback(stage, bug, folders, monkeypatch, capsys):
    place, arguments = STAGES[stage]

    def buggy(*args, **kwargs):
        raise bug

    monkeypatch.setattr(f"ilrec_trl.{place}", buggy)
    with pytest.raises(type(bug), match="bug"):
        main([each.format(**folders) for each in arguments])


def test_what_a_check_or_a_reader_says_is_one_line(tmp_path):
    from ilrec_trl import ItemCatalog

    for wrong in (lambda: ItemCatalog([]), lambda: open(tmp_path / "missing"), lambda: __import__("json").loads("{")):
        with pytest.raises(InputError), input_errors():
            wrong()


def test_a_check_deep_in_the_library_is_one_line_in_every_command(folders, capsys):
    train = ["train", "--prepared", folders["prepared"], "--output_dir", folders["root"] + "/m", "--crr_weight", "0"]
    for flags, message in [
        (["--num_beams", "3"], "--num_beams is 3, expected 10 or more"),
        (["--eval_batch_size", "0"], "batch_size=0"),
        (["--intermediate_layers", "9"], "`intermediate_layers=9` asks for 9 layers before the last"),
    ]:
        assert main([*train, *SMALL, *flags]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert "Traceback" not in error


def test_what_numpy_says_of_our_own_arrays_is_a_bug():
    import numpy as np

    with pytest.raises(ValueError, match="reshape"), input_errors():
        np.zeros(3).reshape(2, 2)
