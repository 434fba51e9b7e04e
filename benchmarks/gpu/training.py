"""
What ILRec costs beside SFT at real shapes, on one GPU, from random weights and without any download: seconds of an
optimiser step and peak memory. From the root of the repository, about six minutes on one H200:

    python benchmarks/gpu/training.py
    python benchmarks/gpu/training.py --quick  # tiny shapes, on a CPU too, written nowhere

Writes benchmarks/results/training_gpu.csv. Shapes: Llama-3.1-8B in nf4 with LoRA on all linear layers, batch 8, length
1,024, with 1 and with 16 target items a row; Qwen3-0.6B, all weights in bfloat16 mixed precision.
"""

import argparse
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any


sys.path.insert(0, str(Path(__file__).parents[2]))

import torch  # noqa: E402
from peft import LoraConfig  # noqa: E402
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, LlamaConfig, Qwen3Config  # noqa: E402

from benchmarks.speed.measurements import compare, in_turn, write_results  # noqa: E402
from benchmarks.speed.training import show  # noqa: E402
from benchmarks.speed.training_systems import Job, Workbench, build_model, systems  # noqa: E402


LLAMA_8B = {
    "hidden_size": 4_096,
    "intermediate_size": 14_336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "rope_theta": 500_000.0,
}
QWEN_600M = {
    "hidden_size": 1_024,
    "intermediate_size": 3_072,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "tie_word_embeddings": True,
}
TINY = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
}
METHODS = ["SFT", "ILRec", "ILRec without CRR", "ILRec, all tokens"]


def nf4_model(folder: str) -> Any:
    quantization = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
    return AutoModelForCausalLM.from_pretrained(folder, quantization_config=quantization, dtype=torch.bfloat16)


def measure(name: str, job: Job, make_model: Any, options: dict[str, Any], peft_config: Any, rounds: int) -> list:
    bench = Workbench(job, 4 * job.batch_size, make_model)
    trainers = systems(bench, 4, options, METHODS, peft_config)
    peaks: dict[str, list[float]] = {method: [] for method in METHODS}

    def step(method: str) -> float:
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
            before = torch.cuda.memory_allocated()
            torch.cuda.reset_peak_memory_stats()
        seconds = trainers[method].step_seconds()
        if torch.cuda.is_available():
            # The other systems' weights stay on the card: what this one adds to them, and its own weights
            peaks[method].append((torch.cuda.max_memory_allocated() - before) / 2**20)
        return seconds

    in_turn({method: lambda method=method: step(method) for method in METHODS}, 1)  # builds the trainers
    for values in peaks.values():
        values.clear()
    seconds = in_turn({method: lambda method=method: step(method) for method in METHODS}, rounds)
    case = f"{name}: {job.name}"
    rows = compare("training_gpu", case, "optimiser step", "s", seconds, "SFT")
    if torch.cuda.is_available():
        weights = sum(p.numel() * p.element_size() for p in trainers["SFT"].trainer.model.parameters()) / 2**20
        totals = {method: [weights + value for value in values] for method, values in peaks.items()}
        rows += compare("training_gpu", case, "weights and peak above them", "MiB", totals, "SFT")
    show(rows)
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    if not (arguments.quick or torch.cuda.is_available()):
        print("no GPU found: nothing was measured", file=sys.stderr)  # noqa: T201
        return 2
    llama, qwen = (TINY, TINY) if arguments.quick else (LLAMA_8B, QWEN_600M)
    vocabularies = (1_100, 1_100) if arguments.quick else (128_256, 151_936)
    length, batch = (64, 2) if arguments.quick else (1_024, 8)
    rounds = 1 if arguments.quick else arguments.rounds
    options = {"bf16": True} if torch.cuda.is_available() else {"use_cpu": True, "bf16": False}
    lora = LoraConfig(r=64, lora_alpha=32, lora_dropout=0.05, target_modules="all-linear", task_type="CAUSAL_LM")
    job = Job(vocab_size=vocabularies[0], length=length, batch_size=batch)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
            model = build_model(LlamaConfig(vocab_size=vocabularies[0], dtype="bfloat16", **llama))
        model.to(torch.bfloat16).save_pretrained(folder)
        del model
        for targets in (1, 16) if arguments.quick is False else (1,):
            rows += measure(
                "Llama-3.1-8B, nf4, LoRA",
                job.with_(targets=targets),
                lambda: nf4_model(folder),
                options,
                lora,
                rounds,
            )
    small = job.with_(vocab_size=vocabularies[1])
    make_qwen = lambda: build_model(Qwen3Config(vocab_size=small.vocab_size, **qwen))  # noqa: E731
    rows += measure("Qwen3-0.6B, all weights", small, make_qwen, options, None, rounds)
    if not arguments.quick:
        print(f"written to {write_results('training_gpu', rows)}")  # noqa: T201
    return 0


if __name__ == "__main__":
    sys.exit(main())
