"""Vectors of items from their texts and, if there are any, collaborative vectors; later items are encoded alike."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from .residual_kmeans import Floats
from .text_vectors import SentenceEncoder, TfidfSvdEncoder, item_texts, unit_rows


Items: TypeAlias = Mapping[str, Mapping[str, Any]]  # {item: {field: value}}
WithoutText: TypeAlias = Literal["refuse", "zero"]
CollaborativeMode: TypeAlias = Literal["concatenate", "predict"]
PENALTIES = tuple(10.0**power for power in range(-2, 4))  # of the ridge regression, chosen by leave-one-out


@dataclass
class ItemEncoder:
    """
    Turns item texts into vectors, and joins collaborative vectors if there are any.

    Args:
        text ([`TfidfSvdEncoder`] or [`SentenceEncoder`]): Turns texts into unit vectors.
        fields (`list[str]`, *optional*), template (`str`, *optional*): As in
            [`~ilrec_trl.semantic_ids.text_vectors.item_texts`].
        without_text (`"refuse"` or `"zero"`, *optional*, defaults to `"refuse"`): Whether an item without a text, or
            without a known word, is refused or gets a vector of zeros.
        collaborative ([`CollaborativeMap`], *optional*): Adds collaborative vectors. Set by
            [`ItemEncoder.add_collaborative`].

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
        """An encoder by TF-IDF and SVD, fitted on the texts of `items` as in [`TfidfSvdEncoder.fit`]."""
        texts = item_texts(items, fields, template)
        return cls(TfidfSvdEncoder.fit(list(texts.values()), dimensions, seed), fields, template, without_text)

    def encode(self, items: Items) -> Floats:
        """
        Vectors `(N, D)` of items `{item: {"title": ..., ...}}`, in their order.

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
        Fit a [`CollaborativeMap`] on these items, which this encoder uses from then on.

        Args:
            items (`dict[str, dict]`): The items to fit on.
            vectors (`np.ndarray` of shape `(I, H)`), known, weight, mode: As in [`CollaborativeMap.fit`].

        Returns:
            `np.ndarray` of shape `(I, D + H)`: Joined vectors of these items.
        """
        self.collaborative = None
        self.collaborative, joined = CollaborativeMap.fit(self.encode(items), vectors, known, weight, mode)
        return joined

    def save(self, directory: str | Path) -> None:
        """Write `encoder.json` and fitted parts into `directory`. Of a sentence encoder only the name is written."""
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        about: dict[str, Any] = {"format": 1, "text": self.text.kind, "without_text": self.without_text}
        about["template"] = self.template
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


@dataclass(frozen=True)
class CollaborativeMap:
    """
    Joins text vectors and collaborative vectors. An item without interactions has no collaborative vector, so a ridge
    regression, fitted on the items that have both, predicts it from the text vector.

    - `mode="concatenate"`: items keep their collaborative vector, and other items take the predicted one.
    - `mode="predict"`: all items take the predicted one. IDs then depend on texts alone, and interactions decide which
      differences between texts count. This serves the purpose of LETTER's collaborative regularisation ("Learnable
      Item Tokenization for Generative Recommendation", Wang et al., 2024), with a linear map before k-means in place
      of a contrastive loss.

    Args:
        weight (`float`): Weight of the collaborative part in the squared distance of two items, from 0 to 1.
        mode (`"concatenate"` or `"predict"`): See above.
        coefficients (`np.ndarray` of shape `(D, H)`), intercept (`np.ndarray` of shape `(H,)`): The regression.
    """

    weight: float
    mode: CollaborativeMode
    coefficients: Floats
    intercept: Floats

    @classmethod
    def fit(
        cls,
        texts: Floats,
        collaborative: Floats,
        known: NDArray[np.bool_],
        weight: float = 0.5,
        mode: CollaborativeMode = "concatenate",
    ) -> tuple[CollaborativeMap, Floats]:
        """
        Fit the regression, and join the vectors of the items it is fitted on.

        Args:
            texts (`np.ndarray` of shape `(I, D)`): Text vectors of unit length.
            collaborative (`np.ndarray` of shape `(I, H)`): For example [`SASRecModel.item_vectors`] of a model that
                was trained on training interactions only.
            known (`np.ndarray` of shape `(I,)`): Whether an item has training interactions. Other rows are not read.
            weight (`float`, *optional*), mode (`str`, *optional*): As in the class.

        Returns:
            `tuple`: The map, for later items, and joined vectors `(I, D + H)`.

        Raises:
            ValueError: If fewer than two items are known, sizes differ, or `weight` or `mode` is invalid.
        """
        if mode not in ("concatenate", "predict"):
            raise ValueError(f'Got mode {mode!r}, expected "concatenate" or "predict".')
        if not 0 <= weight <= 1:
            raise ValueError(f"Got a collaborative weight of {weight}, expected 0 (texts alone) to 1.")
        if not len(texts) == len(collaborative) == len(known):
            sizes = len(texts), len(collaborative), len(known)
            raise ValueError(f"Got texts, collaborative vectors and `known` of {sizes} items, expected one number.")
        if known.sum() < 2:
            raise ValueError(f"Got {known.sum()} items with a collaborative vector, expected at least 2.")
        observed = unit_rows(collaborative[known] - collaborative[known].mean(0))  # (J, H)
        try:
            from sklearn.linear_model import RidgeCV
        except ImportError as error:
            raise ImportError("Collaborative vectors need scikit-learn: pip install 'ilrec-trl[text]'") from error
        ridge = RidgeCV(PENALTIES).fit(texts[known], observed)
        result = cls(weight, mode, ridge.coef_.T.astype(np.float32), np.asarray(ridge.intercept_, np.float32))
        part = result.predict(texts)
        if mode == "concatenate":
            part[known] = observed
        return result, result._join(texts, part)

    def predict(self, texts: Floats) -> Floats:
        """Collaborative vectors `(N, H)` of unit length, predicted from text vectors `(N, D)`."""
        return unit_rows(texts @ self.coefficients + self.intercept)

    def join(self, texts: Floats) -> Floats:
        """Joined vectors `(N, D + H)` of items without interactions."""
        return self._join(texts, self.predict(texts))

    def _join(self, texts: Floats, collaborative: Floats) -> Floats:
        parts = np.sqrt(1 - self.weight) * texts, np.sqrt(self.weight) * collaborative
        return np.concatenate(parts, axis=1).astype(np.float32)

    def save(self, directory: str | Path) -> None:
        """Write `collaborative.safetensors` into `directory`."""
        from safetensors.numpy import save_file

        tensors = {"coefficients": self.coefficients, "intercept": self.intercept}
        about = {"weight": repr(self.weight), "mode": self.mode}
        save_file(tensors, Path(directory) / "collaborative.safetensors", metadata=about)

    @classmethod
    def load(cls, directory: str | Path) -> CollaborativeMap:
        """Read what [`CollaborativeMap.save`] wrote."""
        from safetensors import safe_open

        with safe_open(Path(directory) / "collaborative.safetensors", framework="np") as file:
            about = file.metadata()
            tensors = {name: file.get_tensor(name) for name in ("coefficients", "intercept")}
        mode: CollaborativeMode = "predict" if about["mode"] == "predict" else "concatenate"
        return cls(float(about["weight"]), mode, **tensors)
