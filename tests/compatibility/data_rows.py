"""Rows of the matrix: every form of data that SFTTrainer reads."""

import pytest
from datasets import DatasetDict

from .rows import Row
from .workbench import catalog, dataset, shared_tokenizer, users, with_catalogue


AREA = "Data"


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


def rows():
    packed = {"max_length": 24, "max_steps": 4, "per_device_train_batch_size": 2}
    return [
        Row(AREA, "prompt-completion", "The main format: `prompt`, `completion`, and `history`, `item`, `user`."),
        Row(AREA, "prompt-completion alone", "Without a catalogue the whole completion is the target.", ilrec=none),
        Row(
            AREA,
            "catalogue without rewards",
            "`item_trie` alone: mining among the continuations, no CRR.",
            ilrec=with_catalogue,
        ),
        Row(
            AREA,
            "several targets a row",
            "`item` as a list: each target sees the history before it.",
            arguments=train_on(as_sequence),
        ),
        Row(
            AREA,
            "language-modelling text",
            "`dataset_text_field`; every token is a target.",
            {"dataset_text_field": "text"},
            train_on(as_text),
            none,
        ),
        Row(
            AREA,
            "conversational prompt-completion",
            "Targets are found inside the chat template.",
            {},
            train_on(as_chat),
            check=marks_items_in_the_template,
        ),
        Row(AREA, "conversational messages", "`messages`; every token is a target.", {}, train_on(as_messages), none),
        Row(
            AREA,
            "ShareGPT conversations",
            "`conversations` become messages, as in TRL.",
            {},
            train_on(as_sharegpt),
            none,
        ),
        Row(
            AREA,
            "assistant_only_loss",
            "Targets are the assistant's tokens.",
            {"assistant_only_loss": True},
            train_on(as_messages),
            none,
        ),
        Row(
            AREA,
            "assistant_only_loss with prompt-completion",
            "The end of the turn is in the loss, and no target.",
            {"assistant_only_loss": True},
            train_on(as_chat),
            check=marks_items_in_the_template,
        ),
        Row(
            AREA,
            "completion_only_loss=False",
            "The loss is over the prompt too; the completion alone is the target.",
            {"completion_only_loss": False},
        ),
        Row(AREA, "streaming IterableDataset", "Shuffled shards; rows are checked as they are read.", {}, streamed),
        Row(AREA, "pre-tokenized with labels", "`input_ids` and `labels`.", {}, train_on(as_tokens)),
        Row(
            AREA,
            "pre-tokenized with a completion mask",
            "`input_ids` and `completion_mask`.",
            {"completion_only_loss": True},
            train_on(as_masked_tokens),
        ),
        Row(
            AREA,
            "pre-tokenized, tokens alone",
            "`input_ids`; every token is a target.",
            {},
            train_on(tokens_alone),
            none,
        ),
        Row(
            AREA,
            "extra columns",
            "Columns that nobody reads are dropped, as in TRL.",
            arguments=train_on(lambda row: {**row, "rating": 4.5, "tags": ["a"]}),
        ),
        Row(
            AREA,
            "remove_unused_columns=False",
            "Reward columns and targets stay, whatever else the rows hold.",
            {"remove_unused_columns": False},
            train_on(as_tokens),
        ),
        Row(
            AREA,
            "truncation that spares the targets",
            '`truncation_mode="keep_end"` cuts the oldest part of the prompt.',
            {"max_length": 8, "truncation_mode": "keep_end"},
            warns="The `'keep_end'` truncation mode is deprecated",
        ),
        Row(
            AREA,
            "truncation that cuts a target",
            "A cut item is another item, or none.",
            {"max_length": 8},
            refused=r"train row \d+: .*would cut the target.*set `max_length` to at least",
            remedy="Raise `max_length`, shorten the history, or keep the end.",
        ),
        Row(
            AREA,
            "packing (bfd)",
            "CPO and CPD; packed rows keep no history.",
            {"packing": True, "packing_strategy": "bfd", **packed},
            ilrec=with_catalogue,
        ),
        Row(
            AREA,
            "packing (bfd_split)",
            "Long rows are split; the tail of a cut item is plain text.",
            {"packing": True, "packing_strategy": "bfd_split", **packed},
            ilrec=with_catalogue,
        ),
        Row(
            AREA,
            "packing (wrapped)",
            "Rows are cut anywhere; the tail of a cut item is plain text.",
            {"packing": True, "packing_strategy": "wrapped", **packed},
            ilrec=with_catalogue,
        ),
        Row(
            AREA,
            "packing with rewards",
            "Packing joins rows and drops the `history` that rewards are computed from.",
            {"packing": True},
            refused="Packing joins rows and drops the `history` column.*Set `packing=False`",
            remedy="`packing=False`, or `crr_weight=0`; `padding_free=True` keeps histories.",
        ),
        Row(
            AREA,
            "eval_packing with rewards",
            "As packing.",
            evaluated(eval_packing=True),
            lambda: {"eval_dataset": dataset()},
            refused="Packing joins rows and drops the `history` column.*`eval_packing=False`",
            remedy="`eval_packing=False`, or `crr_weight=0`.",
        ),
        Row(
            AREA,
            "packing rows of several targets",
            "Each target keeps its place in its item.",
            {"packing": True, **packed},
            train_on(as_sequence),
            with_catalogue,
            check=keeps_every_target,
        ),
        Row(
            AREA,
            "padding_free",
            "Rows are joined without padding; histories are kept.",
            {"padding_free": True, "max_length": None},
        ),
        Row(
            AREA,
            "eval_packing",
            "Evaluation rows are packed, training rows are not.",
            evaluated(eval_packing=True, max_length=24),
            lambda: {"eval_dataset": dataset()},
            with_catalogue,
        ),
        Row(
            AREA,
            "formatting_func",
            "Turns rows into text; every token is a target.",
            {},
            lambda: {
                "train_dataset": dataset(lambda row: {"before": row["prompt"], "after": row["completion"]}),
                "formatting_func": lambda row: row["before"] + row["after"],
            },
            none,
        ),
        Row(
            AREA,
            "dict of evaluation sets",
            "Each set has its own metrics.",
            evaluated(),
            two_sets(),
            check=logged_both_sets,
        ),
        Row(
            AREA,
            "DatasetDict for evaluation",
            "As a dict of sets.",
            evaluated(),
            lambda: {"eval_dataset": DatasetDict({"seen": dataset(), "new": dataset()})},
            check=logged_both_sets,
        ),
        Row(
            AREA,
            "compute_metrics",
            "Logits are recomputed, as SFTTrainer does (deprecated in TRL).",
            evaluated(prediction_loss_only=False),
            with_metrics(preprocess_logits_for_metrics=lambda logits, labels: logits),
            warns="`return_outputs=True`, and the logits",
        ),
        Row(
            AREA,
            "batch_eval_metrics",
            "`compute_metrics` with `compute_result`, called for each batch.",
            evaluated(batch_eval_metrics=True, include_for_metrics=["inputs", "loss"], eval_do_concat_batches=False),
            with_metrics(compute_metrics=batched_top1),
            warns="`return_outputs=True`, and the logits",
        ),
        Row(
            AREA,
            "skip_prepare_dataset",
            "Rows go to the collator as they are; every label is a target.",
            {"dataset_kwargs": {"skip_prepare_dataset": True}},
            train_on(as_tokens),
        ),
        Row(
            AREA,
            "evaluate() and predict() on new data",
            "New data is prepared and checked as at construction.",
            check=evaluates_new_data,
        ),
        Row(
            AREA,
            "pad_to_multiple_of and pad_token",
            "Target numbers are padded with the tokens.",
            {"pad_to_multiple_of": 8, "pad_token": "<unk>"},
            warns="`pad_token` is deprecated",
        ),
        Row(
            AREA,
            "eos_token",
            "Another end of the completion.",
            {"eos_token": "<end>"},
        ),
        Row(
            AREA,
            "shuffle_dataset and several workers",
            "Rows are prepared by several processes and shuffled.",
            {"shuffle_dataset": True, "dataset_num_proc": 2},
        ),
        Row(
            AREA,
            "custom data collator with a catalogue",
            "A batch must say which tokens are a target item, and another collator does not.",
            {},
            lambda: {"data_collator": list},
            refused="the data collator `type` does not. Leave `data_collator` out",
            remedy="Leave `data_collator` out, or pass a subclass of `DataCollatorForItemCompletion`.",
        ),
    ]


def evaluates_new_data(trainer):
    metrics = trainer.evaluate(dataset().select(range(4)))
    assert metrics["eval_loss"] > 0
    assert metrics["eval_ilrec/cpo_loss"] > 0
    metrics = trainer.evaluate({"seen": dataset(), "new": dataset()})
    assert {"eval_seen_loss", "eval_new_loss"} <= set(metrics)
    unknown = dataset(lambda row: {**row, "history": ["ghost"]})
    with pytest.raises(ValueError, match="eval row 0: the history holds 'ghost'"):
        trainer.evaluate(unknown)
