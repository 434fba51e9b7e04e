"""Semantic IDs: a short, unique sequence of codes for every item; items with similar vectors have similar codes."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ..items.item_catalog import ItemCatalog
from .residual_kmeans import Floats, Ints, fit_codebook, residual_codes


UniqueLevel: TypeAlias = Literal["last_level", "extra_level"]
LETTERS = "abcdefghijklmnopqrstuvwxyz"  # of the levels, as in LC-Rec's tokens <a_12>


@dataclass(frozen=True)
class SemanticIds:
    """
    The semantic IDs of a catalogue, and the codebooks from which new items get theirs.

    Args:
        item_ids (`list[str]`): Distinct ids.
        codes (`np.ndarray` of shape `(I, L)`): One code a level, from 0; no two rows are equal.
        codebooks (`list[np.ndarray]`): Centroids of each level, `(K, D)`; `(K, 0)` for an extra level, which only
            numbers.
        figures (`dict`, *optional*): Settings, number of collisions before the codes were made unique, and
            reconstruction error.

    Raises:
        ValueError: If shapes do not fit, an id is repeated, or two items have the same codes.
    """

    item_ids: list[str]
    codes: Ints
    codebooks: list[Floats]
    figures: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.codes.shape != (len(self.item_ids), len(self.codebooks)):
            expected = (len(self.item_ids), len(self.codebooks))
            raise ValueError(
                f"Got codes of shape {self.codes.shape}, expected {expected}: a row an item, a column a codebook."
            )
        _check_ids(self.item_ids)
        if (self.codes < 0).any() or (self.codes >= np.array(self.sizes)).any():
            raise ValueError(f"Got a code outside its codebook; the codebooks have {self.sizes} codes.")
        distinct, first = np.unique(self.codes, axis=0, return_index=True)
        if len(distinct) < len(self.codes):
            row = int(np.setdiff1d(np.arange(len(self.codes)), first)[0])
            raise ValueError(f"Item {self.item_ids[row]!r} has the codes {self.codes[row].tolist()} of another item.")

    def __len__(self) -> int:
        return len(self.item_ids)

    def __repr__(self) -> str:
        return f"SemanticIds({len(self)} items, codebooks of {self.sizes}, e.g. {''.join(self.tokens[0])})"

    @property
    def sizes(self) -> list[int]:
        """Number of codes of each level."""
        return [len(codebook) for codebook in self.codebooks]

    @property
    def tokens(self) -> list[list[str]]:
        """The IDs as tokens, such as `["<a_12>", "<b_3>"]`, one list an item."""
        return [[f"<{LETTERS[level]}_{code}>" for level, code in enumerate(row)] for row in self.codes.tolist()]

    def to_dict(self) -> dict[str, list[str]]:
        """`{item: tokens}`, as [`ItemCatalog.from_semantic_ids`] takes them."""
        return dict(zip(self.item_ids, self.tokens, strict=True))

    def catalog(self, titles: Mapping[str, str] | None = None) -> ItemCatalog:
        """A catalogue of these items, named by their semantic IDs."""
        texts = None if titles is None else [titles[item_id] for item_id in self.item_ids]
        return ItemCatalog(self.item_ids, texts, self.tokens, kind="semantic_ids")

    def assign(self, item_ids: Sequence[str], vectors: NDArray[Any], *, known_tokens: bool = True) -> SemanticIds:
        """
        Give new items IDs from the same codebooks. The IDs of other items stay as they are.

        Args:
            item_ids (`list[str]`): Ids of the new items.
            vectors (`np.ndarray` of shape `(N, D)`): Vectors, made in the same way as those of the present items.
            known_tokens (`bool`, *optional*, defaults to `True`): Use only codes that some item has already, since the
                language model has learnt no other tokens.

        Returns:
            [`SemanticIds`]: The present items, then the new ones.

        Raises:
            ValueError: If an item has an ID already, a vector is not finite or of another width, or no IDs are left.
        """
        item_ids = list(map(str, item_ids))
        vectors = _checked(item_ids, vectors)
        if taken := sorted(set(item_ids) & set(self.item_ids)):
            raise ValueError(f"{len(taken)} items have semantic IDs already: {taken[:5]}. Leave them out.")
        width = self.codebooks[0].shape[1]
        if vectors.shape[1] != width:
            raise ValueError(f"Got vectors of {vectors.shape[1]} numbers, expected {width}, as the codebooks have.")
        usable = [
            np.unique(self.codes[:, level]) if known_tokens else np.arange(size)
            for level, size in enumerate(self.sizes)
        ]
        sizes = [len(codes) for codes in usable]
        remedy = "Pass known_tokens=False and train the new tokens." if known_tokens else "Build new IDs."
        _check_room(len(self) + len(vectors), sizes, remedy)
        occupied = np.stack([np.searchsorted(*pair) for pair in zip(usable, self.codes.T, strict=True)], axis=1)
        result = residual_codes(
            vectors, sizes, lambda level, _: self.codebooks[level][usable[level]], occupied=occupied
        )
        new = np.stack([codes[column] for codes, column in zip(usable, result.codes.T, strict=True)], axis=1)
        return replace(self, item_ids=[*self.item_ids, *item_ids], codes=np.concatenate([self.codes, new]))

    def remove(self, item_ids: Sequence[str]) -> SemanticIds:
        """The IDs without those of these items, which become free for others."""
        if unknown := sorted(set(item_ids) - set(self.item_ids)):
            raise ValueError(f"{len(unknown)} items have no semantic IDs: {unknown[:5]}.")
        gone = set(item_ids)
        keep = [row for row, item_id in enumerate(self.item_ids) if item_id not in gone]
        if not keep:
            raise ValueError(f"Got all {len(self)} items to remove, expected some to be left.")
        return replace(self, item_ids=[self.item_ids[row] for row in keep], codes=self.codes[keep])

    def save(self, directory: str | Path) -> None:
        """Write `semantic_ids.json` and `codebooks.safetensors` into `directory`."""
        from safetensors.numpy import save_file

        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        about = {"format": 1, "item_ids": self.item_ids, "sizes": self.sizes, "figures": self.figures}
        (directory / "semantic_ids.json").write_text(json.dumps(about, ensure_ascii=False) + "\n", encoding="utf-8")
        tensors = {f"codebook_{LETTERS[level]}": codebook for level, codebook in enumerate(self.codebooks)}
        save_file({**tensors, "codes": self.codes}, directory / "codebooks.safetensors")

    @classmethod
    def load(cls, directory: str | Path) -> SemanticIds:
        """Read what [`SemanticIds.save`] wrote."""
        from safetensors.numpy import load_file

        about = json.loads((Path(directory) / "semantic_ids.json").read_text(encoding="utf-8"))
        if about.get("format") != 1:
            raise ValueError(f"{directory} holds semantic IDs of format {about.get('format')}, expected 1.")
        tensors = load_file(Path(directory) / "codebooks.safetensors")
        codebooks = [tensors[f"codebook_{LETTERS[level]}"] for level in range(len(about["sizes"]))]
        return cls(about["item_ids"], tensors["codes"], codebooks, about["figures"])


def build_semantic_ids(
    item_ids: Sequence[str],
    vectors: NDArray[Any],
    *,
    levels: int = 3,
    codebook_size: int | Sequence[int] = 256,
    unique: UniqueLevel = "last_level",
    balance: float | None = None,
    seed: int = 0,
    iterations: int = 25,
) -> SemanticIds:
    """
    Give every item a unique semantic ID by residual k-means.

    In each level the vectors are clustered by k-means, and their residuals go to the next level, as in residual
    quantisation ("Recommender Systems with Generative Retrieval", Rajput et al., 2023; with k-means instead of the
    RQ-VAE). `unique` says how items with equal codes are separated.

    Args:
        item_ids (`list[str]`): Distinct ids, one a row.
        vectors (`np.ndarray` of shape `(I, D)`): Finite vectors. Similar items have a small squared distance.
        levels (`int`, *optional*, defaults to `3`): Number of codebooks.
        codebook_size (`int` or `list[int]`, *optional*, defaults to `256`): Codes of each level, or one number for
            each level.
        unique (`"last_level"` or `"extra_level"`, *optional*, defaults to `"last_level"`): `"last_level"`: within a
            prefix, each code of the last level belongs to one item, the nearest; other items take the nearest free
            code (LC-Rec spreads the last level too). IDs do not become longer. `"extra_level"`: another level, as
            large as the last codebook, numbers the items with equal codes, as in TIGER. Items keep their nearest
            codes as long as there are numbers left, and every ID is one token longer.
        balance (`float`, *optional*): Maximum size of a cluster as a multiple of the mean size, at least 1, for
            example 2. Uniqueness may need a few items more. By default k-means decides.
        seed (`int`, *optional*, defaults to `0`): Seed of k-means. The same seed and vectors on the same machine give
            the same IDs.
        iterations (`int`, *optional*, defaults to `25`): Rounds of k-means in each level.

    Returns:
        [`SemanticIds`]

    Raises:
        ValueError: If there are more items than IDs, a vector is not finite, or an option makes no sense.
        ImportError: If faiss is missing.

    Example:

    ```python
    >>> import numpy as np
    >>> from ilrec_trl import build_semantic_ids
    >>> vectors = np.array([[0, 0], [0, 1], [9, 9], [9, 8], [9, 8]])
    >>> ids = build_semantic_ids(["pen", "ink", "lute", "harp", "lyre"], vectors, levels=2, codebook_size=[2, 3])
    >>> ids
    SemanticIds(5 items, codebooks of [2, 3], e.g. <a_...><b_...>)
    >>> len({"".join(tokens) for tokens in ids.tokens})
    5

    ```
    """
    vectors = _checked(item_ids, vectors)
    sizes = _level_sizes(levels, codebook_size, unique)
    if balance is not None and not balance >= 1:
        raise ValueError(f"Got balance {balance}, expected at least 1: the mean number of items a code.")
    _check_room(len(vectors), sizes, "Take more levels or larger codebooks.")
    variance = float(((vectors - vectors.mean(0)).astype(np.float64) ** 2).sum(1).mean())

    def codebook(level: int, residuals: Floats) -> Floats:
        if level == levels:
            return np.zeros((sizes[level], 0), np.float32)
        # Each level has its own seed. The same seed would start from the items from which the level before started,
        # and their residuals are almost 0.
        return fit_codebook(residuals, sizes[level], (seed * len(LETTERS) + level) % 2**31, iterations)

    result = residual_codes(vectors, sizes, codebook, balance=balance)
    settings = {"levels": levels, "codebook_size": sizes[:levels], "unique": unique, "balance": balance}
    figures: dict[str, Any] = {"settings": settings | {"seed": seed, "iterations": iterations}}
    figures |= {"collisions": result.collisions, "moved": result.moved}
    figures["reconstruction_error"] = [error / variance if variance else 0.0 for error in result.errors]
    return SemanticIds(list(map(str, item_ids)), result.codes, result.codebooks, figures)


def _level_sizes(levels: int, codebook_size: int | Sequence[int], unique: UniqueLevel) -> list[int]:
    """Codes of every level, an extra one included."""
    sizes = np.atleast_1d(codebook_size).tolist()
    sizes = sizes * levels if len(sizes) == 1 else sizes
    if unique not in ("last_level", "extra_level"):
        raise ValueError(f'Got unique={unique!r}, expected "last_level" or "extra_level".')
    if not 1 <= levels < len(LETTERS) or len(sizes) != levels or min(sizes) < 1:
        raise ValueError(
            f"Got {levels} levels and codebook_size {codebook_size}, expected 1 to {len(LETTERS) - 1} levels and one "
            "positive number, or one for each level."
        )
    return sizes if unique == "last_level" else [*sizes, sizes[-1]]


def _check_room(num_items: int, sizes: Sequence[int], remedy: str) -> None:
    if num_items > math.prod(sizes):
        product = " x ".join(map(str, sizes))
        raise ValueError(f"Got {num_items} items, but {product} codes make {math.prod(sizes)} IDs. {remedy}")


def _check_ids(item_ids: Sequence[str]) -> None:
    if len(distinct := set(map(str, item_ids))) < len(item_ids):
        raise ValueError(f"Got {len(item_ids)} item ids, only {len(distinct)} of them distinct.")


def _checked(item_ids: Sequence[str], vectors: NDArray[Any]) -> Floats:
    """The vectors in float32, after checks: one finite row for each item."""
    _check_ids(item_ids)
    vectors = np.asarray(vectors)
    if vectors.ndim != 2 or len(vectors) != len(item_ids) or not vectors.size:
        raise ValueError(f"Got vectors of shape {vectors.shape} for {len(item_ids)} items, expected one row for each.")
    with np.errstate(over="ignore"):  # what overflows is refused as not finite
        vectors = np.ascontiguousarray(vectors, dtype=np.float32)
    lengths = np.einsum("nd,nd->n", vectors, vectors, dtype=np.float64)
    # Squared distances, up to four times a squared length, must be finite in float32 too
    bad = np.flatnonzero(~(lengths < np.finfo(np.float32).max / 16))
    if len(bad):
        names = [str(item_ids[row]) for row in bad[:5]]
        raise ValueError(f"The vectors of {len(bad)} items are not finite: {names}. Correct them, or drop the items.")
    return vectors
