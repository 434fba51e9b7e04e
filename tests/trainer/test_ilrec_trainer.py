"""The trainer: SFT at zero weights, the method's loss and gradient against plain loops, refusals, metrics."""

import math

import pytest
import torch
from datasets import Dataset
from transformers import EarlyStoppingCallback, TrainingArguments, training_args
from trl import SFTConfig, SFTTrainer

from ilrec_trl.evaluation.evaluator import RecommendationEvaluator
from ilrec_trl.evaluation.recommendation_callback import RecommendationCallback
from ilrec_trl.items.item_trie import ItemTrie
from ilrec_trl.trainer import ilrec_trainer
from ilrec_trl.trainer import targets as target_items
from ilrec_trl.trainer._trl import DataCollatorForLanguageModeling
from ilrec_trl.trainer.ilrec_config import ILRecConfig
from ilrec_trl.trainer.ilrec_trainer import ILRecTrainer
from ilrec_trl.trainer.targets import TargetPositions
from tests.trainer.plain_loops import check_loss_and_gradient, fixed_scores


OFF = {"cpo_beta": 0.0, "cpd_weight": 0.0, "crr_weight": 0.0}


def history_of(trainer):
    trainer.train()
    return [log for log in trainer.state.log_history if "loss" in log]


def as_conversation(row):
    return {
        **row,
        "prompt": [{"role": "user", "content": row["prompt"]}],
        "completion": [{"role": "assistant", "content": row["completion"]}],
    }


@pytest.mark.parametrize("conversational", [False, True])
def test_zero_weights_are_sft(conversational, make_model, settings, rows, tokenizer):
    dataset = Dataset.from_list([as_conversation(row) for row in rows] if conversational else rows)
    settings = {**settings, "gradient_accumulation_steps": 2, "per_device_train_batch_size": 4}
    sft = SFTTrainer(make_model(), args=SFTConfig(**settings), train_dataset=dataset, processing_class=tokenizer)
    ours = ILRecTrainer(
        make_model(), args=ILRecConfig(**settings, **OFF), train_dataset=dataset, processing_class=tokenizer
    )
    theirs_log, ours_log = history_of(sft), history_of(ours)
    assert len(theirs_log) == 4
    for theirs, mine in zip(theirs_log, ours_log, strict=True):
        for key in ("loss", "grad_norm", "entropy", "mean_token_accuracy", "num_tokens"):
            assert mine[key] == pytest.approx(theirs[key], rel=1e-6, abs=1e-6)
    for (name, expected), got in zip(sft.model.named_parameters(), ours.model.parameters(), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-6, msg=name)


def test_our_own_pass_is_sft_when_nothing_is_added(make_model, settings, dataset, tokenizer):
    """A distillation too weak to matter sends the batch through our forward instead of TRL's."""
    weights = {**OFF, "cpd_weight": 1e-12}
    sft = SFTTrainer(make_model(), args=SFTConfig(**settings), train_dataset=dataset, processing_class=tokenizer)
    ours = ILRecTrainer(
        make_model(), args=ILRecConfig(**settings, **weights), train_dataset=dataset, processing_class=tokenizer
    )
    for theirs, mine in zip(history_of(sft), history_of(ours), strict=True):
        assert "ilrec/cpd_loss" in mine
        for key in ("loss", "entropy", "mean_token_accuracy", "num_tokens"):
            assert mine[key] == pytest.approx(theirs[key], rel=1e-4)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"layer_vocabulary": "all"},
        {"restrict_to_items": False, "negative_threshold": 0.5},
        {"cpo_penalty": "multiplicative", "cpo_beta": 0.7, "crr_scope": "negatives", "crr_temperature": 0.5},
        {"negative_selection": "top_k", "negative_top_k": 2, "intermediate_layers": [0, 2], "cpd_weight": 0.3},
        {"max_logits_mib": 1e-3},  # three positions at a time
    ],
)
def test_loss_and_gradient_are_those_of_plain_loops(options, make_model, settings, rows, tokenizer, sequences, trie):
    config = ILRecConfig(**{**settings, "crr_weight": 0.6, **options})
    check_loss_and_gradient(ILRecTrainer, config, make_model, rows[:4], tokenizer, sequences, trie)


