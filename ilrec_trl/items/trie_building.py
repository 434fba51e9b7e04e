"""Building the arrays of a trie from token sequences, and reading and writing them."""

from __future__ import annotations

import json
import operator
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file

from .item_ids import ItemId, ItemIds
from .trie_arrays import TrieArrays


def build_trie_arrays(
    tokens: NDArray[Any], item_ids: Sequence[Any] | NDArray[Any], end_token_id: int | None = None
) -> tuple[TrieArrays, NDArray[np.int64]]:
    """
    Build the arrays of a trie: sort the sequences once and number the nodes level by level.

    Args:
        tokens (`np.ndarray` of shape `(I, D)`): Token ids of each item, padded with -1 at the end.
        item_ids (`Sequence`): Ids by which errors name items.
        end_token_id (`int`, *optional*): Appended to every sequence.

    Returns:
        `tuple[TrieArrays, numpy.ndarray]`: the arrays, and the rows `(I,)` of `tokens` in trie order. Items with equal
        sequences keep their order.
    """
    lengths = _check_tokens(tokens, item_ids, end_token_id)
    if end_token_id is not None:
        tokens = np.concatenate([tokens, np.full_like(tokens[:, :1], -1)], axis=1)
        tokens[np.arange(len(tokens)), lengths] = end_token_id
        lengths = lengths + 1
    order = _sorted_rows(tokens)  # (I,)
    uniform = bool((lengths == tokens.shape[1]).all())
    if not uniform:
        tokens, lengths = tokens[order], lengths[order]
        _refuse_prefixes(tokens, lengths, item_ids, order)
    levels = (tokens[order, level] if uniform else tokens[:, level] for level in range(tokens.shape[1]))
    return _number_nodes(levels, None if uniform else lengths, len(tokens)), order


def pad_sequences(sequences: Mapping[Any, Sequence[int]]) -> NDArray[Any]:
    """Sequences as one array `(I, D)`, padded with -1 at the end."""
    if not sequences:
        raise ValueError("Got an empty catalogue, expected at least one item.")
    lengths = np.fromiter(map(len, sequences.values()), np.int64, len(sequences))
    try:
        flat = np.fromiter(map(operator.index, chain.from_iterable(sequences.values())), np.int64, lengths.sum())
    except TypeError as error:
        raise TypeError("Token sequences must hold integer token ids. Tokenize texts first.") from error
    if len(flat) and flat.min() < 0:  # before padding hides it
        owner = int(np.searchsorted(lengths.cumsum(), flat.argmin(), side="right"))
        raise ValueError(f"Item {list(sequences)[owner]!r} has token {flat.min()}, expected token ids of 0 or more.")
    tokens = np.full((len(sequences), max(int(lengths.max()), 1)), -1, dtype=np.int64)
    tokens[np.arange(tokens.shape[1]) < lengths[:, None]] = flat
    return tokens.astype(np.int32) if tokens.max() < 2**31 else tokens


def save_trie(directory: str | Path, item_ids: ItemIds, arrays: TrieArrays, end_token_id: int | None) -> None:
    """Write `trie.safetensors`, which holds an array of ids too, and `trie.json`, which holds a list of ids."""
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    listed = item_ids.values if isinstance(item_ids.values, list) else None
    ids = {} if listed is not None else {name: torch.tensor(array) for name, array in item_ids.arrays().items()}
    save_file(arrays.state() | ids, directory / "trie.safetensors")
    about = {"format": 1, "end_token_id": end_token_id, "item_ids": listed}
    (directory / "trie.json").write_text(json.dumps(about, ensure_ascii=False), encoding="utf-8")


def load_trie(directory: str | Path) -> dict[str, Any]:
    """Arguments of `ItemTrie`, as [`save_trie`] wrote them."""
    about = json.loads((Path(directory) / "trie.json").read_text(encoding="utf-8"))
    if about.get("format") != 1:
        raise ValueError(f"{directory} holds a trie of format {about.get('format')}, expected 1. Build it again.")
    state = load_file(Path(directory) / "trie.safetensors")
    ids = {name: state.pop(name).numpy() for name in list(state) if name.startswith("item_id")}
    item_ids: list[ItemId] | ItemIds = ItemIds.from_arrays(ids) if ids else about["item_ids"]
    return {"item_ids": item_ids, "arrays": TrieArrays(**state), "end_token_id": about["end_token_id"]}


