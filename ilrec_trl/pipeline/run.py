"""The main job: popularity, transitions, SASRec, SFT and ILRec on one data set, compared on its test split."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..data.splits import sample
from ..report.console import metrics_table, seconds_table, show
from ..report.markdown import ExampleList, epochs_note, render_report, run_settings, teacher_notes, verdict
from ..report.results import MethodRanks, compare_methods, summarise_methods, write_ranks, write_results
from .baselines import (
    check_teacher,
    popularity_ranks,
    teacher_ranks,
    teacher_reward,
    teacher_settings,
    train_teacher,
    transition_ranks,
)
from .environment import device, revision, versions
from .evaluate import describe, load_model, model_ranks, recommender_of
from .options import (
    DataOptions,
    EvaluationOptions,
    ModelOptions,
    PromptOptions,
    RunOptions,
    TeacherOptions,
    TrainingOptions,
)
from .prepare import PreparedData, prepare
from .train import METHODS, build_model, train_method


if TYPE_CHECKING:
    from ..rewards.sasrec import SASRecModel
    from ..rewards.sasrec_group import SASRecGroup

COMPARED = {method: METHODS[method] for method in ("sft", "ilrec")}
PAIRS = [
    *(("ILRec", "SFT"), ("ILRec", "SASRec"), ("SFT", "SASRec")),
    *(("ILRec", "transitions"), ("SASRec", "transitions"), ("SASRec", "popularity")),
]


@dataclass
class Run:
    """
    One comparison. [`Run.execute`] goes through its stages and leaves `report.md`, `results.json`, `ranks.parquet`,
    `settings.json`, the prepared data and the models in the output folder.

    Args:
        data (`DataOptions`): Data and prompts.
        model (`ModelOptions`): Language model.
        teacher (`TeacherOptions`): SASRec.
        training (`TrainingOptions`): Budget, shared by SFT and ILRec, and the weights of ILRec's losses.
        evaluation (`EvaluationOptions`): Ranking.
        options (`RunOptions`): Output folder and seeds.
        command (`str`): The command, for the report.
    """

    data: DataOptions
    model: ModelOptions
    teacher: TeacherOptions
    training: TrainingOptions
    evaluation: EvaluationOptions
    options: RunOptions
    command: str = "ilrec run"
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        return Path(self.options.output_dir)

    def execute(self) -> dict[str, Any]:
        """Run every stage; returns what `results.json` holds."""
        check_teacher(self.teacher)
        with self._stage("prepare"):
            prepared = prepare(self.data, self.model.model)
            prepared.save(self.folder / "data")
        show(f"{prepared.name}: {len(prepared.interactions):,} users, {len(prepared.catalog):,} items")
        with self._stage("SASRec"):
            teacher = train_teacher(prepared, self.teacher, self.folder / "models/sasrec", self.options.seeds[0])
        settings = {
            (method, seed): self._train(method, prepared, teacher, seed)
            for seed in self.options.seeds
            for method in COMPARED
        }
        # Nothing above has looked at the test split.
        ranks = self._evaluate(prepared, teacher, settings)
        results = self._results(prepared, ranks)
        write_results(results, self.folder / "results.json")
        write_ranks(ranks, [example.item for example in prepared.splits.test], self.folder / "ranks.parquet")
        with self._stage("examples"):
            examples = self._examples(prepared)
        report = render_report(results, examples, title=f"SFT and ILRec on {prepared.name}")
        (self.folder / "report.md").write_text(report)
        show(metrics_table(results["methods"]))
        show(verdict(results).replace("*", ""))
        settings_of_runs = run_settings(results)
        for note in filter(None, [epochs_note(settings_of_runs), *teacher_notes(settings_of_runs)]):
            show(note.replace("*", ""))
        show(seconds_table("Time", self.seconds))
        show(f"Report: {self.folder / 'report.md'}")
        return results

    @contextmanager
    def _stage(self, name: str) -> Iterator[None]:
        show(f"[bold]{name}[/bold]")
        start = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start

    def _train(
        self, method: str, prepared: PreparedData, teacher: SASRecModel | SASRecGroup, seed: int
    ) -> dict[str, Any]:
        """Train one method and save its model and log; returns its settings."""
        with self._stage(f"train {METHODS[method]}"):
            model = build_model(prepared, self.model, seed)
            reward, settings = None, dict[str, Any]()
            if method == "ilrec" and self.training.crr_weight != 0:
                reward, settings = teacher_reward(teacher, prepared, self.teacher, self.evaluation, model.device)
            folder = self._model_folder(method, seed)
            trained = train_method(
                method, prepared, model, self.training, self.evaluation, folder, seed=seed, reward_func=reward
            )
        trained.settings |= settings
        trained.save_log(METHODS[method], folder)
        return trained.settings

    def _evaluate(
        self,
        prepared: PreparedData,
        teacher: SASRecModel | SASRecGroup,
        settings: dict[tuple[str, int], dict[str, Any]],
    ) -> list[MethodRanks]:
        train, test, exclude = prepared.splits.train, prepared.splits.test, self.evaluation.exclude_history
        with self._stage("evaluate baselines"):
            ranks = [
                popularity_ranks(train, test, prepared.catalog.item_ids, exclude),
                transition_ranks(train, test, prepared.item_trie, exclude),
                teacher_ranks(teacher, test, teacher_settings(teacher, self.teacher, self.options.seeds[0]), exclude),
            ]
        for (method, seed), used in settings.items():
            with self._stage(f"evaluate {METHODS[method]}"):
                model = load_model(self._model_folder(method, seed))
                ranks.append(
                    model_ranks(
                        METHODS[method],
                        model,
                        prepared,
                        test,
                        self.evaluation,
                        seed=seed,
                        settings=self._settings(used),
                    )
                )
        return ranks

    def _results(self, prepared: PreparedData, ranks: list[MethodRanks]) -> dict[str, Any]:
        (self.folder / "settings.json").write_text(json.dumps(self._all_options(), indent=2) + "\n")
        return {
            "data": prepared.summary(),
            "seeds": self.options.seeds,
            "command": self.command,
            "revision": revision(),
            "versions": versions(),
            "device": device(),
            "seconds": self.seconds,
            "selection": self._selection(),
            "methods": summarise_methods(ranks),
            "paired": compare_methods(ranks, PAIRS),
        }

    def _selection(self) -> str:
        """How each method's epoch was chosen and what was ranked, for the report."""
        if self.data.train_on_validation:
            how = "Each method was trained for a fixed number of epochs, on the validation items too."
        else:
            how = "Each trained method kept the epoch that ranked best on validation users."
        seen = " Items of a user's own history were not recommended." if self.evaluation.exclude_history else ""
        return how + seen

    def _examples(self, prepared: PreparedData, number: int = 5, top_k: int = 5) -> list[ExampleList]:
        """What the methods of the first seed recommend to a few test users, drawn by chance."""
        examples = sample(prepared.splits.test, number)
        histories = [example.history for example in examples]
        lists = {}
        for method, title in COMPARED.items():
            model = load_model(self._model_folder(method, self.options.seeds[0]))
            recommender = recommender_of(prepared, model, self.evaluation.num_beams)
            lists[title] = recommender.recommend(
                histories,
                top_k=min(top_k, len(prepared.item_trie)),
                exclude_history=self.evaluation.exclude_history,
            )
        return [
            ExampleList(
                example.user,
                [describe(prepared, item) for item in example.history[-5:]],
                describe(prepared, example.item),
                {title: [describe(prepared, item) for item, *_ in lists[title][row]] for title in lists},
            )
            for row, example in enumerate(examples)
        ]

    def _model_folder(self, method: str, seed: int) -> Path:
        return self.folder / "models" / f"{method}-seed{seed}"

    def _settings(self, used: dict[str, Any]) -> dict[str, Any]:
        """A method's settings with those of the language model and its prompts."""
        shown = {name: value for name, value in dataclasses.asdict(self.model).items() if value is not None}
        prompts = {"item_format": self.data.item_format, "max_history": self.data.max_history, "rows": self.data.rows}
        for option in dataclasses.fields(PromptOptions):
            if getattr(self.data, option.name) != option.default:
                prompts[option.name] = getattr(self.data, option.name)
        return shown | prompts | used | {"validation_users": self.evaluation.validation_users}

    def _all_options(self) -> dict[str, Any]:
        parts = (self.data, self.model, self.teacher, self.training, self.evaluation, self.options)
        return {name: value for part in parts for name, value in dataclasses.asdict(part).items()}
