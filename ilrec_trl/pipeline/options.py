"""The options of every command as plain dataclasses, so that `--help` needs neither torch nor transformers."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass
class PromptOptions:
    """How histories become prompts, and prompts training rows."""

    max_history: int = field(default=20, metadata={"help": "Number of items that a prompt shows at most."})
    rows: str = field(
        default="sequences",
        metadata={
            "help": "Training rows: 'sequences', one a user with every item after the first a target (cheap), or "
            "'targets', one a target.",
            "choices": ["sequences", "targets"],
        },
    )
    template: list[str] | None = field(
        default=None,
        metadata={
            "help": "Templates of a prompt: Jinja text with the variables history and separator, files, folders, or "
            "shipped ones such as introductions and instructions. Of several, each training row gets one by chance; "
            "evaluation uses the first."
        },
    )
    max_length: int | None = field(
        default=None,
        metadata={
            "help": "Tokens that a prompt with its target has at most; the oldest items are dropped. None: as many as "
            "max_history items take."
        },
    )
    conversational: bool = field(
        default=False, metadata={"help": "Prompts are chat messages; the tokenizer needs a chat template."}
    )
    system_prompt: str | None = field(default=None, metadata={"help": "First message of every conversation."})
    chat_template_kwargs: str | None = field(
        default=None,
        metadata={
            "help": "For the chat template, as JSON or as a mapping in the YAML file: '{\"enable_thinking\": false}'."
        },
    )
    tasks: str | None = field(
        default=None,
        metadata={
            "help": "Training tasks and how many times each takes its rows, as JSON or as a mapping in the YAML file: "
            '\'{"next_item": 1, "item_to_title": 0.5, "title_to_item": 1}\'. Also next_title and '
            "next_item_from_titles. None: next_item alone."
        },
    )
    prompt_seed: int = field(default=0, metadata={"help": "Seed that draws templates and rows of tasks."})


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


@dataclass
class DataOptions(PromptOptions):
    """Where interactions come from and how they become prompts."""

    data: str | None = field(
        default=None,
        metadata={
            "help": "Interactions: a file, a folder, or with --data_format hub the name of a data set. LC-Rec's and "
            "MiniOneRec's folders, RecBole's .inter, Amazon's reviews as JSON lines or Parquet, MovieLens, CSV, TSV, "
            "Parquet, also .gz. Without it a small store is generated."
        },
    )
    data_format: str | None = field(
        default=None,
        metadata={
            "help": "Format of the interactions, where the names of the files do not tell it: lc_rec, mini_one_rec, "
            "recbole, movielens, csv, tsv, json_lines, parquet, hub or saved."
        },
    )
    items: str | None = field(
        default=None,
        metadata={
            "help": "What names the items: a folder of index.json or item.json (also <name>.index.json, also .gz), or "
            "a file of titles. Without it they are looked for beside the interactions; RecBole's and MovieLens' "
            "titles too."
        },
    )
    items_columns: str | None = field(default=None, metadata={"help": ITEMS_COLUMNS})
    user_column: str | None = field(default=None, metadata={"help": "Column of users, if it has no usual name."})
    item_column: str | None = field(default=None, metadata={"help": "Column of items, if it has no usual name."})
    time_column: str | None = field(default=None, metadata={"help": "Column of times, if it has no usual name."})
    rating_column: str | None = field(default=None, metadata={"help": "Column of ratings, if it has no usual name."})
    time_unit: str | None = field(
        default=None, metadata={"help": "Unit of times that are numbers: s, ms, us or ns. None: by the format."}
    )
    in_order: bool = field(
        default=False, metadata={"help": "The rows of each user are in time order already; read no times."}
    )
    bad_rows: str = field(
        default="raise",
        metadata={
            "help": "Rows that lack something, hold a wrong type or name an unknown item: 'raise' stops and names "
            "them, 'drop' goes on without them and says how many.",
            "choices": ["raise", "drop"],
        },
    )
    min_rating: float | None = field(default=None, metadata={"help": "Least rating to keep."})
    start: str | None = field(
        default=None, metadata={"help": "First moment to keep: an ISO date such as 2016-10-01, in UTC, or a number."}
    )
    end: str | None = field(default=None, metadata={"help": "First moment not to keep any more."})
    drop_repeats: str | None = field(
        default=None,
        metadata={
            "help": "'exact' drops all but one interaction of the same user, item and time; 'consecutive' an item "
            "that follows itself; 'keep_first' and 'keep_last' all but one interaction of a user with an item.",
            "choices": ["exact", "consecutive", "keep_first", "keep_last"],
        },
    )
    max_items: int | None = field(default=None, metadata={"help": "Keep so many interactions of a user, the latest."})
    k_core: int | None = field(
        default=None, metadata={"help": "Least interactions of every user and item, after all other cleaning."}
    )
    unused_items: str = field(
        default="keep",
        metadata={
            "help": "Items of the catalogue that occur in no interaction after all cleaning: 'keep' ranks them too, "
            "'drop' leaves them out. Those of users whom --max_users leaves out stay.",
            "choices": ["keep", "drop"],
        },
    )
    split: str = field(
        default="leave_one_out",
        metadata={
            "help": "'leave_one_out' asks each user's last two items; 'global_time' splits everyone at two moments.",
            "choices": ["leave_one_out", "global_time"],
        },
    )
    validation_start: str | None = field(
        default=None, metadata={"help": "Where validation begins in a split by time: a date or a number."}
    )
    test_start: str | None = field(default=None, metadata={"help": "Where test begins: a date or a number."})
    validation_share: float | None = field(
        default=None, metadata={"help": "Share of the interactions in validation, instead of dates."}
    )
    test_share: float | None = field(default=None, metadata={"help": "Share of the interactions in test."})
    item_format: Literal["semantic_ids", "titles"] = field(
        default="semantic_ids",
        metadata={
            "help": "What names an item to the language model: its semantic ID (index.json) or its title (item.json)."
        },
    )
    max_users: int | None = field(
        default=None,
        metadata={"help": "Use only this many users, drawn by chance. For smoke runs; the report says so."},
    )
    train_users_share: float = field(
        default=1.0,
        metadata={
            "help": "Share of the users that every method is trained on, drawn by chance; all are asked all the same."
        },
    )
    train_users_seed: int = field(default=0, metadata={"help": "Seed that draws those users."})
    train_on_validation: bool = field(
        default=False,
        metadata={
            "help": "Last fit with settings chosen before: train on the validation items too, every method for its "
            "whole number of epochs, and choose nothing by them. The report says so."
        },
    )
    vocab_size: int = field(
        default=4096, metadata={"help": "Entries of the tokenizer trained on titles. Semantic IDs have one a token."}
    )
    store_users: int = field(default=1500, metadata={"help": "Users of the generated store."})
    store_items: int = field(default=300, metadata={"help": "Items of the generated store."})
    store_seed: int = field(default=0, metadata={"help": "Seed of the generated store."})


@dataclass
class ModelOptions:
    """The language model: a small Llama from a configuration, or a pretrained one."""

    model: str | None = field(
        default=None,
        metadata={
            "help": "Pretrained causal language model: folder or Hub name. Without it a small Llama starts from "
            "random weights."
        },
    )
    hidden_size: int = field(default=64, metadata={"help": "Hidden size of the small Llama."})
    intermediate_size: int = field(default=256, metadata={"help": "Width of its feed-forward layers."})
    num_hidden_layers: int = field(default=4, metadata={"help": "Its layers; ILRec needs at least two."})
    num_attention_heads: int = field(default=4, metadata={"help": "Its attention heads."})
    tie_word_embeddings: bool = field(
        default=False, metadata={"help": "Whether the small Llama uses one matrix for its input and output tokens."}
    )
    attention_dropout: float = field(default=0.0, metadata={"help": "Its dropout on attention weights."})


@dataclass
class TrainingOptions:
    """Fine-tuning, the same for all methods but for the options that name theirs."""

    learning_rate: float | None = field(
        default=None,
        metadata={"help": "Peak learning rate. None: 2e-3 for the small Llama, 5e-5 for a pretrained model."},
    )
    num_train_epochs: float = field(default=6.0, metadata={"help": "Epochs."})
    per_device_train_batch_size: int = field(default=32, metadata={"help": "Rows a step and device."})
    gradient_accumulation_steps: int = field(default=1, metadata={"help": "Steps that make one update."})
    warmup_ratio: float = field(default=0.05, metadata={"help": "Share of the updates in which the rate rises."})
    lr_scheduler_type: str = field(default="cosine", metadata={"help": "Schedule of the learning rate."})
    weight_decay: float = field(default=0.01, metadata={"help": "Weight decay."})
    intermediate_layers: str = field(
        default="auto", metadata={"help": "Layers that negatives are mined from: a count, a JSON list, or 'auto'."}
    )
    cpo_beta: float | None = field(default=None, metadata={"help": "Strength of the penalty on negatives. None: 3."})
    cpd_weight: float = field(default=0.05, metadata={"help": "Weight of the distillation (lambda)."})
    crr_weight: float | None = field(
        default=None, metadata={"help": "Weight of the collaborative rewards (mu). None: 3."}
    )
    trainer_args: str | None = field(
        default=None, metadata={"help": "Any further fields of ILRecConfig, as JSON or as a mapping in the YAML file."}
    )


@dataclass
class EvaluationOptions:
    """Ranking the whole catalogue for every user."""

    ranking: str = field(
        default="beam",
        metadata={
            "help": "'beam', constrained beam search, or 'exact', the score of every item, which costs more.",
            "choices": ["beam", "exact"],
        },
    )
    exclude_history: bool = field(
        default=False,
        metadata={"help": "Never recommend an item of the user's history; the same for every method that is ranked."},
    )
    num_beams: int = field(default=20, metadata={"help": "Beams; a target beyond them counts as not found."})
    eval_batch_size: int = field(default=64, metadata={"help": "Users a batch in evaluation."})
    validation_users: int = field(
        default=1000, metadata={"help": "Users asked after each epoch, to keep the best; drawn by chance."}
    )


@dataclass
class RunOptions:
    """The whole comparison."""

    output_dir: str = field(
        default="runs/ilrec", metadata={"help": "Folder that receives report, results and models."}
    )
    seeds: list[int] = field(default_factory=lambda: [0], metadata={"help": "One SFT and one ILRec run a seed."})


@dataclass
class PrepareOptions:
    """Prepare: read, split, name the items, build the tokenizer and the trie."""

    output_dir: str = field(default="runs/data", metadata={"help": "Folder that receives the prepared data."})


@dataclass
class StageOptions:
    """A later stage, on prepared data."""

    prepared: str = field(metadata={"help": "Folder that `ilrec prepare` wrote."})
    output_dir: str = field(metadata={"help": "Folder that receives what this stage makes."})
    seed: int = field(default=0, metadata={"help": "Seed of weights and data order."})


@dataclass
class MethodOptions:
    """How to fine-tune."""

    method: str = field(
        default="ilrec",
        metadata={
            "help": "Supervised fine-tuning with ILRec's losses, or without.",
            "choices": ["ilrec", "sft"],
        },
    )


@dataclass
class EvaluateOptions:
    """Evaluate a trained model, or SASRec, on a split."""

    prepared: str = field(metadata={"help": "Folder that `ilrec prepare` wrote."})
    model: str = field(metadata={"help": "Folder of the trained language model."})
    output_dir: str | None = field(
        default=None,
        metadata={"help": "Folder that receives metrics.json and ranks.parquet; without it none is written."},
    )
    resume_dir: str | None = field(
        default=None,
        metadata={"help": "Folder that receives the ranks of finished users; a killed evaluation goes on from it."},
    )
    split: str = field(default="test", metadata={"help": "Users' questions.", "choices": ["validation", "test"]})


@dataclass
class TeacherOptions:
    """SASRec, the collaborative-filtering model behind the rewards."""

    sasrec: str | None = field(
        default=None, metadata={"help": "Folder of a trained SASRec. Without it one is trained where it is needed."}
    )
    sasrec_hidden_size: int | None = field(default=None, metadata={"help": "Hidden size of SASRec. None: 128."})
    sasrec_dropout: float | None = field(default=None, metadata={"help": "Dropout of SASRec. None: 0.5."})
    sasrec_learning_rate: float | None = field(default=None, metadata={"help": "Its peak learning rate. None: 0.001."})
    sasrec_epochs: float | None = field(
        default=None,
        metadata={
            "help": "Its epochs at most; the best on validation counts. None: 14, or 2,000 updates if those are more."
        },
    )
    sasrec_batch_size: int | None = field(default=None, metadata={"help": "Users a batch of SASRec. None: 64."})
    sasrec_item_tokens: bool | None = field(
        default=None,
        metadata={
            "help": "Whether SASRec learns vectors of the items' tokens, codes of semantic IDs or words of titles, "
            "beside those of the items, so that it knows what the language model reads. None: yes, but not above "
            "100,000 items, where its softmax is sampled."
        },
    )
    sasrec_folds: int | None = field(
        default=None,
        metadata={
            "help": "Cross-fitting: so many SASRecs, each trained without one fold of the users, whom it then scores. "
            "None: 5. 1: one SASRec of all users."
        },
    )
    sasrec_ensemble: int | None = field(
        default=None,
        metadata={"help": "So many SASRecs, or cross-fitted sets of them, whose mean probability counts. None: 1."},
    )
    reward_temperature: float = field(default=1.0, metadata={"help": "Temperature of SASRec's probabilities."})
    calibrate_rewards: bool = field(
        default=False,
        metadata={
            "help": "With folds: take the temperature at which SASRecs are as sure as they are right about users whom "
            "they have not seen."
        },
    )
    transition_share: float = field(
        default=0.0,
        metadata={"help": "Share of TransitionReward, what followed what for other users, in the rewards."},
    )

    @property
    def folds(self) -> int:
        """Number of folds; 1 where one SASRec has all users."""
        return 5 if self.sasrec_folds is None else self.sasrec_folds

    @property
    def members(self) -> int:
        """SASRecs, or cross-fitted sets of them, in the ensemble."""
        return 1 if self.sasrec_ensemble is None else self.sasrec_ensemble

    @property
    def several(self) -> bool:
        """Whether more than one SASRec is to be trained."""
        return self.sasrec is None and (self.folds != 1 or self.members != 1)


@dataclass
class RecommendOptions:
    """Recommend items to one user or after one history."""

    model: str = field(metadata={"help": "Folder of the trained language model, or that `ilrec export` wrote."})
    prepared: str | None = field(
        default=None,
        metadata={"help": "Folder that `ilrec prepare` wrote. An exported model needs it for --user alone."},
    )
    user: str | None = field(default=None, metadata={"help": "User id; the whole sequence is the history."})
    history: list[str] | None = field(default=None, metadata={"help": "Item ids, oldest first, instead of a user."})
    top_k: int = field(default=10, metadata={"help": "Number of items to recommend."})
    num_beams: int = field(default=20, metadata={"help": "Beams; at least top_k."})
    exclude_history: bool = field(default=False, metadata={"help": "Never recommend an item of the history."})


@dataclass
class ExportOptions:
    """One folder with all that recommending takes."""

    prepared: str = field(metadata={"help": "Folder that `ilrec prepare` wrote."})
    model: str = field(metadata={"help": "Folder of the trained language model, or of its adapter."})
    output_dir: str = field(metadata={"help": "Folder that receives the exported model."})
    dtype: str = field(
        default="auto",
        metadata={
            "help": "Type of the exported weights; 'auto' is the type they were saved in.",
            "choices": ["auto", "float32", "bfloat16", "float16"],
        },
    )
    num_beams: int = field(default=20, metadata={"help": "Beams to search with, and so the most items of one answer."})
    evaluation: str | None = field(
        default=None,
        metadata={"help": "Folder that `ilrec evaluate --output_dir` wrote; its metrics go on the model card."},
    )
