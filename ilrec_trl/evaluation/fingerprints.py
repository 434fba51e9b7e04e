"""Short texts that tell whether two evaluations are one: of a model, a tokenizer, a catalogue, a data set."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor


if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from ..items.item_trie import ItemTrie

# Where a model lies and what wrote it say nothing of what it computes.
_IGNORED = ("_name_or_path", "transformers_version")
_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def json_fingerprint(value: Any) -> str:
    """Fingerprint of anything JSON can hold, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:16]


def model_fingerprint(model: PreTrainedModel) -> str:
    """
    Fingerprint of a model's configuration and of every bit of its parameters: for each one the sum of its bits read as
    integers, which comes out the same on every device and in every order of summing. Of sharded weights this
    process's part counts.
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
    """Sums of a tensor's bits as integers, plain and weighted by place, so that exchanged values show as well."""
    local = tensor.to_local() if isinstance(tensor, DTensor) else tensor
    bits = local.detach().contiguous().flatten().view(_INTEGERS[local.element_size()])  # (N,)
    plain = weighted = 0
    for part in bits.split(1 << 22):  # bounds the memory of the int64 copies
        places = torch.arange(1, len(part) + 1, device=part.device)
        plain += int(part.sum(dtype=torch.int64))
        weighted += int((part.long() * places).sum())
    return [plain, weighted]
