"""The losses against their naive twins, in value and gradient, and what METHOD says must hold."""

import pytest
import torch

from ilrec_trl.trainer.losses import (
    collaborative_reward_loss,
    cross_layer_distillation_loss,
    cross_layer_preference_loss,
    negative_weights,
    self_hard_negatives,
)
from tests import references


K, N, V = 3, 5, 11


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    layers = torch.randn(K, N, V, generator=generator, dtype=torch.float64)
    last = torch.randn(N, V, generator=generator, dtype=torch.float64)
    targets = torch.tensor([0, 3, 10, 3, 7])
    allowed = torch.rand(N, V, generator=generator) < 0.6
    rewards = torch.rand(N, V, generator=generator, dtype=torch.float64)
    rewards[2] = 0
    rewards[3, 3] = 0
    return layers, last, targets, allowed, rewards


def mined(batch, **options):
    layers, last, targets, allowed, _ = batch
    return self_hard_negatives(layers, last, targets, allowed=allowed, **options)


@pytest.mark.parametrize("restricted", [True, False])
@pytest.mark.parametrize(
    "options",
    [
        {"selection": "threshold", "threshold": 0.8},
        {"selection": "threshold", "threshold": 0.0},
        {"selection": "threshold", "threshold": 1e9},
        {"selection": "top_k", "top_k": 1},
        {"selection": "top_k", "top_k": 3},
        {"selection": "top_k", "top_k": 100},
    ],
)
def test_negatives_are_those_of_the_twin(batch, options, restricted):
    layers, last, targets, allowed, _ = batch
    allowed = allowed if restricted else None
    got = self_hard_negatives(layers, last, targets, allowed=allowed, **options)
    for n in range(N):
        row = None if allowed is None else allowed[n].tolist()
        expected = references.naive_negatives(layers[:, n], last[n], int(targets[n]), allowed=row, **options)
        assert set(got[n].nonzero().flatten().tolist()) == expected


def test_negatives_never_hold_the_target_or_a_forbidden_token(batch):
    negatives = mined(batch, selection="threshold", threshold=0.0)
    assert negatives.any()
    assert not negatives.gather(1, batch[2][:, None]).any()
    assert not (negatives & ~batch[3]).any()


def test_unknown_selection_is_refused(batch):
    with pytest.raises(ValueError, match="'threshold' or 'top_k', got 'best'"):
        mined(batch, selection="best")


def test_weights_are_those_of_the_twin(batch):
    negatives = mined(batch, selection="threshold", threshold=0.8)
    negatives[1] = False
    weights = negative_weights(batch[0], negatives)
    for n in range(N):
        members = negatives[n].nonzero().flatten().tolist()
        torch.testing.assert_close(weights[n].tolist(), references.naive_weights(batch[0][:, n], members))
    sums = weights.sum(-1)
    torch.testing.assert_close(sums, negatives.any(-1).double())
    assert sums[1] == 0


@pytest.mark.parametrize("penalty", ["additive", "multiplicative"])
@pytest.mark.parametrize("beta", [0.0, 0.7, 3.0])
def test_preference_loss_and_gradient_are_those_of_the_twin(batch, beta, penalty):
    layers, last, targets, _, _ = batch
    weights = negative_weights(layers, mined(batch, selection="threshold", threshold=0.5))
    ours, twin = last.clone().requires_grad_(), last.clone().requires_grad_()
    loss = cross_layer_preference_loss(ours, targets, weights, beta=beta, penalty=penalty)
    expected = torch.stack(
        [
            references.naive_cpo(twin[n], int(targets[n]), weights[n].tolist(), beta=beta, penalty=penalty)
            for n in range(N)
        ]
    )
    torch.testing.assert_close(loss, expected)
    loss.sum().backward()
    expected.sum().backward()
    torch.testing.assert_close(ours.grad, twin.grad)


