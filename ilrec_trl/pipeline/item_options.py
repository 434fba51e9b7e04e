"""What `ilrec items` can be told. Plain dataclasses, as in `options`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from .options import ITEMS_COLUMNS


@dataclass
class ItemSourceOptions:
    """Items, and vectors of them where the user has some."""

    items: str = field(
        metadata={
            "help": "item.json or <name>.item.json, {item: {title, brand, ...}}; Amazon's metadata as JSON lines, "
            "RecBole's .item, movies.dat, CSV, TSV, also .gz; Parquet; or a folder of item.json, .item or movies.*."
        }
    )
    output_dir: str = field(
        metadata={"help": "Folder that receives the IDs: `ilrec run --data`, or --items where it has no inter.json."}
    )
    vectors: str | None = field(
        default=None, metadata={"help": "Vectors of your own instead of the texts': an .npy file, one row an item."}
    )
    vector_ids: str | None = field(
        default=None, metadata={"help": "Item ids of the rows of --vectors: a text file, one a line, or a JSON list."}
    )
    items_columns: str | None = field(default=None, metadata={"help": ITEMS_COLUMNS})
    bad_rows: Literal["raise", "drop"] = field(
        default="raise", metadata={"help": "Bad rows of a table: 'raise' stops, 'drop' goes on without those items."}
    )


@dataclass
class TextVectorOptions:
    """From the items' texts to vectors."""

    fields: list[str] | None = field(
        default=None,
        metadata={"help": "Fields of an item to join. Default: title, brand, categories, genres, description."},
    )
    text_template: str | None = field(
        default=None, metadata={"help": "Format string instead of --fields, such as '{title} by {brand}'."}
    )
    embedding_model: str | None = field(
        default=None,
        metadata={"help": "sentence-transformers model: folder or Hub name. Without it TF-IDF and a truncated SVD."},
    )
    dimensions: int = field(default=128, metadata={"help": "Dimensions of TF-IDF's vectors."})
    without_text: Literal["refuse", "zero"] = field(
        default="refuse",
        metadata={"help": "What becomes of an item without a text: 'refuse', or 'zero', a vector of zeros."},
    )


@dataclass
class CollaborativeOptions:
    """Collaborative vectors beside those of the texts."""

    sasrec: str | None = field(
        default=None, metadata={"help": "Folder of a SASRec (from `ilrec sasrec`) whose item vectors are joined."}
    )
    prepared: str | None = field(
        default=None,
        metadata={
            "help": "Folder that `ilrec prepare` wrote and SASRec was trained on: says which items it has seen."
        },
    )
    collaborative_weight: float = field(
        default=0.3, metadata={"help": "Share of the collaborative part in the squared distance, 0 to 1."}
    )
    collaborative_mode: Literal["concatenate", "predict"] = field(
        default="concatenate",
        metadata={
            "help": "'concatenate': SASRec's vectors, predicted from the text where it has not seen an item. "
            "'predict': predicted for all, so that IDs depend on texts alone."
        },
    )


@dataclass
class CodeOptions:
    """From vectors to codes."""

    levels: int = field(default=3, metadata={"help": "Number of codebooks."})
    codebook_size: list[int] = field(
        default_factory=lambda: [256], metadata={"help": "Codes of every level, or one number for each level."}
    )
    unique: Literal["last_level", "extra_level"] = field(
        default="last_level",
        metadata={
            "help": "How items of equal codes are told apart: 'last_level', by the nearest free code of it, or "
            "'extra_level', by one more level that numbers them."
        },
    )
    balance: float | None = field(
        default=None,
        metadata={"help": "No code holds more than this many times the mean number of items. At least 1."},
    )
    iterations: int = field(default=25, metadata={"help": "Rounds of k-means a level."})
    seed: int = field(default=0, metadata={"help": "Seed of the SVD and of k-means."})
    minionerec: str | None = field(
        default=None, metadata={"help": "Write MiniOneRec's files as well, for a category of this name."}
    )


@dataclass
class NewItemOptions:
    """IDs for items that come later."""

    semantic_ids: str = field(metadata={"help": "Folder that `ilrec items build` or `ilrec items add` wrote."})
    new_tokens: bool = field(
        default=False,
        metadata={"help": "Use codes that no item has so far as well; a trained model does not know their tokens."},
    )


@dataclass
class ItemReportOptions:
    """A report of semantic IDs, whoever made them."""

    data: str = field(metadata={"help": "Folder with index.json, and item.json for titles (also <name>., also .gz)."})
    output_dir: str = field(metadata={"help": "Folder that receives report.md and report.json."})
