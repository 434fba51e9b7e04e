from collections import Counter, defaultdict

import pytest

from ilrec_trl import generate_store
from ilrec_trl.data.synthetic import _FAMILIES


class TestGenerateStore:
    def test_same_seed_same_store(self):
        assert generate_store(seed=3, num_users=50) == generate_store(seed=3, num_users=50)
        assert generate_store(seed=3, num_users=50).interactions != generate_store(seed=4, num_users=50).interactions

    def test_every_item_has_a_title_and_an_id_of_its_own(self):
        store = generate_store(num_users=500, num_items=300)
        assert list(store.titles) == list(store.semantic_ids) == [f"i{index}" for index in range(300)]
        assert len(set(store.titles.values())) == 300
        assert len({tuple(tokens) for tokens in store.semantic_ids.values()}) == 300
        assert set(store.interactions.items) <= set(store.titles)
        # Title and first token agree on the family.
        families = list(_FAMILIES)
        for item, tokens in store.semantic_ids.items():
            assert families[int(tokens[0].removeprefix("<a_").removesuffix(">"))] in store.titles[item]

    def test_lengths_and_order(self):
        interactions = generate_store(num_users=1000, mean_length=8).interactions
        lengths = [len(items) for items in interactions.sequences]
        assert min(lengths) >= 5
        assert max(lengths) <= 32
        assert sum(lengths) / len(lengths) == pytest.approx(8, abs=0.5)
        assert all(len(set(items)) == len(items) for items in interactions.sequences)
        day = 86_400
        splits = interactions.global_time(1_577_836_800 + 600 * day, 1_577_836_800 + 700 * day)
        assert len(splits.test) > 100

    def test_the_order_tells_more_than_popularity(self):
        """A table of what followed each item, the simplest model of order, must find far more than popularity does."""
        store = generate_store(num_users=1000)
        splits = store.interactions.leave_one_out()
        popular = Counter(item for _, items in splits.train for item in items)
        followers = defaultdict(Counter)
        for _, items in splits.train:
            for item, following in zip(items, items[1:], strict=False):
                followers[item][following] += 1

        def hit_rate(recommend):
            return sum(item in recommend(history) for _, history, item in splits.test) / len(splits.test)

        best_sellers = [item for item, _ in popular.most_common(10)]
        by_popularity = hit_rate(lambda history: best_sellers)
        by_order = hit_rate(lambda history: [item for item, _ in followers[history[-1]].most_common(10)])
        assert by_popularity > 10 / 300
        assert by_order > 3 * by_popularity

    def test_tastes_drift_between_families(self):
        store = generate_store(num_users=300)
        families = [[store.semantic_ids[item][0] for item in items] for items in store.interactions.sequences]
        moves = [a != b for sequence in families for a, b in zip(sequence, sequence[1:], strict=False)]
        assert 0.3 < sum(moves) / len(moves) < 0.6

    def test_refusals(self):
        with pytest.raises(ValueError, match="num_items=41; expected at least 42"):
            generate_store(num_items=41)
        with pytest.raises(ValueError, match="num_users=0"):
            generate_store(num_users=0)
        with pytest.raises(ValueError, match="mean_length=4"):
            generate_store(mean_length=4)

    def test_smallest_store(self):
        store = generate_store(num_users=20, num_items=42, mean_length=10)
        assert len(store.interactions) == 20
