"""
What it costs to fit histories to `max_length`: rows by `PromptRenderer` beside the same rows without a limit, and
beside tokenizing whole rows and dropping one item at a time. From the root of the repository:

    python benchmarks/speed/prompts.py           # 200,000 questions and 20,000 users, about 4 minutes on one CPU core
    python benchmarks/speed/prompts.py --quick   # a small try, written nowhere

Writes benchmarks/results/prompts.csv: seconds for 100,000 rows (of one target, or of one user). The plain loop is
measured on the first rows alone, on which its histories must be the same.
"""

import argparse
import random
import sys
import time
from pathlib import Path


sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.speed.measurements import compare, in_turn, write_results  # noqa: E402
from ilrec_trl import ItemCatalog, PromptRenderer, next_item_dataset, sequence_dataset  # noqa: E402
from ilrec_trl.data.splits import NextItemExample, UserSequence  # noqa: E402
from tests.references import naive_row_length, naive_shown  # noqa: E402


NUM_ITEMS, VOCAB_SIZE, LONGEST_TITLE, MAX_LENGTH = 10_000, 8_000, 24, 256
# Token counts change with the number before an item, so that nothing can be added up
NUMBERED = "{% for item in history %}{{ loop.index }}. {{ item }}\n{% endfor -%}\nNext:\n"


def make_catalog() -> ItemCatalog:
    """Titles of 2 to 24 words out of 3,000."""
    generator = random.Random(0)
    syllables = ["ka", "to", "mi", "ren", "sol", "vi", "der", "pla", "gu", "nex", "or", "bit"]
    words = ["".join(generator.choices(syllables, k=generator.randint(1, 4))) for _ in range(3_000)]
    titles = (generator.choices(words, k=generator.randint(2, LONGEST_TITLE)) for _ in range(NUM_ITEMS))
    return ItemCatalog.from_titles({str(n): f"{' '.join(title)} {n}" for n, title in enumerate(titles)})


def make_sequences(number: int) -> list[UserSequence]:
    """Users of 5 to 40 items."""
    generator = random.Random(1)
    items = [str(n) for n in range(NUM_ITEMS)]
    return [UserSequence(str(user), generator.choices(items, k=generator.randint(5, 40))) for user in range(number)]


def seconds(action, rows: int) -> float:
    """Seconds for 100,000 rows."""
    start = time.perf_counter()
    action()
    return (time.perf_counter() - start) * 100_000 / rows


def naive(examples: list[NextItemExample], renderer: PromptRenderer, longest: str) -> list[list[str]]:
    def row_length(history: list[str]) -> int:
        return naive_row_length(renderer.tokenizer, renderer.render(history), renderer.texts[longest])

    return [naive_shown(history, 20, MAX_LENGTH, row_length) for _, history, _ in examples]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    number, users, part, rounds = (4_000, 400, 100, 1) if options.quick else (200_000, 20_000, 1_000, 3)
    catalog, sequences = make_catalog(), make_sequences(users)
    tokenizer = catalog.build_tokenizer(VOCAB_SIZE)
    pool = [(u, s[max(0, p - 20) : p], s[p]) for u, s in sequences for p in range(1, len(s))]
    examples = [NextItemExample(*row) for row in random.Random(2).choices(pool, k=number)]

    def renderer(**more) -> PromptRenderer:
        # A new one each time: item lengths are measured anew
        return PromptRenderer(catalog, tokenizer=tokenizer, **more)

    fitted = next_item_dataset(examples[:part], renderer(max_length=MAX_LENGTH))["history"][:]
    by_hand = renderer(max_length=MAX_LENGTH)
    longest = by_hand.lengths[0].longest
    assert fitted == naive(examples[:part], by_hand, longest), "the plain loop shows other items"
    cut = sum(len(shown) < len(row.history) for shown, row in zip(fitted, examples, strict=False))
    print(f"{cut} of the first {part} histories are cut to {MAX_LENGTH} tokens")  # noqa: T201

    limit = {"max_length": MAX_LENGTH}
    end = {"separator": tokenizer.eos_token}
    cases = {
        "one target a row": {
            "no limit": lambda: seconds(lambda: next_item_dataset(examples, renderer()), number),
            "max_length": lambda: seconds(lambda: next_item_dataset(examples, renderer(**limit)), number),
            "max_length, no sums": lambda: seconds(
                lambda: next_item_dataset(examples[: 10 * part], renderer(template=NUMBERED, **limit)), 10 * part
            ),
            "plain loop": lambda: seconds(lambda: naive(examples[:part], by_hand, longest), part),
        },
        "one user a row": {
            "no limit": lambda: seconds(lambda: sequence_dataset(sequences, renderer(**end)), users),
            "max_length": lambda: seconds(lambda: sequence_dataset(sequences, renderer(**end, **limit)), users),
        },
    }
    rows = []
    for case, systems in cases.items():
        values = in_turn(systems, rounds)
        rows += compare("prompts", case, "time", "s/100000 rows", values, "max_length")
        for system, measured in values.items():
            print(f"{case:18} {system:20} {sorted(measured)[len(measured) // 2]:8.1f} s for 100,000 rows")  # noqa: T201
    if not options.quick:
        print(write_results("prompts", rows))  # noqa: T201


if __name__ == "__main__":
    main()
