"""
The options of every command as plain dataclasses, so that `--help` needs neither torch nor transformers.

`_argument_group_name` is the heading of a class in `--help`. `_more` names the fields that `--help` leaves out: they
work as flags and in the file of `--config` all the same, and docs/cli.md lists them.
"""

from __future__ import annotations

import json
import linecache
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import MISSING, dataclass, field, fields
from typing import Any, ClassVar, Literal


ITEMS_COLUMNS = (
    "Columns of item, title and brand in a table of --items that have no usual names, as JSON or as a mapping in the "
    """YAML file: {"item": "sku", "title": "product"}."""
)


class InputError(Exception):
    """Something the user gave cannot be used. The command line shows the message alone and exits with status 2."""


def mapping(name: str, value: Any, example: str) -> dict[str, Any]:
    """An option that is JSON on the command line and a mapping in a YAML file; empty for none."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except json.JSONDecodeError as error:
            raise InputError(f"--{name} is not JSON ({error}); write for example '{example}'") from error
    if not isinstance(value or {}, dict):
        raise InputError(f"--{name} is {value!r}, not a mapping; write for example '{example}'")
    return dict(value or {})


# What reads the user's files or options for us. Any other ValueError comes of what our own code gave to somebody.
_READERS = {
    *("json", "pyarrow", "pandas", "datasets", "transformers", "tokenizers", "safetensors", "peft"),
    *("trl", "huggingface_hub", "jinja2", "codecs", "encodings", "gzip"),
}


@contextmanager
def input_errors(*packages: str) -> Iterator[None]:
    """
    Make one line of what is wrong with the user's files or options: an `OSError`, and a `ValueError` that a `raise` of
    this package or of `packages`, or a reader of files raised. Every other error is a bug and keeps its traceback.
    """
    try:
        yield
    except (ValueError, OSError) as error:
        if not isinstance(error, OSError) and not _is_check(error, {"ilrec_trl", *packages}):
            raise
        raise InputError(" ".join(str(error).split()) or type(error).__name__) from error


def _is_check(error: BaseException, own: set[str]) -> bool:
    """Whether a reader raised an error, or a statement `raise` in one of our `own` packages."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None:
        return False
    code = trace.tb_frame.f_code
    package = str(trace.tb_frame.f_globals.get("__name__", "")).split(".")[0]
    line = linecache.getline(code.co_filename, trace.tb_lineno)
    return package in _READERS or (package in own and line.lstrip().startswith("raise"))


REQUIRED: Any = MISSING


def option(default: Any, text: str, choices: list[str] | None = None) -> Any:
    """A field with its help; `REQUIRED` for one without a default."""
    metadata = {"help": text} | ({} if choices is None else {"choices": choices})
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def changed(options: Any) -> set[str]:
    """Names of the options that differ from their defaults."""
    return {each.name for each in fields(options) if getattr(options, each.name) != each.default}


@dataclass
class PromptOptions:
    """How histories become prompts, and prompts training rows."""

    max_history: int = option(20, "Most items of the history that a prompt shows.")
    rows: str = option(
        "sequences",
        "Training rows: 'sequences' makes one row per user, in which every item after the first is a target "
        "(cheap); 'targets' makes one row per target.",
        choices=["sequences", "targets"],
    )
    template: list[str] | None = option(
        None,
        "Prompt templates: Jinja text with the variables history and separator, files, folders, or shipped ones "
        "such as introductions and instructions. Each training row draws one of them; evaluation uses the first. "
        "Default: the items alone.",
    )
    max_length: int | None = option(
        None,
        "Most tokens of a prompt with its target; the oldest items are dropped. Default: what max_history items need.",
    )
    conversational: bool = option(False, "Prompts are chat messages; the tokenizer needs a chat template.")
    system_prompt: str | None = option(None, "First message of every conversation; needs --conversational.")
    chat_template_kwargs: str | None = option(
        None,
        "Arguments of the chat template, as JSON or as a mapping in the YAML file: '{\"enable_thinking\": false}'. "
        "Needs --conversational.",
    )
    tasks: str | None = option(
        None,
        "Training tasks and how often each takes its rows, as JSON or as a mapping in the YAML file: "
        '\'{"next_item": 1, "item_to_title": 0.5, "title_to_item": 1}\'. Further tasks: next_title, '
        "next_item_from_titles. Default: next_item alone.",
    )
    prompt_seed: int = option(0, "Seed that draws templates and rows of tasks.")