def test_a_row_of_several_targets_equals_rows_of_one(make_model, settings, items, tokenizer, trie):
    """Every target of a user sequence sees the loss that a row of its own would give it."""
    ids = ["i0", "i1", "i2", "i3"]
    join = lambda chosen: "".join("".join(items[item]) for item in chosen)  # noqa: E731
    together = [{"prompt": join(ids[:1]), "completion": join(ids[1:]), "history": ids[:1], "item": ids[1:]}]
    apart = [
        {"prompt": join(ids[:n]), "completion": join(ids[n : n + 1]), "history": ids[:n], "item": ids[n]}
        for n in (1, 2, 3)
    ]
    sums = []
    for rows in (together, apart):
        trainer = ILRecTrainer(
            make_model().double(),
            args=ILRecConfig(**settings),
            train_dataset=Dataset.from_list(rows),
            processing_class=tokenizer,
            item_trie=trie,
            reward_func=fixed_scores(trie),
        )
        batch = trainer.data_collator([trainer.train_dataset[n] for n in range(len(rows))])
        assert batch["history"] == [ids[:1], ids[:2], ids[:3]]
        assert batch["item"] == ids[1:]
        batch["labels"] = batch["labels"].masked_fill(batch["target_items"] <= 0, -100)  # without the ends of rows
        sums.append(trainer.compute_loss(trainer.model, batch, num_items_in_batch=torch.tensor(1)))
        trainer._sums["train"].clear()
    torch.testing.assert_close(sums[0], sums[1])


def test_accumulation_gives_one_trajectory(make_model, settings, dataset, tokenizer, trie):
    logs, weights = [], []
    for batch_size, steps in ((8, 1), (2, 4), (1, 8)):
        config = ILRecConfig(
            **{**settings, "per_device_train_batch_size": batch_size, "gradient_accumulation_steps": steps}
        )
        trainer = ILRecTrainer(
            make_model(),
            args=config,
            train_dataset=dataset,
            processing_class=tokenizer,
            item_trie=trie,
            reward_func=fixed_scores(trie),
        )
        logs.append(history_of(trainer))
        weights.append(torch.nn.utils.parameters_to_vector(trainer.model.parameters()).detach())
    for other, weight in zip(logs[1:], weights[1:], strict=True):
        for one, two in zip(logs[0], other, strict=True):
            for key in ("loss", "grad_norm", "ilrec/negatives", "ilrec/crr_loss"):
                assert two[key] == pytest.approx(one[key], rel=2e-4)
        torch.testing.assert_close(weight, weights[0], rtol=1e-4, atol=1e-4)


def test_a_fixed_reward_function_is_asked_once_a_target(make_model, settings, dataset, tokenizer, trie):
    scores = fixed_scores(trie)
    logs, calls = [], []
    for is_fixed, mib in ((False, 512.0), (True, 0.0), (True, 512.0)):
        asked = []

        def reward_func(histories, **columns):
            asked.extend(histories)  # noqa: B023
            return scores(histories)

        reward_func.is_fixed = is_fixed
        trainer = ILRecTrainer(
            make_model(),
            args=ILRecConfig(**{**settings, "max_steps": -1, "num_train_epochs": 3}, reward_cache_mib=mib),
            train_dataset=dataset,
            processing_class=tokenizer,
            item_trie=trie,
            reward_func=reward_func,
        )
        asked.clear()  # of the check at construction
        logs.append([(log["loss"], log["grad_norm"], log["ilrec/crr_loss"]) for log in history_of(trainer)])
        calls.append(len(asked))
    assert logs[0] == logs[1] == logs[2]
    assert calls == [3 * len(dataset), 3 * len(dataset), len(dataset)]


