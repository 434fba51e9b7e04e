"""The swap on a small generated store: SFTTrainer, then ILRecTrainer from the same weights, on all test users.

    python examples/scripts/sft_to_ilrec.py --output_dir runs/swap

Under a minute on a CPU. The ILRec model is saved with its trie and catalogue: see `recommend.py`.
"""

import argparse

from transformers import LlamaConfig, LlamaForCausalLM, set_seed
from trl import SFTConfig, SFTTrainer

from ilrec_trl import (
    ILRecConfig,
    ILRecTrainer,
    ItemCatalog,
    RecommendationEvaluator,
    SASRecConfig,
    generate_store,
    next_item_dataset,
    sasrec_training_arguments,
    sequence_dataset,
    train_sasrec_group,
)


parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--output_dir", default="runs/swap")
parser.add_argument("--num_users", type=int, default=600)
parser.add_argument("--num_train_epochs", type=float, default=4)
options = parser.parse_args()

# Data: users' purchases in time order, and items named by semantic IDs of three tokens.
store = generate_store(seed=0, num_users=options.num_users, num_items=200)
splits = store.interactions.leave_one_out()
catalog = ItemCatalog(
    list(store.titles), list(store.titles.values()), list(store.semantic_ids.values()), kind="semantic_ids"
)
tokenizer = catalog.build_tokenizer()
item_trie = catalog.trie(tokenizer)
train_dataset = sequence_dataset(splits.train, catalog)
evaluator = RecommendationEvaluator(next_item_dataset(splits.test, catalog), item_trie)

# Teacher: five SASRecs for the collaborative rewards, each trained without a fifth of the users, whom it will score.
folder = f"{options.output_dir}/sasrec"
sasrec_args = sasrec_training_arguments(folder, num_train_epochs=12, learning_rate=3e-3, disable_tqdm=True)
about = {"config": SASRecConfig(hidden_size=64, dropout=0.3), "item_features": catalog.semantic_ids}
sasrec = train_sasrec_group(splits, catalog.item_ids, sasrec_args, folder, folds=5, **about)


def new_model():
    set_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4}
    special = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id, "bos_token_id": None}
    return LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **sizes, **special))


settings = {
    "output_dir": options.output_dir, "num_train_epochs": options.num_train_epochs, "learning_rate": 3e-3,
    "per_device_train_batch_size": 16, "bf16": False, "activation_checkpointing": False,
    "save_strategy": "no", "report_to": "none",
}  # fmt: skip
trainers = {
    "SFT": lambda: SFTTrainer(
        new_model(), SFTConfig(**settings), train_dataset=train_dataset, processing_class=tokenizer,
    ),
    "ILRec": lambda: ILRecTrainer(
        new_model(), ILRecConfig(**settings), train_dataset=train_dataset, processing_class=tokenizer,
        item_trie=item_trie, reward_func=sasrec.reward_func(item_trie),
    ),
}  # fmt: skip
for name, build in trainers.items():
    trainer = build()
    trainer.train()
    metrics = evaluator(trainer.model, tokenizer)
    print(name, " ".join(f"{metric} {value:.4f}" for metric, value in metrics.items()))
trainer.save_model(options.output_dir)
item_trie.save(options.output_dir)
catalog.save(options.output_dir)
