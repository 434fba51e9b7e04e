"""The runs of a study, as far as they are known: what validation chooses decides the later ones."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.accuracy.study_options import OF_A_STUDY, PARTS, merge_options, parts_of, read_options
from benchmarks.accuracy.study_plan import DataSet, Job, Method, StudyPlan, candidate_name, is_finished, slug
from benchmarks.accuracy.training import extra_arguments, unused_fields
from ilrec_trl.pipeline.options import DataOptions, TeacherOptions


_REWARD = {"reward_temperature", "calibrate_rewards", "transition_share"}
_TEACHER = {option.name for option in dataclasses.fields(TeacherOptions)} - _REWARD
_OPTIONS = {option.name for part in PARTS for option in dataclasses.fields(part)}
_SEVERAL = {"sasrec_folds", "sasrec_ensemble"}
# What decides the data and the questions: `model` has the tokenizer.
_DATA = {option.name for option in dataclasses.fields(DataOptions)} | {"model", "exclude_history"}


def study_jobs(plan: StudyPlan) -> list[Job]:
    """Every run that can be named now, each after those it needs."""
    return [job for data in plan.data.values() for job in _DataJobs(plan, data).jobs()]


def read_json(path: Path) -> dict[str, Any]:
    """A file of a finished run."""
    return dict(json.loads(path.read_text()))


def candidate_folders(plan: StudyPlan, data: DataSet, method: Method) -> list[Path]:
    """Where the candidates of a method are, in their order."""
    root = plan.folder / slug(data.name) / slug(method.name) / "tune"
    return [root / candidate_name(candidate) for candidate in method.candidates]


def chosen_candidate(folders: list[Path]) -> int | None:
    """Number of the candidate that ranks best on validation, the first of equal ones; None until all are finished."""
    if not all(map(is_finished, folders)):
        return None
    scores = [read_json(folder / "trained.json")["validation"]["ndcg@10"] for folder in folders]
    return scores.index(max(scores))


class _DataJobs:
    """Jobs of one data set."""

    def __init__(self, plan: StudyPlan, data: DataSet) -> None:
        self.plan, self.data = plan, data
        self.folder = plan.folder / slug(data.name)
        self.seeds = plan.options.seeds
        self.refit = data.options.get("refit", False)
        self.teachers: dict[Path, Job] = {}

    def jobs(self) -> Iterator[Job]:
        options = self._options(self.data.options, _OPTIONS - _DATA, self.refit)
        yield self._job("popularity", self.folder / "popularity", "popularity", options, {})
        if "transitions" in self.plan.baselines:
            yield self._job("transitions", self.folder / "transitions", "transitions", options, {})
        if "SASRec" in self.plan.baselines:
            # A folder holds one, whatever the seed
            for seed in self.seeds[:1] if "sasrec" in self.data.options else self.seeds:
                self._teacher(self.data.options, seed, self.refit, alone=True)
        if "SASRec ensemble" in self.plan.baselines:
            for seed in self.seeds:
                self._teacher(self.data.options, self._teacher_seed(seed), self.refit)
        runs = [job for method in self.data.methods.values() for job in self._method(method)]
        fusions = [job for name, method in self.plan.fusion.items() for job in self._fusions(name, method, runs)]
        yield from self.teachers.values()
        yield from runs
        yield from fusions

    def _method(self, method: Method) -> Iterator[Job]:
        if not method.selects:
            options = merge_options(method.options, read_options(method.candidates[0], method.name))
            yield from self._finals(method, options, None)
            return
        folders = candidate_folders(self.plan, self.data, method)
        for candidate, folder in zip(method.candidates, folders, strict=True):
            options = merge_options(method.options, read_options(candidate, method.name))
            title = f"{method.name} {folder.name}"
            yield self._run(method, title, folder, options, self.seeds[0], refit=False, test=False)
        best = chosen_candidate(folders)
        if best is None:
            return
        options = merge_options(method.options, read_options(method.candidates[best], method.name))
        if self.refit:
            options["num_train_epochs"] = read_json(folders[best] / "trained.json")["best_epoch"]
            yield from self._finals(method, options, None)
        else:
            yield from self._finals(method, options, folders[best])

    def _finals(self, method: Method, options: dict[str, Any], candidate: Path | None) -> Iterator[Job]:
        for seed in self.seeds:
            folder = self.folder / slug(method.name) / f"seed{seed}"
            yield self._run(
                method,
                f"{method.name} seed {seed}",
                folder,
                options,
                seed,
                refit=self.refit,
                test=True,
                # Trained by the same options with the first seed already
                trained_as=candidate if seed == self.seeds[0] else None,
            )

    def _fusions(self, name: str, method: str, runs: list[Job]) -> Iterator[Job]:
        """Fusion of a method's final runs with SASRec."""
        finals = {job.folder: job for job in runs}
        for seed in self.seeds:
            final = self.folder / slug(method) / f"seed{seed}"
            if final not in finals:
                continue
            folder = self.folder / slug(name) / f"seed{seed}"
            teacher = self._teacher(self.data.options, self._teacher_seed(seed), False)
            about = {"seed": seed, "of": os.path.relpath(final / "model", folder)}
            about["teacher"] = os.path.relpath(teacher / "model", folder)
            options = finals[final].settings["options"]
            yield self._job("fusion", folder, f"{name} seed {seed}", options, about, (final, teacher))

    def _run(
        self,
        method: Method,
        title: str,
        folder: Path,
        options: dict[str, Any],
        seed: int,
        *,
        refit: bool,
        test: bool,
        trained_as: Path | None = None,
    ) -> Job:
        needs, unused, teacher = [], _TEACHER | _REWARD, None
        if _uses_teacher(method.method, options):
            teacher = self._teacher(options, self._teacher_seed(seed), refit)
            needs.append(teacher)
            unused = set(_TEACHER)
        if trained_as is not None:
            needs.append(trained_as)
        training = parts_of(options)[3]
        unused |= unused_fields(method.method)
        options = options | {"trainer_args": extra_arguments(method.method, training) or None}
        about = {
            "method": method.method,
            "seed": seed,
            "test": test,
            "teacher": None if teacher is None else os.path.relpath(teacher / "model", folder),
            "trained_as": None if trained_as is None else os.path.relpath(trained_as, folder),
        }
        return self._job("train", folder, title, self._options(options, unused, refit), about, tuple(needs))

    def _teacher_seed(self, seed: int) -> int:
        """Seed of the SASRec that a run asks: its own with `teacher_per_seed`, else the study's first."""
        return seed if self.data.options.get("teacher_per_seed") else self.seeds[0]

    def _teacher(self, options: dict[str, Any], seed: int, refit: bool, alone: bool = False) -> Path:
        """
        Folder of the SASRec that these options ask for, or of a single one of all users; its job is added where it is
        new.
        """
        own = {name: value for name, value in options.items() if name in _TEACHER}
        several = parts_of(own)[2].several and not alone
        if not several:
            own = {name: value for name, value in own.items() if name not in _SEVERAL}
        usual = self.data.options
        changed = [f"{name}={value}" for name, value in own.items() if value != usual.get(name)]
        if not several and "sasrec" not in own:
            own["sasrec_folds"] = 1
        base = "SASRec ensemble" if several else "SASRec"
        name = slug(",".join([base, *changed]))
        folder = self.folder / name / ("refit" if refit else "") / f"seed{seed}"
        if folder in self.teachers:
            return folder
        needs: tuple[Path, ...] = ()
        if refit:
            before = self._teacher(options, seed, refit=False, alone=alone)
            needs = (before,)
            if is_finished(before):
                own = own | {"sasrec_epochs": read_json(before / "trained.json")["best_epoch"]}
        test = base in self.plan.baselines and not changed and refit == self.refit
        title = f"{name} seed {seed}" + (" refit" if refit else "")
        kept = {name: value for name, value in self.data.options.items() if name not in _TEACHER}
        settings = self._options(kept | own, _OPTIONS - _DATA - _TEACHER, refit)
        self.teachers[folder] = self._job("teacher", folder, title, settings, {"seed": seed, "test": test}, needs)
        return folder

    def _options(self, options: dict[str, Any], unused: set[str], refit: bool) -> dict[str, Any]:
        """Options of a run, without those that it does not use."""
        shown = {name: value for name, value in options.items() if name not in unused}
        shown = {name: value for name, value in shown.items() if name not in OF_A_STUDY}
        return shown | ({"train_on_validation": True} if refit else {})

    def _job(
        self,
        kind: str,
        folder: Path,
        title: str,
        options: dict[str, Any],
        about: dict[str, Any],
        needs: tuple[Path, ...] = (),
    ) -> Job:
        return Job(f"{self.data.name}: {title}", folder, {"job": kind, **about, "options": options}, needs)


def remove_lost_models(plan: StudyPlan) -> None:
    """Remove the models of candidates that validation did not choose."""
    for data in plan.data.values():
        for method in data.methods.values():
            folders = candidate_folders(plan, data, method) if method.selects else []
            best = chosen_candidate(folders) if folders else None
            for number, folder in enumerate(folders if best is not None else []):
                if number != best or data.options.get("refit"):
                    shutil.rmtree(folder / "model", ignore_errors=True)


def _uses_teacher(method: str, options: dict[str, Any]) -> bool:
    """Whether a method asks SASRec in training."""
    weight = options.get("crr_weight")
    return method == "ilrec" and (options.get("trainer_args") or {}).get("crr_weight", weight) != 0
