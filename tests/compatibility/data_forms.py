"""Forms of data that the matrix trains on, and what to assert about some of them."""

import json

import pytest

from ilrec_trl.trainer._trl import DataCollatorForLanguageModeling
from ilrec_trl.trainer.data_collator import DataCollatorForItemCompletion

from .workbench import catalog, dataset, shared_tokenizer, users, with_rewards


def as_text(row):
    return {"text": row["prompt"] + row["completion"]}


def as_messages(row):
    return {
        "messages": [
            {"role": "user", "content": row["prompt"]},
            {"role": "assistant", "content": row["completion"]},
        ]
    }


def as_chat(row):
    prompt, completion = as_messages(row)["messages"]
    return {**row, "prompt": [prompt], "completion": [completion]}


def as_tool_call(row):
    """A conversation about two tools, each of which the chat template shows as one token."""
    tool = {"type": "function", "function": {"name": "find", "description": "", "parameters": {"type": "object"}}}
    return {**as_messages(row), "tools": json.dumps([tool, tool])}


def shows_the_tools(trainer):
    two = trainer.processing_class.convert_tokens_to_ids(["<end>"] * 2)
    assert all(row["input_ids"][:2] == two for row in trainer.train_dataset)


def as_sharegpt(row):
    return {"conversations": [{"from": "human", "value": row["prompt"]}, {"from": "gpt", "value": row["completion"]}]}


def as_tokens(row):
    tokenizer = shared_tokenizer()
    prompt, completion = (tokenizer(row[name])["input_ids"] for name in ("prompt", "completion"))
    completion = [*completion, tokenizer.eos_token_id]
    return {
        **{name: row[name] for name in ("history", "item", "user")},
        "input_ids": prompt + completion,
        "labels": [-100] * len(prompt) + completion,
    }


def as_masked_tokens(row):
    row = as_tokens(row)
    mask = [int(label != -100) for label in row.pop("labels")]
    return {**row, "completion_mask": mask}


def as_sequence(row):
    """All items after the user's first are targets, as `sequence_dataset` makes rows."""
    items = [*row["history"], row["item"]]
    texts = [catalog().text(item) for item in items]
    return {"prompt": texts[0], "completion": "".join(texts[1:]), "history": items[:1], "item": items[1:]}


def as_text_of_every_other_user(row):
    """Every other completion is marked as plain text, which is no target."""
    return {**row, "item": None} if int(row["user"][1:]) % 2 else row


def tokens_alone(row):
    return {"input_ids": as_tokens(row)["input_ids"]}


def train_on(make_row=dict):
    return lambda: {"train_dataset": dataset(make_row)}


def keeps_every_target(trainer):
    count = sum(max(row["target_items"]) for row in trainer.train_dataset)
    assert count == sum(len(row["history"]) for row in users())


def streamed():
    return {"train_dataset": dataset().to_iterable_dataset(num_shards=2).shuffle(seed=0, buffer_size=4)}


def evaluated(**options):
    return {"eval_strategy": "steps", "eval_steps": 2, **options}


def two_sets(row_type=dict):
    return lambda: {
        "train_dataset": dataset(row_type),
        "eval_dataset": {"seen": dataset(row_type), "new": dataset(row_type).select(range(5))},
    }


def logged_both_sets(trainer):
    keys = {key for log in trainer.state.log_history for key in log}
    assert {"eval_seen_loss", "eval_new_loss", "eval_ilrec/cpo_loss"} <= keys


def marks_items_in_the_template(trainer):
    row = trainer.train_dataset[0]
    targets = [token for token, number in zip(row["input_ids"], row["target_items"], strict=True) if number]
    assert targets == trainer.item_trie.sequence(row["item"])


def top1(prediction):
    logits, labels = prediction.predictions[:, :-1], prediction.label_ids[:, 1:]
    return {"top1": float((logits.argmax(-1) == labels)[labels != -100].mean())}


def batched_top1(prediction, compute_result):
    labels = prediction.label_ids[:, 1:]
    hits = (prediction.predictions[:, :-1].argmax(-1) == labels)[labels != -100]
    return {"top1": float(hits.float().mean())}


def with_metrics(**more):
    return lambda: {"eval_dataset": dataset(), "compute_metrics": top1, **more}


def none():
    return {}


def evaluates_new_data(trainer):
    metrics = trainer.evaluate(dataset().select(range(4)))
    assert metrics["eval_loss"] > 0
    assert metrics["eval_ilrec/cpo_loss"] > 0
    metrics = trainer.evaluate({"seen": dataset(), "new": dataset()})
    assert {"eval_seen_loss", "eval_new_loss"} <= set(metrics)
    with pytest.warns(FutureWarning, match="`return_outputs=True`"):
        prediction = trainer.predict(trainer.train_dataset.select(range(4)))  # prepared rows, as with SFTTrainer
    assert prediction.predictions.shape[::2] == (4, trainer.model.config.vocab_size)
    assert prediction.metrics["test_loss"] > 0
    unknown = dataset(lambda row: {**row, "history": ["ghost"]})
    with pytest.raises(ValueError, match="eval row 0: the history holds 'ghost'"):
        trainer.evaluate(unknown)


class OwnCollator(DataCollatorForItemCompletion):
    """A user's collator for rows with a catalogue."""


class OwnPlainCollator(DataCollatorForLanguageModeling):
    """A user's collator that knows nothing of items."""


def own_collator():
    tokenizer = shared_tokenizer()
    collator = OwnCollator(pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id)
    return {"data_collator": collator, **with_rewards()}


def own_plain_collator():
    return {"data_collator": OwnPlainCollator(pad_token_id=shared_tokenizer().pad_token_id)}


def collates_by_the_users_own(trainer):
    assert type(trainer.data_collator) in (OwnCollator, OwnPlainCollator)
