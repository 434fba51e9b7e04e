"""Rows of the matrix: adapters, and quantised models."""

import atexit
import functools
import shutil
import tempfile

import peft
import torch
from transformers import BitsAndBytesConfig

from .rows import Row
from .workbench import make_model, shared_tokenizer


AREA = "PEFT"
LINEAR = "all-linear"


def adapted(config_class=peft.LoraConfig, model_options=None, **options):
    """A fresh configuration each time: PEFT writes to the one it is given."""

    def make():
        torch.manual_seed(0)
        settings = {"task_type": "CAUSAL_LM", **options}
        return {"model": make_model(**(model_options or {})), "peft_config": config_class(**settings)}

    return make


def lora(model_options=None, **options):
    return adapted(peft.LoraConfig, model_options, r=8, target_modules=LINEAR, **options)


def new_tokens():
    return sorted(token for text, token in shared_tokenizer().get_vocab().items() if text.startswith("<a_"))


def wrapped():
    torch.manual_seed(0)
    config = peft.LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=LINEAR)
    return {"model": peft.get_peft_model(make_model(), config)}


def lora_is_trained(trainer):
    names = [name for name, parameter in trainer.model.named_parameters() if parameter.requires_grad]
    assert names
    assert all("lora" in name for name in names)


@functools.cache
def saved_model():
    """The path of a tiny model, for what is loaded by the trainer itself."""
    folder = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, folder)
    make_model(hidden_size=64, intermediate_size=64).save_pretrained(folder)
    return folder


def quantised(**options):
    def make():
        config = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.float32,
        )
        arguments = lora(**options)()
        return {**arguments, "model": saved_model(), "quantization_config": config}

    return make


def is_quantised(trainer):
    kinds = {type(module).__name__ for module in trainer.model.modules()}
    assert "Linear4bit" in kinds
    assert trainer.model.get_base_model().model.layers[0].mlp.up_proj.weight.quant_state.nested


def adapter(name, says, arguments, options=(), **more):
    options = {"max_steps": 6, "learning_rate": 0.05, **dict(options)}
    return Row(AREA, name, says, options, arguments, **more)


def rows():
    saved = "tests/compatibility/test_adapters.py::test_an_adapter_recommends_the_same_after_saving_and_merging"
    virtual = {"learning_rate": 0.3}
    tied = {"tie_word_embeddings": True}
    return [
        adapter("LoRA", "On all linear layers.", lora(), check=lora_is_trained),
        adapter("DoRA", "", lora(use_dora=True)),
        adapter("rsLoRA", "", lora(use_rslora=True)),
        adapter("LoRA with activation checkpointing", "", lora(), {"activation_checkpointing": True}),
        adapter("prompt tuning", "Virtual tokens.", adapted(peft.PromptTuningConfig, num_virtual_tokens=4), virtual),
        adapter(
            "prefix tuning",
            "Virtual keys and values.",
            adapted(peft.PrefixTuningConfig, num_virtual_tokens=4),
            virtual,
            warns="`past_key_values` is deprecated",  # PEFT 0.21's name of what transformers 5.24 calls `cache`
        ),
        adapter("p-tuning", "A prompt encoder.", adapted(peft.PromptEncoderConfig, num_virtual_tokens=4), virtual),
        adapter("an already wrapped PeftModel", "", wrapped),
        adapter(
            "modules_to_save", "Head and embedding trained whole.", lora(modules_to_save=["lm_head", "embed_tokens"])
        ),
        adapter(
            "modules_to_save, tied head",
            "With `ensure_weight_tying=True`; without it PEFT unties the head.",
            lora(tied, modules_to_save=["embed_tokens"], ensure_weight_tying=True),
        ),
        adapter(
            "trainable_token_indices",
            "New semantic-ID tokens of an untied model, in embedding and head.",
            lambda: lora(trainable_token_indices={"embed_tokens": new_tokens(), "lm_head": new_tokens()})(),
            parent_fails=True,
        ),
        adapter(
            "trainable_token_indices, embedding alone",
            "",
            lambda: lora(trainable_token_indices={"embed_tokens": new_tokens()})(),
        ),
        adapter(
            "trainable_token_indices, tied head",
            "New semantic-ID tokens, in the tied head too.",
            lambda: lora(tied, trainable_token_indices={"embed_tokens": new_tokens()})(),
            parent_fails=True,
        ),
        adapter(
            "LoRA on the head",
            "TRL multiplies by the head's weight and would never train the adapter.",
            adapted(peft.LoraConfig, r=4, target_modules=["lm_head"]),
            refused="Applying a PEFT adapter to `lm_head` is not supported",
            remedy="Take `lm_head` out of `target_modules`, or name it in `modules_to_save`.",
        ),
        adapter(
            "QLoRA, nf4 with double quantisation",
            "`quantization_config`, through bitsandbytes' CPU kernels.",
            quantised(),
            {"learning_rate": 0.01},
            check=is_quantised,
        ),
        adapter(
            "QLoRA with activation checkpointing",
            "As TRL's defaults have it.",
            quantised(),
            {"activation_checkpointing": True, "bf16": True, "learning_rate": 0.01},
            tolerance=5e-2,  # of a norm in bfloat16, which differs from one processor to another
        ),
        Row(AREA, "adapters saved, loaded, merged", "They recommend the same afterwards.", test=saved),
    ]
