"""Our own path to the logits, on models of many architectures, against the models' own outputs."""

import math

import pytest
import torch
import transformers
from torch import nn

from ilrec_trl.model.head_rows import take_head_rows
from ilrec_trl.model.model_parts import find_model_parts, resolve_intermediate_layers
from ilrec_trl.trainer.cross_layer_forward import PositionGroup, add_cross_layer_forward
from tests.compatibility.vision_rows import make_llava


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
    "cohere2-scaled": ("Cohere2", {"logit_scale": 0.25}),
    "falcon-mamba": ("FalconMamba", {"state_size": 4}),
    "lfm2": ("Lfm2", {"layer_types": ["conv", "full_attention", "conv"]}),
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


def keep_logits(logits, log_normaliser, layer_logits, tokens, start):
    """A loss whose values are the logits themselves."""
    terms = logits.square().mean(-1) + layer_logits.square().mean((0, 2)) + log_normaliser
    starts = torch.arange(start, start + len(logits))
    return terms, {"logits": logits, "layer_logits": layer_logits.transpose(0, 1), "position": starts}


def group(mask, is_target, tokens=None):
    rows, positions = mask.nonzero(as_tuple=True)
    return PositionGroup(rows, positions - mask.size(1), is_target, tokens)


def run(model, input_ids, labels, mask, **options):
    options = {"groups": [group(mask, True), group((labels[:, 1:] != -100) & ~mask, False)], **options}
    options = {"position_loss": keep_logits, **options}
    return model(input_ids=input_ids, labels=labels, fused_lm_head=True, **options)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_logits_are_those_of_the_model(name):
    model = build(name)
    input_ids, labels, mask = inputs()
    with torch.no_grad():
        expected = model(input_ids=input_ids, attention_mask=torch.ones_like(input_ids)).logits[:, :-1]
        add_cross_layer_forward(model, [0, 1])
        output = run(model, input_ids, labels, mask, attention_mask=torch.ones_like(input_ids))
    torch.testing.assert_close(output.logged["logits"], expected[mask].float())
    assert output.logged["layer_logits"].shape == (int(mask.sum()), 2, 40)
    label_mask = labels[:, 1:] != -100
    log_probs = expected.float().log_softmax(-1)
    chosen = log_probs.gather(2, labels[:, 1:].clamp(min=0)[..., None]).squeeze(2).masked_fill(~label_mask, 0)
    torch.testing.assert_close(output.log_probs, chosen)
    entropy = -(log_probs.exp() * log_probs).sum(-1).masked_fill(~label_mask, 0)
    torch.testing.assert_close(output.entropy, entropy)
    assert (output.aux_loss is not None) == (name == "qwen3-moe")


def by_tokens(labels, mask, tokens):
    first = mask & (labels[:, 1:] % 2 == 0)
    others = (labels[:, 1:] != -100) & ~mask
    return [group(first, True, tokens), group(mask & ~first, True, tokens), group(others, False)]


def hook_head(model):
    model.lm_head.register_forward_hook(lambda module, args, output: output * 1.0)


def wrap_head(model):
    model.lm_head = nn.Sequential(model.lm_head)
    model.lm_head.weight = model.lm_head[0].weight


@pytest.mark.parametrize("change", [None, hook_head, wrap_head])
@pytest.mark.parametrize("name", ["llama", "llama-tied", "phi-head-with-bias", "cohere-scaled", "gemma2-softcap"])
def test_some_tokens_have_the_logits_and_gradients_that_they_have_among_all(name, change):
    """Whether the head's rows are taken or its logits are selected."""
    tokens = torch.tensor([3, 4, 9, 10, 21, 39])

    def select(logits, log_normaliser, layer_logits, seen, start):
        layer_logits = layer_logits if seen is not None else layer_logits[..., tokens]
        return layer_logits.square().sum((0, 2)), {"layer_logits": layer_logits.transpose(0, 1)}

    outputs, gradients = [], []
    for wanted in (None, tokens):
        model = build(name).train()
        if change is not None:
            change(model)
        input_ids, labels, mask = inputs()
        add_cross_layer_forward(model, [0, 1])
        groups = by_tokens(labels, mask, wanted)
        outputs.append(run(model, input_ids, labels, mask, groups=groups, position_loss=select))
        (outputs[-1].terms.sum() - outputs[-1].log_probs.sum()).backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    assert (take_head_rows(model.get_output_embeddings(), tokens) is None) == (change is not None)
    assert outputs[1].logged["layer_logits"].shape[-1] == len(tokens)
    torch.testing.assert_close(outputs[1].logged, outputs[0].logged)
    torch.testing.assert_close(outputs[1].log_probs, outputs[0].log_probs)
    torch.testing.assert_close(gradients[1], gradients[0])


