"""
How many of the really best items beam search finds, and what the normalisation of probabilities changes.

    python benchmarks/accuracy/beam_quality.py --data PATH/TO/instruments

Trains a small Llama on all but each user's last two items by plain fine-tuning (an epoch), then asks validation
users; test items are not touched. The best items by the exact ranking are the yardstick of widths 5 to 100; Hit@10 and
NDCG@10 by 20 beams are compared between both normalisations. Writes benchmarks/results/beam_quality.csv and
benchmarks/results/beam_quality.png.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path


sys.path.insert(0, str(Path(__file__).parents[2]))

import numpy as np  # noqa: E402
import torch  # noqa: E402

from benchmarks.speed.measurements import RESULTS, compare, write_results  # noqa: E402
from ilrec_trl import rank_items, recommend  # noqa: E402
from ilrec_trl.evaluation.exact_ranking import ranks_in_lists  # noqa: E402
from ilrec_trl.evaluation.metrics import metric_values, standard_error  # noqa: E402
from ilrec_trl.pipeline.options import DataOptions, EvaluationOptions, ModelOptions, TrainingOptions  # noqa: E402
from ilrec_trl.pipeline.prepare import prepare  # noqa: E402
from ilrec_trl.pipeline.train import build_model, sample, train_method  # noqa: E402


WIDTHS = (5, 10, 20, 50, 100)
NORMALISATIONS = ("vocabulary", "continuations")


def train(prepared, epochs: float):
    """The settings of examples/configs/instruments_cpu.yaml, for fewer epochs."""
    sizes = ModelOptions(
        hidden_size=64, intermediate_size=256, num_hidden_layers=6, num_attention_heads=2, tie_word_embeddings=True
    )
    training = TrainingOptions(num_train_epochs=epochs, per_device_train_batch_size=64, learning_rate=0.004)
    evaluation = EvaluationOptions(validation_users=100)
    with tempfile.TemporaryDirectory() as folder:
        return train_method("sft", prepared, build_model(prepared, sizes, 0), training, evaluation, folder).model


def best_sequences(scores: torch.Tensor, leaves: torch.Tensor, count: int) -> list[list[int]]:
    """Leaves of the `count` best distinct token sequences of each row of `scores` `(B, I)`."""
    first = torch.cat([torch.tensor([True]), leaves[1:] != leaves[:-1]]).nonzero().flatten()
    return leaves[first][scores[:, first].topk(count, dim=1).indices].tolist()


def recall(model, prepared, prompts: list[str], normalise: str, num_exact: int) -> tuple[list[dict], float, float]:
    """Rows of recall by width; and seconds a user of the exact ranking and of 20 beams."""
    trie, tokenizer = prepared.item_trie, prepared.tokenizer
    start = time.perf_counter()
    scores = rank_items(model, tokenizer, prompts[:num_exact], trie, normalise=normalise)
    exact_seconds = (time.perf_counter() - start) / num_exact
    rows = []
    for k in (5, 10):
        best = best_sequences(scores, trie.arrays.item_leaf, k)
        found = {}
        for width in [width for width in WIDTHS if width >= k]:
            start = time.perf_counter()
            lists = recommend(
                model, tokenizer, prompts[:num_exact], trie, top_k=width, num_beams=width, normalise=normalise
            )
            if width == 20:
                beam_seconds = (time.perf_counter() - start) / num_exact
            leaves = [set(trie.leaf_of([item for item, _ in row]).tolist()) for row in lists]
            shares = [len(own & set(true)) / k for own, true in zip(leaves, best, strict=True)]
            found[f"{width} beams"] = [float(np.mean(shares))]
        case = f"{prepared.name}, {num_exact} validation users, shares of the {normalise}"
        rows += compare("beam_quality", case, f"recall of the exact {k} best", "1", found, "")
    return rows, exact_seconds, beam_seconds


def normalisation(model, prepared, questions) -> list[dict]:
    """Hit@10 and NDCG@10 by 20 beams with each normalisation, and the paired difference with its standard error."""
    values = {}
    for normalise in NORMALISATIONS:
        lists = recommend(
            model,
            prepared.tokenizer,
            list(questions["prompt"]),
            prepared.item_trie,
            top_k=20,
            num_beams=20,
            normalise=normalise,
            batch_size=64,
        )
        ranks = ranks_in_lists(lists, list(questions["item"]), prepared.item_trie)
        starts, ties = (np.array(column) for column in zip(*ranks, strict=True))
        values[normalise] = metric_values(starts, ties)
    rows, case = [], f"{prepared.name}, {len(questions)} validation users, 20 beams"
    for metric in ("hit@10", "ndcg@10"):
        means = {f"shares of the {name}": [float(values[name][metric].mean())] for name in NORMALISATIONS}
        rows += compare("beam_quality", case, metric, "1", means, "shares of the vocabulary")
        difference = values["continuations"][metric] - values["vocabulary"][metric]  # (U,)
        change = {"continuations minus vocabulary": [float(difference.mean())]}
        change["its standard error"] = [standard_error(difference)]
        rows += compare("beam_quality", case, metric, "1", change, "")
    return rows


def plot(rows: list[dict], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(6, 3.5), layout="constrained")
    for metric, case in dict.fromkeys((row["metric"], row["case"]) for row in rows if "recall" in row["metric"]):
        own = [row for row in rows if (row["metric"], row["case"]) == (metric, case)]
        widths = [int(row["system"].split()[0]) for row in own]
        axis.plot(widths, [float(row["p50"]) for row in own], "o-", label=f"{metric}, {case.split(', ')[-1]}")
    axis.set(xscale="log", xticks=WIDTHS, xticklabels=WIDTHS, xlabel="beams", ylabel="share found", ylim=(None, 1.01))
    axis.legend(fontsize=8)
    figure.savefig(path, dpi=120)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="folder in LC-Rec's format; without it a generated store")
    parser.add_argument("--epochs", type=float, default=1.0)
    parser.add_argument("--users", type=int, default=3000, help="validation users for Hit@10 and NDCG@10")
    parser.add_argument("--exact_users", type=int, default=50, help="number of them that get the exact ranking")
    parser.add_argument("--quick", action="store_true", help="few users and steps, to try the script; writes nothing")
    options = parser.parse_args(arguments)
    if options.quick:
        options.epochs, options.users, options.exact_users = 0.1, 20, 4
    data = DataOptions(data=options.data, rows="sequences", max_users=100 if options.quick else None)
    prepared = prepare(data)
    model = train(prepared, options.epochs).eval()
    questions = prepared.questions(list(sample(prepared.splits.validation, options.users)))
    rows = []
    for normalise in NORMALISATIONS:
        found, exact, beam = recall(model, prepared, list(questions["prompt"]), normalise, options.exact_users)
        times = {"20 beams": [beam], "exact ranking": [exact]}
        rows += found + compare("beam_quality", found[0]["case"], "time a user", "s", times, "20 beams")
    rows += normalisation(model, prepared, questions)
    for row in rows:
        print(f"{row['metric']:26} {row['system']:32} {row['p50']:>10} {row['unit']:2} {row['case']}")  # noqa: T201
    if not options.quick:
        print(write_results("beam_quality", rows))  # noqa: T201
        plot(rows, RESULTS / "beam_quality.png")


if __name__ == "__main__":
    main()