def test_training_lowers_the_loss_and_logs_sensible_metrics(make_model, settings, dataset, tokenizer, trie):
    config = ILRecConfig(
        **{**settings, "max_steps": 30, "logging_steps": 10, "eval_strategy": "steps", "eval_steps": 30}
    )
    trainer = ILRecTrainer(
        make_model(),
        args=config,
        train_dataset=dataset,
        eval_dataset=dataset,
        processing_class=tokenizer,
        item_trie=trie,
        reward_func=fixed_scores(trie),
    )
    logs = history_of(trainer)
    assert logs[-1]["loss"] < logs[0]["loss"]
    evaluated = next(log for log in trainer.state.log_history if "eval_loss" in log)
    for metrics, prefix in ((logs[-1], ""), (evaluated, "eval_")):
        ours = {key.removeprefix(f"{prefix}ilrec/"): value for key, value in metrics.items() if "ilrec/" in key}
        assert set(ours) == {
            "cpo_loss",
            "cpd_loss",
            "crr_loss",
            "negatives",
            "negative_mass",
            "without_negatives",
            "top1_layer_0",
            "top1_layer_1",
            "top1_layer_2",
        }
        assert all(math.isfinite(value) for value in ours.values())
        assert 0 < ours["negatives"] < 4  # at most four codes follow any prefix
        for share in ("negative_mass", "without_negatives", "top1_layer_0", "top1_layer_1", "top1_layer_2"):
            assert 0 <= ours[share] <= 1
    assert evaluated["eval_loss"] < logs[0]["loss"]


def test_nothing_beyond_prompt_and_completion_is_needed(make_model, settings, dataset, tokenizer):
    plain = dataset.select_columns(["prompt", "completion"])
    trainer = ILRecTrainer(make_model(), ILRecConfig(**settings), train_dataset=plain, processing_class=tokenizer)
    assert (trainer.cpo_beta, trainer.crr_weight) == (1.0, 0.0)
    logs = history_of(trainer)
    assert logs[-1]["loss"] < logs[0]["loss"]
    assert logs[0]["ilrec/negatives"] > 0


def test_an_sft_config_gets_the_defaults_of_ilrec(make_model, settings, dataset, tokenizer, trie):
    trainer = ILRecTrainer(
        make_model(), args=SFTConfig(**settings), train_dataset=dataset, processing_class=tokenizer, item_trie=trie
    )
    assert isinstance(trainer.args, ILRecConfig)
    assert trainer.args.learning_rate == settings["learning_rate"]
    assert trainer.cpo_beta == 3.0
    assert trainer.intermediate_layers == [0, 1, 2]
    assert "ilrec/negatives" in history_of(trainer)[0]


def test_an_sft_config_is_kept_as_it_is(make_model, settings, dataset, tokenizer):
    args = SFTConfig(**settings)
    args.learning_rate, args.of_my_script = 0.5, "kept"
    trainer = ILRecTrainer(make_model(), args, train_dataset=dataset, processing_class=tokenizer)
    assert (trainer.args.learning_rate, trainer.args.of_my_script) == (0.5, "kept")
    assert (trainer.args.intermediate_layers, trainer.args.cpd_weight) == ("auto", 0.05)
    assert type(args) is SFTConfig


@pytest.mark.parametrize("args", [{}, "runs"])
def test_other_arguments_are_refused(args, make_model, dataset, tokenizer):
    with pytest.raises(TypeError, match="`args` must be an `ILRecConfig`, an `SFTConfig` or `TrainingArguments`, got"):
        ILRecTrainer(make_model(), args, train_dataset=dataset, processing_class=tokenizer)


def test_training_arguments_and_none_get_the_defaults_of_sft_and_ilrec(
    make_model, settings, dataset, tokenizer, monkeypatch, tmp_path
):
    plain = {
        name: settings[name] for name in ("output_dir", "report_to", "use_cpu", "bf16", "activation_checkpointing")
    }
    trainer = ILRecTrainer(make_model(), TrainingArguments(**plain), train_dataset=dataset, processing_class=tokenizer)
    assert isinstance(trainer.args, ILRecConfig)
    monkeypatch.setattr(training_args, "is_torch_bf16_gpu_available", lambda: True)
    monkeypatch.chdir(tmp_path)
    model = make_model()
    model.config._name_or_path = "me/tiny"
    trainer = ILRecTrainer(model, train_dataset=dataset, processing_class=tokenizer)
    assert trainer.args.output_dir == "tiny-ILRec"
    assert trainer.args.cpd_weight == 0.05
    assert {"trl", "sft", "ilrec"} <= set(trainer.model.model_tags)


