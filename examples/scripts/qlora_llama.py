"""QLoRA on a Hub model with semantic-ID tokens: 4-bit weights, LoRA on every linear layer, rows for the new tokens.

    python examples/scripts/qlora_llama.py --model meta-llama/Llama-3.2-1B --data data/instruments --output_dir runs/q

The folder holds `inter.json` and `index.json` as LC-Rec publishes them. Needs `pip install ilrec-trl[quantization]`.
"""

import argparse

import torch
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

from ilrec_trl import (
    ILRecConfig,
    ILRecTrainer,
    Interactions,
    ItemCatalog,
    RecommendationCallback,
    RecommendationEvaluator,
    item_token_settings,
    next_item_dataset,
    sasrec_training_arguments,
    sequence_dataset,
    train_sasrec_group,
)


parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--model", required=True, help="Hub name or folder of a causal language model")
parser.add_argument("--data", required=True, help="folder in LC-Rec's format")
parser.add_argument("--output_dir", required=True)
parser.add_argument("--lora_r", type=int, default=64)
parser.add_argument("--learning_rate", type=float, default=2e-4)
parser.add_argument("--batch_size", type=int, default=16)
parser.add_argument("--gradient_accumulation_steps", type=int, default=4)
parser.add_argument("--num_train_epochs", type=float, default=1)
parser.add_argument("--validation_users", type=int, default=1000)
options = parser.parse_args()

splits = Interactions.load(options.data).leave_one_out(short_users="train")
catalog = ItemCatalog.from_lc_rec(options.data)
tokenizer = AutoTokenizer.from_pretrained(options.model)
tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
gpu = torch.cuda.is_available()
dtype = torch.bfloat16 if gpu else torch.float32
quantization = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype)
model = AutoModelForCausalLM.from_pretrained(options.model, quantization_config=quantization, dtype=dtype)
token_ids = catalog.add_tokens(tokenizer, model)
item_trie = catalog.trie(tokenizer)

# Five SASRecs, each trained without a fifth of the users, whom it will score; a second run finds them there.
folder = f"{options.output_dir}/sasrec"
sasrec_args, codes = sasrec_training_arguments(folder), catalog.semantic_ids
sasrec = train_sasrec_group(splits, catalog.item_ids, sasrec_args, folder, folds=5, item_features=codes)
reward_func = sasrec.reward_func(item_trie, device=model.device)

# Only the new tokens' rows of embedding and head are trained, beside the adapters.
peft_config = LoraConfig(
    r=options.lora_r, lora_alpha=options.lora_r // 2, lora_dropout=0.05, target_modules="all-linear",
    **item_token_settings(model, token_ids),
)  # fmt: skip
args = ILRecConfig(
    options.output_dir, num_train_epochs=options.num_train_epochs, learning_rate=options.learning_rate,
    per_device_train_batch_size=options.batch_size, gradient_accumulation_steps=options.gradient_accumulation_steps,
    warmup_steps=0.05, lr_scheduler_type="cosine", bf16=gpu, logging_steps=10, report_to="none",
    # Without a GPU, bitsandbytes 0.50 passes no gradient through 4-bit layers that have been evaluated once.
    eval_strategy="epoch" if gpu else "no",
)  # fmt: skip
validation = next_item_dataset(splits.validation[: options.validation_users], catalog)
trainer = ILRecTrainer(
    model, args, train_dataset=sequence_dataset(splits.train, catalog), eval_dataset=validation,
    processing_class=tokenizer, peft_config=peft_config, item_trie=item_trie, reward_func=reward_func,
    callbacks=[RecommendationCallback(RecommendationEvaluator(validation, item_trie))],
)  # fmt: skip
trainer.train()
print(trainer.evaluate())
trainer.save_model(options.output_dir)
item_trie.save(options.output_dir)
catalog.save(options.output_dir)
