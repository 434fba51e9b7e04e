"""A study as declared: its data sets and methods, checked before any work, and the runs that they ask for."""

from __future__ import annotations

import dataclasses
import itertools
import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.accuracy.negative_source import NegativeSourceConfig
from benchmarks.accuracy.preference import CONFIGS
from benchmarks.accuracy.study_options import (
    OF_A_STUDY,
    StudyOptions,
    default_of,
    did_you_mean,
    merge_options,
    parts_of,
    read_options,
)
from benchmarks.accuracy.training import METHODS, extra_arguments
from ilrec_trl.pipeline.baselines import check_teacher
from ilrec_trl.pipeline.options import DataOptions, InputError, mapping
from ilrec_trl.pipeline.prepare import input_errors
from ilrec_trl.pipeline.train import ILREC_FIELDS


UNTRAINED = ("popularity", "transitions")
BASELINES = (*UNTRAINED, "SASRec", "SASRec ensemble")
_EXAMPLES = {"data": '{"shop": {"data": "DIR"}}', "methods": '{"SFT": {"method": "sft"}}', "defaults": "{}"}


@dataclass(frozen=True)
class Method:
    """
    A method on one data set.

    Args:
        name (`str`): Its name in the study.
        method (`str`): `"sft"`, `"ilrec"`, `"dpo"`, `"softmax_dpo"` or `"grpo"`.
        options (`dict`): Every option that was given, those of the data set among them.
        candidates (`list[dict]`): Values of the tuned options, one entry a candidate; one empty entry without `tune`.
    """

    name: str
    method: str
    options: dict[str, Any]
    candidates: list[dict[str, Any]]

    @property
    def selects(self) -> bool:
        """Whether something is chosen on validation before the final runs: values of options, or the epochs."""
        return len(self.candidates) > 1 or self.options.get("refit", False)


@dataclass(frozen=True)
class DataSet:
    """A data set of the study: its name, its options and its methods by name."""

    name: str
    options: dict[str, Any]
    methods: dict[str, Method]


@dataclass
class StudyPlan:
    """The whole study, checked."""

    options: StudyOptions
    data: dict[str, DataSet]
    baselines: list[str]
    files: dict[str, dict[str, str]]  # of further baselines, by data set
    reference: str
    compare: list[tuple[str, str]]

    @property
    def fusion(self) -> dict[str, str]:
        """Methods that are fused with SASRec too, by what that is called."""
        return {fusion_name(name): name for name in self.options.fusion or []}

    @property
    def folder(self) -> Path:
        return Path(self.options.output_dir)


@dataclass(frozen=True)
class Job:
    """
    One process's work, and the folder that receives what comes of it.

    Args:
        title (`str`): What a reader knows it by.
        folder (`Path`): Its folder.
        settings (`dict`): Everything that decides the outcome; `settings.json` of the folder.
        needs (`tuple[Path, ...]`): Folders of runs that come before.
    """

    title: str
    folder: Path
    settings: dict[str, Any] = field(hash=False)
    needs: tuple[Path, ...] = ()

    @property
    def finished(self) -> bool:
        """Whether all is there, with the ranks that were not asked for when a teacher was trained."""
        return is_finished(self.folder) and (not self.settings.get("test") or (self.folder / "ranks.parquet").exists())

    def check(self) -> None:
        """
        Raises:
            `InputError`: where the folder holds results of other settings.
        """
        path = self.folder / "settings.json"
        if not path.is_file() or not any((self.folder / name).exists() for name in ("trained.json", "ranks.parquet")):
            return
        before = json.loads(path.read_text())
        now = json.loads(json.dumps(self.settings))
        old, new = before.pop("options"), now.pop("options")
        # Whose training it was makes no difference; a test can follow
        names = sorted((before | now).keys() - {"trained_as", "test"})
        changes = [(name, before.get(name), now.get(name)) for name in names]
        changes += [
            (name, old.get(name, default_of(name)), new.get(name, default_of(name))) for name in sorted(old | new)
        ]
        if different := [f"{name} was {a!r}, is now {b!r}" for name, a, b in changes if a != b]:
            raise InputError(
                f"{self.folder} holds a run of other settings: {'; '.join(different)}. Give the former value, "
                "name the method or data set otherwise, or remove that folder to run it anew"
            )


