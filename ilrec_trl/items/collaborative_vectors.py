"""What users did, next to what texts say: item vectors of collaborative filtering joined with those of the texts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from .code_assignment import Floats
from .text_vectors import unit_rows


CollaborativeMode: TypeAlias = Literal["concatenate", "predict"]
PENALTIES = tuple(10.0**power for power in range(-2, 4))  # of the ridge regression; the best by leave-one-out is taken


@dataclass(frozen=True)
class CollaborativeMap:
    """
    Joins text vectors and collaborative vectors, which an item without interactions does not have: a ridge regression
    from text to collaborative vector, learnt on the items that have both, says what it would be.

    - `mode="concatenate"`: items keep the collaborative vector they have, the others take the predicted one.
    - `mode="predict"`: all take the predicted one. IDs then depend on texts alone, and what users did only decides
      which differences between texts count. It plays the part of LETTER's collaborative regularisation ("Learnable
      Item Tokenization for Generative Recommendation", Wang et al., 2024): codes are aligned with collaborative
      vectors, while an item is coded from its text. The means differ: a linear map before k-means, no contrastive
      loss.

    Args:
        weight (`float`): Share of the squared distance between two items that the collaborative part makes, from 0 to
            1, where both parts have unit length.
        mode (`"concatenate"` or `"predict"`): See above.
        coefficients (`np.ndarray` of shape `(D, H)`): Of the regression.
        intercept (`np.ndarray` of shape `(H,)`): Of the regression.
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
        Learn the regression and join the vectors of the items it was learnt on.

        Args:
            texts (`np.ndarray` of shape `(I, D)`): Text vectors, of unit length.
            collaborative (`np.ndarray` of shape `(I, H)`): For example [`SASRecModel.item_vectors`], of a model that
                was trained on training interactions alone.
            known (`np.ndarray` of shape `(I,)`): Which items had training interactions; the rows of the others are not
                read.
            weight (`float`, *optional*, defaults to `0.5`): See the class.
            mode (`str`, *optional*, defaults to `"concatenate"`): See the class.

        Returns:
            `tuple`: The map, for items to come, and joined vectors `(I, D + H)`.

        Raises:
            ValueError: If no item is known, shapes differ, or `weight` or `mode` make no sense.
        """
        if mode not in ("concatenate", "predict"):
            raise ValueError(f'Got mode {mode!r}, expected "concatenate" or "predict".')
        if not 0 <= weight <= 1:
            raise ValueError(f"Got a collaborative weight of {weight}, expected 0 (texts alone) to 1.")
        if not len(texts) == len(collaborative) == len(known):
            sizes = len(texts), len(collaborative), len(known)
            raise ValueError(
                f"Got text vectors, collaborative vectors and `known` of {sizes} items, expected as many."
            )
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
        """Collaborative vectors `(N, H)` of unit length that texts lead one to expect."""
        return unit_rows(texts @ self.coefficients + self.intercept)

    def join(self, texts: Floats) -> Floats:
        """Joined vectors `(N, D + H)` of items that nobody has used yet."""
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
