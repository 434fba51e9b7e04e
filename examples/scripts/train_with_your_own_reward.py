"""Collaborative rewards of your own: any callable, or scores that another library wrote to disk.

python examples/scripts/train_with_your_own_reward.py --reward markov_chain
python examples/scripts/train_with_your_own_reward.py --reward scores_on_disk
"""

import argparse

import torch
from transformers import LlamaConfig, LlamaForCausalLM, set_seed

from ilrec_trl import (
    ILRecConfig,
    ILRecTrainer,
    ItemCatalog,
    RecommendationEvaluator,
    ScoreMatrixReward,
    check_reward_func,
    generate_store,
    next_item_dataset,
    save_scores,
    sequence_dataset,
)


parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--reward", choices=["markov_chain", "scores_on_disk"], default="markov_chain")
parser.add_argument("--output_dir", default="runs/own_reward")
parser.add_argument("--num_users", type=int, default=300)
parser.add_argument("--num_train_epochs", type=float, default=3)
options = parser.parse_args()

store = generate_store(seed=0, num_users=options.num_users, num_items=100)
splits = store.interactions.leave_one_out()
catalog = ItemCatalog.from_semantic_ids(store.semantic_ids)
tokenizer = catalog.build_tokenizer()
item_trie = catalog.trie(tokenizer)


def markov_chain():
    """How often each item followed the last one of the history. Columns stand in the order of `item_trie.item_ids`."""
    counts = torch.full((len(item_trie), len(item_trie)), 0.1)  # (I, I)
    for _, items in splits.train:
        columns = item_trie.index_of(items)
        counts.index_put_((columns[:-1], columns[1:]), torch.ones(len(columns) - 1), accumulate=True)
    return lambda histories, **columns: counts[item_trie.index_of([history[-1] for history in histories])]  # (B, I)


def scores_on_disk():
    """One row of scores a user, found by the data set's `user` column. Any column order: the file names the items."""
    bought = torch.zeros(len(splits.train), len(item_trie))  # (U, I)
    for row, (_, items) in enumerate(splits.train):
        bought[row, item_trie.index_of(items)] = 1.0
    scores = bought @ (bought.T @ bought) + 0.1  # (U, I): items bought together with those of the user
    folder = f"{options.output_dir}/scores"
    save_scores(folder, scores, [user for user, _ in splits.train], item_trie.item_ids)
    return ScoreMatrixReward.load(folder, item_trie)


reward_func = {"markov_chain": markov_chain, "scores_on_disk": scores_on_disk}[options.reward]()
train_dataset = sequence_dataset(splits.train, catalog)
check_reward_func(reward_func, item_trie, train_dataset["history"][:4], user=train_dataset["user"][:4])

set_seed(0)
config = LlamaConfig(
    vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128, num_hidden_layers=4, num_attention_heads=4,
    pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id, bos_token_id=None,
)  # fmt: skip
args = ILRecConfig(
    options.output_dir, num_train_epochs=options.num_train_epochs, learning_rate=3e-3, crr_weight=0.5,
    bf16=False, activation_checkpointing=False, save_strategy="no", report_to="none",
)  # fmt: skip
trainer = ILRecTrainer(
    LlamaForCausalLM(config), args, train_dataset=train_dataset, processing_class=tokenizer,
    item_trie=item_trie, reward_func=reward_func,
)  # fmt: skip
trainer.train()
evaluator = RecommendationEvaluator(next_item_dataset(splits.test, catalog), item_trie)
print(options.reward, evaluator(trainer.model, tokenizer))
