"""What is trained with an adapter recommends the same after it is saved, loaded and merged."""

import peft
import pytest
import torch
from transformers import AutoModelForCausalLM

from ilrec_trl.evaluation.recommend import recommend
from ilrec_trl.trainer.ilrec_trainer import ILRecTrainer

from .peft_rows import lora, new_tokens
from .workbench import make_model, make_tokenizer, make_trainer, trie, users, with_rewards


pytestmark = pytest.mark.filterwarnings("ignore:.*is deprecated and will be removed in v6:FutureWarning")
KINDS = {
    "lora": ({}, {}),
    "dora": ({}, {"use_dora": True}),
    "saved modules": ({}, {"modules_to_save": ["lm_head", "embed_tokens"]}),
    "new tokens": ({}, {"trainable_token_indices": {"embed_tokens": new_tokens(), "lm_head": new_tokens()}}),
    "new tokens, tied": ({"tie_word_embeddings": True}, {"trainable_token_indices": {"embed_tokens": new_tokens()}}),
}


def recommended(model):
    prompts = [row["prompt"] for row in users()[:4]]
    ranked = recommend(model, make_tokenizer(), prompts, trie(), top_k=5, num_beams=10)
    return [[item for item, _ in row] for row in ranked], torch.tensor([[score for _, score in row] for row in ranked])


@pytest.mark.parametrize("kind", KINDS)
def test_an_adapter_recommends_the_same_after_saving_and_merging(kind, tmp_path):
    model_options, options = KINDS[kind]
    arguments = {**lora(model_options, **options)(), **with_rewards()}
    with make_trainer(ILRecTrainer, {"max_steps": 3, "learning_rate": 0.05}, arguments) as trainer:
        untrained = recommended(trainer.model)
        trainer.train()
        items, scores = recommended(trainer.model)
        trainer.save_model(tmp_path / "adapter")
    assert items != untrained[0]
    loaded = peft.PeftModel.from_pretrained(make_model(**model_options), tmp_path / "adapter")
    merged = loaded.merge_and_unload()
    merged.save_pretrained(tmp_path / "merged")
    loaded = peft.PeftModel.from_pretrained(make_model(**model_options), tmp_path / "adapter")
    for other in (loaded, merged, AutoModelForCausalLM.from_pretrained(tmp_path / "merged")):
        other_items, other_scores = recommended(other)
        assert other_items == items
        torch.testing.assert_close(other_scores, scores, rtol=1e-4, atol=1e-4)
