"""
The one orchestrator: [`Run`] goes from prepared data to trained, ranked and compared methods. `ilrec run` is all of
it, `ilrec train` and `ilrec sasrec` are one stage each.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..data.splits import sample
from ..report.console import metrics_table, seconds_table, show
from ..report.markdown import ExampleList, epochs_note, render_report, run_settings, teacher_notes, verdict
from ..report.results import MethodRanks, RunResult, compare_methods, summarise_methods, write_ranks, write_results
from .baselines import popularity_ranks, transition_ranks
from .environment import device, revision, versions
from .evaluate import model_ranks
from .option_checks import check_run, check_sasrec, check_train
from .options import (
    InputError,
    MethodOptions,
    PipelineOptions,
    PromptOptions,
    RunOptions,
    StageOptions,
    TeacherOptions,
)
from .prepare import prepare
from .prepared_data import PreparedData
from .recommend import load_model, recommender_of
from .teacher import Teacher, teacher_ranks, teacher_settings, train_teacher
from .train import METHODS, TrainedModel, fit


PAIRS = [
    *(("ILRec", "SFT"), ("ILRec", "SASRec"), ("SFT", "SASRec")),
    *(("ILRec", "transitions"), ("SASRec", "transitions"), ("SASRec", "popularity")),
]


@dataclass
class Run:
    """
    Trains, ranks and compares SFT and ILRec on one data set, beside SASRec and two baselines.

    Args:
        prepared ([`PreparedData`]): The data.
        options ([`PipelineOptions`]): All options.
        folder (`Path`): Receives models and results.
        seeds (`list[int]`): Seeds of the trained methods.
        command (`str`): The command, for the report.
    """

    prepared: PreparedData
    options: PipelineOptions
    folder: Path
    seeds: list[int]
    command: str = "ilrec run"
    seconds: dict[str, float] = field(default_factory=dict)

    def execute(self) -> RunResult:
        """Run every stage; leave report, results, ranks, settings and models in the folder."""
        with self.stage("SASRec"):
            teacher = train_teacher(self.prepared, self.options.teacher, self.folder / "models/sasrec", self.seeds[0])
        trained = {(method, seed): self._train(method, seed, teacher) for seed in self.seeds for method in METHODS}
        # Nothing above has looked at the test split.
        ranks = [*self._rank_baselines(teacher), *(self._rank(*run, each) for run, each in trained.items())]
        results = self._results(ranks)
        write_results(results, self.folder / "results.json")
        write_ranks(ranks, [example.item for example in self.prepared.splits.test], self.folder / "ranks.parquet")
        with self.stage("examples"):
            examples = self._examples()
        report = render_report(results, examples, title=f"SFT and ILRec on {self.prepared.name}")
        (self.folder / "report.md").write_text(report)
        return results

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Show the name of a stage and keep its time."""
        show(f"[bold]{name}[/bold]")
        start = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start

    def _train(self, method: str, seed: int, teacher: Teacher) -> TrainedModel:
        rewarded = method == "ilrec" and self.options.training.crr_weight != 0
        with self.stage(f"train {METHODS[method]}"):
            return fit(
                method,
                self.prepared,
                self.options,
                self._model_folder(method, seed),
                seed=seed,
                teacher=teacher if rewarded else None,
            )

    def _rank_baselines(self, teacher: Teacher) -> list[MethodRanks]:
        prepared, exclude = self.prepared, self.options.evaluation.exclude_history
        train, test = prepared.splits.train, prepared.splits.test
        settings = teacher_settings(teacher, self.options.teacher, self.seeds[0])
        with self.stage("evaluate baselines"):
            return [
                popularity_ranks(train, test, prepared.catalog.item_ids, exclude),
                transition_ranks(train, test, prepared.item_trie, exclude),
                teacher_ranks(teacher, test, settings, exclude),
            ]

    def _rank(self, method: str, seed: int, trained: TrainedModel) -> MethodRanks:
        test, evaluation = self.prepared.splits.test, self.options.evaluation
        settings = self._shown_settings() | trained.settings | {"validation_users": evaluation.validation_users}
        with self.stage(f"evaluate {METHODS[method]}"):
            model = load_model(self._model_folder(method, seed))
            return model_ranks(METHODS[method], model, self.prepared, test, evaluation, seed=seed, settings=settings)

    def _results(self, ranks: list[MethodRanks]) -> RunResult:
        return RunResult(
            data=self.prepared.summary(),
            seeds=self.seeds,
            command=self.command,
            revision=revision(),
            versions=versions(),
            device=device(),
            seconds=self.seconds,
            selection=self._selection(),
            methods=summarise_methods(ranks),
            paired=compare_methods(ranks, PAIRS),
        )

    def _selection(self) -> str:
        """How each method's epoch was chosen and what was ranked, for the report."""
        if self.options.data.train_on_validation:
            how = "Each method was trained for a fixed number of epochs, on the validation items too."
        else:
            how = "Each trained method kept the epoch that ranked best on validation users."
        excluded = self.options.evaluation.exclude_history
        return how + (" Items of a user's own history were not recommended." if excluded else "")

    def _examples(self, number: int = 5, top_k: int = 5) -> list[ExampleList]:
        """What the methods of the first seed recommend to a few test users, drawn by chance."""
        prepared, evaluation = self.prepared, self.options.evaluation
        examples = sample(prepared.splits.test, number)
        lists = {}
        for method, title in METHODS.items():
            model = load_model(self._model_folder(method, self.seeds[0]))
            lists[title] = recommender_of(prepared, model, evaluation.num_beams).recommend(
                [example.history for example in examples],
                top_k=min(top_k, len(prepared.item_trie)),
                exclude_history=evaluation.exclude_history,
            )
        return [
            ExampleList(
                example.user,
                [prepared.describe(item) for item in example.history[-5:]],
                prepared.describe(example.item),
                {title: [prepared.describe(item) for item, *_ in lists[title][row]] for title in lists},
            )
            for row, example in enumerate(examples)
        ]

    def _model_folder(self, method: str, seed: int) -> Path:
        return self.folder / "models" / f"{method}-seed{seed}"

    def _shown_settings(self) -> dict[str, Any]:
        """Settings of the language model and its prompts, for the report."""
        model, data = self.options.model, self.options.data
        shown = {name: value for name, value in dataclasses.asdict(model).items() if value is not None}
        shown = shown if model.model is None else {"model": model.model}  # which has its own sizes
        shown |= {name: getattr(data, name) for name in ("item_format", "max_history", "rows")}
        for option in dataclasses.fields(PromptOptions):
            if getattr(data, option.name) != option.default:
                shown[option.name] = getattr(data, option.name)
        return shown


