"""
Tries of ten thousand to ten million items: what they cost to build, to keep, and to ask at a step of beam search.

    python benchmarks/speed/trie.py

Items are four tokens of 256 codes a level, drawn at random. Each trie is built in a process of its own, so that its
peak memory is its own, and saved; the steps are then measured in turn in one process on the loaded tries. A step asks
for the continuations of 16 prompts x 20 beams, as a rectangle (what beam search uses) and as a mask over the
vocabulary (what the logits processor uses); a step of the search is all of it, a small model included. A figure is the
mean over the levels. Continuations grow with such a catalogue until every code is taken: 53 at most at the second
level of ten thousand items, 256 of ten million. So the rectangle and the mask are also measured on full trees of ten
children a node, of four levels (ten thousand items) to seven (ten million). Writes
benchmarks/results/trie.csv and trie.png.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path


sys.path.insert(0, str(Path(__file__).parents[2]))

import numpy as np  # noqa: E402

from benchmarks.speed.measurements import RESULTS, compare, in_turn, peak_mib, reset_peak, write_results  # noqa: E402


CODES, LEVELS, BATCH, BEAMS = 256, 4, 16, 20
SIZES_OF_THE_MODEL = {
    "hidden_size": 64,
    "intermediate_size": 256,
    "num_hidden_layers": 6,
    "num_attention_heads": 2,
}
SIZES = (10_000, 100_000, 1_000_000, 10_000_000)


def full_tree(num_items: int) -> np.ndarray:
    """Token ids `(I, D)`: the digits of 0 to I - 1, a power of ten; each level has tokens of its own."""
    depth = len(str(num_items - 1))
    numbers = np.arange(num_items, dtype=np.int32)
    digits = [numbers // 10 ** (depth - 1 - level) % 10 + 10 * level for level in range(depth)]
    return np.stack(digits, axis=1).astype(np.int32)


def draw_tokens(num_items: int) -> np.ndarray:
    """Token ids `(I, 4)`, each level with tokens of its own."""
    tokens = np.random.default_rng(0).integers(0, CODES, (num_items, LEVELS), dtype=np.int32)
    return tokens + CODES * np.arange(LEVELS, dtype=np.int32)


def build(num_items: int, folder: str) -> dict[str, float]:
    """Run in a process of its own."""
    from ilrec_trl import ItemTrie

    tokens = draw_tokens(num_items)
    ItemTrie.from_arrays(range(100), tokens[:100])  # whatever is loaded at the first use
    reset_peak()
    before, start = peak_mib(), time.perf_counter()
    trie = ItemTrie.from_arrays(range(num_items), tokens)
    figures = {"build time": time.perf_counter() - start, "peak memory beside the tokens": peak_mib() - before}
    figures["memory an item"] = trie.arrays.num_bytes / num_items
    figures["nodes an item"] = trie.num_nodes / num_items
    trie.save(folder)
    return figures


UNITS = {"build time": "s", "peak memory beside the tokens": "MiB", "memory an item": "B", "nodes an item": "1"}


def measure_build(num_items: int, folder: Path) -> dict[str, float]:
    command = [sys.executable, __file__, "--build", str(num_items), str(folder)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def step_functions(num_items: int, folder: Path) -> dict:
    """What a step asks of a trie, as functions that return milliseconds."""
    import torch

    from benchmarks.speed.decoding import build_model
    from ilrec_trl import ItemTrie
    from ilrec_trl.evaluation.beam_search import constrained_beam_search

    torch.set_num_threads(1)
    start = time.perf_counter()
    trie = ItemTrie.load(folder)
    load_time = time.perf_counter() - start
    sequences = spread(draw_tokens(num_items))
    model = build_model(CODES * LEVELS, **SIZES_OF_THE_MODEL)
    prompts = sequences[: BATCH * 8].reshape(BATCH, 8 * LEVELS).long()
    mask = torch.ones_like(prompts)

    def search() -> float:
        start = time.perf_counter()
        constrained_beam_search(model, prompts, mask, trie, num_beams=BEAMS)
        return (time.perf_counter() - start) * 1000 / LEVELS

    return {
        "load": lambda: load_time,
        "search": search,
        **questions(trie, sequences),
    }


def spread(tokens: np.ndarray):
    """Tokens `(320, D)` of items from all over the catalogue."""
    import torch

    return torch.from_numpy(tokens[:: max(len(tokens) // (BATCH * BEAMS), 1)][: BATCH * BEAMS])


def questions(trie, sequences) -> dict:
    """Milliseconds of the rectangle and of the mask below the prefixes of `sequences`, a mean over the levels."""
    nodes = [trie.locate(sequences[:, :level].long()).view(BATCH, BEAMS) for level in range(trie.depth)]
    vocab_size = trie.arrays.max_token + 1

    def milliseconds(ask) -> float:
        repeats = 10
        start = time.perf_counter()
        for _ in range(repeats):
            for level in range(trie.depth):
                ask(level)
        return (time.perf_counter() - start) * 1000 / repeats / trie.depth

    return {
        "children": lambda: milliseconds(lambda level: trie.arrays.padded_children(nodes[level], level)),
        "mask": lambda: milliseconds(lambda level: trie.allowed_mask(nodes[level].flatten(), vocab_size)),
    }


def full_tree_rows(sizes: tuple[int, ...], rounds: int) -> list:
    """The same questions at the same number of continuations, so that the size alone differs."""
    from ilrec_trl import ItemTrie

    asked = {}
    for size in sizes:
        tokens = full_tree(size)
        asked[f"{size:,} items"] = questions(ItemTrie.from_arrays(range(size), tokens), spread(tokens))
    rows = []
    for name in ("children", "mask"):
        functions = {size: functions[name] for size, functions in asked.items()}
        in_turn(functions, 2)  # warm-up
        case = f"{BATCH} prompts x {BEAMS} beams, 10 children a node"
        rows += compare("trie", case, f"{name} a step", "ms", in_turn(functions, rounds), f"{sizes[0]:,} items")
    return rows


def plot(figures: dict[int, dict[str, float]], steps: dict[str, dict[int, list[float]]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 3, figsize=(11, 3), layout="constrained")
    sizes = list(figures)
    axes[0].plot(sizes, [figures[size]["build time"] for size in sizes], "o-")
    axes[0].set(title="build time, s", yscale="log")
    axes[1].plot(sizes, [figures[size]["memory an item"] for size in sizes], "o-")
    axes[1].set(title="memory an item, bytes", ylim=0)
    for name, values in steps.items():
        axes[2].plot(sizes, [np.median(values[size]) for size in sizes], "o-", label=name)
    axes[2].set(title="a step for 320 beams, ms", ylim=0)
    axes[2].legend()
    for axis in axes:
        axis.set(xscale="log", xlabel="items")
    figure.savefig(path, dpi=120)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small sizes, to try the script; writes nothing")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--build", nargs=2, metavar=("ITEMS", "FOLDER"), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.build:
        print(json.dumps(build(int(options.build[0]), options.build[1])))  # noqa: T201
        return
    sizes = SIZES[:2] if options.quick else SIZES
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        figures = {size: measure_build(size, Path(folder) / str(size)) for size in sizes}
        functions = {size: step_functions(size, Path(folder) / str(size)) for size in sizes}
        for metric, unit in UNITS.items():
            rows += compare("trie", "build", metric, unit, {f"{s:,} items": [figures[s][metric]] for s in sizes}, "")
        steps = {}
        for name, unit in (("load", "s"), ("children", "ms"), ("mask", "ms"), ("search", "ms")):
            in_turn({str(size): functions[size][name] for size in sizes}, 2)  # warm-up
            values = in_turn({f"{size:,} items": functions[size][name] for size in sizes}, options.rounds)
            metric = "time to load" if name == "load" else f"{name} a step"
            rows += compare("trie", f"{BATCH} prompts x {BEAMS} beams", metric, unit, values, f"{sizes[0]:,} items")
            steps[name] = dict(zip(sizes, values.values(), strict=True))
    rows += full_tree_rows(sizes, options.rounds)
    for row in rows:
        print(f"{row['metric']:30} {row['system']:18} {row['p50']:>9} {row['unit']:4} {row.get('ratio', ''):>7}")  # noqa: T201
    if not options.quick:
        print(write_results("trie", rows))  # noqa: T201
        del steps["load"], steps["search"]
        plot(figures, steps, RESULTS / "trie.png")


if __name__ == "__main__":
    main()
