"""The options of a study, and how the options of its methods and data sets are read."""

from __future__ import annotations

import difflib
import json
import types
import typing
from collections.abc import Collection
from dataclasses import dataclass, field, fields
from typing import Any

from benchmarks.accuracy.negative_source import NegativeSourceConfig
from benchmarks.accuracy.preference import CONFIGS, ComparedTrainingOptions
from ilrec_trl.pipeline.options import (
    DataOptions,
    EvaluationOptions,
    InputError,
    ModelOptions,
    TeacherOptions,
)


@dataclass
class StudyOptions:
    """A declared grid of methods x data sets x seeds."""

    output_dir: str = field(default="runs/study", metadata={"help": "Folder that receives runs and report."})
    seeds: list[int] = field(
        default_factory=lambda: [0, 1, 2], metadata={"help": "Seeds; each is one run of every method."}
    )
    data: str | None = field(
        default=None,
        metadata={"help": "Data sets: a mapping from names to options that override the defaults (YAML, or JSON)."},
    )
    methods: str | None = field(
        default=None,
        metadata={
            "help": "Methods: a mapping from names to options that override those of the data set. 'method' is sft, "
            "ilrec, dpo, softmax_dpo or grpo; 'tune' maps options to lists of values; validation chooses."
        },
    )
    defaults: str | None = field(
        default=None,
        metadata={
            "help": "Options of all runs: those of `ilrec run`, fields of ILRecConfig, 'refit' (train the final runs "
            "on the validation items too, for the chosen epochs) and 'teacher_per_seed' (one teacher per seed)."
        },
    )
    baselines: str | None = field(
        default=None,
        metadata={
            "help": "A list of popularity, transitions, SASRec, SASRec ensemble, and mappings from a name to a "
            "ranks.parquet, or to one per data set."
        },
    )
    fusion: list[str] | None = field(
        default=None,
        metadata={"help": "Methods that are also fused with SASRec's scores, as a ceiling; called 'NAME + SASRec'."},
    )
    reference: str | None = field(
        default=None, metadata={"help": "Method that gains are relative to. By default the first one."}
    )
    compare: str | None = field(
        default=None,
        metadata={"help": "Pairs of names to test, such as [[ILRec, SFT]]. By default each with the reference."},
    )
    jobs: int = field(default=1, metadata={"help": "Runs side by side; they share the cores."})
    only: list[str] | None = field(
        default=None, metadata={"help": "Names of data sets and methods to run; by default all."}
    )
    keep_models: bool = field(default=False, metadata={"help": "Keep the models of the final runs after the test."})
    dry_run: bool = field(default=False, metadata={"help": "Show the plan with estimated times, and run nothing."})
    report: bool = field(default=False, metadata={"help": "Write the report from the runs that are there, and stop."})


PARTS: tuple[Any, ...] = (DataOptions, ModelOptions, TeacherOptions, ComparedTrainingOptions, EvaluationOptions)
# Options of a data set that are the study's own.
OF_A_STUDY = {"refit": False, "teacher_per_seed": False}
_MAPPINGS = ("trainer_args", "tasks", "chat_template_kwargs", "items_columns")
_OPTIONS = {option.name: (part, option) for part in PARTS for option in fields(part)}


def read_options(given: dict[str, Any], where: str) -> dict[str, Any]:
    """
    Options by their names, checked and converted to their types. A field of the trainers' configurations that is
    no option itself becomes part of `trainer_args`.

    Args:
        given (`dict`): Options as the YAML file has them.
        where (`str`): Where they stand, for messages.

    Raises:
        `InputError`: for an unknown name or a value of another type.
    """
    config = {
        option.name for each in (NegativeSourceConfig, *CONFIGS.values()) for option in fields(each) if option.init
    }
    read: dict[str, Any] = {}
    extra: dict[str, Any] = {}
    for name, value in given.items():
        if name == "train_on_validation":
            raise InputError(f"{where}: a study chooses on validation items; refit: true trains on them afterwards")
        if name in OF_A_STUDY:
            if not isinstance(value, bool):
                raise InputError(f"{where}: {name} is {value!r}, expected true or false")
            read[name] = value
        elif name in _OPTIONS:
            read[name] = _value(name, value, where)
        elif name in config:
            extra[name] = value
        else:
            hint = did_you_mean(name, {*_OPTIONS, *OF_A_STUDY, *config})
            raise InputError(f"{where}: there is no option {name!r}{hint}")
    if extra:
        read["trainer_args"] = (read.get("trainer_args") or {}) | extra
    return read


def merge_options(*layers: dict[str, Any]) -> dict[str, Any]:
    """Options of later layers over those of earlier ones; `trainer_args` entry by entry."""
    merged: dict[str, Any] = {}
    for layer in layers:
        extra = (merged.get("trainer_args") or {}) | (layer.get("trainer_args") or {})
        merged |= layer | ({"trainer_args": extra} if extra else {})
    return merged


def parts_of(
    options: dict[str, Any],
) -> tuple[DataOptions, ModelOptions, TeacherOptions, ComparedTrainingOptions, EvaluationOptions]:
    """The options as the stages take them."""
    given = [
        {option.name: options[option.name] for option in fields(part) if option.name in options} for part in PARTS
    ]
    return tuple(part(**each) for part, each in zip(PARTS, given, strict=True))  # type: ignore[return-value]


def default_of(name: str) -> Any:
    """What an option is where nothing is said; `None` for a name that is no option."""
    return getattr(_OPTIONS[name][0](), name) if name in _OPTIONS else None


def did_you_mean(name: str, known: Collection[str]) -> str:
    """A hint at the name that was meant, or at all names where none is close."""
    lowered = {each.lower(): each for each in sorted(known)}
    if close := difflib.get_close_matches(name.lower(), lowered, 1):
        return f"; did you mean {lowered[close[0]]!r}?"
    return f"; known: {', '.join(sorted(known))}" if len(known) <= 20 else "; see `ilrec run --help`"


def _value(name: str, value: Any, where: str) -> Any:
    part, option = _OPTIONS[name]
    hint = typing.get_type_hints(part)[name]
    kinds = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    if name in _MAPPINGS:
        if value is not None and not isinstance(value, dict):
            raise InputError(f"{where}: {name} is {value!r}, expected a mapping")
        return value
    choices = option.metadata.get("choices") or (
        typing.get_args(hint) if typing.get_origin(hint) is typing.Literal else ()
    )
    if choices and value not in choices and not (value is None and type(None) in kinds):
        raise InputError(f"{where}: {name} is {value!r}, expected one of {', '.join(choices)}")
    if value is None and type(None) in kinds:
        return None
    if float in kinds and isinstance(value, str):
        try:  # YAML takes 1e-3 for a word
            return float(value)
        except ValueError:
            pass
    if name == "intermediate_layers" and isinstance(value, int | list):
        return json.dumps(value)
    expected: dict[Any, Any] = {
        bool: (bool, "true or false"),
        int: (int, "a whole number"),
        float: (int | float, "a number"),
    }
    kind = next(kind for kind in kinds if kind is not type(None))
    accepted, words = expected.get(kind, (list, "a list") if typing.get_origin(kind) is list else (str, "a text"))
    if not isinstance(value, accepted) or (isinstance(value, bool) and kind is not bool):
        raise InputError(f"{where}: {name} is {value!r}, expected {words}")
    return float(value) if kind is float else value
