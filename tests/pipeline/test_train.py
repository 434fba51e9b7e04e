"""SFT and ILRec differ in the loss alone."""

import pytest
import torch

from ilrec_trl.data.splits import sample
from ilrec_trl.pipeline.options import (
    DataOptions,
    EvaluationOptions,
    InputError,
    ModelOptions,
    TeacherOptions,
    TrainingOptions,
)
from ilrec_trl.pipeline.prepare import prepare
from ilrec_trl.pipeline.prepared_data import PreparedData
from ilrec_trl.pipeline.teacher import train_teacher
from ilrec_trl.pipeline.train import build_model, train_method, trainer_arguments


@pytest.fixture(scope="module")
def prepared(data_folder):
    return prepare(DataOptions(data=str(data_folder)))


@pytest.fixture
def model_options():
    return ModelOptions(hidden_size=16, intermediate_size=32, num_hidden_layers=3, num_attention_heads=2)


def test_the_seed_decides_the_weights(prepared, model_options):
    first, second, other = (build_model(prepared, model_options, seed) for seed in (0, 0, 1))
    pairs = [*zip(first.parameters(), second.parameters(), strict=True)]
    assert all(torch.equal(a, b) for a, b in pairs)
    assert not torch.equal(first.lm_head.weight, other.lm_head.weight)


def test_arguments_are_shared_but_for_the_losses(prepared):
    training = TrainingOptions(trainer_args='{"adam_beta2": 0.98, "crr_scope": "negatives"}')
    sft, ilrec = (trainer_arguments(method, prepared, training, "out", 3) for method in ("sft", "ilrec"))
    assert sft["adam_beta2"] == 0.98
    assert sft.items() <= ilrec.items()
    assert set(ilrec) - set(sft) == {"intermediate_layers", "cpo_beta", "cpd_weight", "crr_weight", "crr_scope"}


@pytest.mark.parametrize(
    ("extra", "message"), [("{", "not JSON"), ('{"learning": 1}', "ILRecConfig has no field 'learning'")]
)
def test_bad_trainer_args_are_refused(prepared, extra, message):
    with pytest.raises(InputError, match=message):
        trainer_arguments("sft", prepared, TrainingOptions(trainer_args=extra), "out", 0)


def test_ilrec_without_its_losses_is_sft_in_the_pipeline(prepared, model_options, tmp_path):
    training = TrainingOptions(
        num_train_epochs=2, per_device_train_batch_size=16, cpo_beta=0.0, cpd_weight=0.0, crr_weight=0.0
    )
    evaluation = EvaluationOptions(validation_users=20)
    trained = {}
    for method in ("sft", "ilrec"):
        model = build_model(prepared, model_options, seed=5)
        trained[method] = train_method(method, prepared, model, training, evaluation, tmp_path / method, seed=5)
    for a, b in zip(trained["sft"].model.parameters(), trained["ilrec"].model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
    assert trained["sft"].settings["validation_ndcg@10"] == trained["ilrec"].settings["validation_ndcg@10"]
    assert trained["sft"].settings["best_epoch"] in (1.0, 2.0)
    assert (tmp_path / "ilrec" / "model.safetensors").is_file()


def test_sample_is_fixed_and_keeps_order():
    assert sample(list(range(10)), 20) == list(range(10))
    assert sample(list(range(100)), 5) == sorted(sample(list(range(100)), 5))
    assert len(sample(list(range(100)), 5)) == 5


def test_a_last_fit_trains_on_validation_items_and_chooses_nothing(data_folder, model_options, tmp_path):
    plain, whole = (prepare(DataOptions(data=str(data_folder), train_on_validation=flag)) for flag in (False, True))
    assert "Validation items were trained on" in " ".join(whole.notes)
    assert whole.splits.test == plain.splits.test
    for (user, items), (_, longer), question in zip(
        plain.splits.train, whole.splits.train, plain.splits.validation, strict=True
    ):
        assert longer == [*items, question.item]
        assert user == question.user
    whole.save(tmp_path / "data")
    assert PreparedData.load(tmp_path / "data").splits == whole.splits

    teacher = TeacherOptions(sasrec_hidden_size=16, sasrec_epochs=2, sasrec_folds=1)
    assert train_teacher(whole, teacher, tmp_path / "sasrec", 0).config.hidden_size == 16
    training = TrainingOptions(num_train_epochs=2, per_device_train_batch_size=16, crr_weight=0.0)
    model = build_model(whole, model_options, seed=0)
    trained = train_method("ilrec", whole, model, training, EvaluationOptions(), tmp_path / "ilrec")
    assert not any(key.startswith("eval_") for log in trained.history for key in log)
    assert not {"best_epoch", "validation_ndcg@10"} & set(trained.settings)


def test_a_model_the_data_was_not_prepared_for_is_refused(prepared):
    with pytest.raises(InputError, match="prepared for a small Llama with a tokenizer of its own, but --model is gpt"):
        build_model(prepared, ModelOptions(model="gpt"), seed=0)
