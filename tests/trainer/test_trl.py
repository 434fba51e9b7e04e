"""Names of TRL and Trainer that are not public: named in one module, and missed with a clear message when they go."""

import ast
import inspect
from pathlib import Path

import pytest
import trl
from transformers import Trainer
from trl.trainer import sft_trainer, utils

from ilrec_trl.trainer import _trl


PACKAGE = Path(_trl.__file__).parents[1]
CHANGED = (
    f"TRL {trl.__version__} changed `{{}}`, which ilrec_trl builds on. Adapt ilrec_trl/trainer/_trl.py (and what "
    "reads it), or lower the upper bound of trl in setup.cfg."
)


def is_private(name):
    return name.startswith("_") and not name.startswith("__")


def private_names(tree):
    """
    Names with a leading underscore that code reads, sets or defines on an object or a class.

    >>> sorted(private_names(ast.parse("class A(B):\\n    _tag = 1\\n    def _f(self): self._x = super()._y")))
    ['_f', '_tag', '_x', '_y']
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and is_private(node.attr):
            yield node.attr
        elif isinstance(node, ast.ClassDef):
            for inner in node.body:
                if isinstance(inner, ast.FunctionDef) and is_private(inner.name):
                    yield inner.name
                targets = inner.targets if isinstance(inner, ast.Assign) else [getattr(inner, "target", None)]
                yield from (target.id for target in targets if isinstance(target, ast.Name) and is_private(target.id))


def names_of_parents():
    """Private methods and attributes of SFTTrainer and the classes above it, those set on `self` among them."""
    names = {name for name in dir(sft_trainer.SFTTrainer) if is_private(name)}
    for owner in sft_trainer.SFTTrainer.__mro__[:-1]:
        for node in ast.walk(ast.parse(inspect.getsource(owner))):
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and is_private(node.attr):
                names.add(node.attr)
    return names


def trl_imports(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "trl":
            yield from ((node.module, name.name) for name in node.names)
        elif isinstance(node, ast.Import):
            yield from (
                (name.name, "") for name in node.names if name.name.split(".")[0] == "trl" and "." in name.name
            )


def test_only_one_module_uses_what_trl_does_not_publish():
    for path in sorted(PACKAGE.rglob("*.py")):
        if path == Path(_trl.__file__):
            continue
        for module, name in trl_imports(path):
            assert module == "trl", f"{path.relative_to(PACKAGE)} imports {name} from {module}: take it from _trl.py"
            assert name in trl.__all__ or hasattr(trl, name)


def test_only_one_module_names_private_methods_and_attributes_of_the_parents():
    parents = names_of_parents()
    for path in sorted((PACKAGE / "trainer").glob("*.py")):
        source = path.read_text(encoding="utf-8")
        if path != Path(_trl.__file__):
            named = parents & set(private_names(ast.parse(source)))
            assert not named, f"{path.name} names {sorted(named)} of SFTTrainer or Trainer: add a hook to _trl.py"
            assert _trl.FUSED_HEAD not in {
                node.value for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Constant)
            }, f"{path.name}: take FUSED_HEAD from _trl.py"


@pytest.mark.parametrize(
    "name", sorted(set(private_names(ast.parse(Path(_trl.__file__).read_text(encoding="utf-8")))))
)
def test_what_the_hooks_rely_on_is_there(name):
    assert name in names_of_parents(), CHANGED.format(name)


@pytest.mark.parametrize("name", [name for name in vars(_trl.HookedSFTTrainer) if not name.startswith("_")])
def test_no_hook_has_the_name_of_something_else(name):
    assert name == "log" or not hasattr(sft_trainer.SFTTrainer, name), f"SFTTrainer has a `{name}` of its own now"
    assert f"self.{name} = " not in inspect.getsource(sft_trainer.SFTTrainer) + inspect.getsource(Trainer)


@pytest.mark.parametrize(
    ("owner", "name", "parameters"),
    [
        (
            sft_trainer.SFTTrainer,
            "_prepare_dataset",
            ["self", "dataset", "processing_class", "args", "packing", "formatting_func", "dataset_name"],
        ),
        (sft_trainer.SFTTrainer, "compute_loss", ["self", "model", "inputs", "return_outputs", "num_items_in_batch"]),
        (sft_trainer.SFTTrainer, "_set_signature_columns_if_needed", ["self"]),
        (sft_trainer.SFTTrainer, "log", ["self", "logs", "start_time"]),
        (sft_trainer.SFTTrainer, "get_tp_size", ["self"]),
        (sft_trainer.SFTTrainer, "create_model_card", ["self", "model_name", "dataset_name", "tags"]),
        (sft_trainer.DataCollatorForLanguageModeling, "torch_call", ["self", "examples"]),
        (utils, "add_fused_lm_head", ["model", "temperature", "cast_lm_head_to_fp32", "outputs"]),
        (utils, "get_config_model_id", ["config"]),
        (utils, "pad", ["tensors", "padding_value", "padding_side", "pad_to_multiple_of"]),
    ],
)
def test_what_is_overridden_has_the_signature_that_ilrec_expects(owner, name, parameters):
    found = getattr(owner, name, None)
    assert found is not None, CHANGED.format(name)
    assert list(inspect.signature(found).parameters) == parameters, CHANGED.format(name)


def test_the_fused_output_has_the_fields_that_the_loss_and_metrics_read():
    fields = {"loss", "log_probs", "entropy", "is_top1", "label_mask", "aux_loss"}
    assert fields <= set(_trl.FusedCausalLMOutput.__dataclass_fields__), CHANGED.format("FusedCausalLMOutput")


@pytest.mark.parametrize(
    "text",
    [
        f"model(**inputs, {_trl.FUSED_HEAD}=True)",
        "self._metrics[mode]",
        'self._signature_columns = ["input_ids", "labels", "seq_lengths"]',
        "self._is_vision_dataset",
        "self._tokenizer",
    ],
)
def test_the_parent_works_as_ilrec_expects(text):
    assert text in inspect.getsource(sft_trainer.SFTTrainer), CHANGED.format(text)
