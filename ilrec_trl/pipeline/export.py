"""Export stage: one folder with a merged model, its items and prompts, and a model card."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from huggingface_hub import ModelCardData
from transformers import AutoModelForCausalLM, GenerationConfig

from .._version import __version__
from ..evaluation.recommender import Recommender
from ..model.merge_adapter import merge_adapter
from ..report.markdown import table
from ..report.results import METRICS
from .options import ExportOptions, InputError, input_errors
from .prepared_data import PreparedData
from .recommend import recommender_of


if TYPE_CHECKING:
    from transformers import PreTrainedModel

USE = """\
```python
from ilrec_trl import Recommender

recommender = Recommender.from_pretrained("this folder")
for item, title, log_probability in recommender.recommend([{history}], top_k={top_k}, exclude_history=True)[0]:
    print(item, title, log_probability)
```

Without ilrec-trl: the folder is a plain transformers model. Prompts are rendered by the template in
`recommender.json`, and `item_map.json` says which token ids each item is. Unconstrained generation may name items that
do not exist."""

FILES = {
    "model.safetensors, config.json, generation_config.json": "the model, merged",
    "tokenizer.json, tokenizer_config.json": "its tokenizer, item tokens included",
    "trie.safetensors, trie.json": "the items as a trie of tokens, for constrained decoding",
    "item_map.json": "item id to title, text and token ids",
    "catalog.json": "the catalogue that prompts name items by",
    "recommender.json": "prompt template, length of histories, beams",
}


def model_card(
    recommender: Recommender,
    *,
    data: str,
    base_model: str | None,
    settings: dict[str, Any],
    metrics: dict[str, Any] | None,
) -> str:
    """
    A card in the form of the Hub.

    Args:
        recommender ([`Recommender`]): What was exported.
        data (`str`): Name of the data it was trained on.
        base_model (`str`, *optional*): The pretrained model it started from.
        settings (`dict`): Of the training, with its `method`; empty where they were not kept.
        metrics (`dict`, *optional*): What `ilrec evaluate` wrote.
    """
    method = settings.get("method")
    # A folder on the exporter's machine means nothing to a reader.
    base = base_model if base_model is not None and not Path(base_model).exists() else None
    tags = ["recommendation", "generative-recommendation", "trl", *(["ilrec"] if method == "ILRec" else [])]
    head = ModelCardData(library_name="transformers", pipeline_tag="text-generation", tags=tags, base_model=base)
    items, model = recommender.item_trie, recommender.model
    kind = recommender.catalog.kind.replace("_", " ")
    parts = [
        f"---\n{head.to_yaml()}\n---",
        f"# Recommender of {len(items):,} items ({data})",
        f"A language model of {model.num_parameters():,} parameters ({model.dtype}) that recommends the next item "
        f"after a user's history. An item is {items.depth} tokens at most ({kind}), found by beam search along the "
        f"catalogue's trie. Exported by ilrec-trl {__version__}.",
        "## Use",
        USE.format(history=[recommender.catalog.item_ids[0]], top_k=min(10, len(items))),
        "## Training",
        _training(method, settings),
        "## Evaluation",
        _evaluation(metrics),
        "## Files",
        table(["files", "hold"], [[f"`{name}`", text] for name, text in FILES.items()]),
    ]
    return "\n\n".join(parts) + "\n"


def _training(method: str | None, settings: dict[str, Any]) -> str:
    if method is None:
        return "The settings were not kept beside the model."
    how = {
        "ILRec": "Fine-tuned with self-hard negatives from intermediate layers (ILRec, "
        "[arXiv 2602.17410](https://arxiv.org/abs/2602.17410)).",
        "SFT": "Fine-tuned on the next item alone (SFT).",
    }[method]
    shown = [[f"`{name}`", str(value)] for name, value in settings.items() if name != "method" and value is not None]
    return f"{how}\n\n{table(['setting', 'value'], shown)}"


def _evaluation(metrics: dict[str, Any] | None) -> str:
    if metrics is None:
        return "None was given when the model was exported."
    (figures,) = metrics["methods"].values()
    errors = figures["standard_error"]
    rows = [[metric, f"{figures[metric]:.4f} ± {errors[metric]:.4f}"] for metric in METRICS if metric in figures]
    how = ", ".join(f"{name} {value}" for name, value in figures["settings"].items())
    about = f"The whole catalogue ranked for every user of the {metrics['split']} split ({how})."
    return f"{about}\n\n{table(['metric', 'mean ± one standard error'], rows)}"


def export(options: ExportOptions) -> dict[str, int]:
    """
    The `export` command. [`Recommender.from_pretrained`] reads the folder, and plain transformers the model in it.

    Returns:
        `dict[str, int]`: names and sizes in bytes of the files written.
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
