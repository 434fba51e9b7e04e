"""What the commands that serve a trained model can be told."""

from dataclasses import dataclass, field


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
