"""Adam whose cost a step depends on the rows that the step touched."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


class SparseRowsAdam(torch.optim.Optimizer):
    """
    SparseAdam for parameters that get sparse gradients, and another optimizer for the rest, as one.

    Only the rows of a matrix that a step touched, and their moments, are read and written.

    Args:
        sparse (`list[torch.nn.Parameter]`):
            Parameters with sparse gradients.
        dense (`torch.optim.Optimizer`):
            Optimizer of the others; its settings count for the sparse ones too, except for weight decay, which would
            touch every row.
    """

    def __init__(self, sparse: list[nn.Parameter], dense: torch.optim.Optimizer) -> None:
        settings = {name: dense.defaults[name] for name in ("lr", "betas", "eps")}
        self.parts = (torch.optim.SparseAdam(sparse, **settings), dense)
        # The groups are shared with the parts, so that a schedule reaches them
        super().__init__([group for part in self.parts for group in part.param_groups], {})

    def step(self, closure: Any = None) -> Any:
        loss = None if closure is None else closure()
        for part in self.parts:
            part.step()
        return loss

    def state_dict(self) -> dict[str, Any]:
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for part, state in zip(self.parts, state_dict["parts"], strict=True):
            part.load_state_dict(state)
        self.param_groups = [group for part in self.parts for group in part.param_groups]


def clip_sparse_grad_norm(parameters: list[nn.Parameter], max_norm: float) -> torch.Tensor:
    """`torch.nn.utils.clip_grad_norm_`, which refuses sparse gradients, for parameters of which some have them."""
    gradients = []
    for parameter in parameters:
        if parameter.grad is None:
            continue
        if parameter.grad.is_sparse:
            parameter.grad = parameter.grad.coalesce()
            gradients.append(parameter.grad.values())
        else:
            gradients.append(parameter.grad)
    norm = torch.nn.utils.get_total_norm(gradients)
    for gradient in gradients:
        gradient.mul_((max_norm / (norm + 1e-6)).clamp(max=1.0))
    return norm
