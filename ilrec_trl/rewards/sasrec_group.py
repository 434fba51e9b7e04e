"""Several SASRecs as one teacher: an ensemble, cross-fitted over folds of users, or both; and their calibration."""

from __future__ import annotations

import bisect
import copy
import hashlib
import itertools
import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import TrainingArguments

from ..data.splits import NextItemExample, Splits, UserSequence
from .combined_rewards import CrossFittedReward, EnsembleReward
from .rewards import RewardFunc, SASRecReward
from .sasrec import SASRecConfig, SASRecModel
from .sasrec_training import train_sasrec
from .shared_vectors import ItemFeatures, check_features


if TYPE_CHECKING:
    from ..items.item_trie import ItemTrie

GROUP_FILE, FINISHED_FILE = "group.json", "finished.json"
#: Calibration compares the probability of the likeliest items, this many, with the share of targets among them.
CALIBRATION_RANKS = 10
_MIN_QUESTIONS, _MAX_QUESTIONS = 200, 4_000
# Histories in one forward pass of calibration, and the most logits of theirs
_BATCH, _LOGITS = 64, 2**24


@dataclass
class SASRecGroup:
    """
    An ensemble of SASRecs over one catalogue, cross-fitted or not.

    Args:
        models (`list` of [`SASRecModel`]): Member by member; a cross-fitted member fold by fold.
        folds (`list[dict[str, int]]`, *optional*): For each member, the fold of every user; the model of a fold was
            trained without its users. Empty if every member is one model of all users.
        temperature (`float`, *optional*): Temperature at which cross-fitted models are calibrated on held-out users,
            see [`calibrated_temperature`]. [`train_sasrec_group`] sets it; pass it to [`SASRecGroup.reward_func`] to
            use it.

    Raises:
        ValueError: If the models do not know the same items in the same order.
    """

    models: list[SASRecModel]
    folds: list[dict[str, int]] = field(default_factory=list)
    temperature: float | None = None

    def __post_init__(self) -> None:
        if any(model.config.item_ids != self.config.item_ids for model in self.models):
            raise ValueError("The SASRecs of a group must know the same items in the same order; train them together.")

    @property
    def config(self) -> SASRecConfig:
        """Configuration that the models share."""
        return self.models[0].config  # type: ignore[return-value]

    @property
    def num_folds(self) -> int | None:
        return len(self.models) // len(self.folds) if self.folds else None

    @property
    def num_members(self) -> int:
        return len(self.folds) or len(self.models)

    def reward_func(
        self, item_trie: ItemTrie, temperature: float = 1.0, device: str | torch.device | None = None
    ) -> RewardFunc:
        """The scores of the group; arguments as in [`SASRecReward`]. Cross-fitted models score held-out users only."""
        rewards: list[RewardFunc] = [SASRecReward(model, item_trie, temperature, device) for model in self.models]
        if self.folds:
            number = len(self.models) // len(self.folds)
            rewards = [
                CrossFittedReward(rewards[member * number :][:number], fold_of)
                for member, fold_of in enumerate(self.folds)
            ]
        return rewards[0] if len(rewards) == 1 else EnsembleReward(rewards)

    @classmethod
    def load(cls, folder: str | Path) -> SASRecGroup:
        """Read what [`train_sasrec_group`] wrote."""
        about = json.loads((Path(folder) / GROUP_FILE).read_text(encoding="utf-8"))
        models = [SASRecModel.from_pretrained(Path(folder) / name).eval() for name in about["models"]]
        return cls(models, about["folds"], about.get("temperature"))


