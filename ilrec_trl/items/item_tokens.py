"""New rows of embedding and head for the tokens of semantic IDs, and where they start from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

import numpy as np
import torch
from torch import Tensor, nn


if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from .item_catalog import ItemCatalog

Initialisation: TypeAlias = Literal["item_texts", "mean", "random"]

# Share of the usual distance of a row from the mean row: enough for no two rows to be equal in bfloat16, too little to
# hide what the texts say.
_NOISE = 0.02


@torch.no_grad()
def add_rows(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    catalog: ItemCatalog,
    method: Initialisation,
    seed: int,
) -> None:
    """Tokens and rows for a catalogue's semantic IDs, see [`ItemCatalog.add_tokens`]."""
    if method not in get_args(Initialisation):
        raise ValueError(f"Got initialise={method!r}, expected one of {get_args(Initialisation)}.")
    if method == "item_texts" and catalog.titles is None:
        raise ValueError("Rows cannot start from item texts: the catalogue has no titles. Pass `texts` as well.")
    embedding = _plain_embedding(model)
    rows, entries, known = embedding.num_embeddings, len(tokenizer), tokenizer.get_vocab()
    tokenizer.add_tokens([token for token in catalog.tokens if token not in known])
    if rows < len(tokenizer):
        # Spare rows mean that the vocabulary was padded, as GPUs like it: the larger one is padded alike
        multiple = next((m for m in (256, 128, 64, 32, 16, 8) if rows > entries and rows % m == 0), None)
        model.resize_token_embeddings(len(tokenizer), pad_to_multiple_of=multiple, mean_resizing=False)
    # Another call may have taught the tokenizer already, and the rows of a model that was trained with it stay
    fresh = [token for token in catalog.tokens if token not in known or known[token] >= rows]
    if not fresh:
        return
    table = _token_shares(tokenizer, catalog, fresh) if method == "item_texts" else None
    vocabulary, item_tokens = tokenizer.get_vocab(), set(catalog.tokens)
    old_ids = torch.tensor([i for token, i in vocabulary.items() if token not in item_tokens and i < rows])
    new_ids = torch.tensor([vocabulary[token] for token in fresh])  # (T,)
    generator = torch.Generator().manual_seed(seed)
    head: Any = model.get_output_embeddings()
    grown: Any = model.get_input_embeddings()
    modules = [grown] if head is None or head.weight is grown.weight else [grown, head]
    for module in modules:
        device = module.weight.device
        start = _start_rows(module.weight, old_ids.to(device), len(fresh), table, method, generator)
        module.weight[new_ids.to(device)] = start.to(module.weight)
        if getattr(module, "bias", None) is not None:
            module.bias[new_ids.to(device)] = module.bias[old_ids.to(device)].mean()


def _plain_embedding(model: PreTrainedModel) -> nn.Embedding:
    embedding: Any = model.get_input_embeddings()
    if hasattr(model, "peft_config") or not isinstance(embedding, nn.Embedding):
        raise ValueError(
            f"Got a {type(model).__name__} with an embedding of type {type(embedding).__name__}, expected a plain "
            "causal language model. Add the tokens before PEFT or anything else wraps the model."
        )
    weight = embedding.weight
    if weight.is_meta or not weight.is_floating_point() or weight.shape[0] != embedding.num_embeddings:
        raise ValueError(
            f"Got an embedding of shape {tuple(weight.shape)} and type {weight.dtype} on {weight.device}, expected "
            f"all of its {embedding.num_embeddings} rows as floating-point numbers. Add the tokens before the model "
            "is sharded, and leave the embedding out of quantisation."
        )
    return embedding


def _start_rows(
    weight: Tensor,
    old_ids: Tensor,
    num_tokens: int,
    table: tuple[Tensor, Tensor] | None,
    method: Initialisation,
    generator: torch.Generator,
) -> Tensor:
    """Rows `(T, H)` around the mean of the old rows `weight[old_ids]`; but for `"mean"`, at their distance from it."""
    # In parts, which fit beside a large model
    sums = [weight[part].sum(dim=0, dtype=torch.float32) for part in old_ids.split(16384)]
    mean = torch.stack(sums).sum(dim=0) / len(old_ids)  # (H,)
    squares = [(weight[part].float() - mean).square().sum() for part in old_ids.split(16384)]
    spread = (torch.stack(squares).sum() / len(old_ids)).sqrt()
    noise = torch.randn(num_tokens, weight.shape[1], generator=generator).to(weight.device)  # (T, H)
    noise = spread * noise / noise.norm(dim=1, keepdim=True)
    if method == "random":
        return mean + noise
    if table is None:
        return mean + _NOISE * noise
    used, shares = table[0].to(weight.device), table[1].to(weight.device)
    texts = torch.sparse.mm(shares, weight[used].float())  # (1 + T, H)
    # Means of many titles are nearly one vector, and what sets them apart is all that a code has to say
    own = texts[1:] - texts[0]  # (T, H)
    own = spread * own / own.norm(dim=1, keepdim=True).clamp(min=1e-6 * spread)
    return mean + own + _NOISE * noise


def _token_shares(
    tokenizer: PreTrainedTokenizerBase, catalog: ItemCatalog, tokens: Sequence[str]
) -> tuple[Tensor, Tensor]:
    """
    What the titles of the items that hold a token are made of.

    Returns:
        `tuple[torch.Tensor, torch.Tensor]`: ids `(U,)` that titles use, and a sparse `(1 + T, U)`: the share of each
        in all titles, and in those below each of `tokens`, every title with the same weight. Rows sum to 1.
    """
    row_of = {token: row for row, token in enumerate(tokens, start=1)}
    encoded = tokenizer(catalog.titles, add_special_tokens=False)["input_ids"]
    owners, columns, weights = [], [], []
    for semantic_id, ids in zip(catalog.semantic_ids or [], encoded, strict=True):
        for row in [0, *(row_of[token] for token in set(semantic_id) if token in row_of)]:
            owners.append(np.full(len(ids), row))
            columns.append(np.asarray(ids, dtype=np.int64))
            weights.append(np.full(len(ids), 1 / max(len(ids), 1)))
    owner, share = np.concatenate(owners), np.concatenate(weights)  # (E,)
    share /= np.bincount(owner, share, len(tokens) + 1)[owner]
    used, column = np.unique(np.concatenate(columns), return_inverse=True)  # (U,), (E,)
    indices, values = torch.from_numpy(np.stack([owner, column])), torch.from_numpy(share).float()
    shares = torch.sparse_coo_tensor(indices, values, (len(tokens) + 1, len(used)), check_invariants=True)
    return torch.from_numpy(used), shares.coalesce()
