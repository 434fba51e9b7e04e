"""Options that contradict each other or would have no effect: each is refused by its name, before any work."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import fields
from typing import Any, NamedTuple

from .item_options import CodeOptions, CollaborativeOptions, ItemSourceOptions, TextVectorOptions
from .options import (
    DataOptions,
    InputError,
    ModelOptions,
    PipelineOptions,
    RankingOptions,
    TeacherOptions,
    TrainingOptions,
    changed,
    mapping,
)


ILREC_FIELDS = ("intermediate_layers", "cpo_beta", "cpd_weight", "crr_weight")
_REWARD_FIELDS = ("reward_temperature", "calibrate_rewards", "transition_share")
_SOURCE_FIELDS = (
    *("data_format", "items", "items_columns", "user_column", "item_column", "time_column", "rating_column"),
    *("time_unit", "in_order", "min_rating", "bad_rows"),
)
_STORE_FIELDS = ("store_users", "store_items", "store_seed")
_SIZE_FIELDS = (
    *("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "tie_word_embeddings"),
    "attention_dropout",
)
_SASREC_FIELDS = (
    *("sasrec_hidden_size", "sasrec_dropout", "sasrec_learning_rate", "sasrec_epochs", "sasrec_batch_size"),
    *("sasrec_item_tokens", "sasrec_folds", "sasrec_ensemble"),
)


class Rule(NamedTuple):
    """Where `applies`, the options of `names` have no effect, for a `reason` that a user can act on."""

    applies: bool
    names: Iterable[str]
    reason: str


def check_run(options: PipelineOptions) -> None:
    """Refuse what `ilrec run` could not use."""
    check_data(options.data, options.model)
    check_model(options.model)
    check_teacher(options.teacher)
    without = options.training.crr_weight == 0
    _refuse(options.teacher, Rule(without, _REWARD_FIELDS, "--crr_weight 0 trains without rewards"))
    whole = options.data.train_on_validation
    _refuse(options.evaluation, Rule(whole, ["validation_users"], "--train_on_validation ranks no validation users"))
    _refuse(options.training, _unused_layers(options.training))
    check_evaluation(options.evaluation)


def _unused_layers(training: TrainingOptions) -> Rule:
    alone = training.cpo_beta == 0 and training.cpd_weight == 0
    return Rule(alone, ["intermediate_layers"], "--cpo_beta 0 and --cpd_weight 0 read no intermediate layer")


def check_data(data: DataOptions, model: ModelOptions | None = None) -> None:
    """Refuse what reading and splitting the data could not use."""
    own_tokenizer = model is None or model.model is None
    trained = own_tokenizer and (data.item_format == "titles" or bool(data.tasks))
    by_time = ("validation_start", "test_start", "validation_share", "test_share")
    _refuse(
        data,
        Rule(
            data.data is None,
            _SOURCE_FIELDS,
            "without --data a store is generated, and this is about data of your own",
        ),
        Rule(data.data is not None, _STORE_FIELDS, "--data is given, and this is about the generated store"),
        Rule(data.in_order, ["time_column", "time_unit"], "--in_order reads no times"),
        Rule(data.min_rating is None, ["rating_column"], "ratings are read for --min_rating alone"),
        Rule(
            data.split != "global_time",
            by_time,
            "dates and shares of validation and test are for --split global_time; leave-one-out has none",
        ),
        Rule(data.train_users_share == 1, ["train_users_seed"], "--train_users_share 1 draws no users"),
        Rule(
            len(data.template or []) < 2 and not data.tasks,
            ["prompt_seed"],
            "without several templates or --tasks nothing is drawn for the prompts",
        ),
        Rule(not trained, ["vocab_size"], "no tokenizer is trained on titles"),
        Rule(
            not data.conversational,
            ["system_prompt", "chat_template_kwargs"],
            "prompts are text without --conversational",
        ),
    )


def check_model(model: ModelOptions) -> None:
    """Refuse sizes of the small Llama that cannot be, and any where a pretrained model is named."""
    _refuse(model, Rule(model.model is not None, _SIZE_FIELDS, "--model is pretrained and has its own sizes"))
    size, heads = model.hidden_size, model.num_attention_heads
    if heads < 1 or size < 1 or size % heads:
        raise InputError(f"--hidden_size is {size}, expected a multiple of --num_attention_heads, {heads}")


def check_teacher(options: TeacherOptions) -> None:
    """Refuse options of SASRec and of the rewards that contradict each other or are out of range."""
    if not 0 <= options.transition_share < 1:
        raise InputError(f"--transition_share is {options.transition_share}, expected a number from 0 to below 1")
    _refuse(options, Rule(options.sasrec is not None, _SASREC_FIELDS, "--sasrec names trained ones"))
    if options.sasrec_folds < 1:
        raise InputError(
            f"--sasrec_folds is {options.sasrec_folds}, expected 2 or more, or 1 for one SASRec of all users"
        )
    if options.calibrate_rewards and (
        options.reward_temperature != 1 or (options.sasrec is None and options.sasrec_folds == 1)
    ):
        raise InputError(NEEDS_FOLDS)


NEEDS_FOLDS = "--calibrate_rewards needs cross-fitted SASRecs, --sasrec_folds 5 say, and no --reward_temperature"


def check_sasrec(options: TeacherOptions) -> None:
    """Refuse what `ilrec sasrec` could not use."""
    check_teacher(options)
    names = ["sasrec", *_REWARD_FIELDS]
    _refuse(options, Rule(True, names, "a SASRec is trained here; ILRec's training reads this"))


def check_train(method: str, options: PipelineOptions) -> None:
    """Refuse what `ilrec train` could not use; `options.data` are those of the prepared data."""
    teacher, training, evaluation = options.teacher, options.training, options.evaluation
    check_model(options.model)
    uses_rewards = method == "ilrec" and training.crr_weight != 0
    plain = "SFT has neither negatives nor rewards"
    _refuse(training, Rule(method == "sft", ILREC_FIELDS, plain), _unused_layers(training))
    why = plain if method == "sft" else "--crr_weight 0 trains without rewards"
    _refuse(teacher, Rule(not uses_rewards, sorted(changed(teacher)), why))
    if method == "sft":
        from trl import SFTConfig  # not at the top, as commands that do not train start faster without

        from ..trainer.ilrec_config import ILRecConfig

        own = {each.name for each in fields(ILRecConfig)} - {each.name for each in fields(SFTConfig)}
        given = mapping("trainer_args", training.trainer_args, '{"max_steps": 10}')
        if names := sorted(given.keys() & own):
            raise InputError(f"SFT does not read {', '.join(names)} of --trainer_args; leave that out")
    if uses_rewards and teacher.sasrec is None:
        raise InputError(
            "ILRec's collaborative rewards need a trained SASRec: give --sasrec FOLDER (from `ilrec sasrec`), or "
            "--crr_weight 0"
        )
    check_teacher(teacher)
    whole, names = options.data.train_on_validation, sorted(changed(evaluation))
    _refuse(evaluation, Rule(whole, names, "the data was prepared with --train_on_validation, so nothing is ranked"))
    check_evaluation(evaluation)


def check_evaluation(evaluation: RankingOptions) -> None:
    """Refuse beams where every item is scored, and fewer beams than the largest cut-off of the metrics."""
    _refuse(evaluation, Rule(evaluation.ranking == "exact", ["num_beams"], "--ranking exact has no beams"))
    if evaluation.num_beams < 10:
        raise InputError(f"--num_beams is {evaluation.num_beams}, expected 10 or more, as Hit@10 is measured")


def check_items_build(
    source: ItemSourceOptions, text: TextVectorOptions, collaborative: CollaborativeOptions, code: CodeOptions
) -> None:
    """Refuse what `ilrec items build` could not use."""
    own, encoder = source.vectors is not None, text.embedding_model is not None
    _refuse(text, Rule(own, sorted(changed(text)), "--vectors takes the place of the texts' vectors"))
    _refuse(text, Rule(encoder, ["dimensions"], "--embedding_model has its own dimensions"))
    _refuse(text, Rule(text.text_template is not None, ["fields"], "--text_template names the fields"))
    _refuse(source, Rule(not own, ["vector_ids"], "--vector_ids are the items of --vectors"))
    names = ["prepared", "collaborative_weight", "collaborative_mode"]
    _refuse(collaborative, Rule(collaborative.sasrec is None, names, "collaborative vectors come from --sasrec"))
    if own and collaborative.sasrec is not None:
        raise InputError("--sasrec is joined with the vectors of texts; join it with --vectors beforehand")


def _refuse(options: Any, *rules: Rule) -> None:
    given = changed(options)
    for applies, names, reason in rules:
        unused = [f"--{name}" for name in names if name in given]
        if applies and unused:
            raise InputError(f"{reason}; leave out {' and '.join(unused)}")