@dataclass
class DataOptions(PromptOptions):
    """Where interactions come from and how they become prompts."""

    _argument_group_name: ClassVar[str] = "data, items and prompts"
    _more: ClassVar[tuple[str, ...]] = (
        *("rows", "template", "max_length", "conversational", "system_prompt", "chat_template_kwargs", "tasks"),
        *("prompt_seed", "data_format", "items_columns", "rating_column", "time_unit", "in_order", "start", "end"),
        *("drop_repeats", "max_items", "unused_items", "validation_start", "test_start", "validation_share"),
        *("test_share", "train_users_share", "train_users_seed", "train_on_validation", "vocab_size", "store_users"),
        *("store_items", "store_seed"),
    )

    data: str | None = option(
        None,
        "Interactions: a file, a folder, or with --data_format hub the name of a data set. LC-Rec's and "
        "MiniOneRec's folders, RecBole's .inter, Amazon's reviews as JSON lines or Parquet, MovieLens, CSV, TSV, "
        "Parquet, also .gz. Default: a small generated store.",
    )
    data_format: str | None = option(
        None,
        "Format of the interactions where the file names do not tell it: lc_rec, mini_one_rec, recbole, movielens, "
        "csv, tsv, json_lines, parquet, hub or saved.",
    )
    items: str | None = option(
        None,
        "What names the items: a folder of index.json or item.json (also <name>.index.json, also .gz), or a file of "
        "titles. Default: what lies beside the interactions.",
    )
    items_columns: str | None = option(None, ITEMS_COLUMNS)
    user_column: str | None = option(None, "Column of users, if it has no usual name.")
    item_column: str | None = option(None, "Column of items, if it has no usual name.")
    time_column: str | None = option(None, "Column of times, if it has no usual name.")
    rating_column: str | None = option(None, "Column of ratings, if it has no usual name.")
    time_unit: str | None = option(
        None, "Unit of numeric times: s, ms, us or ns. Default: ms for Amazon 2023, else s."
    )
    in_order: bool = option(False, "The rows of each user are in time order already; no times are read.")
    bad_rows: str = option(
        "raise",
        "Rows that lack a value, hold a wrong type or name an unknown item: 'raise' stops and names them, 'drop' "
        "goes on without them and counts them.",
        choices=["raise", "drop"],
    )
    min_rating: float | None = option(None, "Keep interactions of at least this rating.")
    start: str | None = option(
        None, "Inclusive start of the date window: an ISO date such as 2016-10-01, in UTC, or a number."
    )
    end: str | None = option(None, "Exclusive end of the date window.")
    drop_repeats: str | None = option(
        None,
        "'exact' keeps one of several interactions of the same user, item and time; 'consecutive' drops an item "
        "that follows itself; 'keep_first' and 'keep_last' keep one interaction of a user with an item.",
        choices=["exact", "consecutive", "keep_first", "keep_last"],
    )
    max_items: int | None = option(None, "Keep this many interactions of a user, the latest.")
    k_core: int | None = option(
        None, "Keep users and items of at least this many interactions, after all other cleaning."
    )
    unused_items: str = option(
        "keep",
        "Items of the catalogue without any interaction after cleaning: 'keep' ranks them too, 'drop' removes them. "
        "Items of users whom --max_users leaves out stay.",
        choices=["keep", "drop"],
    )
    split: str = option(
        "leave_one_out",
        "'leave_one_out' holds out each user's last two items; 'global_time' splits all users at two dates.",
        choices=["leave_one_out", "global_time"],
    )
    validation_start: str | None = option(None, "Start of validation in a split by time: a date or a number.")
    test_start: str | None = option(None, "Start of test in a split by time.")
    validation_share: float | None = option(None, "Share of the interactions in validation, instead of dates.")
    test_share: float | None = option(None, "Share of the interactions in test.")
    item_format: Literal["semantic_ids", "titles"] = option(
        "semantic_ids",
        "What names an item to the language model: its semantic ID (index.json) or its title (item.json).",
    )
    max_users: int | None = option(None, "Use this many users, drawn at random. For smoke runs; the report says so.")
    train_users_share: float = option(
        1.0, "Share of the users, drawn at random, that every method is trained on; all are ranked."
    )
    train_users_seed: int = option(0, "Seed that draws those users.")
    train_on_validation: bool = option(
        False,
        "Final refit with settings chosen before: train on the validation items too, for the full number of epochs, "
        "and select nothing by them. The report says so.",
    )
    vocab_size: int = option(4096, "Size of the tokenizer trained on titles, for the small Llama.")
    store_users: int = option(1500, "Users of the generated store.")
    store_items: int = option(300, "Items of the generated store.")
    store_seed: int = option(0, "Seed of the generated store.")