def is_finished(folder: Path) -> bool:
    """Whether a run has left all it was to leave."""
    return (folder / "done.json").is_file()


def fusion_name(method: str) -> str:
    """What a method fused with SASRec is called."""
    return f"{method} + SASRec"


def candidate_name(candidate: dict[str, Any]) -> str:
    """Name of a candidate's folder."""
    return slug(",".join(f"{name}={value}" for name, value in candidate.items())) if candidate else "as_given"


def slug(text: str) -> str:
    """A folder's name."""
    return re.sub(r"[^\w.=,+-]+", "_", text).strip("_.") or "_"


def read_study(options: StudyOptions) -> StudyPlan:
    """
    Check a study.

    Raises:
        `InputError`: with one line on what is wrong, and where.
    """
    if options.data is None or options.methods is None:
        raise InputError(
            "a study needs data and methods: --config FILE.yaml, as in benchmarks/accuracy/configs/study_*.yaml"
        )
    if not options.seeds or len(set(options.seeds)) != len(options.seeds):
        raise InputError(f"seeds are {options.seeds}; give one or more, each once")
    if options.jobs < 1:
        raise InputError(f"--jobs is {options.jobs}, expected at least 1")
    sections = {name: mapping(name, getattr(options, name), example) for name, example in _EXAMPLES.items()}
    for name in ("data", "methods"):
        _check_names(name, sections[name])
    defaults = read_options(sections["defaults"], "defaults")
    data = {name: _data_set(name, given, defaults, sections["methods"]) for name, given in sections["data"].items()}
    baselines, files = _baselines(options, list(data))
    for name, each in data.items():
        if "SASRec ensemble" in baselines and not parts_of(each.options)[2].several:
            raise InputError(
                f"baselines: data set {name} has one SASRec, no ensemble; give sasrec_folds or sasrec_ensemble"
            )
    names = [*sections["methods"], *baselines, *files, *_fusion(options, sections["methods"], data)]
    reference = options.reference or next(iter(sections["methods"]))
    compare = _listing("compare", options.compare) or [[name, reference] for name in names if name != reference]
    for pair in compare:
        if not isinstance(pair, list) or len(pair) != 2 or pair[0] == pair[1]:
            raise InputError(f"compare: {pair!r} is no pair of two methods, such as [ILRec, SFT]")
    for where, name in [("reference", reference), *(("compare", name) for pair in compare for name in pair)]:
        if name not in names:
            raise InputError(f"{where}: there is no method {name!r}{did_you_mean(name, names)}")
    for name in options.only or []:
        if name not in (known := [*names, *data]):
            raise InputError(f"--only: there is no method or data set {name!r}{did_you_mean(name, known)}")
    pairs = [(a, b) for a, b in compare]
    return StudyPlan(options, data, baselines, files, reference, pairs)


def _check_names(section: str, given: dict[str, Any]) -> None:
    if not given:
        raise InputError(f"{section}: nothing is given")
    slugs: dict[str, str] = {}
    for name in given:
        if not isinstance(name, str):
            raise InputError(f"{section}: the name {name!r} is not a text; put it in quotes")
        if section == "methods" and slug(name) in map(slug, BASELINES):
            raise InputError(f"methods: {name} is a baseline; give the method another name")
        if slug(name) in slugs:
            raise InputError(f"{section}: {name!r} and {slugs[slug(name)]!r} would share a folder; rename one")
        slugs[slug(name)] = name


