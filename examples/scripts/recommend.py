"""Recommend items with a saved model and its trie, for example those that `sft_to_ilrec.py` leaves.

python examples/scripts/recommend.py --model runs/swap --history i14 i35 --top_k 5
"""

import argparse
from pathlib import Path

from peft import AutoPeftModelForCausalLM
from transformers import AutoModelForCausalLM, AutoTokenizer

from ilrec_trl import ItemCatalog, ItemTrie, PromptRenderer, recommend


parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--model", required=True, help="folder of the model, its tokenizer, trie and catalogue")
parser.add_argument("--history", nargs="+", required=True, help="item ids, oldest first")
parser.add_argument("--top_k", type=int, default=10)
parser.add_argument("--num_beams", type=int, default=20)
options = parser.parse_args()

adapters = (Path(options.model) / "adapter_config.json").is_file()
model = (AutoPeftModelForCausalLM if adapters else AutoModelForCausalLM).from_pretrained(options.model)
tokenizer = AutoTokenizer.from_pretrained(options.model)
item_trie = ItemTrie.load(options.model)
catalog = ItemCatalog.load(options.model)
names = catalog if catalog.titles is None else catalog.as_kind("titles")

# The prompt must be rendered as it was in training; with a template of your own pass it here too.
prompt = PromptRenderer(catalog).prompts([options.history])[0]
ranked = recommend(
    model,
    tokenizer,
    [prompt],
    item_trie,
    top_k=options.top_k,
    num_beams=options.num_beams,
    exclude=[options.history],
)[0]
for item in options.history:
    print("bought", item, names.text(item))
for rank, (item, log_probability) in enumerate(ranked, 1):
    print(f"{rank:2d}. {item} {names.text(item)} ({log_probability:.2f})")
