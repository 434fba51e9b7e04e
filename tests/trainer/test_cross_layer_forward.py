"""Our own path to the logits, on models of many architectures, against the models' own outputs."""

import pytest
import torch
import transformers
from torch import nn

from ilrec_trl.trainer.cross_layer_forward import (
    add_cross_layer_forward,
    find_model_parts,
    resolve_intermediate_layers,
)


COMMON = {
    "vocab_size": 40,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "max_position_embeddings": 32,
}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
ARCHITECTURES = {
    "llama": ("Llama", {}),
    "llama-tied": ("Llama", {"tie_word_embeddings": True}),
    "mistral": ("Mistral", {}),
    "qwen2": ("Qwen2", {}),
    "qwen3": ("Qwen3", {}),
    "qwen3-moe": ("Qwen3Moe", {**EXPERTS, "output_router_logits": True}),
    "gpt-oss": ("GptOss", {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "gemma": ("Gemma", {}),
    "gemma2-softcap": ("Gemma2", {"final_logit_softcapping": 3.0, "query_pre_attn_scalar": 8}),
    "gemma3-text": ("Gemma3", {"query_pre_attn_scalar": 8}),
    "phi3": ("Phi3", {}),
    "phi-head-with-bias": ("Phi", {}),
    "gpt-neox": ("GPTNeoX", {}),
    "gpt2": ("GPT2", {"n_inner": 32}),
    "opt-projected": ("OPT", {"ffn_dim": 32, "word_embed_proj_dim": 8}),
    "cohere-scaled": ("Cohere", {"logit_scale": 0.25}),
    "granite-scaled": ("Granite", {"logits_scaling": 4.0}),
    "olmo": ("Olmo", {}),
}


def build(name):
    family, options = ARCHITECTURES[name]
    config_class = getattr(transformers, f"{family}TextConfig" if family == "Gemma3" else f"{family}Config")
    torch.manual_seed(0)
    model_class = getattr(transformers, "GPT2LMHeadModel" if family == "GPT2" else f"{family}ForCausalLM")
    model = model_class(config_class(**{**COMMON, **options}))
    # a norm and a bias that do something
    for parameter in model.parameters():
        if parameter.dim() == 1:
            nn.init.uniform_(parameter, 0.5, 1.5)
    return model.eval()


def inputs():
    generator = torch.Generator().manual_seed(1)
    input_ids = torch.randint(3, 40, (2, 9), generator=generator)
    labels = input_ids.clone()
    labels[:, :4] = -100
    labels[1, 7:] = -100
    mask = labels[:, 1:] != -100
    mask[:, -1] = False  # a label that is no target
    return input_ids, labels, mask


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_logits_are_those_of_the_model(name):
    model = build(name)
    input_ids, labels, mask = inputs()
    with torch.no_grad():
        expected = model(input_ids=input_ids, attention_mask=torch.ones_like(input_ids)).logits[:, :-1]
        add_cross_layer_forward(model, [0, 1])
        output = model(
            input_ids=input_ids,
            attention_mask=torch.ones_like(input_ids),
            labels=labels,
            fused_lm_head=True,
            target_mask=mask,
        )
    torch.testing.assert_close(output.logits, expected[mask].float())
    assert output.layer_logits.shape == (2, int(mask.sum()), 40)
    label_mask = labels[:, 1:] != -100
    log_probs = expected.float().log_softmax(-1)
    chosen = log_probs.gather(2, labels[:, 1:].clamp(min=0)[..., None]).squeeze(2).masked_fill(~label_mask, 0)
    torch.testing.assert_close(output.log_probs, chosen)
    entropy = -(log_probs.exp() * log_probs).sum(-1).masked_fill(~label_mask, 0)
    torch.testing.assert_close(output.entropy, entropy)
    assert (output.aux_loss is not None) == (name == "qwen3-moe")


@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma2-softcap", "gpt2", "granite-scaled"])
def test_middle_layers_are_normed_once(name):
    """A model cut after layer l is what layer l says."""
    model, cut = build(name), build(name)
    input_ids, labels, mask = inputs()
    add_cross_layer_forward(model, [0, 1])
    with torch.no_grad():
        output = model(input_ids=input_ids, labels=labels, fused_lm_head=True, target_mask=mask)
        layers = find_model_parts(cut).layers
        del layers[2]
        middle = cut(input_ids=input_ids).logits[:, :-1][mask]
    torch.testing.assert_close(output.layer_logits[1], middle.float())


def test_other_calls_go_on_unchanged():
    model, plain = build("llama"), build("llama")
    input_ids, labels, _ = inputs()
    add_cross_layer_forward(model, [1])
    with torch.no_grad():
        torch.testing.assert_close(
            model(input_ids=input_ids, labels=labels).loss, plain(input_ids, labels=labels).loss
        )
        generated = model.generate(input_ids, max_new_tokens=3, do_sample=False)
        torch.testing.assert_close(generated, plain.generate(input_ids, max_new_tokens=3, do_sample=False))


@pytest.mark.parametrize("reentrant", [True, False])
def test_gradients_are_the_same_under_gradient_checkpointing(reentrant):
    gradients = []
    for checkpointing in (False, True):
        model = build("llama").train()
        model.enable_input_require_grads()
        if checkpointing:
            model.activation_checkpointing_enable({"use_reentrant": reentrant})
        input_ids, labels, mask = inputs()
        add_cross_layer_forward(model, [0, 1])
        output = model(input_ids=input_ids, labels=labels, fused_lm_head=True, target_mask=mask)
        (output.layer_logits.square().mean() + output.logits.square().mean()).backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient)


def test_a_batch_without_targets_stays_connected():
    model = build("llama").train()
    add_cross_layer_forward(model, [0])
    input_ids, labels, mask = inputs()
    output = model(
        input_ids=input_ids,
        labels=torch.full_like(labels, -100),
        fused_lm_head=True,
        target_mask=torch.zeros_like(mask),
    )
    (output.log_probs.sum() + output.logits.sum() + output.layer_logits.sum()).backward()
    gradients = [p.grad for p in model.parameters()]
    assert all(gradient is not None and (gradient == 0).all() for gradient in gradients)


def test_a_model_without_layers_is_refused_by_name():
    model = build("llama")
    model.config.num_hidden_layers = 7
    with pytest.raises(ValueError, match=r"intermediate layers of `LlamaForCausalLM`.*7 decoder layers"):
        add_cross_layer_forward(model, [0])


def test_a_model_whose_norm_is_not_the_last_step_is_refused():
    model = build("llama")

    def double(module, args, output):
        output.last_hidden_state = output.last_hidden_state * 2

    model.model.register_forward_hook(double)
    input_ids, labels, mask = inputs()
    add_cross_layer_forward(model, [0])
    with pytest.raises(ValueError, match="put through the final norm is not its last hidden state"):
        model(input_ids=input_ids, labels=labels, fused_lm_head=True, target_mask=mask)


@pytest.mark.parametrize(
    ("layers", "expected"),
    [("auto", [2, 3, 4]), (1, [4]), (5, [0, 1, 2, 3, 4]), ([0, -2], [0, 4]), ([3, 1, 3], [1, 3])],
)
def test_layer_choices(layers, expected):
    assert resolve_intermediate_layers(layers, 6) == expected


def test_auto_takes_what_a_shallow_model_has():
    assert resolve_intermediate_layers("auto", 2) == [0]


@pytest.mark.parametrize(
    ("layers", "num_layers", "message"),
    [
        (6, 6, "has only 5"),
        ([5], 6, "indices from 0 to 4"),
        ([-1], 6, "indices from 0 to 4"),
        ([-7], 6, "indices from 0 to 4"),
        ("auto", 1, "at least 2 are needed"),
    ],
)
def test_impossible_layer_choices_are_refused(layers, num_layers, message):
    with pytest.raises(ValueError, match=message):
        resolve_intermediate_layers(layers, num_layers)
