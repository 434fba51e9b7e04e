"""
Users a second of the full-ranking evaluator, one thread a process:

    python benchmarks/speed/evaluation.py

Beam search (20 beams) in batches of 64, 16 and 1, the same shared by two processes, late fusion of 50 candidates of
the model and 50 of SASRec, and exact ranking. 10,000 items of four tokens, prompts of 20 items, a small Llama of
random weights. Each measurement is a launch of its own, in turn; its first evaluation, not counted, warms up. Writes
benchmarks/results/evaluation.csv. Two processes cannot be faster than one where the machine has no second core to
spare.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path


ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402

from benchmarks.speed.measurements import RESULTS, compare, in_turn, write_results  # noqa: E402


CODES, LEVELS, HISTORY = 256, 4, 20
# Processes, options, and the share of the users that is enough to know the speed.
SYSTEMS = {
    "beam, batch 64": (1, {}, 1),
    "beam, batch 64, 2 processes": (2, {}, 1),
    "beam, batch 16": (1, {"batch_size": 16}, 1),
    "beam, batch 1": (1, {"batch_size": 1}, 1 / 4),
    "late fusion, 50 candidates": (1, {"num_candidates": 50}, 1 / 4),
    "exact": (1, {"ranking": "exact", "batch_size": 4}, 1 / 64),
}
BASELINE = "beam, batch 64"


def build(num_items: int, num_users: int):
    """Trie, questions and model, the same in every process."""
    import torch
    from datasets import Dataset
    from transformers import LlamaConfig, LlamaForCausalLM

    from ilrec_trl import ItemCatalog

    rng = np.random.default_rng(0)
    codes = np.unique(rng.integers(0, CODES, (2 * num_items, LEVELS)), axis=0)
    codes = codes[rng.choice(len(codes), num_items, replace=False)]
    semantic_ids = {
        f"i{item}": [f"<{'abcd'[level]}_{code}>" for level, code in enumerate(row)] for item, row in enumerate(codes)
    }
    catalog = ItemCatalog.from_semantic_ids(semantic_ids)
    tokenizer = catalog.build_tokenizer()
    drawn = rng.integers(0, num_items, (num_users, HISTORY + 1))
    prompts = ["".join(catalog.text(f"i{item}") for item in row[:-1]) for row in drawn]
    histories = [[f"i{item}" for item in row[:-1]] for row in drawn]
    targets = [f"i{row[-1]}" for row in drawn]
    dataset = Dataset.from_dict({"prompt": prompts, "item": targets, "history": histories})
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=4,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=1,
    )
    return catalog.trie(tokenizer), dataset, LlamaForCausalLM(config), tokenizer


def work(system: str, num_items: int, num_users: int, path: str) -> None:
    """Evaluate twice in this process, and in those it was launched with; write users a second of the second time."""
    import torch.distributed as dist
    from datasets import Dataset

    from benchmarks.accuracy.late_fusion import LateFusion
    from ilrec_trl import RecommendationEvaluator, SASRecConfig, SASRecModel, SASRecReward

    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        dist.init_process_group("gloo")
    item_trie, dataset, model, tokenizer = build(num_items, num_users)
    options = SYSTEMS[system][1]
    sasrec = SASRecReward(SASRecModel(SASRecConfig(item_ids=list(item_trie.item_ids))), item_trie)

    def evaluate(asked: Dataset) -> object:
        if "num_candidates" in options:
            late_fusion = LateFusion(model, tokenizer, item_trie, sasrec, **options)
            found = late_fusion.ranks(asked, [0.1, 0.3, 1.0])
            return {weight: ranks.starts.tolist() for weight, ranks in found.items()}
        return RecommendationEvaluator(asked, item_trie, **options)(model, tokenizer)

    evaluate(dataset.select(range(min(num_users, options.get("batch_size", 64)))))
    start = time.perf_counter()
    metrics = evaluate(dataset)
    seconds = time.perf_counter() - start
    if os.environ.get("RANK", "0") == "0":
        Path(path).write_text(json.dumps({"users_per_second": num_users / seconds, "metrics": metrics}))
    os._exit(0)  # without gloo's shutdown, which may abort


def measure(system: str, num_items: int, num_users: int, folder: Path) -> float:
    processes = SYSTEMS[system][0]
    path = folder / "measured.json"
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    command = [sys.executable, *(launch if processes > 1 else []), __file__, "--worker", system]
    command += ["--items", str(num_items), "--users", str(num_users), "--path", str(path)]
    subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, stderr=subprocess.DEVNULL)
    return json.loads(path.read_text())["users_per_second"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one round on few users, and no CSV")
    parser.add_argument("--items", type=int, default=10_000)
    parser.add_argument("--users", type=int, default=512)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--path", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        work(options.worker, options.items, options.users, options.path)
    users, rounds = (128, 1) if options.quick else (options.users, 3)
    with tempfile.TemporaryDirectory() as folder:
        asked = {name: max(8, int(users * share)) for name, (_, _, share) in SYSTEMS.items()}
        systems = {name: partial(measure, name, options.items, asked[name], Path(folder)) for name in SYSTEMS}
        values = in_turn(systems, rounds)
    rows = compare("evaluation", f"{options.items} items", "throughput", "users/s", values, BASELINE)
    for row in rows:
        sys.stdout.write(f"{row['system']:30} {row['p50']:>8} users/s   {row['ratio']} of {BASELINE}\n")
    if not options.quick:
        sys.stdout.write(f"{write_results('evaluation', rows, RESULTS)}\n")


if __name__ == "__main__":
    main()
