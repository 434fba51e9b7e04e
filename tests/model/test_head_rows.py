"""Rows of the head in place of the whole head: the same logits, and only where the head is a plain layer."""

import pytest
import torch
from accelerate.hooks import ModelHook, add_hook_to_module
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from ilrec_trl.model.head_rows import ItemTokenHead, take_head_rows


TOKENS = torch.tensor([1, 4, 7])


class PackedParameter(nn.Parameter):
    """A weight that may hold its numbers in another way, as quantisation packages do."""


def forward_hook(head):
    head.register_forward_hook(lambda module, args, output: output + 1)


def forward_pre_hook(head):
    head.register_forward_pre_hook(lambda module, args: None)


def accelerate_hook(head):
    add_hook_to_module(head, ModelHook())


def quantised_weight(head):
    head.weight = nn.Parameter(head.weight.detach().to(torch.int8), requires_grad=False)


def packed_weight(head):
    head.weight = PackedParameter(head.weight.detach())


def sharded_weight(head):
    head.weight.ds_id = 0


def part_of_the_weight(head):
    head.weight = nn.Parameter(head.weight.detach()[:10])


@pytest.fixture
def model():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=20,
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        bos_token_id=None,
    )
    return LlamaForCausalLM(config).eval()


@torch.no_grad()
def test_rows_give_the_logits_of_their_tokens(model):
    head = ItemTokenHead.of(model, model, TOKENS)
    hidden_states = torch.randn(2, 3, 8)
    expected = model.lm_head(hidden_states)[..., TOKENS]
    torch.testing.assert_close(head(hidden_states), expected)
    torch.testing.assert_close(take_head_rows(model.lm_head, TOKENS)(hidden_states), expected)
    assert head.index_of_token[TOKENS].tolist() == [0, 1, 2]
    first, second = take_head_rows(model.lm_head, TOKENS).split([1, 2])
    torch.testing.assert_close(torch.cat([first(hidden_states), second(hidden_states)], dim=-1), expected)


@pytest.mark.parametrize(
    "change",
    [
        forward_hook,
        forward_pre_hook,
        accelerate_hook,
        quantised_weight,
        packed_weight,
        sharded_weight,
        part_of_the_weight,
    ],
)
@torch.no_grad()
def test_a_head_that_is_no_plain_layer_is_used_whole(change, model):
    """In training and in decoding alike, also where the model was decoded with before the change."""
    assert ItemTokenHead.of(model, model, TOKENS) is not None
    change(model.lm_head)
    assert take_head_rows(model.lm_head, TOKENS) is None
    assert ItemTokenHead.of(model, model, TOKENS) is None
