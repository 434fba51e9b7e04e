"""Export stage: one folder with a merged model, its items and prompts, and a card that says what it is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoModelForCausalLM, GenerationConfig

from ..items.merge_adapter import merge_adapter
from .export_card import model_card
from .options import InputError
from .prepare import PreparedData, input_errors
from .recommend import recommender_of
from .serving_options import ExportOptions


if TYPE_CHECKING:
    from transformers import PreTrainedModel


def export(options: ExportOptions) -> dict[str, int]:
    """
    The `export` command. [`Recommender.from_pretrained`] reads the folder, and plain transformers the model in it.

    Returns:
        `dict[str, int]`: names and sizes in bytes of the files written.

    Raises:
        `InputError`: where there is no model, it does not fit the prepared data, or the output folder is one of the
            inputs.
    """
    output_dir = Path(options.output_dir)
    if output_dir.resolve() in {Path(options.model).resolve(), Path(options.prepared).resolve()}:
        raise InputError(f"--output_dir {output_dir} is where the input lies; name another folder")
    prepared = PreparedData.load(options.prepared)
    metrics = _read_metrics(options.evaluation)
    with input_errors():
        model = _merged_model(options, prepared)
        embeddings: Any = model.get_input_embeddings()
        prepared.item_trie.check_vocab_size(embeddings.num_embeddings)
        model.generation_config = _generation_config(prepared, options.num_beams)
        recommender = recommender_of(prepared, model, options.num_beams)
        if (Path(options.model) / "adapter_config.json").is_file():
            model.generation_config.save_pretrained(output_dir)
            recommender.save_items(output_dir)  # merging has saved the model
        else:
            recommender.save_pretrained(output_dir)
    settings = Path(options.model) / "settings.json"
    card = model_card(
        recommender,
        data=prepared.name,
        base_model=prepared.model,
        settings=json.loads(settings.read_text()) if settings.is_file() else {},
        metrics=metrics,
    )
    (output_dir / "README.md").write_text(card, encoding="utf-8")
    return {path.name: path.stat().st_size for path in sorted(output_dir.iterdir()) if path.is_file()}


def _merged_model(options: ExportOptions, prepared: PreparedData) -> PreTrainedModel:
    """The model in one piece, in evaluation mode."""
    folder = Path(options.model)
    dtype = None if options.dtype == "auto" else getattr(torch, options.dtype)
    if (folder / "adapter_config.json").is_file():
        return merge_adapter(folder, prepared.tokenizer, options.output_dir, dtype=dtype).eval()
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"{folder} holds no config.json, so there is no model; train one with `ilrec train`")
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype or "auto").eval()


def _generation_config(prepared: PreparedData, num_beams: int) -> GenerationConfig:
    """What `generate`, given the trie's logits processor, needs to search as [`recommend`] does."""
    tokenizer = prepared.tokenizer
    return GenerationConfig(
        do_sample=False,
        num_beams=num_beams,
        max_new_tokens=prepared.item_trie.depth,
        length_penalty=0.0,  # scores are sums, not means
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def _read_metrics(folder: str | None) -> dict[str, Any] | None:
    if folder is None:
        return None
    path = Path(folder) / "metrics.json"
    if not path.is_file():
        raise InputError(f"{folder} holds no metrics.json; write it with `ilrec evaluate --output_dir {folder}`")
    with input_errors():
        metrics = json.loads(path.read_text())
        if len(metrics["methods"]) != 1:
            raise ValueError(f"{path} has the metrics of {len(metrics['methods'])} models, expected one")
        return metrics