def test_a_model_of_one_layer_trains_as_sft_without_a_catalogue(
    make_model, settings, dataset, tokenizer, trie, monkeypatch
):
    warned = []
    monkeypatch.setattr(ilrec_trainer.logger, "warning", warned.append)
    shallow = {"num_hidden_layers": 1}
    ours = ILRecTrainer(
        make_model(**shallow), SFTConfig(**settings), train_dataset=dataset, processing_class=tokenizer
    )
    assert len(warned) == 1
    assert "has 1 decoder layer(s), so there is no intermediate layer to mine negatives from" in warned[0]
    sft = SFTTrainer(make_model(**shallow), SFTConfig(**settings), train_dataset=dataset, processing_class=tokenizer)
    assert [log["loss"] for log in history_of(ours)] == [log["loss"] for log in history_of(sft)]
    for asked in ({"item_trie": trie}, {"args": ILRecConfig(**settings, intermediate_layers=1)}):
        arguments = {"args": SFTConfig(**settings), **asked}
        with pytest.raises(ValueError, match="at least 2 are needed"):
            ILRecTrainer(make_model(**shallow), train_dataset=dataset, processing_class=tokenizer, **arguments)


def test_language_modeling_data_trains(make_model, settings, rows, tokenizer):
    dataset = Dataset.from_list([{"text": row["prompt"] + row["completion"]} for row in rows])
    trainer = ILRecTrainer(
        make_model(), args=ILRecConfig(**settings), train_dataset=dataset, processing_class=tokenizer
    )
    logs = history_of(trainer)
    assert all(math.isfinite(log["loss"]) for log in logs)
    assert logs[-1]["loss"] < logs[0]["loss"]


def test_pad_and_padding_of_the_vocabulary_are_no_negatives(make_model, settings, dataset, tokenizer):
    model = make_model()
    trainer = ILRecTrainer(model, args=ILRecConfig(**settings), train_dataset=dataset, processing_class=tokenizer)
    candidates = trainer.ilrec_loss.candidates(None, torch.zeros(1, model.config.vocab_size))
    assert candidates[0].nonzero().flatten().tolist() == list(range(1, len(tokenizer)))


# ------------------------------------------------------------------------------------------------------- refusals


def build(make_model, settings, dataset, tokenizer, options=None, **kwargs):
    return ILRecTrainer(
        make_model(),
        args=ILRecConfig(**{**settings, **(options or {})}),
        train_dataset=dataset,
        processing_class=tokenizer,
        **kwargs,
    )


def test_a_cut_target_is_refused_with_its_row(make_model, settings, rows, tokenizer, trie):
    longest = max(range(len(rows)), key=lambda n: len(rows[n]["history"]))
    length = len(rows[longest]["history"]) * 3 + 4
    too_long = [n for n, row in enumerate(rows) if len(row["history"]) * 3 + 4 > length - 1]
    message = (
        rf"train row {too_long[0]}: the row has {length} tokens.*`max_length={length - 1}`.*would cut the target"
        rf".*at least {length}"
    )
    with pytest.raises(ValueError, match=message):
        build(make_model, settings, Dataset.from_list(rows), tokenizer, {"max_length": length - 1}, item_trie=trie)


@pytest.mark.parametrize("packing", [False, True])
def test_without_a_catalogue_cut_completions_train_as_with_sft_and_are_warned_of(
    packing, make_model, settings, rows, tokenizer, monkeypatch
):
    warned = []
    monkeypatch.setattr(target_items.logger, "warning_once", warned.append)
    rows = [{"prompt": "<a_0>" * n, "completion": "<b_1><c_1>"} for n in (1, 2, 3, 6)] * 2
    options = {**settings, **OFF, "max_length": 5, "packing": packing}
    ours = ILRecTrainer(
        make_model(), ILRecConfig(**options), train_dataset=Dataset.from_list(rows), processing_class=tokenizer
    )
    sft = SFTTrainer(
        make_model(),
        SFTConfig(**{name: value for name, value in options.items() if name not in OFF}),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
    )
    assert ours.train_dataset["labels"] == sft.train_dataset["labels"]
    assert set(warned) == {warned[0]}
    assert "`max_length=5` (keep_start) cuts completions of the train data set" in warned[0]
    for mine, theirs in zip(ours.train_dataset, sft.train_dataset, strict=True):
        assert len(mine["target_items"]) == len(theirs["input_ids"])
    build(make_model, {**settings, "max_length": 5, "packing": packing}, Dataset.from_list(rows), tokenizer).train()


