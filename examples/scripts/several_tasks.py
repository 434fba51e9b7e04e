"""Several tasks in one training: the next item in many phrasings, and what titles and semantic IDs have to do.

    python examples/scripts/several_tasks.py --output_dir runs/tasks

About a minute on a CPU. Shows a row of each task, trains ILRec on all of them, and ranks for the test users.
"""

import argparse

from transformers import LlamaConfig, LlamaForCausalLM, set_seed

from ilrec_trl import (
    ILRecConfig,
    ILRecTrainer,
    ItemCatalog,
    PromptRenderer,
    RecommendationEvaluator,
    generate_store,
    next_item_dataset,
    task_dataset,
)


parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--output_dir", default="runs/tasks")
parser.add_argument("--num_users", type=int, default=300)
parser.add_argument("--num_train_epochs", type=float, default=2)
parser.add_argument("--template", nargs="+", default=["introductions"], help="shipped names, files or folders")
parser.add_argument("--max_length", type=int, default=128)
options = parser.parse_args()

store = generate_store(seed=0, num_users=options.num_users, num_items=100)
splits = store.interactions.leave_one_out()
catalog = ItemCatalog(
    list(store.titles), list(store.titles.values()), list(store.semantic_ids.values()), kind="semantic_ids"
)
# The tokenizer must be able to write titles and prompts, and know the tokens of semantic IDs.
tokenizer = catalog.as_kind("titles").build_tokenizer(1000)
catalog.add_tokens(tokenizer)
item_trie = catalog.trie(tokenizer)

renderer = PromptRenderer(catalog, template=options.template, tokenizer=tokenizer, max_length=options.max_length)
tasks = {"next_item": 1, "next_title": 0.2, "item_to_title": 1, "title_to_item": 1}
train_dataset = task_dataset(splits.train, renderer, tasks, whole_sequences=True)
for task in tasks:
    row = next(row for row in train_dataset if row["task"] == task)
    print(f"{task}:\n{row['prompt']}[{row['completion']}]\n")

set_seed(0)
sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4}
special = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id, "bos_token_id": None}
trainer = ILRecTrainer(
    LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **sizes, **special)),
    args=ILRecConfig(
        output_dir=options.output_dir,
        num_train_epochs=options.num_train_epochs,
        learning_rate=3e-3,
        per_device_train_batch_size=16,
        max_length=options.max_length,
        bf16=False,
        activation_checkpointing=False,
        save_strategy="no",
        report_to="none",
    ),
    train_dataset=train_dataset,
    processing_class=tokenizer,
    item_trie=item_trie,
)
trainer.train()
# Evaluation asks in the first phrasing alone.
evaluator = RecommendationEvaluator(next_item_dataset(splits.test, renderer), item_trie)
print(" ".join(f"{metric} {value:.4f}" for metric, value in evaluator(trainer.model, tokenizer).items()))
