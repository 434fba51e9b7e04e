"""
A declared grid of methods x data sets x seeds, in processes side by side, and one report:

    python -m benchmarks.accuracy.study --config benchmarks/accuracy/configs/study_store.yaml --jobs 2
"""

from __future__ import annotations

import fcntl
import json
import multiprocessing
import os
import shlex
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from typing import Any

import torch

from benchmarks.accuracy.command import run_command
from benchmarks.accuracy.estimate import plan_rows
from benchmarks.accuracy.study_jobs import remove_lost_models, study_jobs
from benchmarks.accuracy.study_options import StudyOptions
from benchmarks.accuracy.study_plan import Job, StudyPlan, is_finished, read_study, slug
from benchmarks.accuracy.study_results import write_study_report
from benchmarks.accuracy.study_run import run_in_process
from ilrec_trl.pipeline.options import InputError
from ilrec_trl.report.console import duration, list_table, show


PROGRAM = "benchmarks.accuracy.study"
OPTIONS = [StudyOptions]


@dataclass
class Study:
    """
    A study at work. [`Study.execute`] runs what is left of it and writes the report.

    Args:
        plan (`StudyPlan`): What was declared.
        command (`str`): The command, for the report.
    """

    plan: StudyPlan
    command: str
    running: dict[Job, BaseProcess] = field(default_factory=dict)
    failed: list[Job] = field(default_factory=list)
    started: dict[Job, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        # A fork of a process that has imported everything starts at once, but cannot use a GPU its parent looked at.
        method = "spawn" if torch.cuda.is_available() else "forkserver"
        self.processes: Any = multiprocessing.get_context(method)
        multiprocessing.set_forkserver_preload([run_in_process.__module__])
        # What the processes inherit: their share of the cores, unless the user says how many threads they have.
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        threads = max(1, cores // self.plan.options.jobs)
        os.environ.setdefault("OMP_NUM_THREADS", str(threads))
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

    def execute(self) -> None:
        """
        Run every job that is not finished, then report.

        Raises:
            `InputError`: where a finished run has other settings, or runs failed; the report is written all the same.
        """
        with self._alone():
            try:
                while self._step():
                    wait([process.sentinel for process in self.running.values()])
            finally:
                for process in self.running.values():
                    process.terminate()
        write_study_report(self.plan, self.command)
        show(f"Report: {self.plan.folder / 'report.md'}")
        if self.failed:
            names = "; ".join(f"{job.title} ({job.folder / 'output.txt'})" for job in self.failed)
            raise InputError(f"{len(self.failed)} runs failed: {names}. Run the same command again to go on")

    def jobs(self) -> list[Job]:
        """The jobs that are known now and asked for by `--only`, and what those need."""
        jobs = study_jobs(self.plan)
        only = self.plan.options.only
        if not only:
            return jobs
        data = [name for name in only if name in self.plan.data] or list(self.plan.data)
        methods = {slug(name) for name in only if name not in self.plan.data}
        inside = {self.plan.folder / slug(name) for name in data}
        chosen = [job for job in jobs if any(job.folder.is_relative_to(folder) for folder in inside)]
        if methods:
            known = {job.folder: job for job in jobs}
            wanted = [job for job in chosen if job.folder.relative_to(self.plan.folder).parts[1] in methods]
            wanted += [job for job in chosen if job.settings["job"] == "popularity"]
            for job in wanted:  # grows while it is read
                wanted += [known[folder] for folder in job.needs if folder in known and known[folder] not in wanted]
            chosen = [job for job in jobs if job in wanted]
        return chosen

    def check(self) -> None:
        """Refuse changed settings of finished runs before any work."""
        for job in study_jobs(self.plan):
            job.check()

    def _step(self) -> bool:
        """Collect what has ended and start what can start; whether anything is left."""
        for job, process in list(self.running.items()):
            if process.exitcode is not None:
                del self.running[job]
                self._ended(job, process.exitcode)
        jobs = self.jobs()
        broken = {job.folder for job in self.failed}
        there = {job.folder for job in self.running}
        left = [job for job in jobs if not job.finished and job.folder not in broken | there]
        ready = [job for job in left if all(map(is_finished, job.needs))]
        for job in ready[: self.plan.options.jobs - len(self.running)]:
            self._start(job)
        return bool(self.running)

    def _start(self, job: Job) -> None:
        path = job.folder / "settings.json"
        if path.is_file() and json.loads(path.read_text()) != json.loads(json.dumps(job.settings)):
            if not (job.folder / "trained.json").exists():
                shutil.rmtree(job.folder)  # begun with other settings
        job.folder.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".tmp")
        temporary.write_text(json.dumps(job.settings, indent=1) + "\n")
        temporary.replace(path)
        process = self.processes.Process(target=run_in_process, args=(str(job.folder), self._keeps_model(job)))
        process.start()
        self.running[job] = process
        self.started[job] = time.perf_counter()
        show(f"start {job.title}")

    def _keeps_model(self, job: Job) -> bool:
        """A candidate's model is needed until validation has chosen, and that of a final run for fusion."""
        if self.plan.options.keep_models or job.settings["job"] != "train":
            return self.plan.options.keep_models
        fused = {slug(name) for name in self.plan.fusion.values()}
        return not job.settings["test"] or job.folder.parent.name in fused

    def _ended(self, job: Job, status: int) -> None:
        seconds = duration(time.perf_counter() - self.started[job])
        if status == 0 and job.finished:
            show(f"done  {job.title} ({seconds})")
            remove_lost_models(self.plan)
            self.check()  # what validation has chosen may be there with other settings
            return
        self.failed.append(job)
        output = job.folder / "output.txt"  # missing where the process could not even begin
        lines = output.read_text(errors="replace").strip().splitlines() if output.is_file() else []
        show(f"FAILED {job.title} ({seconds}), status {status}: {lines[-1] if lines else 'no output'}")

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Hold the folder, which two studies must not work in at a time."""
        self.plan.folder.mkdir(parents=True, exist_ok=True)
        with (self.plan.folder / ".lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise InputError(f"another study works in {self.plan.folder}; wait for it, or end it") from error
            yield


def run_study(options: StudyOptions, command: str) -> None:
    """
    Run what is left of a study and report, or only show the plan or write the report.

    Args:
        options (`StudyOptions`): The declared grid.
        command (`str`): The command, for the report.
    """
    plan = read_study(options)
    study = Study(plan, command)
    study.check()
    if options.report:
        write_study_report(plan, command)
        show(f"Report: {plan.folder / 'report.md'}")
    elif options.dry_run:
        show(list_table(*plan_rows(plan, study.jobs())))
    else:
        study.execute()


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns 0, or 2 where something the user gave cannot be used."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    command = shlex.join(["python", "-m", PROGRAM, *arguments])
    summary = "Run a grid of methods x data sets x seeds, and report"
    return run_command(PROGRAM, summary, OPTIONS, lambda options: run_study(options, command), arguments)


if __name__ == "__main__":
    sys.exit(main())
