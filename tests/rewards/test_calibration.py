import pytest
import torch

from ilrec_trl.data.splits import UserSequence
from ilrec_trl.rewards.sasrec import SASRecConfig, SASRecModel
from ilrec_trl.rewards.sasrec_group import calibrated_temperature


ITEMS = [f"i{number}" for number in range(60)]


def model_of(seed):
    torch.manual_seed(seed)
    config = SASRecConfig(item_ids=ITEMS, hidden_size=16, num_attention_heads=1, initializer_range=0.5)
    return SASRecModel(config).eval()


def drawn(model, temperature, number, seed):
    """Pairs whose second item is drawn from the model's own softmax at a temperature."""
    torch.manual_seed(seed)
    first = torch.randint(len(ITEMS), (number,))
    logits = model.score([[ITEMS[item]] for item in first])  # (N, I)
    second = torch.multinomial((logits / temperature).softmax(-1), 1)[:, 0]
    return [
        UserSequence(f"u{row}", [ITEMS[a], ITEMS[b]]) for row, (a, b) in enumerate(zip(first, second, strict=True))
    ]


@pytest.mark.parametrize("temperature", [0.7, 1.0, 1.8])
def test_the_temperature_that_targets_were_drawn_at_is_found(temperature):
    models = [model_of(0), model_of(1)]
    sequences = [drawn(model, temperature, 3000, seed) for seed, model in enumerate(models)]
    # Each model's own sequences; those of the other are no evidence about it
    assert calibrated_temperature(models, sequences, seed=0) == pytest.approx(temperature, rel=0.1)
    assert calibrated_temperature(models, sequences[::-1], seed=0) > 2


def test_bounds_and_too_little_to_go_by():
    model = model_of(0)
    best = model.score([[item] for item in ITEMS]).argmax(-1)
    certain = [UserSequence(f"u{row}", [ITEMS[row % 60], ITEMS[best[row % 60]]]) for row in range(300)]
    assert calibrated_temperature([model], [certain], seed=0) == 0.5
    worst = model.score([[item] for item in ITEMS]).argmin(-1)
    wrong = [UserSequence(f"u{row}", [ITEMS[row % 60], ITEMS[worst[row % 60]]]) for row in range(300)]
    assert calibrated_temperature([model], [wrong], seed=0) == 4.0
    assert calibrated_temperature([model], [wrong[:199]], seed=0) == 1.0
