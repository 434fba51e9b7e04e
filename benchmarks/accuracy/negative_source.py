"""ILRec with negatives from another source than the intermediate layers: an ablation of its mining."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ilrec_trl import ILRecConfig, ILRecTrainer
from ilrec_trl.trainer.ilrec_loss import ILRecLoss
from ilrec_trl.trainer.targets import TargetPositions


NEGATIVE_SOURCES = ("intermediate", "last", "random")


@dataclass
class NegativeSourceConfig(ILRecConfig):
    """
    [`ILRecConfig`], and where negatives come from.

    Parameters:
        negative_source (`str`, *optional*, defaults to `"intermediate"`):
            `"intermediate"`: negatives are tokens that the intermediate layers find probable, as in ILRec. `"last"`:
            tokens that the last layer finds probable. `"random"`: as many tokens as the intermediate layers give,
            drawn at random and weighted alike.
    """

    negative_source: str = field(
        default="intermediate",
        metadata={"help": "Where negatives come from; ILRec mines intermediate layers.", "choices": NEGATIVE_SOURCES},
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.negative_source not in NEGATIVE_SOURCES:
            raise ValueError(f"`negative_source` must be one of {NEGATIVE_SOURCES}, got {self.negative_source!r}.")


@dataclass
class NegativeSourceLoss(ILRecLoss):
    """
    [`ILRecLoss`] with the negatives of `args.negative_source`.

    Args:
        seed (`int`, *optional*, defaults to `0`):
            Seed of the batch's random negatives. A block that the backward pass computes again draws the same ones.
    """

    args: NegativeSourceConfig
    seed: int = 0

    def mine(
        self, layer_logits: Tensor, logits: Tensor, target_ids: Tensor, allowed: Tensor, start: int
    ) -> tuple[Tensor, Tensor]:
        source = self.args.negative_source
        miners = logits.detach()[None] if source == "last" else layer_logits  # (1 or K, n, R)
        negatives, ensemble = super().mine(miners, logits, target_ids, allowed, start)
        if source == "random":
            generator = torch.Generator(logits.device).manual_seed(self.seed + start)
            negatives = random_negatives(negatives, target_ids, allowed, generator)
            ensemble = torch.zeros_like(ensemble)  # all weigh the same
        return negatives, ensemble


class NegativeSourceTrainer(ILRecTrainer):
    """[`ILRecTrainer`] with the negatives of [`NegativeSourceConfig`]; its arguments are the parent's."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        loss = self.ilrec_loss
        self.ilrec_loss = NegativeSourceLoss(**{own.name: getattr(loss, own.name) for own in dataclasses.fields(loss)})

    def position_loss(self, batch: dict[str, Any]) -> tuple[TargetPositions, Callable[..., Any]]:
        """As in the parent, with a new seed for each batch."""
        if self.args.negative_source == "random":
            self.ilrec_loss = dataclasses.replace(self.ilrec_loss, seed=int(torch.randint(2**31, ())))
        return super().position_loss(batch)


@torch.no_grad()
def random_negatives(negatives: Tensor, target_ids: Tensor, allowed: Tensor, generator: torch.Generator) -> Tensor:
    """
    Draw as many negatives at each position as were mined there.

    Args:
        negatives (`torch.Tensor` of shape `(N, V)`):
            `True` on the mined negatives, see [`self_hard_negatives`].
        target_ids (`torch.Tensor` of shape `(N,)`):
            The true next tokens, which are never drawn.
        allowed (`torch.Tensor` of shape `(N, V)` or `(1, V)`):
            `True` where a token may be a negative.
        generator (`torch.Generator`):
            On the device of the tensors.

    Returns:
        `torch.Tensor` of shape `(N, V)`: `True` on the drawn tokens.
    """
    draws = torch.rand(negatives.shape, generator=generator, device=negatives.device)
    draws = draws.masked_fill(~allowed, -1.0).scatter(1, target_ids[:, None], -1.0)
    order = draws.argsort(-1, descending=True)  # (N, V)
    ranks = torch.empty_like(order).scatter_(
        1, order, torch.arange(order.size(1), device=order.device).expand_as(order)
    )
    return ranks < negatives.sum(-1, keepdim=True)
