"""The bootstrap against loops, against the formula of its variance, and by its coverage on drawn data."""

import numpy as np
import pytest

from ilrec_trl.evaluation.statistics import Difference, holm, paired_bootstrap


def naive_bootstrap(values, users, resamples, seed):
    """Draw users, then seeds, one after the other; `values[s][q]` belongs to user `users[q]`."""
    generator = np.random.default_rng(seed)
    names, seeds = sorted(set(users)), len(values)
    of_seed = [sum(row) / len(row) for row in values]
    overall = sum(of_seed) / seeds
    results = []
    for _ in range(resamples):
        taken = []
        for name in generator.choice(names, len(names)):
            for question, user in enumerate(users):
                if user == name:
                    taken.append(sum(row[question] for row in values) / seeds)
        mean = sum(taken) / len(taken) if taken else 0.0
        if seeds > 1:
            drawn = [of_seed[k] for k in generator.choice(seeds, seeds)]
            mean += (seeds / (seeds - 1)) ** 0.5 * (sum(drawn) / seeds - overall)
        results.append(mean)
    return np.array(results)


@pytest.mark.parametrize("seeds", [1, 3])
def test_intervals_and_p_values_are_those_of_loops(seeds):
    generator = np.random.default_rng(seeds)
    users = np.repeat(np.arange(12), generator.integers(1, 4, 12))  # some users have several questions
    values = generator.normal(0.25, 1, (seeds, len(users))) + generator.normal(0, 0.3, (seeds, 1))
    (found,) = paired_bootstrap([Difference(values, users)], resamples=20_000)
    draws = naive_bootstrap(values.tolist(), users.tolist(), 4_000, seed=1)
    assert found.difference == pytest.approx(values.mean(), abs=1e-12)
    # Two draws of one distribution, which has steps where seeds are few
    spread = draws.std()
    assert [found.low, found.high] == pytest.approx(np.quantile(draws, [0.025, 0.975]), abs=0.15 * spread)
    assert found.p_value == pytest.approx(2 * min((draws <= 0).mean(), (draws >= 0).mean()), abs=0.03)


def test_errors_have_their_parts():
    generator = np.random.default_rng(0)
    values = generator.normal(0, 1, (4, 500)) + np.array([[0.3], [-0.2], [0.1], [0.0]])
    (found,) = paired_bootstrap([Difference(values, np.arange(500))])
    assert found.users_error == pytest.approx(values.mean(0).std(ddof=1) / 500**0.5, rel=0.05)
    assert found.seeds_error == pytest.approx(values.mean(1).std(ddof=1) / 2, abs=1e-12)
    width = (found.high - found.low) / (2 * 1.96)
    assert width == pytest.approx((found.users_error**2 + found.seeds_error**2) ** 0.5, rel=0.1)


def test_a_stratum_is_tested_as_if_alone():
    generator = np.random.default_rng(3)
    values, some = generator.normal(0.2, 1, (2, 300)), np.arange(100, 300)
    whole, part = paired_bootstrap([Difference(values, np.arange(300)), Difference(values[:, some], some)])
    (alone,) = paired_bootstrap([Difference(values[:, some], np.arange(200))])
    assert part.difference == pytest.approx(values[:, some].mean(), abs=1e-12)
    assert part.users_error == pytest.approx(alone.users_error, rel=0.05)
    assert whole.users_error < part.users_error


def test_parts_of_the_resamples_make_the_whole(monkeypatch):
    values = np.random.default_rng(0).normal(0, 1, (2, 50))
    from ilrec_trl.evaluation import statistics as study_statistics

    whole = paired_bootstrap([Difference(values, np.arange(50))], resamples=400)
    monkeypatch.setattr(study_statistics, "_AT_ONCE", 50 * 7)
    (parts,) = paired_bootstrap([Difference(values, np.arange(50))], resamples=400)
    assert parts.users_error == whole[0].users_error


@pytest.mark.parametrize(("user", "seed", "both"), [(1.0, 0.0, 0.0), (0.5, 0.0, 1.0), (0.0, 0.08, 1.0)])
def test_intervals_cover_the_truth(user, seed, both):
    """Users, seeds and both together as sources of chance; about 19 of 20 intervals hold the true difference."""
    generator = np.random.default_rng(7)
    inside, rounds, size = 0, 200, 150
    for number in range(rounds):
        values = 0.1 + user * generator.normal(size=size) + seed * generator.normal(size=(3, 1))
        values = values + both * generator.normal(size=(3, size))
        (found,) = paired_bootstrap([Difference(values, np.arange(size))], resamples=400, seed=number)
        inside += found.low <= 0.1 <= found.high
    assert 0.90 <= inside / rounds <= 0.995


def test_no_difference_is_no_difference():
    (found,) = paired_bootstrap([Difference(np.zeros((3, 20)), np.arange(20))])
    assert (found.difference, found.low, found.high, found.p_value) == (0.0, 0.0, 0.0, 1.0)


@pytest.mark.parametrize("values", [np.zeros((0, 3)), np.zeros((2, 4)), np.full((1, 3), np.nan)])
def test_values_that_cannot_be_tested(values):
    with pytest.raises(ValueError, match="expected|finite"):
        paired_bootstrap([Difference(values, np.arange(3))])


def test_holm_by_hand():
    # 4 * 0.005, then max(0.02, 3 * 0.01), then 2 * 0.03, then max(0.06, 0.04)
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []
