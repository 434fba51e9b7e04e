"""
Constrained beam search against the ways that are in use, on one processor:

    python benchmarks/speed/decoding.py

Ours, `generate` with `prefix_allowed_tokens_fn`, `generate` with a dictionary of prefixes as other projects have it,
and two searches without any constraint: `generate`, and ours without the trie. Same model (random weights), prompts
and beams; measured in turn. Writes benchmarks/results/decoding.csv and decoding.png. With `--compile` ours is measured
beside itself with a compiled model, and decoding_compiled.csv is written there.
"""

import argparse
import copy
import sys
import time
from collections import defaultdict
from pathlib import Path


sys.path.insert(0, str(Path(__file__).parents[2]))

import numpy as np  # noqa: E402
import torch  # noqa: E402
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, LogitsProcessor  # noqa: E402

from benchmarks.speed.measurements import (  # noqa: E402
    RESULTS,
    compare,
    in_turn,
    peak_mib,
    reset_peak,
    write_results,
)
from ilrec_trl import ItemTrie, ItemTrieLogitsProcessor  # noqa: E402
from ilrec_trl.evaluation.beam_search import constrained_beam_search  # noqa: E402
from ilrec_trl.evaluation.prompt_batches import MIB, search_bytes  # noqa: E402
from ilrec_trl.evaluation.prompt_decoder import PromptDecoder  # noqa: E402


CODES, LEVELS = 256, 4
SPECIAL = {"pad_token_id": 0, "bos_token_id": None, "eos_token_id": 1}
BASELINE, SLOWEST = "ours, unconstrained", "generate, prefix_allowed_tokens_fn"


def build_catalogue(num_items: int, text_tokens: int, seed: int = 0) -> dict[int, list[int]]:
    """Semantic IDs of four levels, each token of its own level, behind the tokens of text."""
    rng = np.random.default_rng(seed)
    levels = text_tokens + CODES * np.arange(LEVELS)
    ids = rng.integers(0, CODES, (num_items, LEVELS)) + levels
    return dict(enumerate(ids.tolist()))


def build_model(vocab_size: int, **sizes) -> LlamaForCausalLM:
    """Random weights, large enough that probabilities differ from token to token."""
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=vocab_size, **({"initializer_range": 0.2} | SPECIAL | sizes))
    return LlamaForCausalLM(config).eval()


def build_prompts(sequences: dict[int, list[int]], batch: int, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Histories of the catalogue's own items, padded on the left: `length` tokens at most, three quarters at least."""
    rng = np.random.default_rng(1)
    items = rng.integers(0, len(sequences), (batch, length // LEVELS))
    input_ids = torch.tensor([[token for item in row for token in sequences[item]] for row in items])
    attention_mask = torch.ones_like(input_ids)
    for row, missing in enumerate(rng.integers(0, length // LEVELS // 4 + 1, batch)):
        attention_mask[row, : missing * LEVELS] = 0
        input_ids[row, : missing * LEVELS] = 0
    return input_ids, attention_mask


class PrefixDictionary:
    """All prefixes as tuples, each with the tokens that follow it: a dictionary in Python."""

    def __init__(self, sequences: dict[int, list[int]], prompt_length: int) -> None:
        following = defaultdict(set)
        for tokens in sequences.values():
            for place, token in enumerate(tokens):
                following[tuple(tokens[:place])].add(token)
        self.following = {prefix: sorted(tokens) for prefix, tokens in following.items()}
        self.prompt_length = prompt_length

    def __call__(self, batch_id: int, input_ids: torch.Tensor) -> list[int]:
        return self.following[tuple(input_ids[self.prompt_length :].tolist())]


class PrefixDictionaryProcessor(LogitsProcessor):
    """A loop over all rows at each step, with a mask for each, as is common."""

    def __init__(self, dictionary: PrefixDictionary) -> None:
        self.dictionary = dictionary

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        mask = torch.full_like(scores, -torch.inf)
        for row, tokens in enumerate(input_ids):
            mask[row, self.dictionary(row, tokens)] = 0
        return scores + mask


@torch.no_grad()
def unconstrained_beam_search(
    model, input_ids: torch.Tensor, attention_mask: torch.Tensor, num_beams: int, steps: int
) -> torch.Tensor:
    """Our decoder without a catalogue: the best of all tokens at every step. Returns scores `(B, W)`."""
    decoder = PromptDecoder(model, input_ids, attention_mask)
    scores = torch.zeros(len(input_ids), 1, device=input_ids.device)  # (B, W)
    for step in range(steps):
        vocab_size = decoder.logits.shape[-1]
        shares = decoder.logits.log_softmax(dim=-1, dtype=torch.float32)  # (B, W, V)
        scores, places = (scores[:, :, None] + shares).flatten(1).topk(num_beams, dim=1)
        if step + 1 < steps:
            decoder.step(places % vocab_size, places // vocab_size)
    return scores


def run_generate(model, input_ids, attention_mask, num_beams: int, **constraint) -> tuple[torch.Tensor, torch.Tensor]:
    """Generated tokens `(B, W, D)` and scores `(B, W)`."""
    config = GenerationConfig(
        num_beams=num_beams,
        num_return_sequences=num_beams,
        max_new_tokens=LEVELS,
        length_penalty=0.0,
        do_sample=False,
        return_dict_in_generate=True,
        output_scores=True,
        **SPECIAL,
    )
    found = model.generate(input_ids=input_ids, attention_mask=attention_mask, generation_config=config, **constraint)
    tokens = found.sequences[:, input_ids.shape[1] :].view(len(input_ids), num_beams, -1)
    return tokens, found.sequences_scores.view(len(input_ids), num_beams)


def build_systems(model, prompts, sequences, num_beams: int) -> dict:
    """Each system as a function without arguments."""
    trie = ItemTrie.from_sequences(sequences)
    length = prompts[0].shape[1]
    dictionary = PrefixDictionary(sequences, length)

    def ours(**options):
        return constrained_beam_search(model, *prompts, trie, num_beams=num_beams, **options)

    return {
        BASELINE: lambda: unconstrained_beam_search(model, *prompts, num_beams, LEVELS),
        "ours": ours,
        "ours, shares of continuations": lambda: ours(normalise="continuations"),
        "generate, unconstrained": lambda: run_generate(model, *prompts, num_beams),
        "generate, ItemTrieLogitsProcessor": lambda: run_generate(
            model, *prompts, num_beams, logits_processor=[ItemTrieLogitsProcessor(trie, length, 1)]
        ),
        "generate, dictionary of prefixes": lambda: run_generate(
            model, *prompts, num_beams, logits_processor=[PrefixDictionaryProcessor(dictionary)]
        ),
        SLOWEST: lambda: run_generate(model, *prompts, num_beams, prefix_allowed_tokens_fn=dictionary),
    }


def measure_compiled(model, prompts, trie: ItemTrie, num_beams: int, case: str, rounds: int) -> list[dict]:
    """Ours, and ours with the model's forward compiled for any shape; the first call compiles and is left out."""
    compiled = copy.deepcopy(model)
    compiled.forward = torch.compile(compiled.forward, dynamic=True)
    models = {"ours": model, "ours, model compiled": compiled}
    systems = {
        name: lambda each=each: constrained_beam_search(each, *prompts, trie, num_beams=num_beams)
        for name, each in models.items()
    }
    first = {name: [seconds(function)] for name, function in systems.items()}
    values = in_turn({name: lambda function=f: seconds(function) for name, f in systems.items()}, 5 * rounds)
    assert torch.equal(*(function()[0] for function in systems.values())), "the searches find other items"
    rows = compare("decoding_compiled", case, "first batch", "s", first, "")
    return rows + compare("decoding_compiled", case, "time a batch", "s", values, "ours")


def check_equal(systems: dict, trie: ItemTrie) -> None:
    """What is compared must be the same search: scores of all constrained systems agree, and so do the items."""
    leaves, scores = systems["ours"]()
    for name in (SLOWEST, "generate, dictionary of prefixes"):
        tokens, their_scores = systems[name]()
        theirs = trie.locate(tokens.flatten(0, 1)).view(leaves.shape)
        if their_scores.dtype == torch.float32:
            torch.testing.assert_close(scores, their_scores, rtol=1e-3, atol=1e-2)
            assert (theirs == leaves).float().mean() > 0.95, "the searches find other items"
        else:  # in bfloat16 the order of near ties is chance
            torch.testing.assert_close(scores, their_scores.float(), rtol=5e-2, atol=0.5)


def seconds(function) -> float:
    synchronise = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    synchronise()
    start = time.perf_counter()
    function()
    synchronise()
    return time.perf_counter() - start


def measure(systems: dict, trie: ItemTrie, case: str, rounds: int, benchmark: str = "decoding") -> list[dict]:
    """Rows of the CSV: each system beside the unconstrained twin, and beside `prefix_allowed_tokens_fn`."""
    check_equal(systems, trie)
    timed = {name: lambda function=f: seconds(function) for name, f in systems.items()}
    values = in_turn(timed, rounds)
    rows = compare(benchmark, case, "time a batch", "s", values, SLOWEST)
    # What takes a tenth of the time is measured more often, for a ratio that is worth reading.
    ours = in_turn({name: function for name, function in timed.items() if name.startswith("ours")}, 5 * rounds)
    return rows + compare(benchmark, case, "time a batch", "s", ours, BASELINE)


def measure_memory(model, prompts, trie: ItemTrie, num_beams: int, case: str) -> list[dict]:
    """What a search takes at its peak beside what was there before, and the estimate that memory budgets go by."""
    constrained_beam_search(model, *(tensor[:1] for tensor in prompts), trie, num_beams=num_beams)
    reset_peak()
    before = peak_mib()
    constrained_beam_search(model, *prompts, trie, num_beams=num_beams)
    batch, length = prompts[0].shape
    memory = {
        "estimate": [batch * search_bytes(model, trie, length, num_beams) / MIB],
        "measured": [peak_mib() - before],
    }
    return compare("decoding", case, "memory of a batch", "MiB", memory, "estimate")


def show(rows: list[dict]) -> None:
    for row in rows:
        ratio = f"{row['ratio']:>8} x {row['baseline']}" if row.get("ratio") else ""
        print(f"{row['case'][:14]:14} {row['system']:36} {row['p50']:>9} {row['unit']:3} {ratio}")  # noqa: T201


def plot(rows: list[dict], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    cases = list(dict.fromkeys(row["case"] for row in rows))
    figure, axes = pyplot.subplots(len(cases), 1, figsize=(8, 2.6 * len(cases)), layout="constrained", squeeze=False)
    for axis, case in zip(axes[:, 0], cases, strict=True):
        own = [row for row in rows if row["case"] == case][::-1]
        middle = [float(row["p50"]) for row in own]
        spread = [
            [m - float(row["p20"]) for m, row in zip(middle, own, strict=True)],
            [float(row["p80"]) - m for m, row in zip(middle, own, strict=True)],
        ]
        colours = ["tab:blue" if row["system"].startswith("ours") else "tab:gray" for row in own]
        bars = axis.barh([row["system"] for row in own], middle, xerr=spread, color=colours)
        axis.bar_label(bars, [f" {row['ratio']}x" for row in own])
        axis.set(title=case, xlabel="seconds a batch (median, p20 to p80); share of prefix_allowed_tokens_fn")
        axis.margins(x=0.15)
    figure.savefig(path, dpi=120, bbox_inches="tight")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=10_000)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--beams", type=int, default=20)
    parser.add_argument("--prompt_tokens", type=int, default=160)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--compile", action="store_true", help="only ours, with and without a compiled model")
    parser.add_argument("--quick", action="store_true", help="small sizes, to try the script; writes nothing")
    options = parser.parse_args(arguments)
    if options.quick:
        options.items, options.batch, options.beams, options.prompt_tokens, options.rounds = 300, 2, 5, 16, 2
    torch.set_num_threads(options.threads)
    sizes = {"hidden_size": 192, "intermediate_size": 512, "num_hidden_layers": 4, "num_attention_heads": 4}
    cases, rows = {}, []
    for text_tokens in (32_000, 3):  # the vocabulary of a language model, and item tokens alone
        sequences = build_catalogue(options.items, text_tokens)
        model = build_model(text_tokens + CODES * LEVELS, **sizes)
        prompts = build_prompts(sequences, options.batch, options.prompt_tokens)
        case = (
            f"{text_tokens + CODES * LEVELS:,} tokens, {options.items:,} items, {options.batch} prompts of "
            f"{options.prompt_tokens} tokens, {options.beams} beams"
        )
        trie = ItemTrie.from_sequences(sequences)
        if options.compile:
            rows += measure_compiled(model, prompts, trie, options.beams, case, options.rounds)
            continue
        cases[case] = build_systems(model, prompts, sequences, options.beams), trie
        # Before anything else has left memory behind that a search could do with.
        rows += measure_memory(model, prompts, trie, options.beams, case)
    for case, (systems, trie) in cases.items():
        rows += measure(systems, trie, case, options.rounds)
    show(rows)
    if not options.quick:
        print(write_results("decoding_compiled" if options.compile else "decoding", rows))  # noqa: T201
    if not (options.quick or options.compile):
        plot([row for row in rows if row["baseline"] == SLOWEST], RESULTS / "decoding.png")


if __name__ == "__main__":
    main()
