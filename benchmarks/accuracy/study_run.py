"""
One run of a study, in a process of its own: what `settings.json` in its folder says, from where a killed run stopped.

A folder holds `settings.json` and then, each written in one step: `trained.json` (figures of training and validation),
`log.json`, `tested.json` and `ranks.parquet` (the test split, read once), and `done.json`. What is there is not done
again. `model` is removed at the end unless it is to be kept.
"""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import os
import resource
import shutil
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from benchmarks.accuracy.late_fusion import fused_ranks
from benchmarks.accuracy.study_options import parts_of
from benchmarks.accuracy.training import METHODS, train_method
from ilrec_trl.pipeline.baselines import popularity_ranks, transition_ranks
from ilrec_trl.pipeline.environment import device, revision, versions
from ilrec_trl.pipeline.evaluate import model_ranks
from ilrec_trl.pipeline.options import InputError, PipelineOptions
from ilrec_trl.pipeline.prepare import prepare
from ilrec_trl.pipeline.prepared_data import PreparedData
from ilrec_trl.pipeline.recommend import load_model
from ilrec_trl.pipeline.teacher import load_teacher, teacher_ranks, teacher_settings, train_teacher
from ilrec_trl.pipeline.train import TrainedModel, fit
from ilrec_trl.report.results import MethodRanks, summarise_methods, write_ranks, write_results
from ilrec_trl.rewards.sasrec_group import FINISHED_FILE, SASRecGroup


if TYPE_CHECKING:
    from ilrec_trl.data.splits import NextItemExample


