"""Rows whose completion is plain text, and targets without a history, beside rows of items."""

import math

import pytest
import torch
from datasets import Dataset
from trl import SFTTrainer

from ilrec_trl.trainer.data_collator import DataCollatorForItemCompletion
from ilrec_trl.trainer.ilrec_config import ILRecConfig
from ilrec_trl.trainer.ilrec_trainer import ILRecTrainer
from ilrec_trl.trainer.target_rewards import score_targets


@pytest.fixture
def text_rows(rows):
    """The same completions, of which nothing says that they are items, and others that are none."""
    return [{**row, "completion": row["completion"] + "<a_0>", "item": None} for row in rows]


@pytest.fixture
def build(make_model, settings, tokenizer, trie):
    def build(rows, trainer_class=ILRecTrainer, options=None, **arguments):
        if trainer_class is ILRecTrainer:
            arguments = {"item_trie": trie, **arguments}
        config = ILRecConfig(**{**settings, **(options or {})})
        data = rows if isinstance(rows, Dataset) else Dataset.from_list(rows)
        return trainer_class(make_model(), args=config, train_dataset=data, processing_class=tokenizer, **arguments)

    return build


def scores_of(trie):
    table = torch.rand(len(trie), len(trie), generator=torch.Generator().manual_seed(3))

    def reward_func(histories, **columns):
        assert histories
        assert all(len(values) == len(histories) for values in columns.values())
        return torch.stack([table[trie.index_of(history)].mean(0) for history in histories])

    return reward_func


def collated(trainer, numbers):
    return trainer.data_collator([trainer.train_dataset[number] for number in numbers])


def loss_and_gradients(trainer, batch, count=10):
    trainer.model.zero_grad()
    loss = trainer.compute_loss(trainer.model, dict(batch), num_items_in_batch=torch.tensor(count))
    loss.backward()
    return loss.detach(), [parameter.grad.clone() for parameter in trainer.model.parameters()]


def test_a_batch_of_text_alone_has_the_loss_and_the_gradients_of_sft(build, rows, text_rows, trie):
    ours = build([*text_rows, *rows], reward_func=scores_of(trie))
    batch = collated(ours, range(4))
    assert batch["target_items"].abs().sum() == 0
    assert (batch["history"], batch["item"]) == ([], [])
    sft = build([*text_rows, *rows], SFTTrainer)
    loss, gradients = loss_and_gradients(ours, batch)
    expected, others = loss_and_gradients(sft, collated(sft, range(4)))
    torch.testing.assert_close(loss, expected)
    # Every parameter has a gradient, as DistributedDataParallel needs
    for gradient, other in zip(gradients, others, strict=True):
        torch.testing.assert_close(gradient, other, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("padding_free", [False, True])
def test_a_mixed_batch_is_the_sum_of_its_rows(padding_free, build, rows, text_rows, trie):
    mixed = [rows[0], text_rows[1], rows[2], {**rows[3], "history": None}]
    trainer = build(mixed, reward_func=scores_of(trie))
    trainer.data_collator.padding_free = padding_free
    batch = collated(trainer, range(4))
    assert batch["item"] == [rows[0]["item"], rows[2]["item"], rows[3]["item"]]
    assert batch["history"] == [rows[0]["history"], rows[2]["history"], None]
    assert batch["user"] == ["u0", "u2", "u3"]
    if padding_free:
        assert set(batch["target_items"].flatten().tolist()) == {0, 1, -1, 2, -2, 3, -3}
        return
    together, _ = loss_and_gradients(trainer, batch)
    alone = sum(loss_and_gradients(trainer, collated(trainer, [number]))[0] for number in range(4))
    torch.testing.assert_close(together, alone)


def test_a_target_without_a_history_has_negatives_and_no_rewards(build, rows, trie):
    bare = [{**row, "history": None} for row in rows[1:]]
    trainer = build([rows[0], *bare], reward_func=scores_of(trie))
    plain = build([rows[0], *bare])
    batch = collated(trainer, [1, 2])
    loss, _ = loss_and_gradients(trainer, batch)
    expected, _ = loss_and_gradients(plain, collated(plain, [1, 2]))
    torch.testing.assert_close(loss, expected)
    assert trainer._sums["train"]["negatives"] > 0
    assert trainer._sums["train"]["crr_loss"] == 0
    rewarded, _ = loss_and_gradients(trainer, collated(trainer, [0]))
    assert trainer._sums["train"]["crr_loss"] > 0
    assert rewarded != loss_and_gradients(plain, collated(plain, [0]))[0]


@pytest.mark.parametrize("options", [{}, {"packing": True, "max_length": 24, "max_steps": 2}])
def test_rows_of_both_kinds_train(options, build, rows, text_rows, trie):
    mixed = [row for pair in zip(text_rows, rows, strict=True) for row in pair]
    reward = {} if options else {"reward_func": scores_of(trie)}
    trainer = build(mixed, options={"per_device_train_batch_size": 1, "max_steps": 8, **options}, **reward)
    trainer.train()
    logs = [log for log in trainer.state.log_history if "loss" in log]
    assert all(math.isfinite(log["loss"]) and math.isfinite(log["grad_norm"]) for log in logs)
    assert any(log["ilrec/negatives"] > 0 for log in logs)


def test_packed_text_is_no_target(build, rows, text_rows):
    trainer = build([*rows, *text_rows], options={"packing": True, "max_length": 200})
    numbers = [number for row in trainer.train_dataset["target_items"] for number in row if number > 0]
    assert len(numbers) == 3 * len(rows)


def test_a_data_set_of_text_alone_is_refused(build, text_rows, rows, trie):
    with pytest.raises(ValueError, match="`item` is None in all 32 rows of the train data set"):
        build(text_rows)
    bare = [{**row, "history": None} for row in rows]
    with pytest.raises(ValueError, match="no row of the train data set has both a target item and a history"):
        build([*bare, *text_rows], reward_func=scores_of(trie))
    assert build(rows, eval_dataset=Dataset.from_list(text_rows)).evaluate()["eval_loss"] > 0


def test_scores_are_asked_for_targets_with_a_history_alone():
    asked = []

    def reward_func(histories, item):
        asked.append((histories, item))
        return torch.full((len(histories), 2), 0.5)

    columns = {"history": [None, ["a"], None, ["b"]], "item": ["w", "x", "y", "z"]}
    scores = score_targets(reward_func, columns, 2, torch.device("cpu"))
    assert scores.tolist() == [[0, 0], [0.5, 0.5], [0, 0], [0.5, 0.5]]
    assert asked == [([["a"], ["b"]], ["x", "z"])]
    nothing = {"history": [None, None], "item": ["w", "y"]}
    assert score_targets(reward_func, nothing, 2, torch.device("cpu")).tolist() == [[0, 0], [0, 0]]
    assert len(asked) == 1


def test_rows_without_a_target_leave_the_numbers_of_others_alone():
    text = {"input_ids": [5, 6, 1], "labels": [-100, 6, 1], "target_items": [0, 0, 0], "item": None, "user": "u"}
    item = {"input_ids": [5, 7, 1], "labels": [-100, 7, 1], "target_items": [0, 1, -1], "item": "x", "user": "v"}
    batch = DataCollatorForItemCompletion(pad_token_id=0, eos_token_id=1)([text, item, text, item])
    assert batch["target_items"].tolist() == [[0, 0, 0], [0, 1, -1], [0, 0, 0], [0, 2, -2]]
    assert (batch["item"], batch["user"]) == (["x", "x"], ["v", "v"])
