"""Softmax-DPO against its equation in plain loops, and against TRL's DPO where there is one negative."""

import math
import random

import pytest
import torch
from datasets import Dataset
from trl import DPOConfig, DPOTrainer

from benchmarks.accuracy.softmax_dpo_trainer import SoftmaxDPOTrainer


@pytest.fixture
def preference_rows(items):
    """Items the next of which is preferred to others; their lengths differ by one token."""
    generator = random.Random(2)

    def rows(count, number=24):
        made = []
        for _ in range(number):
            item = generator.randrange(20)
            others = ["".join(items[f"i{generator.randrange(20, 28)}"]) for _ in range(count)]
            others[0] = others[0][:5] if count > 1 else others[0]  # one token: completions may differ in length
            prompt = "".join(items[f"i{item}"])
            made.append({"prompt": prompt, "chosen": "".join(items[f"i{item + 1}"]), "rejected": others})
        return made

    return rows


def plain_log_prob(model, tokenizer, prompt, completion):
    """Sum of the log-probabilities of a completion's tokens and its end, one position at a time, in float64."""
    start = tokenizer(prompt)["input_ids"]
    tokens = start + tokenizer(completion)["input_ids"] + [tokenizer.eos_token_id]
    logits = model(torch.tensor([tokens])).logits[0].double()
    total = 0.0
    for place in range(len(start), len(tokens)):
        row = logits[place - 1]
        total = total + row[tokens[place]] - torch.log(torch.exp(row).sum())
    return total


@pytest.fixture
def arguments(settings):
    return settings | {"max_length": None, "beta": 0.7, "seed": 0}


def test_loss_and_gradient_equal_the_equation(make_model, tokenizer, preference_rows, arguments):
    rows = preference_rows(3, number=8)
    model, reference = make_model(), make_model(initializer_range=0.1)
    twin = make_model()
    trainer = SoftmaxDPOTrainer(
        model, reference, DPOConfig(**arguments), train_dataset=Dataset.from_list(rows), processing_class=tokenizer
    )
    batch = trainer.data_collator([trainer.train_dataset[row] for row in range(8)])
    assert batch["input_ids"].shape[0] == 8 * 4
    model.eval()
    loss = trainer.compute_loss(model, batch)
    loss.backward()

    expected = 0.0
    for row in rows:
        ratios = []
        for completion in [row["chosen"], *row["rejected"]]:
            with torch.no_grad():
                own = plain_log_prob(reference, tokenizer, row["prompt"], completion)
            ratios.append(plain_log_prob(twin, tokenizer, row["prompt"], completion) - own)
        total = 0.0
        for rejected in ratios[1:]:
            total = total + torch.exp(0.7 * (rejected - ratios[0]))
        inner = -torch.log(total)
        expected = expected - torch.log(1 / (1 + torch.exp(-inner))) / len(rows)
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-4)
    assert abs(loss.item() - math.log(4)) > 0.01  # the reference differs
    for (name, mine), theirs in zip(model.named_parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=2e-3, atol=1e-5, msg=name)


def test_with_one_negative_it_is_dpo(make_model, tokenizer, preference_rows, arguments):
    rows = preference_rows(1)
    single = [row | {"rejected": row["rejected"][0]} for row in rows]
    models, losses = [], []
    for trainer_class, data in ((DPOTrainer, single), (SoftmaxDPOTrainer, rows)):
        args = DPOConfig(**arguments, gradient_accumulation_steps=2)
        trainer = trainer_class(
            make_model(), make_model(), args, train_dataset=Dataset.from_list(data), processing_class=tokenizer
        )
        trainer.train()
        models.append(trainer.model)
        losses.append([entry["loss"] for entry in trainer.state.log_history if "loss" in entry])
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    assert losses[0][-1] < losses[0][0] - 0.05
    for dpo, softmax in zip(models[0].parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(dpo, softmax, rtol=1e-4, atol=1e-5)


def test_training_raises_the_margin(make_model, tokenizer, preference_rows, arguments):
    trainer = SoftmaxDPOTrainer(
        make_model(),
        make_model(),
        DPOConfig(**arguments | {"max_steps": 10}),
        train_dataset=Dataset.from_list(preference_rows(2)),
        eval_dataset=Dataset.from_list(preference_rows(2)),
        processing_class=tokenizer,
    )
    before = trainer.evaluate()
    assert (before["eval_rewards/margins"], before["eval_loss"]) == (0, pytest.approx(math.log(3), rel=1e-5))
    trainer.train()
    after = trainer.evaluate()
    assert after["eval_rewards/margins"] > 0.5
    assert after["eval_rewards/accuracies"] > 0.5
    assert after["eval_loss"] < before["eval_loss"] - 0.3


@pytest.mark.parametrize(
    ("change", "counts", "message"),
    [
        ({"loss_type": ["ipo"]}, [2], r"`loss_type=\['ipo'\]` is not for softmax-DPO; set it to \['sigmoid'\]"),
        ({"max_length": 64}, [2], "`max_length=64` is not for softmax-DPO; set it to None"),
        ({}, [2, 3], r"train data set have \[2, 3\] rejected completions"),
        ({}, [0], r"have \[0\] rejected"),
    ],
)
def test_refusals(make_model, tokenizer, preference_rows, arguments, change, counts, message):
    rows = [row for count in counts for row in (preference_rows(count, 4) if count else [])]
    rows = rows or [row | {"rejected": []} for row in preference_rows(1, 4)]
    with pytest.raises(ValueError, match=message):
        SoftmaxDPOTrainer(
            make_model(),
            make_model(),
            DPOConfig(**arguments | change),
            train_dataset=Dataset.from_list(rows),
            processing_class=tokenizer,
        )