def test_without_penalty_the_preference_loss_is_cross_entropy(batch):
    _, last, targets, _, _ = batch
    loss = cross_layer_preference_loss(last, targets, torch.zeros_like(last), beta=3.0)
    torch.testing.assert_close(loss, torch.nn.functional.cross_entropy(last, targets, reduction="none"))


@pytest.mark.parametrize("penalty", ["additive", "multiplicative"])
def test_a_constant_on_all_logits_changes_nothing(batch, penalty):
    layers, last, targets, _, _ = batch
    weights = negative_weights(layers, mined(batch, selection="top_k", top_k=2))
    loss = cross_layer_preference_loss(last, targets, weights, beta=2.0, penalty=penalty)
    shifted = cross_layer_preference_loss(last + 37.0, targets, weights, beta=2.0, penalty=penalty)
    torch.testing.assert_close(loss, shifted)


@pytest.mark.parametrize("penalty", ["additive", "multiplicative"])
@pytest.mark.parametrize("scale", [1.0, 40.0])
def test_some_tokens_beside_the_normaliser_of_all_are_enough(batch, penalty, scale):
    """CPO and CRR, in value and gradient, where target and negatives are among these tokens."""
    layers, last, targets, _, rewards = batch
    tokens = torch.tensor([0, 3, 4, 7, 8, 10])
    seen = torch.zeros(1, V, dtype=torch.bool)
    seen[:, tokens] = True
    negatives = self_hard_negatives(layers, last, targets, threshold=0.3, allowed=seen)
    weights = negative_weights(layers, negatives)
    whole, part = (last * scale).requires_grad_(), (last * scale).requires_grad_()
    expected = cross_layer_preference_loss(whole, targets, weights, beta=3.0, penalty=penalty)
    expected = expected + collaborative_reward_loss(whole, targets, negatives, rewards)
    token_indices = torch.searchsorted(tokens, targets)
    normaliser = part.logsumexp(-1)
    loss = cross_layer_preference_loss(
        part[:, tokens],
        token_indices,
        weights[:, tokens],
        beta=3.0,
        penalty=penalty,
        log_normaliser=normaliser,
        mean_logits=part.detach().mean(-1),
    )
    loss = loss + collaborative_reward_loss(
        part[:, tokens], token_indices, negatives[:, tokens], rewards[:, tokens], log_normaliser=normaliser
    )
    torch.testing.assert_close(loss, expected)
    loss.sum().backward()
    expected.sum().backward()
    torch.testing.assert_close(part.grad, whole.grad)


def test_a_strong_penalty_does_not_overflow(batch):
    layers, last, targets, _, _ = batch
    weights = negative_weights(layers, mined(batch, selection="top_k", top_k=2)).float()
    logits = (last.float() * 1e3).requires_grad_()
    loss = cross_layer_preference_loss(logits, targets, weights, beta=1e3)
    twin = [
        references.naive_cpo(logits[n].double(), int(targets[n]), weights[n].tolist(), beta=1e3, penalty="additive")
        for n in range(N)
    ]
    torch.testing.assert_close(loss, torch.stack(twin).float())
    loss.sum().backward()
    assert logits.grad.isfinite().all()


def test_a_penalised_negative_is_pushed_harder(batch):
    layers, last, targets, _, _ = batch
    negatives = mined(batch, selection="top_k", top_k=1)
    weights = negative_weights(layers, negatives)
    grads = []
    for beta in (0.0, 3.0):
        logits = last.clone().requires_grad_()
        cross_layer_preference_loss(logits, targets, weights, beta=beta).sum().backward()
        grads.append(logits.grad)
    hardest = weights.argmax(-1, keepdim=True)
    assert (grads[1].gather(1, hardest) > grads[0].gather(1, hardest)).all()


def test_unknown_penalty_is_refused(batch):
    with pytest.raises(ValueError, match="'additive' or 'multiplicative', got 'none'"):
        cross_layer_preference_loss(batch[1], batch[2], batch[1], beta=1.0, penalty="none")


