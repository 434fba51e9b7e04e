"""An adapter and its new tokens, merged into a model that plain transformers loads."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from .new_tokens import short_module_name


if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def merge_adapter(
    adapter: PeftModel | str | Path,
    tokenizer: PreTrainedTokenizerBase,
    output_dir: str | Path,
    *,
    base_model: PreTrainedModel | None = None,
    dtype: torch.dtype | None = None,
) -> PreTrainedModel:
    """
    Merge an adapter into its base model and save model and tokenizer, so that `AutoModelForCausalLM.from_pretrained`
    loads the trained model without PEFT and without bitsandbytes.

    LoRA and its relatives, `trainable_token_indices` and `modules_to_save` are merged, for tied and untied heads. A
    base in 4 or 8 bits (QLoRA) is first dequantised, since rounding to 4 bits would remove most of an adapter.

    Args:
        adapter (`PeftModel`, `str` or `Path`): The trained model, for instance `trainer.model`, **which cannot be used
            afterwards**: its weights become the merged ones. Or its folder.
        tokenizer (`PreTrainedTokenizerBase`): Saved beside the model.
        output_dir (`str` or `Path`): Another folder than the adapter's.
        base_model (`PreTrainedModel`, *optional*): For an adapter's folder: the base, which cannot be used afterwards
            either. By default the base that the adapter names is loaded, unquantised. After QLoRA pass the base
            quantised as in training, since the adapter was trained on the rounding errors of the 4-bit weights.
        dtype (`torch.dtype`, *optional*): Type in which weights are merged and saved. By default that of the base.

    Returns:
        `PreTrainedModel`: the merged model.

    Raises:
        TypeError: if there is no adapter to merge.
        ValueError: for an adapter that cannot be merged or lacks rows of the tokenizer's tokens, a quantised base that
            cannot be dequantised, or the adapter's own folder as `output_dir`.

    Example:

    ```python
    trainer.train()
    merge_adapter(trainer.model, tokenizer, "recommender")
    model = AutoModelForCausalLM.from_pretrained("recommender")
    ```
    """
    from peft import PeftModel

    output_dir = Path(output_dir)
    if (output_dir / "adapter_config.json").exists():
        raise ValueError(
            f"{output_dir} holds an adapter, which transformers would load instead of the merged model. Choose "
            "another folder."
        )
    if isinstance(adapter, (str, Path)):
        adapter = _load(adapter, tokenizer, base_model, dtype)
    elif not isinstance(adapter, PeftModel):
        raise TypeError(
            f"Got a {type(adapter).__name__}, expected a PeftModel or the folder of an adapter. Save a model without "
            "an adapter with `save_pretrained`."
        )
    _check_mergeable(adapter, tokenizer)
    if getattr(adapter.get_base_model(), "is_quantized", False):
        adapter = _dequantise(adapter, dtype)
    if dtype is not None:
        adapter = adapter.to(dtype)
    merged: Any = adapter.merge_and_unload(safe_merge=True)
    merged.save_pretrained(output_dir)
    tokenizer.save_pretrained(output_dir)
    return merged


def _load(
    folder: str | Path,
    tokenizer: PreTrainedTokenizerBase,
    base_model: PreTrainedModel | None,
    dtype: torch.dtype | None,
) -> PeftModel:
    """The adapter on its base, whose embedding is resized to the rows of the training."""
    from peft import PeftConfig, PeftModel
    from peft.utils.save_and_load import load_peft_weights
    from transformers import AutoModelForCausalLM

    config = PeftConfig.from_pretrained(str(folder))
    given = base_model is not None
    if base_model is None:
        if not config.base_model_name_or_path:
            raise ValueError(f"The adapter in {folder} does not say what its base model is. Pass it as `base_model`.")
        base_model = AutoModelForCausalLM.from_pretrained(config.base_model_name_or_path, dtype=dtype or "auto")
    weights = load_peft_weights(str(folder), device="cpu")
    embedding: Any = base_model.get_input_embeddings()
    name = short_module_name(base_model, embedding)
    # PEFT saves the whole embedding if it has grown or is in `modules_to_save`
    whole = [len(w) for key, w in weights.items() if f".{name}." in key and w.shape[1:] == embedding.weight.shape[1:]]
    listed = getattr(config, "trainable_token_indices", None) or []
    held = set(listed if isinstance(listed, list) else next(iter(listed.values())))
    rows = max([_num_rows(base_model), *whole])
    unknown = _new_tokens(tokenizer, base_model, given) - held
    if unknown and (not whole or max(unknown) >= rows):
        raise ValueError(
            f"{len(unknown)} tokens of the tokenizer, such as {tokenizer.convert_ids_to_tokens(min(unknown))!r}, "
            f"have rows neither in the base model nor in the adapter in {folder}. Merge the model in memory after "
            "training, or pass the base that the adapter was trained on as `base_model`."
        )
    rows = max(rows, len(tokenizer))
    if rows > _num_rows(base_model):
        base_model.resize_token_embeddings(rows, mean_resizing=False)
    return PeftModel.from_pretrained(base_model, str(folder))


def _new_tokens(tokenizer: PreTrainedTokenizerBase, base_model: PreTrainedModel, given: bool) -> set[int]:
    """Ids of tokens whose rows the base model lacks. Spare rows of a base that was not given count as lacking."""
    from transformers import AutoTokenizer

    vocabulary = tokenizer.get_vocab()
    rows = _num_rows(base_model)
    known = {token for token, token_id in vocabulary.items() if token_id < rows}
    if not given:
        try:
            known &= AutoTokenizer.from_pretrained(base_model.name_or_path).get_vocab().keys()
        except (OSError, ValueError):
            pass  # the base has no tokenizer of its own
    return {token_id for token, token_id in vocabulary.items() if token not in known}


def _num_rows(model: Any) -> int:
    return model.get_input_embeddings().weight.shape[0]


def _check_mergeable(adapter: PeftModel, tokenizer: PreTrainedTokenizerBase) -> None:
    if adapter.active_peft_config.is_prompt_learning:
        raise ValueError(
            f"Got a {adapter.active_peft_config.peft_type.value} adapter, whose virtual tokens are no part of the "
            "weights and cannot be merged. Use it as an adapter, or train with LoRA."
        )
    rows = _num_rows(adapter.get_base_model())
    if len(tokenizer) > rows:
        raise ValueError(
            f"The tokenizer has {len(tokenizer)} tokens and the model {rows} rows of embeddings. Pass the tokenizer "
            "that the model was trained with."
        )


def _dequantise(adapter: PeftModel, dtype: torch.dtype | None) -> PeftModel:
    """The same adapter on its base in floating point, through a file: PEFT's layers depend on the type of the base."""
    from peft import PeftModel

    kind = type(adapter.get_base_model().hf_quantizer).__name__
    with tempfile.TemporaryDirectory() as folder:
        adapter.save_pretrained(folder, save_embedding_layers=False)
        base: Any = adapter.unload()
        dtype = dtype or base.get_input_embeddings().weight.dtype
        try:
            base = base.dequantize(dtype=dtype)
        except NotImplementedError as error:
            raise ValueError(
                f"The base model is quantised by a {kind}, which cannot dequantise it. Pass the adapter's folder, and "
                "the base in floating point as `base_model`."
            ) from error
        if hasattr(base.config, "quantization_config"):
            del base.config.quantization_config
        return PeftModel.from_pretrained(base.to(dtype), folder)
