"""Vectors of item texts, by TF-IDF and truncated SVD without a download, or by a sentence-transformers model."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from string import Formatter
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ..items.titles import clean_title
from .residual_kmeans import Floats


if TYPE_CHECKING:
    from sklearn.feature_extraction.text import TfidfVectorizer

FIELDS = ("title", "brand", "categories", "category", "genres", "genre", "class", "description")
MAX_TERMS = 100_000  # terms of TF-IDF; the most frequent are kept


def item_texts(
    items: Mapping[str, Mapping[str, Any]], fields: Sequence[str] | None = None, template: str | None = None
) -> dict[str, str]:
    """
    One text for each item, made of its fields.

    Args:
        items (`dict[str, dict]`): `{item: {"title": ..., "brand": ..., ...}}`, as in LC-Rec's `item.json`. Values are
            texts, or lists of texts, which are joined.
        fields (`list[str]`, *optional*): Fields to join, in order; missing ones are skipped. Defaults to `title`,
            `brand`, `categories` (Amazon, 2018: `category`), `genres` (RecBole: `genre` or `class`) and `description`.
        template (`str`, *optional*): A format string in place of `fields`, such as `"{title} by {brand}"`; missing
            fields are empty.

    Returns:
        `dict[str, str]`: Cleaned texts, empty where an item has none of the fields.

    Raises:
        ValueError: If no item has any of the fields.
    """
    if template is not None:
        fields = template_fields(template)
    fields = FIELDS if fields is None else fields
    texts = {}
    for item_id, about in items.items():
        values = defaultdict(str, {name: _text(value) for name, value in about.items()})
        text = " ".join(values[name] for name in fields)
        # The words of a template alone are no text of the item
        texts[str(item_id)] = clean_title(template.format_map(values) if template and text.strip() else text)
    if not any(texts.values()):
        known = sorted({name for about in items.values() for name in about})
        raise ValueError(f"No item has a text in {list(fields)}; the items have {known}. Name fields of theirs.")
    return texts


def template_fields(template: str) -> list[str]:
    """Fields of a format string, in order."""
    return [name for _, name, _, _ in Formatter().parse(template) if name]


class TfidfSvdEncoder:
    """
    Texts as unit vectors: sublinear TF-IDF, projected onto its leading right singular vectors and normalised.

    Words are those of scikit-learn: two or more letters or digits. For languages without spaces between words use
    [`SentenceEncoder`].

    Args:
        vectorizer (`TfidfVectorizer`): A fitted vectorizer.
        components (`np.ndarray` of shape `(T, D)`): Projection of terms.
    """

    kind: Literal["tfidf"] = "tfidf"

    def __init__(self, vectorizer: TfidfVectorizer, components: Floats) -> None:
        self.vectorizer = vectorizer
        self.components = components

    @classmethod
    def fit(cls, texts: Sequence[str], dimensions: int = 128, seed: int = 0) -> TfidfSvdEncoder:
        """
        Fit terms, their weights and the directions in which texts differ most.

        Args:
            texts (`list[str]`): Texts, some of which may be empty.
            dimensions (`int`, *optional*, defaults to `128`): Maximum length of the vectors; fewer texts or terms give
                shorter ones.
            seed (`int`, *optional*, defaults to `0`): Seed of the randomised SVD.

        Raises:
            ValueError: If no text has a word.
        """
        vectorizer = _vectorizer()
        try:
            weights = vectorizer.fit_transform(texts)  # (I, T), sparse
        except ValueError as error:
            raise ValueError(f"The {len(texts)} texts hold no words ({error}); give texts of words.") from error
        from sklearn.utils.extmath import randomized_svd

        rank = min(dimensions, *weights.shape)
        _, _, directions = randomized_svd(weights, rank, random_state=seed)
        return cls(vectorizer, np.ascontiguousarray(directions.T, dtype=np.float32))

    def encode(self, texts: Sequence[str]) -> Floats:
        """Unit vectors `(N, D)`; all zeros for a text without a known word."""
        vectors = (self.vectorizer.transform(texts) @ self.components).astype(np.float32)
        return unit_rows(vectors)

    def save(self, directory: str | Path) -> None:
        """Write `tfidf.json` and `tfidf.safetensors` into `directory`."""
        from safetensors.numpy import save_file

        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        terms = self.vectorizer.get_feature_names_out().tolist()
        (directory / "tfidf.json").write_text(json.dumps(terms, ensure_ascii=False), encoding="utf-8")
        save_file({"idf": self.vectorizer.idf_, "components": self.components}, directory / "tfidf.safetensors")

    @classmethod
    def load(cls, directory: str | Path) -> TfidfSvdEncoder:
        """Read what [`TfidfSvdEncoder.save`] wrote."""
        from safetensors.numpy import load_file

        terms = json.loads((Path(directory) / "tfidf.json").read_text(encoding="utf-8"))
        tensors = load_file(Path(directory) / "tfidf.safetensors")
        vectorizer = _vectorizer(vocabulary={term: place for place, term in enumerate(terms)})
        vectorizer.idf_ = tensors["idf"]
        return cls(vectorizer, tensors["components"])


class SentenceEncoder:
    """
    Texts as unit vectors of a sentence-transformers model.

    Args:
        model (`str`): Folder or Hub name.
        batch_size (`int`, *optional*, defaults to `64`): Texts in a batch.
    """

    kind: Literal["sentence_transformers"] = "sentence_transformers"

    def __init__(self, model: str, batch_size: int = 64) -> None:
        try:
            from sentence_transformers import SentenceTransformer
        except ImportError as error:
            raise ImportError("An embedding model needs: pip install 'ilrec-trl[text]'") from error
        self.model = model
        self.batch_size = batch_size
        self._encoder = SentenceTransformer(model)

    def encode(self, texts: Sequence[str]) -> Floats:
        """Unit vectors `(N, D)`; all zeros for an empty text."""
        vectors = self._encoder.encode(list(texts), batch_size=self.batch_size, convert_to_numpy=True)
        vectors = np.asarray(vectors, dtype=np.float32)
        vectors[[not text.strip() for text in texts]] = 0
        return unit_rows(vectors)


def _text(value: Any) -> str:
    if value is None:
        return ""
    return " ".join(map(_text, value)) if isinstance(value, list | tuple) else str(value)


def unit_rows(vectors: Floats) -> Floats:
    """Rows scaled to length 1; rows of zeros stay as they are."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.divide(vectors, lengths, where=lengths > 0, out=np.zeros_like(vectors))


def _vectorizer(vocabulary: dict[str, int] | None = None) -> TfidfVectorizer:
    try:
        from sklearn.feature_extraction.text import TfidfVectorizer
    except ImportError as error:
        raise ImportError("TF-IDF needs scikit-learn: pip install 'ilrec-trl[text]'") from error
    return TfidfVectorizer(sublinear_tf=True, max_features=MAX_TERMS, vocabulary=vocabulary)