def train_sasrec_group(
    splits: Splits,
    item_ids: Sequence[str],
    args: TrainingArguments,
    output_dir: str | Path,
    *,
    members: int = 1,
    folds: int | None = None,
    config: SASRecConfig | None = None,
    item_features: ItemFeatures | None = None,
    patience: int | None = 2,
) -> SASRecGroup:
    """
    Train several SASRecs, each as [`train_sasrec`] does, and save them in one folder. Called again with the same data
    and settings, it loads finished models and trains the others.

    Args:
        splits ([`Splits`]): As in [`train_sasrec`].
        item_ids (`list[str]`): As in [`train_sasrec`].
        args ([`transformers.TrainingArguments`]): Of every training, but for the folder. Seeds count up from
            `args.seed`, which also assigns the users to folds.
        output_dir (`str` or `Path`): Receives `group.json` and a folder for each model.
        members (`int`, *optional*, defaults to `1`): Ensemble size; probabilities are averaged.
        folds (`int`, *optional*): Number of folds of each member. The model of a fold is trained without the training
            sequences and validation questions of its users. By default each member is one model of all users.
        config ([`SASRecConfig`], *optional*): Sizes.
        item_features (`list[list]`, *optional*): As in [`train_sasrec`].
        patience (`int`, *optional*, defaults to `2`): As in [`train_sasrec`].

    Raises:
        ValueError: For fewer than 1 member or 2 folds, or more folds than users.
    """
    check_group(splits, members, folds)
    if item_features is not None:
        check_features(item_features, len(item_ids))
    fold_of = [] if folds is None else [assign_folds(splits, folds, args.seed + member) for member in range(members)]
    output_dir = Path(output_dir)
    (output_dir / GROUP_FILE).unlink(missing_ok=True)
    names, models = [], []
    for number in range(members * (folds or 1)):
        member, fold = divmod(number, folds or 1)
        name = f"member{member}" if folds is None else f"member{member}-fold{fold}"
        part = splits if folds is None else without_fold(splits, fold_of[member], fold)
        settings: dict[str, Any] = {"config": copy.deepcopy(config or SASRecConfig()), "patience": patience}
        if item_features is not None:  # so that the fingerprint of trainings without them stays
            settings["item_features"] = item_features
        models.append(_train_once(part, item_ids, args, output_dir / name, number, settings))
        names.append(name)
    unseen = [
        [entry for entry in splits.train if each[entry.user] == fold] for each in fold_of for fold in range(folds or 1)
    ]
    temperature = calibrated_temperature(models, unseen, args.seed) if unseen else None
    about = {"models": names, "folds": fold_of, "temperature": temperature}
    (output_dir / GROUP_FILE).write_text(json.dumps(about), encoding="utf-8")
    return SASRecGroup(models, fold_of, temperature)


def check_group(splits: Splits, members: int, folds: int | None) -> None:
    """Refuse impossible sizes of a group."""
    if members < 1:
        raise ValueError(f"Got an ensemble of {members}; expected 1 or more.")
    if folds is not None and not 2 <= folds <= len(splits.train):
        raise ValueError(f"Got {folds} folds of {len(splits.train)} users; expected from 2 folds to one a user.")


def assign_folds(splits: Splits, folds: int, seed: int) -> dict[str, int]:
    """Random fold of each user with training items; folds differ in size by one user at most."""
    users = [user for user, _ in splits.train]
    order = random.Random(seed).sample(range(len(users)), len(users))
    return {users[place]: number % folds for number, place in enumerate(order)}


def without_fold(splits: Splits, fold_of: Mapping[str, int], fold: int) -> Splits:
    """The splits without the users of one fold, except for test questions, which no training reads."""
    return replace(
        splits,
        train=[entry for entry in splits.train if fold_of.get(entry.user) != fold],
        validation=[entry for entry in splits.validation if fold_of.get(entry.user) != fold],
    )


def _train_once(
    splits: Splits,
    item_ids: Sequence[str],
    args: TrainingArguments,
    folder: Path,
    number: int,
    settings: dict[str, Any],
) -> SASRecModel:
    """Train one model of a group, or load it if it was finished with the same data and settings."""
    args = copy.copy(args)
    args.output_dir, args.seed = str(folder / "checkpoints"), args.seed + number
    finished, fingerprint = folder / FINISHED_FILE, _fingerprint(splits, item_ids, args, settings)
    if finished.is_file() and json.loads(finished.read_text()) == fingerprint:
        return SASRecModel.from_pretrained(folder).eval().to(args.device)  # type: ignore[arg-type]
    finished.unlink(missing_ok=True)
    model = train_sasrec(splits, item_ids, args, **settings)
    model.save_pretrained(folder)
    # Written last, so that a killed training leaves no finished model
    finished.write_text(json.dumps(fingerprint))
    return model