def _check_tokens(
    tokens: NDArray[Any], item_ids: Sequence[Any] | NDArray[Any], end_token_id: int | None
) -> NDArray[np.int64]:
    """Length `(I,)` of each row, after checks of shape, type and padding."""
    if tokens.ndim != 2 or tokens.dtype.kind not in "iu":
        raise TypeError(
            f"Got tokens of type {tokens.dtype} and shape {tokens.shape}, expected integers of shape (I, D)."
        )
    if len(item_ids) != len(tokens):
        raise ValueError(f"Got {len(item_ids)} item ids and {len(tokens)} token sequences, expected one for each.")
    if not len(tokens):
        raise ValueError("Got an empty catalogue, expected at least one item.")
    if tokens.max(initial=0) >= 2**31 - 1:
        raise ValueError(f"Got token {tokens.max()}, expected token ids below {2**31 - 1}.")
    lengths = np.full(len(tokens), tokens.shape[1])
    if not tokens.size or tokens.min() < 0:
        padding = tokens < 0
        lengths -= padding.sum(axis=1)
        if not lengths.all():
            raise ValueError(
                f"Item {item_ids[int(lengths.argmin())]!r} has no tokens. Give it tokens, or leave it out."
            )
        wrong = (padding[:, :-1] & ~padding[:, 1:]).any(axis=1) | (tokens < -1).any(axis=1)
        if wrong.any():
            row = int(wrong.argmax())
            raise ValueError(
                f"Item {item_ids[row]!r} has tokens {tokens[row].tolist()}, expected token ids of 0 or more, padded "
                "with -1 at the end only."
            )
    if end_token_id is not None and (held := (tokens == end_token_id).any(axis=1)).any():
        raise ValueError(
            f"Item {item_ids[int(held.argmax())]!r} already holds end_token_id {end_token_id}, which is appended to "
            "every sequence. Pass sequences without it."
        )
    return lengths


def _refuse_prefixes(
    tokens: NDArray[Any], lengths: NDArray[np.int64], item_ids: Sequence[Any] | NDArray[Any], order: NDArray[np.int64]
) -> None:
    """Refuse sequences that others continue. In sorted order they stand right before those, so neighbours suffice."""
    same = tokens[:-1] == tokens[1:]
    same |= np.arange(tokens.shape[1]) >= lengths[:-1, None]
    clashes = np.flatnonzero(same.all(axis=1) & (lengths[:-1] < lengths[1:]))
    if len(clashes):
        short, long = order[clashes[0]], order[clashes[0] + 1]
        raise ValueError(
            f"The token sequence of item {item_ids[short]!r} is the start of that of item {item_ids[long]!r}, so that "
            f"decoding could not tell them apart ({len(clashes)} such pairs). Pass `end_token_id` to end every "
            "sequence."
        )


def _sorted_rows(tokens: NDArray[Any]) -> NDArray[np.int64]:
    """Rows in lexicographic order, sorted by the fewest 64-bit keys that hold all levels."""
    keys: list[NDArray[np.int64]] = []
    room = 0
    for level in tokens.T:
        base = int(level.max()) + 2
        if base > room:
            keys.append(np.zeros(len(tokens), dtype=np.int64))
            room = 2**63 - 1
        room //= base
        keys[-1] *= base
        keys[-1] += level
        keys[-1] += 1
    return np.lexsort(keys[::-1])


def _number_nodes(levels: Iterable[NDArray[Any]], lengths: NDArray[np.int64] | None, num_items: int) -> TrieArrays:
    """Nodes of sorted rows, from the tokens `(I,)` of each level and the lengths `(I,)` of rows if they differ."""
    node_tokens, starts, ends = ([np.array([value], dtype=np.int32)] for value in (-1, 0, num_items))
    differs = np.zeros(num_items, dtype=bool)  # whether a row's prefix is new at this level
    differs[0] = True
    for level, tokens in enumerate(levels):
        differs[1:] |= tokens[1:] != tokens[:-1]
        # A node's rows end at the next prefix, be it of a node or of an item that has already ended
        bounds = np.flatnonzero(differs).astype(np.int32)
        inside = slice(None) if lengths is None else lengths[bounds] > level
        node_tokens.append(tokens[bounds[inside]].astype(np.int32))
        starts.append(bounds[inside])
        ends.append(np.append(bounds[1:], np.int32(num_items))[inside])
    sizes = np.cumsum([len(level) for level in starts])
    first_child = np.full(sizes[-1] + 1, sizes[-1], dtype=np.int32)
    for level in range(len(starts) - 1):
        first = sizes[level] - len(starts[level])
        first_child[first : sizes[level]] = sizes[level] + np.searchsorted(starts[level + 1], starts[level])
    arrays = []
    for parts in (node_tokens, starts, ends):
        arrays.append(torch.from_numpy(np.concatenate(parts)))
        parts.clear()  # one copy at a time
    return TrieArrays(arrays[0], torch.from_numpy(first_child), arrays[1], arrays[2])