@dataclass
class ModelNameOptions:
    """The language model that data is prepared for."""

    _argument_group_name: ClassVar[str] = "model"

    model: str | None = option(
        None, "Pretrained causal language model: folder or Hub name. Default: a small Llama from random weights."
    )


@dataclass
class ModelOptions(ModelNameOptions):
    """The language model: a small Llama from a configuration, or a pretrained one."""

    _more: ClassVar[tuple[str, ...]] = (
        *("intermediate_size", "num_attention_heads", "tie_word_embeddings", "attention_dropout"),
    )

    hidden_size: int = option(64, "Hidden size of the small Llama.")
    intermediate_size: int = option(256, "Width of its feed-forward layers.")
    num_hidden_layers: int = option(4, "Its number of layers; ILRec needs at least 2.")
    num_attention_heads: int = option(4, "Its number of attention heads.")
    tie_word_embeddings: bool = option(
        False, "Whether the small Llama uses one matrix for its input and output tokens."
    )
    attention_dropout: float = option(0.0, "Its dropout on attention weights.")


@dataclass
class TeacherOptions:
    """SASRec, the collaborative-filtering model behind the rewards."""

    _argument_group_name: ClassVar[str] = "teacher (SASRec)"
    _more: ClassVar[tuple[str, ...]] = (
        *("sasrec_hidden_size", "sasrec_dropout", "sasrec_learning_rate", "sasrec_batch_size", "sasrec_item_tokens"),
        *("sasrec_ensemble", "reward_temperature", "transition_share"),
    )

    sasrec: str | None = option(None, "Folder of a trained SASRec. Default: one is trained where it is needed.")
    sasrec_hidden_size: int = option(128, "Hidden size of SASRec.")
    sasrec_dropout: float = option(0.5, "Dropout of SASRec.")
    sasrec_learning_rate: float = option(1e-3, "Peak learning rate of SASRec.")
    sasrec_epochs: float | None = option(
        None, "Most epochs of SASRec; the best on validation is kept. Default: 14, or 2,000 updates if that is more."
    )
    sasrec_batch_size: int = option(64, "Users per batch of SASRec.")
    sasrec_item_tokens: bool | None = option(
        None,
        "Whether SASRec also learns vectors of the items' tokens (codes or words of titles), so that it knows what "
        "the language model reads. Default: true up to 100,000 items, false above, where its softmax is sampled.",
    )
    sasrec_folds: int = option(
        5,
        "Cross-fitting: each user is scored by a SASRec that was not trained on that user. 1 trains one SASRec on "
        "all users.",
    )
    sasrec_ensemble: int = option(1, "Ensemble size; probabilities are averaged.")
    reward_temperature: float = option(1.0, "Temperature of SASRec's probabilities.")
    calibrate_rewards: bool = option(
        False,
        "Use the temperature at which the cross-fitted SASRecs are calibrated on held-out users; needs "
        "--sasrec_folds of 2 or more.",
    )
    transition_share: float = option(
        0.0, "Share of transition counts (which item followed which) in the rewards, from 0 to below 1."
    )

    @property
    def several(self) -> bool:
        """Whether more than one SASRec is to be trained."""
        return self.sasrec is None and (self.sasrec_folds != 1 or self.sasrec_ensemble != 1)


@dataclass
class TrainingOptions:
    """Fine-tuning, the same for SFT and ILRec but for ILRec's own losses."""

    _argument_group_name: ClassVar[str] = "training"
    _more: ClassVar[tuple[str, ...]] = (
        *("gradient_accumulation_steps", "warmup_ratio", "lr_scheduler_type", "weight_decay"),
    )

    learning_rate: float | None = option(
        None, "Peak learning rate. Default: 2e-3 for the small Llama, 5e-5 for a pretrained model."
    )
    num_train_epochs: float = option(6.0, "Epochs.")
    per_device_train_batch_size: int = option(32, "Rows per step and device.")
    gradient_accumulation_steps: int = option(1, "Steps per update.")
    warmup_ratio: float = option(0.05, "Share of the updates in which the rate rises.")
    lr_scheduler_type: str = option("cosine", "Schedule of the learning rate.")
    weight_decay: float = option(0.01, "Weight decay.")
    intermediate_layers: str = option(
        "auto",
        "Layers that negatives are mined from: an integer n selects the n layers before the last, a JSON list names "
        "layers, 'auto' takes 3.",
    )
    cpo_beta: float | None = option(
        None, "Strength of the penalty on negatives (ILRec). Default: 3, or 1 with restrict_to_items false."
    )
    cpd_weight: float = option(0.05, "Weight of the distillation, lambda (ILRec).")
    crr_weight: float = option(3.0, "Weight of the collaborative rewards, mu (ILRec).")
    trainer_args: str | None = option(None, "Further fields of ILRecConfig, as JSON or as a mapping in the YAML file.")


