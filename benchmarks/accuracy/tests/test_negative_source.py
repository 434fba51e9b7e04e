"""Negatives from the last layer and at random."""

import pytest
import torch

from benchmarks.accuracy.negative_source import NegativeSourceConfig, NegativeSourceTrainer, random_negatives
from tests.trainer.plain_loops import check_loss_and_gradient


@pytest.mark.parametrize(
    "options",
    [
        {"negative_threshold": 0.3},
        {"negative_selection": "top_k", "negative_top_k": 2},
    ],
)
def test_loss_and_gradient_of_the_last_layer_are_those_of_plain_loops(
    options, make_model, settings, rows, tokenizer, sequences, trie
):
    config = NegativeSourceConfig(**settings, crr_weight=0.6, negative_source="last", **options)
    check_loss_and_gradient(
        NegativeSourceTrainer, config, make_model, rows[:4], tokenizer, sequences, trie, mined_from_last=True
    )


def test_random_negatives_are_the_same_in_blocks(make_model, settings, dataset, tokenizer, trie):
    """Blocks are computed again in the backward pass, which must meet the negatives of the forward pass."""
    config = NegativeSourceConfig(
        **settings, negative_source="random", negative_threshold=1.1, cpo_beta=5.0, cpd_weight=0.0, max_logits_mib=1e-3
    )
    trainer = NegativeSourceTrainer(
        make_model().double(), args=config, train_dataset=dataset, processing_class=tokenizer, item_trie=trie
    )
    batch = trainer.data_collator([trainer.train_dataset[n] for n in range(4)])

    def loss_of() -> torch.Tensor:
        torch.manual_seed(7)
        return trainer.compute_loss(trainer.model, dict(batch), num_items_in_batch=torch.tensor(16))

    loss_of().backward()
    weight = trainer.model.model.layers[0].mlp.up_proj.weight
    gradient, place = weight.grad[3, 2].item(), (3, 2)
    losses = []
    for step in (1e-3, -2e-3):
        with torch.no_grad():
            weight[place] += step
        losses.append(loss_of().item())
    assert gradient == pytest.approx((losses[0] - losses[1]) / 2e-3, rel=3e-3)


def test_random_negatives_are_as_many_as_were_mined_and_by_chance():
    generator = torch.Generator().manual_seed(0)
    mined = torch.tensor([[0, 1, 1, 0, 0, 0]] * 2000 + [[0, 0, 0, 0, 0, 0]] + [[1, 1, 0, 0, 0, 0]]).bool()
    target_ids = torch.zeros(len(mined), dtype=torch.long)
    target_ids[-1] = 2
    allowed = torch.tensor([[1, 1, 1, 1, 1, 0]]).bool()
    drawn = random_negatives(mined, target_ids, allowed, generator)
    assert torch.equal(drawn.sum(-1), mined.sum(-1))
    assert not drawn.gather(1, target_ids[:, None]).any()
    assert not drawn[:, 5].any()
    shares = drawn[:2000].float().mean(0)  # 2 of the 4 that are allowed and not the target
    assert shares[1:5].tolist() == pytest.approx([0.5] * 4, abs=0.05)


def test_an_unknown_source_is_refused(settings):
    with pytest.raises(ValueError, match="`negative_source` must be one of .*, got 'first'"):
        NegativeSourceConfig(**settings, negative_source="first")