def test_a_completion_that_is_no_item_is_refused(make_model, settings, rows, tokenizer, trie):
    rows[5] = {**rows[5], "completion": "<a_0><a_0><a_0>"}
    for row in rows:
        del row["item"]
    with pytest.raises(
        ValueError, match=r"train row 5: the completion '<a_0> <a_0> <a_0> .*not an item of `item_trie`"
    ):
        build(make_model, settings, Dataset.from_list(rows), tokenizer, item_trie=trie)


def test_a_completion_that_is_another_item_is_refused(make_model, settings, rows, items, tokenizer, trie):
    other = next(item for item in items if items[item] != items[rows[2]["item"]])
    rows[2] = {**rows[2], "item": other}
    with pytest.raises(ValueError, match=rf"train row 2: .*is not the row's item '{other}'"):
        build(make_model, settings, Dataset.from_list(rows), tokenizer, item_trie=trie)


@pytest.mark.parametrize(("column", "value"), [("history", ["i0", "ghost"]), ("item", "ghost")])
def test_an_unknown_item_is_refused(column, value, make_model, settings, rows, tokenizer, trie):
    rows[7] = {**rows[7], column: value}
    with pytest.raises(
        ValueError, match=r"train row 7: .*'ghost' \(str\).*not an item of `item_trie` \(ids such as 'i"
    ):
        build(make_model, settings, Dataset.from_list(rows), tokenizer, item_trie=trie)


def test_bad_rows_of_the_evaluation_set_are_refused_too(make_model, settings, rows, dataset, tokenizer, trie):
    rows[3] = {**rows[3], "history": ["ghost"]}
    with pytest.raises(ValueError, match="eval row 3"):
        build(make_model, settings, dataset, tokenizer, item_trie=trie, eval_dataset=Dataset.from_list(rows))


@pytest.mark.parametrize(
    ("options", "arguments", "message"),
    [
        ({"crr_weight": 1.0}, {}, "needs item scores, but there is no `reward_func`"),
        ({}, {"reward_func": lambda histories: None}, "but there is no `item_trie`"),
        ({"packing": True}, {"reward_func": lambda histories: None, "item_trie": "trie"}, "Set `packing=False`"),
        ({"intermediate_layers": 4}, {}, "has only 3"),
        ({"intermediate_layers": [3]}, {}, "indices from 0 to 2"),
    ],
)
def test_impossible_combinations_are_refused(
    options, arguments, message, make_model, settings, dataset, tokenizer, trie
):
    arguments = {key: trie if value == "trie" else value for key, value in arguments.items()}
    with pytest.raises(ValueError, match=message):
        build(make_model, settings, dataset, tokenizer, options, **arguments)


def test_something_else_than_a_trie_is_refused(make_model, settings, dataset, tokenizer):
    with pytest.raises(TypeError, match="must be an `ItemTrie`, got `dict`"):
        build(make_model, settings, dataset, tokenizer, item_trie={})


def test_a_trie_of_another_vocabulary_is_refused(make_model, settings, dataset, tokenizer, sequences):
    trie = ItemTrie.from_sequences({**sequences, "alien": [6, 900]})
    with pytest.raises(ValueError, match="uses token 900, but the vocabulary has 20 entries"):
        build(make_model, settings, dataset, tokenizer, item_trie=trie)


def test_rewards_without_histories_are_refused(make_model, settings, dataset, tokenizer, trie):
    with pytest.raises(ValueError, match="train data set has no `history` column"):
        build(
            make_model,
            settings,
            dataset.remove_columns("history"),
            tokenizer,
            item_trie=trie,
            reward_func=fixed_scores(trie),
        )


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        (torch.ones(1, 2), r"has shape \(1, 2\), expected \(1, 30\)"),
        (torch.full((1, 30), -1.0), "score -1.0 at row 0, column 0"),
        (torch.zeros(1, 30), "score 0 to every item"),
    ],
)
def test_scores_that_cannot_be_used_are_refused_before_training(
    scores, message, make_model, settings, dataset, tokenizer, trie
):
    with pytest.raises(ValueError, match=message):
        build(
            make_model, settings, dataset, tokenizer, item_trie=trie, reward_func=lambda histories, **columns: scores
        )