@dataclass
class RankingOptions:
    """Ranking the whole catalogue for every user."""

    _argument_group_name: ClassVar[str] = "evaluation"
    _more: ClassVar[tuple[str, ...]] = ("ranking",)

    ranking: str = option(
        "beam",
        "'beam' is constrained beam search; 'exact' scores every item, which costs more.",
        choices=["beam", "exact"],
    )
    exclude_history: bool = option(False, "Leave the items of a user's history out of the ranking, for every method.")
    num_beams: int = option(20, "Beams; a target outside the beams counts as not found.")
    eval_batch_size: int = option(64, "Users per batch.")


@dataclass
class EvaluationOptions(RankingOptions):
    """Ranking, and how many users are ranked to choose an epoch."""

    validation_users: int = option(1000, "Users ranked after each epoch, drawn at random; the best epoch is kept.")


@dataclass
class PipelineOptions:
    """All that decides how one data set is prepared, trained on and ranked."""

    data: DataOptions
    model: ModelOptions
    teacher: TeacherOptions
    training: TrainingOptions
    evaluation: EvaluationOptions


@dataclass
class RunOptions:
    """The whole comparison."""

    _argument_group_name: ClassVar[str] = "run"

    output_dir: str = option("runs/ilrec", "Folder that receives report, results and models.")
    seeds: list[int] = option([0], "Seeds; each trains SFT and ILRec once.")


@dataclass
class PrepareOptions:
    """Prepare: read, split, name the items, build the tokenizer and the trie."""

    _argument_group_name: ClassVar[str] = "output"

    output_dir: str = option("runs/data", "Folder that receives the prepared data.")


@dataclass
class StageOptions:
    """A later stage, on prepared data."""

    _argument_group_name: ClassVar[str] = "stage"

    prepared: str = option(REQUIRED, "Folder that `ilrec prepare` wrote.")
    output_dir: str = option(REQUIRED, "Folder that receives the trained model.")
    seed: int = option(0, "Seed of weights and data order.")


@dataclass
class MethodOptions:
    """How to fine-tune."""

    _argument_group_name: ClassVar[str] = "method"

    method: str = option(
        "ilrec",
        "'ilrec' is supervised fine-tuning with ILRec's losses; 'sft' is TRL's own SFTTrainer.",
        choices=["ilrec", "sft"],
    )


@dataclass
class EvaluateOptions:
    """Evaluate a trained model on a split."""

    _argument_group_name: ClassVar[str] = "what to evaluate"

    prepared: str = option(REQUIRED, "Folder that `ilrec prepare` wrote.")
    model: str = option(REQUIRED, "Folder of the trained language model.")
    output_dir: str | None = option(
        None, "Folder that receives metrics.json and ranks.parquet. Default: nothing is written."
    )
    resume_dir: str | None = option(
        None, "Folder that keeps the ranks of finished users; a killed evaluation resumes from it."
    )
    split: str = option("test", "Users' questions.", choices=["validation", "test"])


@dataclass
class RecommendOptions:
    """Recommend items to one user or after one history."""

    model: str = option(REQUIRED, "Folder of the trained language model, or one that `ilrec export` wrote.")
    prepared: str | None = option(
        None, "Folder that `ilrec prepare` wrote. An exported model needs it for --user alone."
    )
    user: str | None = option(None, "User id; the whole sequence is the history.")
    history: list[str] | None = option(None, "Item ids, oldest first, instead of a user.")
    top_k: int = option(10, "Number of items to recommend.")
    num_beams: int | None = option(None, "Beams; at least top_k. Default: those of the exported model, else 20.")
    exclude_history: bool = option(False, "Do not recommend items of the history.")


@dataclass
class ExportOptions:
    """One folder with all that recommending takes."""

    prepared: str = option(REQUIRED, "Folder that `ilrec prepare` wrote.")
    model: str = option(REQUIRED, "Folder of the trained language model, or of its adapter.")
    output_dir: str = option(REQUIRED, "Folder that receives the exported model.")
    dtype: str = option(
        "auto",
        "Type of the exported weights; 'auto' is the type they were saved in.",
        choices=["auto", "float32", "bfloat16", "float16"],
    )
    num_beams: int = option(20, "Beams to search with, and so the most items of one answer.")
    evaluation: str | None = option(
        None, "Folder that `ilrec evaluate --output_dir` wrote; its metrics go on the model card."
    )
