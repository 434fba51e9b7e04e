"""One way in for interactions of every format: what a path or object is, and who reads it."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from .columns import MARKER, Columns, load_columns
from .raw_rows import BadRows, RawRows, to_columns
from .sequence_rows import PARTS, read_lc_rec, read_mini_one_rec
from .table_rows import read_hub, read_json_lines, read_parquet, read_table
from .text_rows import Roles, read_delimited


if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa
    from datasets import Dataset

# Where nothing else is said, the first of these names that a source has.
_COLUMNS = {
    "user": ("user", "user_id", "userId", "reviewerID"),
    "item": ("item", "item_id", "itemId", "parent_asin", "asin", "movieId"),
    "time": ("timestamp", "time", "unixReviewTime", "date"),
    "rating": ("rating", "overall"),
}
_MOVIE_LENS = ["user", "item", "rating", "timestamp"]
# What a folder of each format holds; the first that fits counts.
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
_SEQUENCES = ("saved", "lc_rec", "mini_one_rec")
FORMATS = (
    "saved", "lc_rec", "mini_one_rec", "recbole", "movielens", "csv", "tsv", "json_lines", "parquet", "hub",
)  # fmt: skip


def read_interactions(
    source: str | Path | pd.DataFrame | Dataset | pa.Table,
    *,
    format: str | None = None,
    columns: Mapping[str, str] | None = None,
    time_unit: str | None = None,
    in_order: bool = False,
    min_rating: float | None = None,
    items: Collection[str] | None = None,
    bad_rows: str = "raise",
    split: str = "train",
) -> tuple[Columns, BadRows]:
    """
    Read interactions of any format into columns; [`Interactions.load`] lists formats and options.

    Returns:
        `tuple[Columns, BadRows]`: the interactions, and the rows that were left out.
    """
    chosen: list[str] = []  # names of all columns, from which the unit of time follows

    def roles(names: list[str]) -> dict[str, str]:
        chosen[:] = names
        return _roles(names, dict(columns or {}), in_order, min_rating is not None)

    if isinstance(source, str | Path):
        format = _format(source) if format is None else format
        if format not in FORMATS:
            raise ValueError(f"Got format={format!r}; expected one of {', '.join(FORMATS)}.")
        if format in _SEQUENCES and (columns or min_rating is not None or time_unit):
            raise ValueError(
                f"{source} ({format}) has no columns, ratings or units to choose; leave those options out."
            )
        if format == "saved":
            return _saved(Path(source), items), BadRows("interactions")
        rows = _read(source, format, roles, split)
    else:
        rows = read_table(source, roles)
    unit = time_unit or ("ms" if "parent_asin" in chosen else "s")
    return to_columns(rows, time_unit=unit, min_rating=min_rating, items=items, bad_rows=bad_rows), rows.bad


def _roles(names: list[str], columns: dict[str, str], in_order: bool, rated: bool) -> dict[str, str]:
    """The column of each role that is needed, among columns of the given names."""
    if unknown := set(columns) - set(_COLUMNS):
        raise ValueError(f"`columns` names {sorted(unknown)}; expected some of {', '.join(_COLUMNS)}.")
    bare = {name.split(":")[0]: name for name in reversed(names)}  # RecBole writes `user_id:token`
    needed = ["user", "item", *([] if in_order else ["time"]), *(["rating"] if rated else [])]
    roles = {}
    for role in needed:
        wanted = (columns[role],) if role in columns else _COLUMNS[role]
        found = [bare.get(name, name) for name in wanted if name in bare or name in names]
        if not found:
            hint = " Or pass in_order=True if each user's rows are in time order already." if role == "time" else ""
            raise ValueError(
                f"No column {' or '.join(map(repr, wanted))} among {names}; "
                f"name yours with columns={{{role!r}: ...}}.{hint}"
            )
        roles[role] = found[0]
    if len(set(roles.values())) < len(roles):
        raise ValueError(f"One column cannot be two things at once: {roles}; name others with `columns`.")
    return roles


def _format(source: str | Path) -> str:
    """Format of a path by the names of its files."""
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


def _read(source: str | Path, format: str, roles: Roles, split: str) -> RawRows:
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
        return (
            read_delimited(path, ",", roles)
            if delimiter is None
            else read_delimited(path, delimiter, roles, _MOVIE_LENS)
        )
    if format == "json_lines":
        return read_json_lines(path, roles)
    path = _one(path, _IN_FOLDER["recbole"]) if format == "recbole" else path
    return read_delimited(path, "," if format == "csv" else "\t", roles)


def _saved(folder: Path, items: Collection[str] | None) -> Columns:
    columns = load_columns(folder)
    if items is not None and (unknown := set(columns.items.to_pylist()) - set(items)):
        raise ValueError(f"{len(unknown)} items of {folder} are unknown, such as {min(unknown)!r}; filter them out.")
    return columns


def _mini_one_rec_files(folder: Path) -> dict[str, Path]:
    """Files of the parts; a missing one is an error."""
    if not _find(folder, ("*.train.inter",)):
        return {part: _one(folder / part, ("*.csv",)) for part in PARTS}
    return {part: _one(folder, (f"*.{part}.inter",)) for part in PARTS}