@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma2-softcap", "gpt2", "granite-scaled"])
def test_middle_layers_are_normed_once(name):
    """A model cut after layer l is what layer l says."""
    model, cut = build(name), build(name)
    input_ids, labels, mask = inputs()
    add_cross_layer_forward(model, [0, 1])
    with torch.no_grad():
        output = run(model, input_ids, labels, mask)
        layers = find_model_parts(cut).layers
        del layers[2]
        middle = cut(input_ids=input_ids).logits[:, :-1][mask]
    torch.testing.assert_close(output.logged["layer_logits"][:, 1], middle.float())


@pytest.mark.filterwarnings("ignore")  # the compiler's own
def test_compiled_code_reads_the_layers_of_each_pass():
    model = build("llama").train()
    add_cross_layer_forward(model, [0, 1])
    compiled = torch.compile(model, backend="eager")
    input_ids, labels, mask = inputs()
    layers = []
    for ids in (input_ids, input_ids.flip(1), input_ids):
        output, expected = (run(either, ids, labels, mask) for either in (compiled, model))
        layers.append(output.logged["layer_logits"])
        torch.testing.assert_close(layers[-1], expected.logged["layer_logits"])
        torch.testing.assert_close(output.log_probs, expected.log_probs)
    assert not torch.allclose(layers[0], layers[1])
    gradients = [torch.autograd.grad(out.terms.sum(), model.parameters()) for out in (output, expected)]
    torch.testing.assert_close(*gradients)


def test_a_vision_encoder_of_as_many_layers_is_not_taken_for_the_text_decoder():
    model = make_llava().eval()
    layers = find_model_parts(model).layers
    assert {type(layer).__name__ for layer in layers} == {"LlamaDecoderLayer"}
    assert len(layers) == model.config.vision_config.num_hidden_layers


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
        run(model, input_ids, labels, mask).terms.mean().backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient)


@pytest.mark.parametrize("positions", [1, 2, 3, 7])
def test_blocks_change_nothing(positions):
    """8 positions with a label, 6 of them targets, gone through a few at a time."""
    results = []
    for budget in (math.inf, positions * 4 * 40 * 3 / 2**20):
        model = build("llama").train()
        input_ids, labels, mask = inputs()
        labels[1, 5] = -100
        mask[0, 4] = mask[1, 4] = False  # a label within a block that is no target
        add_cross_layer_forward(model, [0, 1], budget)
        output = run(model, input_ids, labels, mask)
        (output.terms.sum() - output.log_probs.sum()).backward()
        results.append((output, {name: p.grad for name, p in model.named_parameters()}))
    (whole, expected), (blocks, gradients) = results
    assert blocks.logged["position"].tolist() == list(range(len(whole.terms)))
    torch.testing.assert_close(blocks.logged, whole.logged)
    torch.testing.assert_close(blocks.terms, whole.terms)
    for field in ("log_probs", "entropy", "is_top1"):
        torch.testing.assert_close(blocks[field], whole[field])
    torch.testing.assert_close(gradients, expected)


def test_blocks_keep_no_logits_for_the_backward_pass():
    """What autograd keeps of the head, in floats: a block's worth at a time against all positions at once."""
    kept = []
    for budget in (math.inf, 4 * 40 * 3 / 2**20):
        model = build("llama").train()
        add_cross_layer_forward(model, [0, 1], budget)
        saved = []

        def save(tensor, saved=saved):
            saved.append(tensor)
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor):
            run(model, *inputs())
        kept.append(sum(tensor.numel() for tensor in saved if tensor.dim() > 1 and tensor.size(-1) == 40))
    assert kept[1] == 0 < kept[0]


@pytest.mark.parametrize("has_labels", [False, True])
def test_a_batch_without_targets_stays_connected_and_names_what_is_logged(has_labels):
    model = build("llama").train()
    add_cross_layer_forward(model, [0], 4 * 40 * 2 / 2**20)  # one position at a time
    input_ids, labels, mask = inputs()
    output = run(model, input_ids, labels if has_labels else torch.full_like(labels, -100), torch.zeros_like(mask))
    assert {name: len(value) for name, value in output.logged.items()} == {
        "logits": 0,
        "layer_logits": 0,
        "position": 0,
    }
    (output.log_probs.sum() + output.terms.sum()).backward()
    gradients = [p.grad for p in model.parameters()]
    assert all(gradient is not None and gradient.any() == has_labels for gradient in gradients)


def test_the_loss_is_called_with_targets_alone():
    sizes = []

    def record(logits, *given):
        sizes.append(len(logits))
        return keep_logits(logits, *given)

    model = build("llama")
    add_cross_layer_forward(model, [0, 1], 2 * 4 * 40 * 3 / 2**20)  # 7 targets and one other, two at a time
    run(model, *inputs(), position_loss=record)
    assert sizes == [2, 2, 2, 1]


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
        run(model, input_ids, labels, mask)


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
