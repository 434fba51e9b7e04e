"""Cross-entropy over a catalogue that is too large to score at every step."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F


def sampled_softmax_loss(
    vectors: Tensor, targets: Tensor, weight: Tensor, bias: Tensor | None, num_samples: int, first_row: int = 0
) -> Tensor:
    """
    Softmax cross-entropy in which a sample of the items stands for the whole catalogue.

    Every target is scored against all targets of the batch, which are the popular items that weigh most, and against
    items drawn from the rest. Each exponential is divided by the probability with which its item takes part: 1 for
    the targets, the share that was drawn for the others. The sum that normalises a row is thus on average the sum over
    the catalogue, and is that sum where everything is drawn.

    After "On Using Very Large Target Vocabulary for Neural Machine Translation" (Jean et al., 2015), with the
    correction of "Sampling-Bias-Corrected Neural Modeling" (Yi et al., 2019) for two strata drawn without replacement.

    Args:
        vectors (`torch.Tensor` of shape `(N, H)`):
            Vector of each position.
        targets (`torch.Tensor` of shape `(N,)`):
            Index of the item to predict at each position.
        weight (`torch.Tensor` of shape `(first_row + I, H)`):
            Output matrix. Its gradient is sparse: of the items that took part.
        bias (`torch.Tensor` of shape `(I,)`, *optional*):
            Bias of each item.
        num_samples (`int`):
            Number of draws. Repeats and targets among them count once, so that fewer items take part.
        first_row (`int`, *optional*, defaults to `0`):
            Row of `weight` that belongs to item 0.

    Returns:
        `torch.Tensor` of shape `()`: Sum over the positions, in nats.
    """
    num_items = len(weight) - first_row
    positives, columns = targets.unique(return_inverse=True)  # (P,), (N,)
    sampled = draw_others(positives, num_items, num_samples)  # (C,)
    items = torch.cat([positives, sampled])  # (P + C,)
    logits = vectors @ F.embedding(items + first_row, weight, sparse=True).T  # (N, P + C)
    if bias is not None:
        logits = logits + bias[items]
    share = (num_items - len(positives)) / max(len(sampled), 1)  # others that each of the drawn stands for
    correction = logits.new_zeros(len(items), dtype=torch.float32)  # (P + C,)
    correction[len(positives) :] = math.log(max(share, 1.0))
    return F.cross_entropy(logits.float() + correction, columns, reduction="sum")


def draw_others(positives: Tensor, num_items: int, num_samples: int) -> Tensor:
    """
    Distinct items `(C,)` outside `positives` `(P,)`, all of them where `num_samples` is as many as there are.

    However many distinct ones the draws leave, every set of that size is as likely as any other.
    """
    if num_samples >= num_items - len(positives):
        drawn = torch.arange(num_items, device=positives.device)
    else:
        drawn = torch.randint(num_items, (num_samples,), device=positives.device).unique()
    return drawn[~torch.isin(drawn, positives)]
