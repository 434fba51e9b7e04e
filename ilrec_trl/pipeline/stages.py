"""Single training stages on prepared data, as the commands `sasrec` and `train` run them."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from ..report.console import metrics_table, show
from ..report.results import summarise_methods, write_results
from .baselines import check_teacher, teacher_ranks, teacher_reward, teacher_settings, train_teacher
from .options import EvaluationOptions, InputError, ModelOptions, StageOptions, TeacherOptions, TrainingOptions
from .prepare import PreparedData
from .train import METHODS, build_model, train_method, unused_fields


def train_sasrec_stage(stage: StageOptions, teacher: TeacherOptions) -> None:
    """Train SASRec, save it in the output folder, and show how it ranks for the validation users."""
    prepared = PreparedData.load(stage.prepared)
    _say_unused(
        "a SASRec's training", _changed(teacher) & {"reward_temperature", "calibrate_rewards", "transition_share"}
    )
    model = train_teacher(prepared, teacher, stage.output_dir, stage.seed)
    ranks = teacher_ranks(model, prepared.splits.validation, teacher_settings(model, teacher, stage.seed))
    for note in prepared.notes:
        show(note)
    summary = summarise_methods([ranks])
    Path(stage.output_dir).mkdir(parents=True, exist_ok=True)
    write_results({"split": "validation", "methods": summary}, Path(stage.output_dir) / "metrics.json")
    show(metrics_table(summary))


def train_stage(
    stage: StageOptions,
    method: str,
    model_options: ModelOptions,
    teacher: TeacherOptions,
    training: TrainingOptions,
    evaluation: EvaluationOptions,
) -> None:
    """Train one method and save the model in the output folder. ILRec with rewards needs `--sasrec`."""
    check_teacher(teacher)
    prepared = PreparedData.load(stage.prepared)
    uses_rewards = method == "ilrec" and training.crr_weight != 0
    if uses_rewards and teacher.sasrec is None:
        raise InputError(
            "ILRec's collaborative rewards need a trained SASRec: give --sasrec FOLDER (from `ilrec sasrec`), or "
            "--crr_weight 0"
        )
    of_sasrec = {name for name in _changed(teacher) if not uses_rewards or name.startswith("sasrec_")}
    _say_unused(METHODS[method], (_changed(training) & unused_fields(method)) | of_sasrec)
    model = build_model(prepared, model_options, stage.seed)
    reward, settings = None, dict[str, Any]()
    if uses_rewards:
        sasrec = train_teacher(prepared, teacher, stage.output_dir, stage.seed)
        reward, settings = teacher_reward(sasrec, prepared, teacher, evaluation, model.device)
    trained = train_method(
        method, prepared, model, training, evaluation, stage.output_dir, seed=stage.seed, reward_func=reward
    )
    trained.settings |= settings
    trained.save_log(METHODS[method], stage.output_dir)
    best = trained.settings.get("validation_ndcg@10")
    show("" if best is None else f"Best validation NDCG@10 {best:.4f}")
    show(f"Model in {stage.output_dir}")


def _changed(options: Any) -> set[str]:
    """Names of options that have another value than the default."""
    return {each.name for each in dataclasses.fields(options) if getattr(options, each.name) != each.default}


def _say_unused(what: str, names: set[str]) -> None:
    """One configuration may serve several methods, so such options are no error."""
    if names:
        show(f"{what} does not use {', '.join(f'--{name}' for name in sorted(names))}")