@dataclasses.dataclass
class StudyRun:
    """
    One run.

    Args:
        folder (`Path`): Its folder.
        keep_model (`bool`): Whether its model stays after the test.
    """

    folder: Path
    keep_model: bool = False

    def __post_init__(self) -> None:
        self.settings: dict[str, Any] = json.loads((self.folder / "settings.json").read_text())
        options = self.options = PipelineOptions(*parts_of(self.settings["options"]))
        self.data, self.model, self.teacher, self.evaluation = (
            *(options.data, options.model, options.teacher, options.evaluation),
        )
        self.prepared: PreparedData = prepare(self.data, self.model.model)

    def execute(self) -> None:
        """Do what is left to do."""
        work = {
            "popularity": self._popularity,
            "transitions": self._transitions,
            "teacher": self._teacher,
            "train": self._train,
            "fusion": self._fusion,
        }
        work[self.settings["job"]]()
        self._write("done.json", {"revision": revision()})

    def _popularity(self) -> None:
        """Popularity's ranks, and what the report says about the data."""
        self._write("data.json", self.prepared.summary())
        counts: dict[str, int] = {}
        for _, items in self.prepared.splits.train:
            for item in items:
                counts[item] = counts.get(item, 0) + 1
        test = self.prepared.splits.test
        columns = {
            "user": [example.user for example in test],
            "item": [example.item for example in test],
            "history": [len(example.history) for example in test],
            "count": [counts.get(example.item, 0) for example in test],
        }
        pq.write_table(pa.table(columns), self.folder / "questions.parquet")
        splits, items, exclude = self.prepared.splits, self.prepared.catalog.item_ids, self.evaluation.exclude_history
        self._test(lambda asked: popularity_ranks(splits.train, asked, items, exclude))

    def _transitions(self) -> None:
        train, trie, exclude = self.prepared.splits.train, self.prepared.item_trie, self.evaluation.exclude_history
        self._test(lambda asked: transition_ranks(train, asked, trie, exclude))

    def _teacher(self) -> None:
        seed, folder, prepared = self.settings["seed"], self.folder / "model", self.prepared
        exclude = self.evaluation.exclude_history
        if not (self.folder / "trained.json").exists():
            for checkpoints in _checkpoints(folder):  # of a training that was killed
                if not (checkpoints.parent / FINISHED_FILE).exists():
                    shutil.rmtree(checkpoints)
            with self._measured() as figures:
                model = train_teacher(prepared, self.teacher, folder, seed)
            if self.teacher.sasrec is not None:
                shutil.copytree(self.teacher.sasrec, folder, dirs_exist_ok=True)
            models = model.models if isinstance(model, SASRecGroup) else [model]
            figures["parameters"] = sum(each.num_parameters() for each in models)
            figures["settings"] = teacher_settings(model, self.teacher, seed)
            if not self.data.train_on_validation:
                figures["validation"] = _metrics(teacher_ranks(model, prepared.splits.validation, {}, exclude))
            figures["best_epoch"] = _best_epoch(_checkpoints(folder))
            for checkpoints in _checkpoints(folder):
                shutil.rmtree(checkpoints)
            self._write("trained.json", figures)
        if self.settings["test"]:
            model = load_teacher(str(folder), prepared)
            self._test(lambda asked: dataclasses.replace(teacher_ranks(model, asked, {}, exclude), seed=seed))

    def _train(self) -> None:
        settings, folder = self.settings, self.folder / "model"
        if not (self.folder / "trained.json").exists():
            earlier = self._trained_before()
            if earlier is None:
                shutil.rmtree(folder, ignore_errors=True)
                self._fit(folder)
            else:
                shutil.copyfile(earlier / "log.json", self.folder / "log.json")
                shutil.copytree(earlier / "model", folder, dirs_exist_ok=True)
                self._write("trained.json", json.loads((earlier / "trained.json").read_text()))
        if not settings["test"]:
            if self.data.train_on_validation or not self.keep_model:
                shutil.rmtree(folder, ignore_errors=True)
            return
        if not (self.folder / "ranks.parquet").exists():
            model = load_model(folder)
            resume_dir = str(self.folder / "ranked")
            self._test(
                lambda asked: model_ranks(
                    METHODS[settings["method"]],
                    model,
                    self.prepared,
                    asked,
                    self.evaluation,
                    seed=settings["seed"],
                    resume_dir=resume_dir,
                )
            )
        shutil.rmtree(self.folder / "ranked", ignore_errors=True)
        if settings["trained_as"] is not None:
            shutil.rmtree(self.folder / settings["trained_as"] / "model", ignore_errors=True)
        if not self.keep_model:
            shutil.rmtree(folder, ignore_errors=True)

    def _fusion(self) -> None:
        """The ranks of a final run's model and SASRec together; that model is of no use afterwards."""
        folder = self.folder / self.settings["of"]
        if not (self.folder / "ranks.parquet").exists():
            if not (folder / "config.json").is_file():
                run = folder.parent.resolve()
                raise InputError(f"the model of {run} was removed after its test; remove that folder to train it anew")
            teacher = load_teacher(str(self.folder / self.settings["teacher"]), self.prepared)
            model, seed = load_model(folder), self.settings["seed"]
            self._test(
                lambda asked: fused_ranks("fusion", model, teacher, self.prepared, asked, self.evaluation, seed=seed)
            )
        if not self.keep_model:
            shutil.rmtree(folder, ignore_errors=True)

    def _trained_before(self) -> Path | None:
        """Folder of the candidate that is this run already, while its model is there."""
        if self.settings["trained_as"] is None:
            return None
        folder = self.folder / self.settings["trained_as"]
        return folder if (folder / "model/config.json").is_file() else None

    def _fit(self, folder: Path) -> None:
        settings, prepared = self.settings, self.prepared
        seed, method = settings["seed"], settings["method"]
        teacher = None
        if settings["teacher"] is not None:
            teacher = load_teacher(str(self.folder / settings["teacher"]), prepared)
        figures: dict[str, Any] = {}

        def train(*given: Any, **named: Any) -> TrainedModel:
            with self._measured() as measured:
                trained = train_method(*given, **named)
            figures.update(measured)
            return trained

        trained = fit(method, prepared, self.options, folder, seed=seed, teacher=teacher, train=train)
        for checkpoint in folder.glob("checkpoint-*"):
            shutil.rmtree(checkpoint)
        shutil.copyfile(folder / "log.json", self.folder / "log.json")
        figures |= {"settings": trained.settings, "parameters": trained.settings["parameters"]}
        if (epoch := trained.settings.get("best_epoch")) is not None:
            best = next(entry for entry in trained.history if entry.get("epoch") == epoch and "eval_ndcg@10" in entry)
            figures["best_epoch"] = epoch
            figures["validation"] = {
                name.removeprefix("eval_"): value for name, value in best.items() if name.startswith("eval_")
            }
        self._write("trained.json", figures)

    def _test(self, rank: Any) -> None:
        """Read the test split, unless that has been done."""
        if (self.folder / "ranks.parquet").exists():
            return
        test: list[NextItemExample] = list(self.prepared.splits.test)
        with self._measured() as figures:
            ranks = rank(test)
        self._write("tested.json", figures | {"settings": ranks.settings})
        write_ranks([ranks], [example.item for example in test], self.folder / "ranks.parquet.tmp")
        os.replace(self.folder / "ranks.parquet.tmp", self.folder / "ranks.parquet")

    @contextmanager
    def _measured(self) -> Iterator[dict[str, Any]]:
        """What the work inside took, and what it ran on."""
        figures: dict[str, Any] = {}
        start = time.perf_counter()
        yield figures
        figures["seconds"] = time.perf_counter() - start
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # KiB, on macOS bytes
        figures["peak_memory_mib"] = peak / (2**20 if sys.platform == "darwin" else 2**10)
        if torch.cuda.is_available():
            figures["peak_gpu_memory_mib"] = torch.cuda.max_memory_allocated() / 2**20
        figures |= {"revision": revision(), "versions": versions(), "device": device()}

    def _write(self, name: str, content: dict[str, Any]) -> None:
        """Write a file so that it is never half there."""
        temporary = self.folder / f"{name}.tmp"
        write_results(content, temporary)
        os.replace(temporary, self.folder / name)


def _metrics(ranks: MethodRanks) -> dict[str, float]:
    return summarise_methods([ranks])[ranks.method].metrics


def _checkpoints(folder: Path) -> list[Path]:
    """Folders of checkpoints: one of a SASRec, one of each of a group."""
    return sorted(folder.rglob("checkpoints"))


def _best_epoch(folders: list[Path]) -> float | None:
    """Epoch of SASRec's best validation, which its last checkpoint tells; of several the mean, rounded."""
    best = []
    for folder in folders:
        states = sorted(folder.glob("checkpoint-*/trainer_state.json"), key=lambda path: int(path.parent.name[11:]))
        history = json.loads(states[-1].read_text())["log_history"] if states else []
        entries = [entry for entry in history if "eval_ndcg@10" in entry]
        best += [max(entries, key=lambda entry: entry["eval_ndcg@10"])["epoch"]] if entries else []
    return float(round(sum(best) / len(best))) if best else None


def run_in_process(folder: str, keep_model: bool) -> None:
    """What a process of a study does: the run of a folder, with all output in `output.txt` there."""
    output = os.open(Path(folder) / "output.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    _end_with_the_study()
    try:
        StudyRun(Path(folder), keep_model).execute()
    except InputError as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(2)


def _end_with_the_study() -> None:
    """End this process when the one that started it has gone, killed perhaps."""
    study = multiprocessing.parent_process()
    assert study is not None

    def watch() -> None:
        study.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