def _listing(name: str, value: Any) -> list[Any]:
    """An option that is JSON on the command line and a list in a YAML file."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except json.JSONDecodeError as error:
            raise InputError(f"--{name} is not JSON ({error})") from error
    if value is not None and not isinstance(value, list):
        raise InputError(f"{name} is {value!r}, expected a list")
    return value or []


def _baselines(options: StudyOptions, data: list[str]) -> tuple[list[str], dict[str, dict[str, str]]]:
    """Our own baselines, and those from files: `{name: {data set: file}}`."""
    own: list[str] = []
    files: dict[str, dict[str, str]] = {}
    for entry in _listing("baselines", options.baselines):
        if entry in BASELINES:
            own.append(entry)
        elif isinstance(entry, dict) and len(entry) == 1:
            name, given = next(iter(entry.items()))
            paths = given if isinstance(given, dict) else dict.fromkeys(data, given)
            for data_name, path in paths.items():
                if data_name not in data:
                    hint = did_you_mean(data_name, data)
                    raise InputError(f"baselines: {name}: there is no data set {data_name!r}{hint}")
                if not Path(str(path)).is_file():
                    raise InputError(f"baselines: {name}: there is no file {path}")
            files[name] = {each: str(path) for each, path in paths.items()}
        else:
            raise InputError(
                f"baselines: {entry!r} is none of {', '.join(BASELINES)}, and no mapping of a name to a ranks.parquet"
            )
    return own, files


def _fusion(options: StudyOptions, methods: dict[str, Any], data: dict[str, DataSet]) -> list[str]:
    """Names of the fused methods."""
    for name in options.fusion or []:
        if name not in methods:
            raise InputError(f"fusion: there is no method {name!r}{did_you_mean(name, methods)}")
        if fusion_name(name) in methods:
            hint = "as a method is; rename that"
            raise InputError(f"fusion: {name} would be called {fusion_name(name)!r}, {hint}")
    if options.fusion and any(each.options.get("refit") for each in data.values()):
        raise InputError("fusion: its weight is chosen on validation items, which refit trains on; drop one of them")
    return [fusion_name(name) for name in options.fusion or []]


def _data_set(name: str, given: Any, defaults: dict[str, Any], methods: dict[str, Any]) -> DataSet:
    where = f"data: {name}"
    options = merge_options(defaults, read_options(_mapping(where, given), where))
    data = parts_of(options)[0]
    if data.data is not None and data.data_format != "hub" and not Path(data.data).exists():
        raise InputError(f"{where}: there is no file or folder {data.data}")
    return DataSet(name, options, {each: _method(each, entry, options) for each, entry in methods.items()})


def _method(name: str, given: Any, options: dict[str, Any]) -> Method:
    where = f"methods: {name}"
    entries = dict(_mapping(where, given))
    method, tune = entries.pop("method", None), _mapping(f"{where}: tune", entries.pop("tune", None))
    if method not in METHODS:
        raise InputError(f"{where}: method is {method!r}, expected one of {', '.join(METHODS)}")
    own = read_options(entries, where)
    of_data = {option.name for option in dataclasses.fields(DataOptions)} | OF_A_STUDY.keys()
    if changed := sorted(of_data & (own.keys() | tune.keys())):
        raise InputError(f"{where}: {changed[0]} is an option of the data, the same for all methods; give it there")
    for option, values in tune.items():
        if not isinstance(values, list) or not values:
            raise InputError(f"{where}: tune: {option} is {values!r}, expected a list of values")
    combinations = itertools.product(*([(option, value) for value in values] for option, values in tune.items()))
    candidates = [dict(combination) for combination in combinations]
    if len(set(map(candidate_name, candidates))) < len(candidates):
        raise InputError(f"{where}: tune: a value is given twice")
    result = Method(name, method, merge_options(options, own), candidates)
    for candidate in candidates:
        _check_training(method, result.options, candidate, where)
    return result


def _mapping(where: str, value: Any) -> dict[str, Any]:
    if not isinstance(value or {}, dict):
        raise InputError(f"{where} is {value!r}, expected a mapping of options")
    return value or {}


def _check_training(method: str, options: dict[str, Any], candidate: dict[str, Any], where: str) -> None:
    _, _, teacher, training, _ = parts_of(merge_options(options, read_options(candidate, f"{where}: tune")))
    with input_errors():
        extra = extra_arguments(method, training)
        own = {name: getattr(training, name) for name in ILREC_FIELDS} if method == "ilrec" else {}
        try:
            check_teacher(teacher)
            if method not in CONFIGS:
                NegativeSourceConfig("unused", use_cpu=True, bf16=False, report_to="none", **(own | extra))
        except (ValueError, TypeError, InputError) as error:
            raise ValueError(f"{where}: {error}") from error
