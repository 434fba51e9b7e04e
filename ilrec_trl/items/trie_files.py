"""A trie on disk: arrays that are mapped into memory when they are read, and what is known about them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from .item_ids import ItemId, ItemIds
from .trie_arrays import TrieArrays


def save_trie(directory: str | Path, item_ids: ItemIds, arrays: TrieArrays, end_token_id: int | None) -> None:
    """Write `trie.safetensors` and `trie.json`. Ids that are a list stand in the latter, an array in the former."""
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    listed = item_ids.values if isinstance(item_ids.values, list) else None
    ids = {} if listed is not None else {name: torch.tensor(array) for name, array in item_ids.arrays().items()}
    save_file(arrays.state() | ids, directory / "trie.safetensors")
    about = {"format": 1, "end_token_id": end_token_id, "item_ids": listed}
    (directory / "trie.json").write_text(json.dumps(about, ensure_ascii=False), encoding="utf-8")


def load_trie(directory: str | Path) -> dict[str, Any]:
    """What `ItemTrie` is made of, as [`save_trie`] wrote it."""
    about = json.loads((Path(directory) / "trie.json").read_text(encoding="utf-8"))
    if about.get("format") != 1:
        raise ValueError(f"{directory} holds a trie of format {about.get('format')}, expected 1. Build it again.")
    state = load_file(Path(directory) / "trie.safetensors")
    ids = {name: state.pop(name).numpy() for name in list(state) if name.startswith("item_id")}
    item_ids: list[ItemId] | ItemIds = ItemIds.from_arrays(ids) if ids else about["item_ids"]
    return {"item_ids": item_ids, "arrays": TrieArrays(**state), "end_token_id": about["end_token_id"]}
