"""
The ILRec losses (https://huggingface.co/papers/2602.17410) as pure functions: tensors in, one value for each target
position out. No reduction, no model, no state; the trainer reduces once.

Notation, here and in the rest of the package:

| symbol | meaning |
| --- | --- |
| B | sequences in the batch |
| S | tokens in a sequence |
| N | target positions: positions whose next token belongs to a target item |
| K | chosen intermediate layers |
| V | vocabulary |
| H | hidden size |
| I | items in the catalogue |
| T | target items in the batch (a row may hold several) |

All arithmetic is done in float32 (float64 inputs stay float64). Every value is in nats.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def _full_precision(logits: Tensor) -> Tensor:
    return logits if logits.dtype == torch.float64 else logits.float()


@torch.no_grad()
def self_hard_negatives(
    layer_logits: Tensor,
    logits: Tensor,
    target_ids: Tensor,
    *,
    selection: str = "threshold",
    threshold: float = 0.8,
    top_k: int = 5,
    allowed: Tensor | None = None,
) -> Tensor:
    """
    Hard negative tokens mined from the model's own intermediate layers (Section 3.1 of the paper).

    Args:
        layer_logits (`torch.Tensor` of shape `(K, N, V)`): Logits of the intermediate layers.
        logits (`torch.Tensor` of shape `(N, V)`): Logits of the last layer.
        target_ids (`torch.Tensor` of shape `(N,)`): The true next tokens.
        selection (`str`, *optional*, defaults to `"threshold"`): `"threshold"`: tokens to which the ensemble of the
            layers gives at least `threshold` times the probability that the last layer gives to the target. `"top_k"`:
            the union of each layer's `top_k` most probable tokens.
        threshold (`float`, *optional*, defaults to `0.8`): The paper's alpha.
        top_k (`int`, *optional*, defaults to `5`): Negatives of each layer, with `selection="top_k"`.
        allowed (`torch.Tensor` of shape `(N, V)` or `(1, V)`, *optional*): `True` where a token may be a negative. By
            default every token.

    Returns:
        `torch.Tensor` of shape `(N, V)`: `True` on the negatives. The target is never one; a row may be empty.
    """
    candidates = torch.ones_like(logits, dtype=torch.bool)  # (N, V)
    candidates.scatter_(1, target_ids[:, None], False)
    if allowed is not None:
        candidates &= allowed
    layer_logits, logits = _full_precision(layer_logits), _full_precision(logits)
    if selection == "threshold":
        ensemble = layer_logits.mean(0)  # (N, V)
        target_log_probs = logits.gather(1, target_ids[:, None]) - logits.logsumexp(-1, keepdim=True)  # (N, 1)
        offset = math.log(threshold) if threshold > 0 else -math.inf
        return candidates & (ensemble >= target_log_probs + offset + ensemble.logsumexp(-1, keepdim=True))
    if selection == "top_k":
        ranked = layer_logits.masked_fill(~candidates, -torch.inf).topk(min(top_k, logits.size(1)), dim=-1)
        negatives = torch.zeros_like(candidates)
        for indices in ranked.indices:  # (N, top_k), one layer at a time
            negatives.scatter_(1, indices, True)
        return negatives & candidates
    raise ValueError(f"`selection` must be 'threshold' or 'top_k', got {selection!r}.")


@torch.no_grad()
def negative_weights(layer_logits: Tensor, negatives: Tensor) -> Tensor:
    """
    Hardness of each negative: the softmax of the layers' mean logits over the negatives.

    Args:
        layer_logits (`torch.Tensor` of shape `(K, N, V)`): Logits of the intermediate layers.
        negatives (`torch.Tensor` of shape `(N, V)`): `True` on the negatives, see [`self_hard_negatives`].

    Returns:
        `torch.Tensor` of shape `(N, V)`: each row sums to 1, or is all 0 where there is no negative. No gradient.
    """
    ensemble = _full_precision(layer_logits).mean(0)  # (N, V)
    return _masked_softmax(ensemble, negatives)


def _masked_softmax(scores: Tensor, mask: Tensor) -> Tensor:
    """Softmax over the `True` entries of each row; 0 elsewhere, and everywhere in a row without any."""
    filled = torch.where(mask.any(-1, keepdim=True), scores.masked_fill(~mask, -torch.inf), 0.0)
    return filled.softmax(-1).masked_fill(~mask, 0.0)


def cross_layer_preference_loss(
    logits: Tensor,
    target_ids: Tensor,
    weights: Tensor,
    *,
    beta: float,
    penalty: str = "additive",
    log_normaliser: Tensor | None = None,
    mean_logits: Tensor | None = None,
) -> Tensor:
    """
    Cross-layer preference optimisation (CPO, Section 3.2): cross-entropy whose normaliser gives negatives more weight,
    which lowers their probability; harder negatives are lowered more.

    Args:
        logits (`torch.Tensor` of shape `(N, V)`): Logits of the last layer.
        target_ids (`torch.Tensor` of shape `(N,)`): The true next tokens.
        weights (`torch.Tensor` of shape `(N, V)`): Weights of the negatives, 0 on every other token, see
            [`negative_weights`].
        beta (`float`): Strength of the penalty; 0 is plain cross-entropy.
        penalty (`str`, *optional*, defaults to `"additive"`): `"additive"`: a negative's logit z becomes z + beta * w.
            `"multiplicative"`: z + beta * w * max(z - m, 0) with m the mean logit of the position (no gradient), the
            paper's z * (1 + beta * w) made shift-invariant.
        log_normaliser, mean_logits (`torch.Tensor` of shape `(N,)`, *optional*): Where `logits` are those of some
            tokens, the target and all negatives among them: logsumexp and mean over the whole vocabulary. `target_ids`
            are then places among these tokens.

    Returns:
        `torch.Tensor` of shape `(N,)`: the loss of each position.
    """
    logits = _full_precision(logits)
    log_normaliser = logits.logsumexp(-1) if log_normaliser is None else log_normaliser  # (N,)
    raised = beta * weights  # (N, V), what the penalty adds to each logit
    if penalty == "multiplicative":
        mean_logits = logits.detach().mean(-1) if mean_logits is None else mean_logits
        raised = raised * (logits - mean_logits[:, None]).clamp(min=0)
    elif penalty != "additive":
        raise ValueError(f"`penalty` must be 'additive' or 'multiplicative', got {penalty!r}.")
    cross_entropy = log_normaliser - logits.gather(1, target_ids[:, None]).squeeze(1)
    # The normaliser grows by the factor 1 + sum of p (e^raised - 1), here divided by e^shift, which cannot overflow
    penalised = logits - log_normaliser[:, None] + raised  # (N, V)
    shift = penalised.detach().amax(-1, keepdim=True).clamp(min=0)  # (N, 1)
    growth = ((penalised - shift).exp() * -torch.expm1(-raised)).sum(-1)  # (N,)
    shift = shift.squeeze(1)
    return cross_entropy + shift + torch.log1p(torch.expm1(-shift) + growth)


def cross_layer_distillation_loss(layer_logits: Tensor, logits: Tensor) -> Tensor:
    """
    Cross-layer preference distillation (CPD, Section 3.3): KL divergence from the last layer, which gets no gradient,
    to each intermediate layer, averaged over the layers.

    Args:
        layer_logits (`torch.Tensor` of shape `(K, N, V)`): Logits of the intermediate layers.
        logits (`torch.Tensor` of shape `(N, V)`): Logits of the last layer.

    Returns:
        `torch.Tensor` of shape `(N,)`: the loss of each position.
    """
    teacher = _full_precision(logits).detach().log_softmax(-1)  # (N, V)
    students = _full_precision(layer_logits).log_softmax(-1)  # (K, N, V)
    return (teacher.exp() * (teacher - students)).sum(-1).mean(0)


def collaborative_reward_loss(
    logits: Tensor,
    target_ids: Tensor,
    negatives: Tensor,
    token_rewards: Tensor,
    *,
    temperature: float = 1.0,
    log_normaliser: Tensor | None = None,
) -> Tensor:
    """
    Collaborative reward regularisation (CRR, Section 3.4): cross-entropy of the last layer against the distribution
    that collaborative filtering gives over the target and the negatives.

    Args:
        logits (`torch.Tensor` of shape `(N, V)`): Logits of the last layer.
        target_ids (`torch.Tensor` of shape `(N,)`): The true next tokens.
        negatives (`torch.Tensor` of shape `(N, V)`): `True` on the tokens that share the reward with the target: the
            mined negatives, or all continuations of the prefix.
        token_rewards (`torch.Tensor` of shape `(N, V)`): Non-negative reward of each next token, see
            [`ItemTrie.token_rewards`].
        temperature (`float`, *optional*, defaults to `1.0`): Rewards are raised to `1 / temperature` and renormalised.
        log_normaliser (`torch.Tensor` of shape `(N,)`, *optional*): As in [`cross_layer_preference_loss`].

    Returns:
        `torch.Tensor` of shape `(N,)`: the loss of each position; 0 where no token shares the reward with the target,
        or none has a reward.
    """
    logits = _full_precision(logits)
    log_normaliser = logits.logsumexp(-1) if log_normaliser is None else log_normaliser  # (N,)
    members = negatives.scatter(1, target_ids[:, None], True)  # (N, V)
    rewarded = members & (token_rewards > 0)
    if temperature == 1:
        masses = torch.where(rewarded, token_rewards, 0.0).to(logits.dtype)
        rewards = masses / masses.sum(-1, keepdim=True).clamp(min=torch.finfo(logits.dtype).tiny)  # (N, V)
    else:  # with logarithms, since powers of small rewards would be 0
        scores = torch.where(rewarded, token_rewards, 1.0).to(logits.dtype).log() / temperature
        rewards = _masked_softmax(scores, rewarded)
    counts = members.sum(-1) > 1
    return (rewards.sum(-1) * log_normaliser - (rewards * logits).sum(-1)) * counts
