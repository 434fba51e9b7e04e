"""Interactions of every format: which format a path or an object has, and which function reads it."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from pathlib import Path

from .columns import MARKER, Columns, load_columns
from .raw_rows import RawRows, Roles, choose_columns
from .sequence_rows import PARTS, read_lc_rec, read_mini_one_rec
from .table_rows import read_hub, read_json_lines, read_parquet
from .text_rows import read_delimited


# Usual names of the columns; the first that a source has counts
_COLUMNS = {
    "user": ("user", "user_id", "userId", "reviewerID"),
    "item": ("item", "item_id", "itemId", "parent_asin", "asin", "movieId"),
    "time": ("timestamp", "time", "unixReviewTime", "date"),
    "rating": ("rating", "overall"),
}
_MOVIE_LENS = ["user", "item", "rating", "timestamp"]
# Files by which the format of a folder is known; the first that fits counts
_IN_FOLDER = {
    "saved": (MARKER,),
    "lc_rec": ("inter.json", "*.inter.json"),
    "mini_one_rec": ("*.train.inter", "train/*.csv"),
    "recbole": ("*.inter",),
    "movielens": ("ratings.dat", "ratings.csv", "u.data"),
    "parquet": ("*.parquet",),
}
_BY_NAME = {
    "lc_rec": r"(.*\.)?inter\.json",
    "recbole": r".*\.inter",
    "movielens": r".*\.dat|u\.data",
    "csv": r".*\.csv",
    "tsv": r".*\.tsv",
    "json_lines": r".*\.jsonl?",
    "parquet": r".*\.parquet",
}
SEQUENCES = ("saved", "lc_rec", "mini_one_rec")
FORMATS = (
    "saved", "lc_rec", "mini_one_rec", "recbole", "movielens", "csv", "tsv", "json_lines", "parquet", "hub",
)  # fmt: skip


def find_format(source: str | Path, format: str | None = None) -> str:
    """The given format, or that of a path by the names of its files."""
    if format is not None:
        if format not in FORMATS:
            raise ValueError(f"Got format={format!r}; expected one of {', '.join(FORMATS)}.")
        return format
    path = Path(source)
    if path.is_dir():
        for format, patterns in _IN_FOLDER.items():
            if _find(path, patterns):
                return format
        known = ", ".join(pattern for patterns in _IN_FOLDER.values() for pattern in patterns)
        raise ValueError(f"{path} holds nothing that is known by its name ({known}); name the file or give `format`.")
    if path.is_file():
        name = path.name.removesuffix(".gz")
        for format, pattern in _BY_NAME.items():
            if re.fullmatch(pattern, name):
                return format
        raise ValueError(f"{path} has no ending that is known; give `format`, one of {', '.join(FORMATS)}.")
    raise FileNotFoundError(f'There is no file or folder {path}; a data set of the Hub needs format="hub".')


def needed_columns(names: list[str], columns: Mapping[str, str], in_order: bool, rated: bool) -> dict[str, str]:
    """The column of each role that is needed, among columns of the given names."""
    needed = ["user", "item", *([] if in_order else ["time"]), *(["rating"] if rated else [])]
    hints = {"time": ", or pass in_order=True if each user's rows are in time order already"}
    roles = choose_columns(names, columns, _COLUMNS, needed, (), hints)
    if len(set(roles.values())) < len(roles):
        raise ValueError(f"One column cannot be two things at once: {roles}; name others with `columns`.")
    return roles


def read_path(source: str | Path, format: str, roles: Roles, split: str) -> RawRows:
    """Read the rows of a file, a folder or a data set of the Hub in the given format."""
    path = Path(source)
    if format == "hub":
        return read_hub(str(source), roles, split)
    if format == "lc_rec":
        return read_lc_rec(_one(path, _IN_FOLDER["lc_rec"]))
    if format == "mini_one_rec":
        return read_mini_one_rec(_mini_one_rec_files(path))
    if format == "parquet":
        return read_parquet(_find(path, _IN_FOLDER["parquet"]) if path.is_dir() else [path], roles)
    if format == "movielens":
        path = _one(path, _IN_FOLDER["movielens"])
        delimiter = {".dat": "::", ".data": "\t"}.get(Path(path.name.removesuffix(".gz")).suffix)
        return read_delimited(path, delimiter or ",", roles, _MOVIE_LENS if delimiter else None)
    if format == "json_lines":
        return read_json_lines(path, roles)
    path = _one(path, _IN_FOLDER["recbole"]) if format == "recbole" else path
    return read_delimited(path, "," if format == "csv" else "\t", roles)


def load_saved(folder: Path, items: Collection[str] | None) -> Columns:
    """Map saved interactions into memory; a `ValueError` names an item that is not in `items`."""
    columns = load_columns(folder)
    if items is not None and (unknown := set(columns.items.to_pylist()) - set(items)):
        raise ValueError(f"{len(unknown)} items of {folder} are unknown, such as {min(unknown)!r}; filter them out.")
    return columns


def _find(folder: Path, patterns: tuple[str, ...]) -> list[Path]:
    found = {path for pattern in patterns for path in folder.glob(pattern)}
    return sorted(found | {path for pattern in patterns for path in folder.glob(pattern + ".gz")})


def _one(path: Path, patterns: tuple[str, ...]) -> Path:
    """The file itself, or the one in the folder."""
    if not path.is_dir():
        return path
    found = _find(path, patterns)
    if not found:
        raise FileNotFoundError(
            f"No interactions in {path}: expected {' or '.join(f'`{name}`' for name in patterns)} (or .gz)."
        )
    if len(found) > 1:
        raise ValueError(f"{path} holds {', '.join(file.name for file in found)}; expected one; name the file itself.")
    return found[0]


def _mini_one_rec_files(folder: Path) -> dict[str, Path]:
    """Files of the parts; a missing one is an error."""
    if not _find(folder, ("*.train.inter",)):
        return {part: _one(folder / part, ("*.csv",)) for part in PARTS}
    return {part: _one(folder, (f"*.{part}.inter",)) for part in PARTS}
