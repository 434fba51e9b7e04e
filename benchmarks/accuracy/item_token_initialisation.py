"""
What new item tokens gain from starting at the titles of their items.

    python benchmarks/accuracy/item_token_initialisation.py --data PATH/TO/industrial

A small Llama (4 layers, hidden size 128) is pretrained on the first 32 tokens of the catalogue's titles, gets the
tokens of the semantic IDs, and is fine-tuned to give the ID of an item for its title. Measured is the loss (nats a
token) over the first steps, for each way to start the new rows and each seed, from the same pretrained weights with
the same batches.
"""

import argparse
import copy
import random
import sys
from pathlib import Path


sys.path.insert(0, str(Path(__file__).parents[2]))

import numpy as np  # noqa: E402
import torch  # noqa: E402
from torch.nn.utils.rnn import pad_sequence  # noqa: E402
from transformers import LlamaConfig, LlamaForCausalLM  # noqa: E402

from benchmarks.speed.measurements import compare, in_turn, write_results  # noqa: E402
from ilrec_trl import ItemCatalog  # noqa: E402


METHODS = ("random", "mean", "item_texts")


def batches(sequences: list[tuple[list[int], int]], size: int, steps: int, seed: int):
    """Input ids and labels `(B, S)`; of each sequence the tokens after the first few, which are given, are learnt."""
    generator = random.Random(seed)
    order: list[int] = []
    for _ in range(steps):
        if len(order) < size:
            order += generator.sample(range(len(sequences)), len(sequences))
        rows, order = [sequences[i] for i in order[:size]], order[size:]
        input_ids = pad_sequence([torch.tensor(tokens) for tokens, _ in rows], batch_first=True)
        labels = [torch.tensor([-100] * given + tokens[given:]) for tokens, given in rows]
        yield input_ids, pad_sequence(labels, batch_first=True, padding_value=-100)


def train(model, sequences, steps: int, learning_rate: float, seed: int, batch_size: int) -> list[float]:
    """Loss of every step, before the step is taken."""
    torch.manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=0.01)
    losses = []
    for input_ids, labels in batches(sequences, batch_size, steps, seed):
        loss = model(input_ids=input_ids, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="folder in LC-Rec's format, with titles and semantic IDs")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--pretraining_steps", type=int, default=400)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--quick", action="store_true", help="few steps, nothing written")
    options = parser.parse_args()
    if options.quick:
        options.seeds, options.pretraining_steps, options.steps = 2, 50, 20

    catalog = ItemCatalog.from_lc_rec(options.data)
    tokenizer = catalog.as_kind("titles").build_tokenizer(vocab_size=2048)
    titles = tokenizer([title + tokenizer.eos_token for title in catalog.titles])["input_ids"]
    torch.manual_seed(0)
    sizes = {"hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 4, "num_attention_heads": 4}
    pretrained = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), max_position_embeddings=512, **sizes))
    losses = train(pretrained, [(tokens[:32], 1) for tokens in titles], options.pretraining_steps, 1e-3, 0, 16)
    print(f"pretraining: {np.mean(losses[:20]):.2f} to {np.mean(losses[-50:]):.2f} nats a token")  # noqa: T201

    def measure(method):
        seeds = iter(range(options.seeds))

        def run() -> float:
            seed, model, grown = next(seeds), copy.deepcopy(pretrained), copy.deepcopy(tokenizer)
            catalog.add_tokens(grown, model, initialise=method, seed=seed)
            line_break = grown("\n")["input_ids"]
            prompts = [tokens[:32] + line_break for tokens in grown(catalog.titles)["input_ids"]]
            ids = grown(catalog.texts)["input_ids"]
            rows = [(prompt + item, len(prompt)) for prompt, item in zip(prompts, ids, strict=True)]
            losses = train(model, rows, options.steps, 5e-4, seed, 16)
            marks = " ".join(f"{step}: {np.mean(losses[step : step + 10]):.3f}" for step in range(0, len(losses), 50))
            print(f"{method}, seed {seed}: {np.mean(losses):.3f}; ten steps from {marks}")  # noqa: T201
            return float(np.mean(losses))

        return run

    values = in_turn({method: measure(method) for method in METHODS}, options.seeds)
    case = f"titles to IDs, first {options.steps} steps"
    rows = compare("item_token_initialisation", case, "mean loss", "nats", values, "random")
    for row in rows:
        print(row["system"], row["p50"], row.get("ratio", ""))  # noqa: T201
    if not options.quick:
        write_results("item_token_initialisation", rows)


if __name__ == "__main__":
    main()