def _fingerprint(
    splits: Splits, item_ids: Sequence[str], args: TrainingArguments, settings: dict[str, Any]
) -> dict[str, Any]:
    """Seed, and hash of the settings and data that determine a trained model."""
    of_args = {name: value for name, value in args.to_dict().items() if name not in ("output_dir", "hub_token")}
    whole = settings | {"args": of_args, "config": settings["config"].to_diff_dict(), "items": list(item_ids)}
    digest = hashlib.sha256(json.dumps(whole, sort_keys=True, default=str).encode())
    for part in (splits.train, splits.validation):
        for entry in part:
            digest.update(json.dumps(entry).encode())
        digest.update(b"\n")
    return {"seed": args.seed, "sha256": digest.hexdigest()}


@torch.no_grad()
def calibrated_temperature(
    models: Sequence[SASRecModel], sequences: Sequence[Sequence[UserSequence]], seed: int
) -> float:
    """
    Temperature at which the probability of the ten likeliest items equals the share of targets among them: top-10
    confidence equals accuracy. Temperature scaling as in Guo et al., "On Calibration of Modern Neural Networks", 2017,
    by top-10 accuracy instead of likelihood.

    Args:
        models (`list` of [`SASRecModel`]): Trained models.
        sequences (`list` of `list[UserSequence]`): For each model, sequences that it was not trained on. Every item
            after the first of a sequence is a question; at most 4,000 are drawn.
        seed (`int`): Seed of the draw.

    Returns:
        `float`: From 0.5 to 4; 1.0 for fewer than 200 questions or 20 items.
    """
    every = [(number, entry) for number, part in enumerate(sequences) for entry in part]
    last = list(itertools.accumulate(len(entry.items) - 1 for _, entry in every))
    total, items = (last[-1] if last else 0), len(models[0].config.item_ids or ())
    if total < _MIN_QUESTIONS or items < 2 * CALIBRATION_RANKS:
        return 1.0
    questions = []
    for place in random.Random(seed).sample(range(total), min(total, _MAX_QUESTIONS)):
        row = bisect.bisect_right(last, place)
        number, (user, own) = every[row]
        target = len(own) - (last[row] - place)
        questions.append((number, NextItemExample(user, list(own[:target]), own[target])))
    batch_size = max(1, min(_BATCH, _LOGITS // items))
    grid = torch.logspace(-1, 2, 31, base=2)  # (T,) from 0.5 to 4
    mass, hits = torch.zeros(len(grid), dtype=torch.float64), 0
    for number, model in enumerate(models):
        asked = [example for owner, example in questions if owner == number]
        for start in range(0, len(asked), batch_size):
            batch = asked[start : start + batch_size]
            logits = model.score([example.history for example in batch]).float()  # (B, I)
            best = logits.topk(CALIBRATION_RANKS).values  # (B, 10)
            targets = torch.tensor(model.indices([example.item for example in batch]), device=logits.device)
            hits += int((logits.gather(1, targets[:, None]) >= best[:, -1:]).sum())
            shares = [((best / t).logsumexp(1) - (logits / t).logsumexp(1)).exp().sum() for t in grid]
            mass += torch.stack(shares).cpu()
    # The probability falls as the temperature rises
    above = mass > hits
    if above.all() or not above.any():
        return float(grid[-1 if above.all() else 0])
    left = int(above.sum()) - 1
    share = (mass[left] - hits) / (mass[left] - mass[left + 1])
    return float(torch.lerp(grid[left], grid[left + 1], share.float()))