def test_a_collator_that_marks_nothing_is_refused_with_a_trie(make_model, settings, dataset, tokenizer, trie):
    from transformers import default_data_collator

    with pytest.raises(ValueError, match="Leave `data_collator` out"):
        build(make_model, settings, dataset, tokenizer, item_trie=trie, data_collator=default_data_collator)


def test_a_collator_of_ones_own_must_mark_targets(make_model, settings, dataset, tokenizer, trie):
    class Collator(DataCollatorForLanguageModeling):
        pass

    with pytest.raises(ValueError, match="the data collator `Collator` does not"):
        build(make_model, settings, dataset, tokenizer, item_trie=trie, data_collator=Collator(tokenizer.pad_token_id))


def test_rows_of_several_targets_without_numbers_are_refused(make_model, settings, tokenizer, sequences, trie):
    tokens = [token for item in ("i0", "i1", "i2") for token in sequences[item]]
    dataset = Dataset.from_list([{"input_ids": tokens, "labels": [-100] * 3 + tokens[3:]}] * 8)
    trainer = build(
        make_model,
        settings,
        dataset,
        tokenizer,
        {"dataset_kwargs": {"skip_prepare_dataset": True}},
        item_trie=trie,
    )
    with pytest.raises(ValueError, match="are in no item of `item_trie`. Let the trainer prepare the data set"):
        trainer.train()


def test_titles_end_with_the_end_token(make_model, settings, tokenizer):
    """One title begins another: only the end token tells them apart, and it is mined like any other token."""
    sequences = {
        "pen": tokenizer.convert_tokens_to_ids(["<a_0>"]),
        "set": tokenizer.convert_tokens_to_ids(["<a_0>", "<b_0>"]),
    }
    trie = ItemTrie.from_sequences(sequences, end_token_id=tokenizer.eos_token_id)
    rows = [
        {"prompt": "<c_0>", "completion": "<a_0>", "history": ["set"], "item": "pen"},
        {"prompt": "<c_1>", "completion": "<a_0><b_0>", "history": ["pen"], "item": "set"},
    ]
    trainer = build(make_model, settings, Dataset.from_list(rows), tokenizer, item_trie=trie)
    batch = trainer.data_collator([trainer.train_dataset[n] for n in range(2)])
    assert batch["target_items"].tolist() == [[0, 1, -1, 0], [0, 2, 2, -2]]
    targets = TargetPositions.from_batch(batch["input_ids"], batch["labels"], batch["target_items"], trie)
    rows, tokens = targets.continuations(trie, slice(0, 5))
    following = [set(tokens[rows == row].tolist()) for row in range(5)]
    first, second = sequences["set"]
    end = tokenizer.eos_token_id
    assert following == [{first}, {second, end}, {first}, {second, end}, {end}]


# --------------------------------------------------------------------------------- ranking metrics during training


@pytest.mark.parametrize("early_stopping_first", [True, False])
def test_ranking_metrics_choose_the_best_model_and_stop_early(
    early_stopping_first, make_model, settings, dataset, tokenizer, trie
):
    """The order in which the user lists the callbacks does not matter."""
    evaluator = RecommendationEvaluator(dataset, trie, num_beams=10)
    callbacks = [RecommendationCallback(evaluator), EarlyStoppingCallback(early_stopping_patience=2)]
    options = {
        "max_steps": 40,
        "eval_strategy": "steps",
        "eval_steps": 2,
        "save_strategy": "steps",
        "save_steps": 2,
        "save_total_limit": 1,
        "load_best_model_at_end": True,
        "metric_for_best_model": "ndcg@10",
        "greater_is_better": True,
        "learning_rate": 0.3,
    }
    trainer = build(
        make_model,
        settings,
        dataset,
        tokenizer,
        options,
        item_trie=trie,
        eval_dataset=dataset,
        callbacks=callbacks[::-1] if early_stopping_first else callbacks,
    )
    trainer.train()
    values = [log["eval_ndcg@10"] for log in trainer.state.log_history if "eval_ndcg@10" in log]
    assert len(values) >= 3
    assert trainer.state.best_metric == max(values)
    assert trainer.state.global_step < 40
    assert len(values) == values.index(max(values)) + 3  # two evaluations without improvement, then the stop
    assert evaluator(trainer.model, tokenizer)["ndcg@10"] == pytest.approx(max(values))
