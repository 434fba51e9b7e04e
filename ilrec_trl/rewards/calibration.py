"""The temperature at which SASRec is as sure as it is right."""

from __future__ import annotations

import bisect
import itertools
import random
from collections.abc import Sequence

import torch

from ..data.splits import NextItemExample, UserSequence
from .sasrec import SASRecModel


#: Ranks of the items whose probability is compared with how often the target is one of them.
CALIBRATION_RANKS = 10
_MIN_QUESTIONS, _MAX_QUESTIONS = 200, 4_000
# Histories at once, and logits of theirs
_BATCH, _LOGITS = 64, 2**24


@torch.no_grad()
def calibrated_temperature(
    models: Sequence[SASRecModel], sequences: Sequence[Sequence[UserSequence]], seed: int
) -> float:
    """
    Temperature at which the ten likeliest items together are as probable as the target is one of them (top-10
    confidence equals accuracy; temperature scaling as in Guo et al., "On Calibration of Modern Neural Networks", 2017,
    by the figure that recommendations are judged by instead of the likelihood).

    Args:
        models (`list` of [`SASRecModel`]): Trained models.
        sequences (`list` of `list[UserSequence]`): For each model, sequences that it was not trained on. Every item
            after the first of a sequence is a question, of which 4,000 are drawn.
        seed (`int`): Draws them.

    Returns:
        `float`: From 0.5 to 4; 1.0 where there are fewer than 200 questions or 20 items.
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
    # It falls as the temperature rises
    above = mass > hits
    if above.all() or not above.any():
        return float(grid[-1 if above.all() else 0])
    left = int(above.sum()) - 1
    share = (mass[left] - hits) / (mass[left] - mass[left + 1])
    return float(torch.lerp(grid[left], grid[left + 1], share.float()))
