"""New tokens of semantic IDs: their rows in embedding and head, and the PEFT settings that train these rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

import numpy as np
import torch
from torch import Tensor, nn
from transformers.utils import logging


if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

logger = logging.get_logger(__name__)

Initialisation: TypeAlias = Literal["item_texts", "mean", "random"]

# Noise as a share of the usual distance from the mean row: it makes all rows differ in bfloat16, and is small beside
# the means of the texts
_NOISE = 0.02
_REMEDY = "Pass `LoraConfig(..., **item_token_settings(model, token_ids))`, or leave embedding and head unfrozen."


@torch.no_grad()
def add_rows(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    tokens: Sequence[str],
    titles: Sequence[str] | None,
    semantic_ids: Sequence[Sequence[str]],
    method: Initialisation,
    seed: int,
) -> None:
    """
    Add the tokens of semantic IDs to a tokenizer, and their rows to a model; see [`ItemCatalog.add_tokens`].

    Args:
        model (`PreTrainedModel`), tokenizer (`PreTrainedTokenizerBase`): Changed in place.
        tokens (`list[str]`): Distinct tokens, sorted.
        titles (`list[str]`, *optional*), semantic_ids (`list[list[str]]`): Title and semantic ID of each item;
            `"item_texts"` initialises rows from the titles.
        method (`"item_texts"`, `"mean"` or `"random"`), seed (`int`): Initialisation of new rows, and seed of its
            noise.

    Raises:
        ValueError: for an unknown method, `"item_texts"` without titles, or a model that is wrapped or sharded or has
            a quantised embedding.
    """
    if method not in get_args(Initialisation):
        raise ValueError(f"Got initialise={method!r}, expected one of {get_args(Initialisation)}.")
    if method == "item_texts" and titles is None:
        raise ValueError("Rows cannot start from item texts: the catalogue has no titles. Pass `texts` as well.")
    embedding = _plain_embedding(model)
    rows, entries, known = embedding.num_embeddings, len(tokenizer), tokenizer.get_vocab()
    tokenizer.add_tokens([token for token in tokens if token not in known])
    if rows < len(tokenizer):
        # Spare rows are padding that is fast on GPUs: the larger vocabulary gets the same
        multiple = next((m for m in (256, 128, 64, 32, 16, 8) if rows > entries and rows % m == 0), None)
        model.resize_token_embeddings(len(tokenizer), pad_to_multiple_of=multiple, mean_resizing=False)
    # The tokenizer may know the tokens from an earlier call; rows of a model that was trained with it stay
    fresh = [token for token in tokens if token not in known or known[token] >= rows]
    if not fresh:
        return
    table = _token_shares(tokenizer, titles or [], semantic_ids, fresh) if method == "item_texts" else None
    vocabulary, item_tokens = tokenizer.get_vocab(), set(tokens)
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
    """Rows `(T, H)` around the mean of the old rows `weight[old_ids]`, at their distance except with `"mean"`."""
    # In parts, which need little memory beside a large model
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
    # Means of many titles are nearly one vector; only their differences carry information
    own = texts[1:] - texts[0]  # (T, H)
    own = spread * own / own.norm(dim=1, keepdim=True).clamp(min=1e-6 * spread)
    return mean + own + _NOISE * noise


def _token_shares(
    tokenizer: PreTrainedTokenizerBase,
    titles: Sequence[str],
    semantic_ids: Sequence[Sequence[str]],
    tokens: Sequence[str],
) -> tuple[Tensor, Tensor]:
    """
    Ids `(U,)` of the tokens in titles, and a sparse `(1 + T, U)` with their shares in all titles, and in the titles of
    the items with each of `tokens`. All titles weigh the same, and rows sum to 1.
    """
    row_of = {token: row for row, token in enumerate(tokens, start=1)}
    encoded = tokenizer(list(titles), add_special_tokens=False)["input_ids"]
    owners, token_ids, weights = [], [], []
    for semantic_id, ids in zip(semantic_ids, encoded, strict=True):
        for row in [0, *(row_of[token] for token in set(semantic_id) if token in row_of)]:
            owners.append(np.full(len(ids), row))
            token_ids.append(np.asarray(ids, dtype=np.int64))
            weights.append(np.full(len(ids), 1 / max(len(ids), 1)))
    owner, share = np.concatenate(owners), np.concatenate(weights)  # (E,)
    share /= np.bincount(owner, share, len(tokens) + 1)[owner]
    used, token_index = np.unique(np.concatenate(token_ids), return_inverse=True)  # (U,), (E,)
    indices, values = torch.from_numpy(np.stack([owner, token_index])), torch.from_numpy(share).float()
    shares = torch.sparse_coo_tensor(indices, values, (len(tokens) + 1, len(used)), check_invariants=True)
    return torch.from_numpy(used), shares.coalesce()


def item_token_settings(
    model: PreTrainedModel,
    token_ids: Sequence[int],
    method: Literal["trainable_token_indices", "modules_to_save"] = "trainable_token_indices",
) -> dict[str, Any]:
    """
    Settings for PEFT's configurations that train the rows of new tokens beside an adapter. LoRA on linear layers alone
    does not train them, and does not warn.

    Args:
        model (`PreTrainedModel`): The model before PEFT wraps it.
        token_ids (`list[int]`): The result of [`ItemCatalog.add_tokens`].
        method (`"trainable_token_indices"` or `"modules_to_save"`, *optional*): Train only the rows of these tokens
            (the default), or the whole embedding and head, which takes many times the memory and changes old tokens
            too.

    Returns:
        `dict[str, Any]`: keyword arguments for `LoraConfig`.

    Example:

    ```python
    token_ids = catalog.add_tokens(tokenizer, model)
    peft_config = LoraConfig(target_modules="all-linear", **item_token_settings(model, token_ids))
    ```
    """
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    if head is None:
        raise ValueError(f"Got a {type(model).__name__}, which has no language-model head. Pass a causal LM.")
    tied = head.weight is embedding.weight
    names = [short_module_name(model, module) for module in ([embedding] if tied else [embedding, head])]
    if method == "modules_to_save":
        # Without it PEFT trains a copy of a tied embedding and leaves the head unchanged
        return {"modules_to_save": names} | ({"ensure_weight_tying": True} if tied else {})
    if method != "trainable_token_indices":
        raise ValueError(f"Got method {method!r}, expected 'trainable_token_indices' or 'modules_to_save'.")
    if not token_ids:
        raise ValueError("Got no token ids, so there is no row to train. Leave these settings out.")
    return {"trainable_token_indices": {name: list(token_ids) for name in names}}


def check_item_tokens_train(model: nn.Module, token_ids: Sequence[int]) -> None:
    """
    Refuse a model in which some item tokens would not change in training.

    Args:
        model (`PreTrainedModel` or `PeftModel`): The model for the trainer, or `trainer.model`, before it is sharded.
        token_ids (`list[int]`): The result of [`ItemCatalog.add_tokens`].

    Raises:
        ValueError: if no trainable parameter covers their rows in the embedding or in the head.
    """
    if frozen := _frozen_rows(model, token_ids):
        raise ValueError(f"{frozen}, so they would keep their initial values. {_REMEDY}")


def warn_of_frozen_item_tokens(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, item_tokens: Sequence[int]
) -> None:
    """
    Warn if tokens of items were added to the tokenizer and have frozen rows. No error, since they may have been
    trained before.
    """
    added = set(tokenizer.get_added_vocab().values()) - set(tokenizer.all_special_ids)
    token_ids = sorted(added & set(item_tokens))
    if frozen := _frozen_rows(model, token_ids):
        logger.warning(f"{frozen}. This is right only if they have been trained before. {_REMEDY}")


def _frozen_rows(model: Any, token_ids: Sequence[int]) -> str:
    """A description of the rows without a gradient; empty if there are none."""
    found = []
    for name, module in (("embedding", model.get_input_embeddings()), ("head", model.get_output_embeddings())):
        if module is not None and (frozen := set(token_ids) - _trained_rows(module)):
            found.append(f"{len(frozen)} of {len(token_ids)} item tokens have no trainable row in the {name}")
    return " and ".join(found)


def _trained_rows(module: nn.Module) -> set[int]:
    """Rows of an embedding or head that some trainable parameter covers, whatever PEFT has wrapped it in."""
    num_rows = _whole_shape(module.weight)[0]  # type: ignore[arg-type]
    covered: set[int] = set()
    for part in module.modules():
        # Of PEFT's trainable tokens; a tied head holds those of the embedding
        indices: dict[str, list[int]] = getattr(part, "token_indices", {})
        deltas = getattr(part, "trainable_tokens_delta", {})
        for adapter, delta in dict(deltas).items():
            if delta.requires_grad:
                covered.update(indices[adapter])
    for parameter in module.parameters():
        # The weight itself, a copy to be saved with the adapter, or LoRA's side of the vocabulary
        if parameter.requires_grad and num_rows in _whole_shape(parameter):
            covered.update(range(num_rows))
    return covered


def _whole_shape(weight: Tensor) -> Sequence[int]:
    """Shape of the whole weight, also if DeepSpeed ZeRO-3 partitioned it when the model was loaded."""
    return getattr(weight, "ds_shape", weight.shape)


def short_module_name(model: nn.Module, module: nn.Module) -> str:
    """Shortest end of a module's name that no other module shares: PEFT matches by the end of names."""
    names = {id(found): name for name, found in model.named_modules()}
    parts = names[id(module)].split(".")
    for length in range(1, len(parts) + 1):
        short = ".".join(parts[-length:])
        if sum(name == short or name.endswith(f".{short}") for name in names.values()) == 1:
            break
    return short
