"""Rows of the matrix: architectures, built tiny from their configurations."""

import torch
import transformers
from torch import nn

from .rows import Row
from .workbench import make_model, shared_tokenizer


AREA = "Models"
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
GEMMA = {"query_pre_attn_scalar": 8}


def build(family, options):
    """A model of a transformers family, with norms and biases that do something."""
    tokenizer = shared_tokenizer()
    settings = {
        "vocab_size": len(tokenizer) + 2,
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 64,
        "pad_token_id": tokenizer.pad_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "bos_token_id": None,
    }
    config_class = getattr(transformers, f"{family}TextConfig" if family == "Gemma3" else f"{family}Config")
    model_class = getattr(transformers, "GPT2LMHeadModel" if family == "GPT2" else f"{family}ForCausalLM")
    torch.manual_seed(0)
    model = model_class(config_class(**{**settings, **options}))
    for parameter in model.parameters():
        if parameter.dim() == 1:
            nn.init.uniform_(parameter, 0.5, 1.5)
    return model


def model(family, **options):
    return lambda: {"model": build(family, options)}


def logs_router_loss(trainer):
    assert all(log["aux_loss"] > 0 for log in trainer.state.log_history if "loss" in log)


def shallow():
    return {"model": make_model(num_hidden_layers=1)}


def encoder_decoder():
    config = transformers.T5Config(vocab_size=32, d_model=16, d_ff=32, num_layers=2, num_heads=2, d_kv=8)
    config.eos_token_id = config.pad_token_id = 0
    return {"model": transformers.T5ForConditionalGeneration(config)}


def rows():
    dropless = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    families = [
        ("Llama, tied head", model("Llama", tie_word_embeddings=True)),
        ("Qwen2", model("Qwen2")),
        ("Qwen3", model("Qwen3")),
        ("Mistral", model("Mistral")),
        ("Gemma", model("Gemma")),
        ("Gemma2, soft-capping", model("Gemma2", final_logit_softcapping=3.0, **GEMMA)),
        ("Gemma3 text", model("Gemma3", **GEMMA)),
        ("Phi3", model("Phi3")),
        ("Phi, head with bias", model("Phi")),
        ("GPT-NeoX", model("GPTNeoX")),
        ("GPT-2", model("GPT2", n_inner=32, **dropless)),
        ("OPT, projected", model("OPT", ffn_dim=32, word_embed_proj_dim=8, dropout=0.0)),
        ("Cohere, logit scale", model("Cohere", logit_scale=0.25)),
        ("Granite, logit scaling", model("Granite", logits_scaling=4.0)),
        ("Olmo", model("Olmo")),
        ("Lfm2, convolutions and attention", model("Lfm2", layer_types=["conv", "full_attention"])),
    ]
    experts = [
        ("GptOss", model("GptOss", num_local_experts=4, num_experts_per_tok=2)),
        ("Qwen3-MoE", model("Qwen3Moe", **EXPERTS)),
    ]
    quick = {"max_steps": 4}
    return [
        Row(AREA, "Llama, untied head", "Any decoder that holds its layers in one list is read by one rule."),
        *(Row(AREA, name, "", quick, make) for name, make in families),
        Row(
            AREA,
            "FalconMamba",
            "State-space layers.",
            quick,
            model("FalconMamba", state_size=4),
            tolerance=1e-3,  # equal in the first step; after it Adam enlarges what float32 rounds
        ),
        *(
            Row(
                AREA,
                name,
                "The router loss is kept (`router_aux_loss_coef`).",
                {**quick, "router_aux_loss_coef": 0.1},
                make,
                check=logs_router_loss,
            )
            for name, make in experts
        ),
        Row(
            AREA,
            "a model of one layer with a catalogue",
            "There is no layer before the last to mine from. Without `item_trie` it trains as with SFTTrainer, with "
            "a warning.",
            arguments=shallow,
            refused=r"the model has 1 decoder layer\(s\); at least 2 are needed",
            remedy="Use a deeper model, or SFTTrainer.",
        ),
        Row(
            AREA,
            "encoder-decoder models",
            "The layers that predict items are not those of a causal language model.",
            arguments=encoder_decoder,
            refused="cannot read the intermediate layers of `T5ForConditionalGeneration`",
            remedy="Use a decoder-only causal language model.",
        ),
    ]
