"""
The table of `benchmarks/speed/decoding.py` for a model of the shape of Llama-3.1-8B, with random weights, on one GPU:

    python benchmarks/gpu/decoding.py

bfloat16, no download, about 30 GiB of GPU memory, below eight minutes. `--quick` runs a tiny shape on any machine.
Writes benchmarks/results/gpu_decoding.csv.
"""

import argparse
import sys
from pathlib import Path


sys.path.insert(0, str(Path(__file__).parents[2]))

import torch  # noqa: E402

from benchmarks.speed.decoding import (  # noqa: E402
    CODES,
    LEVELS,
    build_catalogue,
    build_model,
    build_prompts,
    build_systems,
    measure,
    show,
)
from benchmarks.speed.measurements import write_results  # noqa: E402
from ilrec_trl import ItemTrie  # noqa: E402


TEXT_TOKENS = 128_256
LLAMA_8B = {
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 131_072,
    "initializer_range": 0.02,
}
TINY = LLAMA_8B | {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.2,
}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tiny shape, on the CPU too; writes nothing")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args(arguments)
    if not options.quick and not torch.cuda.is_available():
        print("no GPU found: nothing was measured", file=sys.stderr)  # noqa: T201
        return 2
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.bfloat16 if not options.quick else torch.float32
    items, batch, beams, length, rounds, text_tokens = (
        (200, 2, 4, 16, 1, 3000) if options.quick else (10_000, 16, 20, 256, options.rounds, TEXT_TOKENS)
    )
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            model = build_model(text_tokens + CODES * LEVELS, **(TINY if options.quick else LLAMA_8B))
    finally:
        torch.set_default_dtype(torch.float32)
    sequences = build_catalogue(items, text_tokens)
    prompts = tuple(tensor.to(device) for tensor in build_prompts(sequences, batch, length))
    systems = build_systems(model, prompts, sequences, beams)
    case = f"Llama-3.1-8B's shape, {dtype}, {items:,} items, batch {batch}, {beams} beams, prompts of {length} tokens"
    rows = measure(systems, ItemTrie.from_sequences(sequences), case, rounds, "gpu_decoding")
    show(rows)
    if not options.quick:
        print(write_results("gpu_decoding", rows))  # noqa: T201
    return 0


if __name__ == "__main__":
    sys.exit(main())
