from collections import Counter

import pytest

from benchmarks.accuracy.negatives import NegativeSampler
from ilrec_trl.data.splits import NextItemExample, UserSequence


class Titles:
    def text(self, item_id):
        return "Same title" if item_id in ("a", "b") else f"Title {item_id}"


ITEMS = list("abcdef")
TRAIN = [UserSequence("u", list("cccd")), UserSequence("v", list("caeee"))]  # c 4, d 1, a 1, e 3, b and f never


def test_never_the_target_nor_its_text_nor_the_history():
    draw = NegativeSampler(ITEMS, Titles(), TRAIN, seed=0)
    counts = Counter()
    for _ in range(2000):
        found = draw(NextItemExample("u", ["c", "c"], "a"), 2)
        assert len(set(found)) == 2
        counts.update(found)
    assert set(counts) == set("def")
    for item in "def":
        assert counts[item] / 2000 == pytest.approx(2 / 3, abs=0.05)


def test_by_popularity():
    draw = NegativeSampler(ITEMS, Titles(), TRAIN, "popularity", seed=0)
    counts = Counter(draw(NextItemExample("u", ["d"], "f"), 1)[0] for _ in range(4000))
    assert set(counts) == set("ace")
    for item, share in {"c": 4 / 8, "e": 3 / 8, "a": 1 / 8}.items():
        assert counts[item] / 4000 == pytest.approx(share, abs=0.03)


def test_the_seed_decides():
    example = NextItemExample("u", ["c"], "f")
    first, second, other = (
        [NegativeSampler(ITEMS, Titles(), TRAIN, seed=seed)(example, 3) for _ in range(1)] for seed in (0, 0, 5)
    )
    assert first == second != other


def test_too_few_to_draw_from():
    draw = NegativeSampler(ITEMS, Titles(), TRAIN)
    assert set(draw(NextItemExample("u", list("cd"), "a"), 2)) == {"e", "f"}
    with pytest.raises(ValueError, match="User 'u' with a history of 2 items leaves 2 items to draw 3 negatives from"):
        draw(NextItemExample("u", list("cd"), "a"), 3)
    with pytest.raises(ValueError, match="leaves 1 items to draw 2 negatives"):
        NegativeSampler(ITEMS, Titles(), TRAIN, "popularity")(NextItemExample("u", list("ce"), "d"), 2)