def run(options: PipelineOptions, run_options: RunOptions, command: str = "ilrec run") -> RunResult:
    """The `run` command: prepare, train, rank, compare and report."""
    check_run(options)
    if not run_options.seeds or len(set(run_options.seeds)) < len(run_options.seeds):
        raise InputError(f"--seeds are {run_options.seeds}, expected one or more, each once")
    folder = Path(run_options.output_dir)
    start = time.perf_counter()
    show("[bold]prepare[/bold]")
    prepared = prepare(options.data, options.model.model)
    prepared.save(folder / "data")
    given = {name: value for part in dataclasses.asdict(options).values() for name, value in part.items()}
    (folder / "settings.json").write_text(json.dumps(given | dataclasses.asdict(run_options), indent=2) + "\n")
    show(f"{prepared.name}: {len(prepared.interactions):,} users, {len(prepared.catalog):,} items")
    seconds = {"prepare": time.perf_counter() - start}
    results = Run(prepared, options, folder, run_options.seeds, command, seconds).execute()
    show(metrics_table(results.methods))
    settings = run_settings(results.methods)
    for note in filter(None, [verdict(results), epochs_note(settings), *teacher_notes(settings)]):
        show(note.replace("*", ""))
    show(seconds_table("Time", results.seconds))
    show(f"Report: {folder / 'report.md'}")
    return results


def run_sasrec(stage: StageOptions, teacher: TeacherOptions) -> None:
    """The `sasrec` command: train SASRec, save it, and show how it ranks for the validation users."""
    check_sasrec(teacher)
    prepared = PreparedData.load(stage.prepared)
    model = train_teacher(prepared, teacher, stage.output_dir, stage.seed)
    ranks = teacher_ranks(model, prepared.splits.validation, teacher_settings(model, teacher, stage.seed))
    for note in prepared.notes:
        show(note)
    summary = summarise_methods([ranks])
    Path(stage.output_dir).mkdir(parents=True, exist_ok=True)
    write_results({"split": "validation", "methods": summary}, Path(stage.output_dir) / "metrics.json")
    show(metrics_table(summary))


def run_train(stage: StageOptions, method: MethodOptions, options: PipelineOptions) -> None:
    """The `train` command: train one method on prepared data. ILRec with rewards needs `--sasrec`."""
    prepared = PreparedData.load(stage.prepared)
    options.data = prepared.options
    check_train(method.method, options)
    teacher = None
    if options.teacher.sasrec is not None:
        teacher = train_teacher(prepared, options.teacher, stage.output_dir, stage.seed)
    trained = fit(method.method, prepared, options, stage.output_dir, seed=stage.seed, teacher=teacher)
    best = trained.settings.get("validation_ndcg@10")
    if best is not None:
        show(f"Best validation NDCG@10 {best:.4f}")
    show(f"Model in {stage.output_dir}")
