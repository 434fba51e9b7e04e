"""Resuming an evaluation: the ranks of finished users on disk, and fingerprints of what produced them."""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.distributed.tensor import DTensor


if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from ..items.item_trie import ItemTrie

# Fields of a model's configuration that do not change what it computes
_IGNORED = ("_name_or_path", "transformers_version")
_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}

Ranks = dict[int, tuple[float, int]]  # first rank and number of ties of each row


class FinishedUsers:
    """
    A folder with the ranks of finished users: `evaluation.json` with the fingerprints `about` of model, tokenizer,
    data set, catalogue and settings, and one `rows-<first row>.npz` for each group of finished batches. A file is
    written under another name and then renamed, so that none is ever incomplete.
    """

    def __init__(self, directory: str | Path, about: Mapping[str, str]) -> None:
        self.directory = Path(directory)
        self.about = dict(about)

    def load(self) -> Ranks:
        """
        First rank and number of ties of every finished row. `ValueError` if the folder belongs to another evaluation,
        or a file cannot be read.
        """
        self.directory.mkdir(parents=True, exist_ok=True)
        header = self.directory / "evaluation.json"
        paths = sorted(self.directory.glob("rows-*.npz"))
        if not header.exists():
            if paths:
                raise ValueError(f"{self.directory} holds ranks but no evaluation.json, which says whose. Remove it.")
            temporary = header.with_suffix(".tmp")
            temporary.write_text(json.dumps({"format": 1} | self.about, indent=1) + "\n")
            temporary.replace(header)
            return {}
        found = json.loads(header.read_text())
        if others := [name for name, value in self.about.items() if found.get(name) != value]:
            raise ValueError(
                f"{self.directory} holds the ranks of another evaluation: its {', '.join(others)} differed. Give "
                "the same again to resume it, or name another folder to start again."
            )
        ranks: Ranks = {}
        for path in paths:
            ranks |= _read(path)
        return ranks

    def add(self, ranks: Ranks) -> None:
        """Write some finished rows, in one file."""
        rows = list(ranks)
        starts, ties = zip(*ranks.values(), strict=True)
        path = self.directory / f"rows-{min(rows)}.npz"
        temporary = path.with_suffix(".tmp")
        with temporary.open("wb") as file:
            np.savez(file, rows=rows, starts=starts, ties=ties)
        temporary.replace(path)


def _read(path: Path) -> Ranks:
    try:
        with path.open("rb") as opened, np.load(opened) as file:
            arrays: list[list[Any]] = [file[name].tolist() for name in ("rows", "starts", "ties")]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} cannot be read ({error}). Remove it, and its users will be ranked again.") from error
    rows, starts, ties = arrays
    return {row: (start, tie) for row, start, tie in zip(rows, starts, ties, strict=True)}


def json_fingerprint(value: Any) -> str:
    """Fingerprint of anything JSON can hold, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:16]


def model_fingerprint(model: PreTrainedModel) -> str:
    """
    Fingerprint of a model's configuration and of every bit of its parameters, by sums of their bits as integers. It is
    the same on every device and in every order of summing. Sharded weights count with the part of this process.
    """
    config = {key: value for key, value in model.config.to_diff_dict().items() if key not in _IGNORED}
    weights = [
        (name, str(parameter.dtype), list(parameter.shape), _bit_sum(parameter))
        for name, parameter in model.named_parameters()
    ]
    return json_fingerprint([config, weights])


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """Fingerprint of a tokenizer's vocabulary and chat template."""
    return json_fingerprint([type(tokenizer).__name__, tokenizer.get_vocab(), tokenizer.chat_template])


def trie_fingerprint(item_trie: ItemTrie) -> str:
    """Fingerprint of a catalogue's ids and token sequences."""
    arrays = {name: [list(array.shape), _bit_sum(array)] for name, array in item_trie.arrays.state().items()}
    return json_fingerprint([list(item_trie.item_ids), arrays, item_trie.end_token_id])


@torch.no_grad()
def _bit_sum(tensor: Tensor) -> list[int]:
    """Sums of a tensor's bits as integers, plain and weighted by position, which detects exchanged values too."""
    local = tensor.to_local() if isinstance(tensor, DTensor) else tensor
    bits = local.detach().contiguous().flatten().view(_INTEGERS[local.element_size()])  # (N,)
    plain = weighted = 0
    for part in bits.split(1 << 22):  # bounds the memory of the int64 copies
        places = torch.arange(1, len(part) + 1, device=part.device)
        plain += int(part.sum(dtype=torch.int64))
        weighted += int((part.long() * places).sum())
    return [plain, weighted]