def test_distillation_loss_and_gradient_are_those_of_the_twin(batch):
    layers, last, _, _, _ = batch
    ours, twin = layers.clone().requires_grad_(), layers.clone().requires_grad_()
    teacher = last.clone().requires_grad_()
    loss = cross_layer_distillation_loss(ours, teacher)
    expected = torch.stack([references.naive_cpd(twin[:, n], last[n]) for n in range(N)])
    torch.testing.assert_close(loss, expected)
    loss.sum().backward()
    expected.sum().backward()
    torch.testing.assert_close(ours.grad, twin.grad)
    assert teacher.grad is None


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("threshold", [0.0, 0.8, 1e9])
def test_reward_loss_and_gradient_are_those_of_the_twin(batch, threshold, temperature):
    _, last, targets, _, rewards = batch
    negatives = mined(batch, selection="threshold", threshold=threshold)
    ours, twin = last.clone().requires_grad_(), last.clone().requires_grad_()
    loss = collaborative_reward_loss(ours, targets, negatives, rewards, temperature=temperature)
    expected = torch.stack(
        [
            references.naive_crr(
                twin[n],
                int(targets[n]),
                negatives[n].nonzero().flatten().tolist(),
                rewards[n].tolist(),
                temperature=temperature,
            )
            for n in range(N)
        ]
    )
    torch.testing.assert_close(loss, expected)
    loss.sum().backward()
    expected.sum().backward()
    torch.testing.assert_close(ours.grad, twin.grad)


def test_reward_loss_is_zero_without_company_or_without_reward(batch):
    _, last, targets, _, rewards = batch
    nobody = torch.zeros(N, V, dtype=torch.bool)
    assert (collaborative_reward_loss(last, targets, nobody, rewards) == 0).all()
    everybody = ~nobody
    assert collaborative_reward_loss(last, targets, everybody, rewards)[2] == 0  # its rewards are all zero
    assert collaborative_reward_loss(last, targets, everybody, rewards)[0] > 0


@pytest.mark.parametrize("scale", [1e4, -1e4])
def test_extreme_logits_give_finite_losses_and_gradients(scale):
    last = torch.tensor([[scale, 0.0, -scale], [0.0, scale, scale]], requires_grad=True)
    layers = torch.stack([last.detach() * -1, last.detach()]).requires_grad_()
    targets = torch.tensor([2, 0])
    negatives = self_hard_negatives(layers, last, targets, selection="top_k", top_k=1)
    weights = negative_weights(layers, negatives)
    loss = (
        cross_layer_preference_loss(last, targets, weights, beta=3.0)
        + cross_layer_preference_loss(last, targets, weights, beta=3.0, penalty="multiplicative")
        + cross_layer_distillation_loss(layers, last)
        + collaborative_reward_loss(last, targets, negatives, torch.full_like(last, 1e-30), temperature=0.1)
    )
    assert loss.isfinite().all()
    loss.sum().backward()
    assert last.grad.isfinite().all()
    assert layers.grad.isfinite().all()


def test_half_precision_logits_are_computed_in_float32(batch):
    layers, last, targets, _, _ = batch
    half_layers, half_last = layers.bfloat16(), last.bfloat16()
    weights = negative_weights(half_layers, torch.ones(N, V, dtype=torch.bool))
    loss = cross_layer_preference_loss(half_last, targets, weights, beta=1.0)
    assert weights.dtype == loss.dtype == torch.float32
    exact = cross_layer_preference_loss(half_last.double(), targets, weights.double(), beta=1.0)
    torch.testing.assert_close(loss, exact.float())


def test_no_position_gives_no_loss():
    empty = torch.zeros(0, V)
    targets = torch.zeros(0, dtype=torch.long)
    layers = torch.zeros(K, 0, V)
    negatives = self_hard_negatives(layers, empty, targets)
    assert negatives.shape == (0, V)
    weights = negative_weights(layers, negatives)
    assert cross_layer_preference_loss(empty, targets, weights, beta=1.0).shape == (0,)
    assert cross_layer_distillation_loss(layers, empty).shape == (0,)
