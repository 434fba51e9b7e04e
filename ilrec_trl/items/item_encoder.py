"""From what is known of an item to its vector, the same way for the first items and for those that come later."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from .code_assignment import Floats
from .collaborative_vectors import CollaborativeMap, CollaborativeMode
from .text_vectors import SentenceEncoder, TfidfSvdEncoder, item_texts


Items: TypeAlias = Mapping[str, Mapping[str, Any]]
WithoutText: TypeAlias = Literal["refuse", "zero"]


@dataclass
class ItemEncoder:
    """
    Item texts to vectors, joined with collaborative ones where there are any.

    Args:
        text ([`TfidfSvdEncoder`] or [`SentenceEncoder`]):
            Texts to unit vectors.
        fields (`list[str]`, *optional*), template (`str`, *optional*):
            As in [`~ilrec_trl.items.text_vectors.item_texts`].
        without_text (`"refuse"` or `"zero"`, *optional*, defaults to `"refuse"`):
            What becomes of an item whose text is empty, or holds no word that the encoder knows.
        collaborative ([`CollaborativeMap`], *optional*):
            Says what users would do with an item of this text. Set by [`ItemEncoder.add_collaborative`].

    Example:

    ```python
    >>> from ilrec_trl import ItemEncoder, build_semantic_ids
    >>> items = {"1": {"title": "Red lute"}, "2": {"title": "Lute, blue"}, "3": {"title": "Drum"}}
    >>> encoder = ItemEncoder.fit_tfidf(items)
    >>> ids = build_semantic_ids(list(items), encoder.encode(items), levels=2, codebook_size=2)
    >>> bool(ids.codes[0, 0] == ids.codes[1, 0] != ids.codes[2, 0])
    True

    ```
    """

    text: TfidfSvdEncoder | SentenceEncoder
    fields: Sequence[str] | None = None
    template: str | None = None
    without_text: WithoutText = "refuse"
    collaborative: CollaborativeMap | None = None

    def __post_init__(self) -> None:
        if self.without_text not in ("refuse", "zero"):
            raise ValueError(f'Got without_text={self.without_text!r}, expected "refuse" or "zero".')

    @classmethod
    def fit_tfidf(
        cls,
        items: Items,
        fields: Sequence[str] | None = None,
        template: str | None = None,
        *,
        dimensions: int = 128,
        seed: int = 0,
        without_text: WithoutText = "refuse",
    ) -> ItemEncoder:
        """An encoder by TF-IDF and SVD, learnt on the texts of `items`: [`TfidfSvdEncoder.fit`]."""
        texts = item_texts(items, fields, template)
        return cls(TfidfSvdEncoder.fit(list(texts.values()), dimensions, seed), fields, template, without_text)

    def encode(self, items: Items) -> Floats:
        """
        Vectors of items, in their order.

        Args:
            items (`dict[str, dict]`): `{item: {"title": ..., ...}}`.

        Returns:
            `np.ndarray` of shape `(N, D)`

        Raises:
            ValueError: With `without_text="refuse"`: names items without a text or a known word.
        """
        texts = item_texts(items, self.fields, self.template)
        vectors = self.text.encode(list(texts.values()))
        bare = [item_id for item_id, vector in zip(texts, vectors, strict=True) if not vector.any()]
        if bare and self.without_text == "refuse":
            raise ValueError(
                f"{len(bare)} items have no text, or none with a known word: {bare[:5]}. Give them one, drop them, or "
                'code them by a vector of zeros with without_text="zero".'
            )
        return vectors if self.collaborative is None else self.collaborative.join(vectors)

    def add_collaborative(
        self,
        items: Items,
        vectors: Floats,
        known: NDArray[np.bool_],
        weight: float = 0.5,
        mode: CollaborativeMode = "concatenate",
    ) -> Floats:
        """
        Join collaborative vectors of these items from here on.

        Args:
            items (`dict[str, dict]`): The items to learn from.
            vectors (`np.ndarray` of shape `(I, H)`), known, weight, mode: As in [`CollaborativeMap.fit`].

        Returns:
            `np.ndarray` of shape `(I, D + H)`: Joined vectors of these items.
        """
        self.collaborative = None
        self.collaborative, joined = CollaborativeMap.fit(self.encode(items), vectors, known, weight, mode)
        return joined

    def save(self, directory: str | Path) -> None:
        """Write `encoder.json` and what it stands on into `directory`; of a sentence encoder the name alone."""
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        about: dict[str, Any] = {
            "format": 1,
            "text": self.text.kind,
            "without_text": self.without_text,
            "template": self.template,
        }
        about["fields"] = None if self.fields is None else list(self.fields)
        about["collaborative"] = self.collaborative is not None
        if isinstance(self.text, SentenceEncoder):
            about["model"] = self.text.model
        else:
            self.text.save(directory)
        if self.collaborative is not None:
            self.collaborative.save(directory)
        (directory / "encoder.json").write_text(json.dumps(about, indent=2, ensure_ascii=False) + "\n")

    @classmethod
    def load(cls, directory: str | Path) -> ItemEncoder:
        """Read what [`ItemEncoder.save`] wrote."""
        about = json.loads((Path(directory) / "encoder.json").read_text(encoding="utf-8"))
        if about.get("format") != 1:
            raise ValueError(f"{directory} holds an encoder of format {about.get('format')}, expected 1.")
        text = TfidfSvdEncoder.load(directory) if about["text"] == "tfidf" else SentenceEncoder(about["model"])
        collaborative = CollaborativeMap.load(directory) if about["collaborative"] else None
        return cls(text, about["fields"], about["template"], about["without_text"], collaborative)
