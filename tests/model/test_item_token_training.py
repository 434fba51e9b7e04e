import peft
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, GPTNeoXConfig, GPTNeoXForCausalLM
from transformers.utils import logging

from ilrec_trl import check_item_tokens_train, item_token_settings
from ilrec_trl.model.new_tokens import warn_of_frozen_item_tokens


# PEFT reads a name that transformers deprecates: https://github.com/huggingface/peft/blob/main/src/peft/peft_model.py
pytestmark = pytest.mark.filterwarnings("ignore:.*is deprecated and will be removed in v6:FutureWarning")


METHODS = ["trainable_token_indices", "modules_to_save"]


def with_adapter(model, **options):
    return peft.get_peft_model(model, peft.LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear", **options))


def rows_that_train(model, token_ids):
    """Found by taking a step: the tokens whose rows it changes in the embedding, and in the head."""
    modules = [model.get_input_embeddings(), model.get_output_embeddings()]
    before = [module.weight.detach().clone() for module in modules]
    input_ids = torch.tensor([token_ids])
    model(input_ids=input_ids, labels=input_ids).loss.backward()
    torch.optim.SGD([parameter for parameter in model.parameters() if parameter.requires_grad], lr=100.0).step()
    changed = [(old != module.weight).any(1) for old, module in zip(before, modules, strict=True)]
    return [{token for token in token_ids if rows[token]} for rows in changed]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("nf4", [False, True])
def test_the_settings_train_the_new_rows(method, tied, nf4, both, text_tokenizer, load_llama):
    model = load_llama(tied, nf4)
    token_ids = both.add_tokens(text_tokenizer, model)
    settings = item_token_settings(model, token_ids, method)
    names = ["embed_tokens"] if tied else ["embed_tokens", "lm_head"]
    assert list(settings[method]) == names
    model = with_adapter(model, **settings)
    check_item_tokens_train(model, token_ids)
    # The first token is seen but not predicted, the last predicted but not seen
    embedding, head = rows_that_train(model, token_ids)
    assert embedding >= set(token_ids[:-1])
    assert head >= set(token_ids[1:])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "4 of 4 item tokens have no trainable row in the embedding and 4 of 4 .* in the head"),
        ({"trainable_token_indices": {"embed_tokens": [280, 281, 282, 283]}}, "^4 of 4 .* in the head, so"),
        ({"trainable_token_indices": {"embed_tokens": [280], "lm_head": [280, 281]}}, "3 of 4 .*embedding and 2 of 4"),
        ({"modules_to_save": ["lm_head"]}, "^4 of 4 item tokens .* in the embedding, so"),
    ],
)
def test_rows_that_would_never_change_are_found(options, message, both, text_tokenizer, load_llama):
    model = load_llama()
    token_ids = both.add_tokens(text_tokenizer, model)
    assert token_ids == [280, 281, 282, 283]
    model = with_adapter(model, **options)
    with pytest.raises(ValueError, match=message) as error:
        check_item_tokens_train(model, token_ids)
    assert "item_token_settings(model, token_ids)" in str(error.value)


def test_rows_that_train_otherwise(both, text_tokenizer, load_llama):
    model = load_llama()
    token_ids = both.add_tokens(text_tokenizer, model)
    check_item_tokens_train(model, token_ids)  # without an adapter
    lora = peft.LoraConfig(task_type="CAUSAL_LM", target_modules=["embed_tokens", "lm_head", "q_proj"])
    check_item_tokens_train(peft.get_peft_model(model, lora), token_ids)
    model.requires_grad_(False)
    with pytest.raises(ValueError, match="embedding and 4 of 4"):
        check_item_tokens_train(model, token_ids)


@pytest.mark.parametrize(
    ("model", "names"),
    [
        (GPT2LMHeadModel(GPT2Config(vocab_size=9, n_embd=8, n_layer=1, n_head=1)), ["wte"]),
        (
            GPTNeoXForCausalLM(
                GPTNeoXConfig(
                    vocab_size=9, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2
                )
            ),
            ["embed_in", "lm_head"],
        ),
    ],
)
def test_other_names_of_embedding_and_head(model, names):
    settings = item_token_settings(model, [7, 8])
    assert settings == {"trainable_token_indices": {name: [7, 8] for name in names}}
    lora = peft.LoraConfig(target_modules=["c_attn", "dense"], fan_in_fan_out=len(names) == 1, **settings)
    check_item_tokens_train(peft.get_peft_model(model, lora), [7, 8])


def test_settings_that_cannot_be_are_refused(load_llama):
    model = load_llama()
    with pytest.raises(ValueError, match="Got no token ids"):
        item_token_settings(model, [])
    with pytest.raises(ValueError, match="Got method 'rows'"):
        item_token_settings(model, [1], "rows")
    with pytest.raises(ValueError, match="no language-model head"):
        item_token_settings(model.model, [1])


def test_the_trainer_warns_of_frozen_item_tokens(both, text_tokenizer, load_llama, caplog):
    model = load_llama()
    token_ids = both.add_tokens(text_tokenizer, model)
    trie = both.trie(text_tokenizer)
    logging.enable_propagation()
    try:
        warn_of_frozen_item_tokens(
            with_adapter(model, **item_token_settings(model, token_ids)), text_tokenizer, trie.token_ids
        )
        assert not caplog.records
        warn_of_frozen_item_tokens(with_adapter(load_llama()), text_tokenizer, trie.token_ids)
    finally:
        logging.disable_propagation()
    assert "4 of 4 item tokens have no trainable row" in caplog.text
    assert "right only if they have been trained before" in caplog.text
