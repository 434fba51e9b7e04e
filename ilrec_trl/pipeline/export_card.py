"""The model card of an exported folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData

from .._version import __version__
from ..evaluation.recommender import Recommender
from ..report.results import METRICS


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
        _table("files", "hold", {f"`{name}`": text for name, text in FILES.items()}),
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
    shown = {f"`{name}`": value for name, value in settings.items() if name != "method" and value is not None}
    return f"{how}\n\n{_table('setting', 'value', shown)}"


def _evaluation(metrics: dict[str, Any] | None) -> str:
    if metrics is None:
        return "None was given when the model was exported."
    (figures,) = metrics["methods"].values()
    errors = figures["standard_error"]
    rows = {metric: f"{figures[metric]:.4f} ± {errors[metric]:.4f}" for metric in METRICS if metric in figures}
    how = ", ".join(f"{name} {value}" for name, value in figures["settings"].items())
    table = _table("metric", "mean ± one standard error", rows)
    return f"The whole catalogue ranked for every user of the {metrics['split']} split ({how}).\n\n{table}"


def _table(first: str, second: str, rows: dict[str, Any]) -> str:
    lines = [f"| {first} | {second} |", "| --- | --- |", *(f"| {name} | {value} |" for name, value in rows.items())]
    return "\n".join(lines)
