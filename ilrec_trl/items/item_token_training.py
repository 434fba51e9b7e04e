"""Whether the rows of item tokens are trained, and the PEFT settings with which they are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor, nn
from transformers.utils import logging


if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from .item_trie import ItemTrie

logger = logging.get_logger(__name__)


def item_token_settings(
    model: PreTrainedModel,
    token_ids: Sequence[int],
    method: Literal["trainable_token_indices", "modules_to_save"] = "trainable_token_indices",
) -> dict[str, Any]:
    """
    Settings for PEFT's configurations with which the rows of new tokens are trained beside an adapter.

    LoRA on linear layers alone leaves the new tokens where they started, without any warning.

    Args:
        model (`PreTrainedModel`):
            The model before PEFT wraps it; it names its embedding and head, and says whether they are tied.
        token_ids (`list[int]`):
            What [`ItemCatalog.add_tokens`] returned.
        method (`"trainable_token_indices"` or `"modules_to_save"`, *optional*):
            Train the rows of these tokens alone, the default, or embedding and head whole: many times the memory, and
            the old tokens change too.

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
        # On a tied model PEFT would otherwise train a copy of the embedding and leave the head as it is
        return {"modules_to_save": names} | ({"ensure_weight_tying": True} if tied else {})
    if method != "trainable_token_indices":
        raise ValueError(f"Got method {method!r}, expected 'trainable_token_indices' or 'modules_to_save'.")
    if not token_ids:
        raise ValueError("Got no token ids, so that there is no row to train. Leave these settings out.")
    return {"trainable_token_indices": {name: list(token_ids) for name in names}}


def check_item_tokens_train(model: nn.Module, token_ids: Sequence[int]) -> None:
    """
    Refuse a model in which some item tokens would never change in training.

    Args:
        model (`PreTrainedModel` or `PeftModel`):
            As it goes into the trainer or as `trainer.model`, before it is sharded.
        token_ids (`list[int]`):
            What [`ItemCatalog.add_tokens`] returned.

    Raises:
        ValueError: where no parameter that takes a gradient covers their rows in the embedding or in the head; says
            which, and the remedy.
    """
    if frozen := _frozen_rows(model, token_ids):
        raise ValueError(f"{frozen}, so that they would keep the values they started from. {_REMEDY}")


_REMEDY = "Pass `LoraConfig(..., **item_token_settings(model, token_ids))`, or leave embedding and head unfrozen."


def warn_of_frozen_item_tokens(model: nn.Module, tokenizer: PreTrainedTokenizerBase, item_trie: ItemTrie) -> None:
    """
    A warning where items are made of tokens that were added to the tokenizer and whose rows are frozen. No error,
    since they may have been trained before.
    """
    added = set(tokenizer.get_added_vocab().values()) - set(tokenizer.all_special_ids)
    token_ids = sorted(added & set(item_trie.arrays.node_tokens.unique().tolist()))
    if frozen := _frozen_rows(model, token_ids):
        logger.warning(f"{frozen}. This is right only if they have been trained before. {_REMEDY}")


def _frozen_rows(model: Any, token_ids: Sequence[int]) -> str:
    """What to say of rows without a gradient; nothing where there are none."""
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
    """Shape of a weight that DeepSpeed's ZeRO-3 may have cut up already when the model was loaded."""
    return getattr(weight, "ds_shape", weight.shape)


def short_module_name(model: nn.Module, module: nn.Module) -> str:
    """Last part of a module's name, or as much of it as no other module shares: PEFT matches by the end of names."""
    names = {id(found): name for name, found in model.named_modules()}
    parts = names[id(module)].split(".")
    for length in range(1, len(parts) + 1):
        short = ".".join(parts[-length:])
        if sum(name == short or name.endswith(f".{short}") for name in names.values()) == 1:
            break
    return short
