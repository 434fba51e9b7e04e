"""Semantic IDs: always unique, near for near items, the same from the same seed, and open to new items."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ilrec_trl import SemanticIds, build_semantic_ids
from ilrec_trl.semantic_ids.residual_kmeans import balanced_codes, fit_codebook, nearest_codes


UNIQUE = ["last_level", "extra_level"]


def names(number, start=0):
    return [f"i{row}" for row in range(start, start + number)]


def clusters(number=60, seed=0):
    """Vectors around nine far-apart points, three groups of three."""
    generator = np.random.default_rng(seed)
    place = np.arange(number) % 9
    centres = np.array([[100.0 * (n // 3), 10.0 * (n % 3)] for n in range(9)])
    return centres[place] + generator.normal(0, 0.1, (number, 2)), place


@st.composite
def catalogues(draw):
    """Vectors with many duplicates, and codebooks that hold them all, at times only just."""
    levels = draw(st.integers(1, 3))
    sizes = [draw(st.integers(1, 5)) for _ in range(levels)]
    unique = draw(st.sampled_from(UNIQUE))
    room = math.prod(sizes) * (sizes[-1] if unique == "extra_level" else 1)
    number = draw(st.integers(1, min(room, 80)))
    distinct = draw(st.integers(1, number))
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    points = generator.normal(size=(distinct, draw(st.integers(1, 4))))
    balance = draw(st.sampled_from([None, 1, 1.5]))
    return points[generator.integers(0, distinct, number)], levels, sizes, unique, balance


@settings(deadline=None, max_examples=60)
@given(catalogues())
def test_ids_are_unique_and_within_the_codebooks(catalogue):
    vectors, levels, sizes, unique, balance = catalogue
    ids = build_semantic_ids(
        names(len(vectors)), vectors, levels=levels, codebook_size=sizes, unique=unique, balance=balance, iterations=3
    )
    assert len({tuple(tokens) for tokens in ids.tokens}) == len(vectors)
    assert ids.sizes == sizes + ([sizes[-1]] if unique == "extra_level" else [])
    assert (ids.codes < ids.sizes).all()
    assert (ids.codes >= 0).all()


@settings(deadline=None, max_examples=40)
@given(catalogues(), st.integers(0, 2**32 - 1), st.booleans())
def test_new_items_change_nobody_and_are_unique(catalogue, seed, known):
    vectors, levels, sizes, unique, _ = catalogue
    first = 1 + len(vectors) // 2
    ids = build_semantic_ids(
        names(first), vectors[:first], levels=levels, codebook_size=sizes, unique=unique, iterations=3
    )
    new = np.random.default_rng(seed).permutation(vectors[first:])
    used = [np.unique(column) for column in ids.codes.T]
    room = math.prod(map(len, used)) if known else math.prod(ids.sizes)
    if not len(new):
        return
    if len(vectors) > room:
        with pytest.raises(ValueError, match="codes make"):
            ids.assign(names(len(new), first), new, known_tokens=known)
        return
    both = ids.assign(names(len(new), first), new, known_tokens=known)
    assert both.codes[:first].tolist() == ids.codes.tolist()
    assert both.item_ids == names(len(vectors))
    assert len({tuple(tokens) for tokens in both.tokens}) == len(vectors)
    if known:
        assert all(np.isin(column, codes).all() for column, codes in zip(both.codes.T, used, strict=True))


@pytest.mark.parametrize("unique", UNIQUE)
def test_the_catalogue_may_be_full(unique):
    """As many equal items as there are IDs: every ID is given once."""
    number = 2 * 3 * 4 * (4 if unique == "extra_level" else 1)
    ids = build_semantic_ids(names(number), np.ones((number, 3)), codebook_size=[2, 3, 4], unique=unique)
    last = [range(4)] if unique == "extra_level" else []
    assert sorted(map(tuple, ids.codes.tolist())) == list(itertools.product(range(2), range(3), range(4), *last))
    assert ids.figures["reconstruction_error"] == [0.0, 0.0, 0.0]
    with pytest.raises(ValueError, match=f"Got {number + 1} items, but 2 x 3 x 4.* make {number} IDs. Take more"):
        build_semantic_ids(names(number + 1), np.ones((number + 1, 3)), codebook_size=[2, 3, 4], unique=unique)
    with pytest.raises(ValueError, match=f"Got {number + 1} items.*known_tokens=False"):
        ids.assign(["new"], np.ones((1, 3)))


def test_one_item():
    ids = build_semantic_ids(["only"], np.array([[1.0, 2.0]]))
    assert ids.to_dict() == {"only": ["<a_0>", "<b_0>", "<c_0>"]}
    assert ids.figures["collisions"] == 0


def test_near_items_share_prefixes():
    vectors, place = clusters()
    ids = build_semantic_ids(names(60), vectors, levels=3, codebook_size=[3, 3, 8])
    for level, group in ((1, place // 3), (2, place)):
        prefixes = [tuple(row[:level]) for row in ids.codes.tolist()]
        assert len(set(zip(prefixes, group, strict=True))) == len(set(group)) == len(set(prefixes))
    coarse, fine, _ = ids.figures["reconstruction_error"]
    assert coarse < 0.02
    assert fine < 1e-4


def test_one_seed_gives_one_result():
    vectors = np.random.default_rng(0).normal(size=(200, 8))
    first, second, other = (build_semantic_ids(names(200), vectors, codebook_size=16, seed=seed) for seed in (0, 0, 1))
    assert first.codes.tolist() == second.codes.tolist()
    assert first.codes.tolist() != other.codes.tolist()
    assert first.figures == second.figures


def test_only_what_collides_is_moved():
    vectors = np.random.default_rng(0).normal(size=(300, 4)).repeat(2, axis=0)  # each item twice
    moved, extra = (
        build_semantic_ids(names(600), vectors, levels=2, codebook_size=[8, 400], unique=unique) for unique in UNIQUE
    )
    assert moved.figures["collisions"] == extra.figures["collisions"] >= 300
    assert moved.figures["moved"] >= moved.figures["collisions"]
    assert extra.figures["moved"] == 0
    nearest = extra.codes[:, :2].tolist()
    counts = {}
    for row, number in zip(nearest, extra.codes[:, 2].tolist(), strict=True):
        assert number == counts.get(tuple(row), 0)  # numbered in the order of the items
        counts[tuple(row)] = number + 1
    same = [row for row, prefix in enumerate(nearest) if nearest.count(prefix) == 1]
    alone = [row for row in same if sum(prefix[0] == nearest[row][0] for prefix in nearest) == 1]
    assert all(moved.codes[row].tolist() == nearest[row] for row in alone)
    assert moved.codes[:, 0].tolist() == extra.codes[:, 0].tolist()


@pytest.mark.parametrize("balance", [1, 2])
def test_balance_limits_a_code(balance):
    generator = np.random.default_rng(0)
    skewed = np.concatenate([generator.normal(0, 0.01, (150, 3)), generator.normal(0, 5, (50, 3))])
    free = build_semantic_ids(names(200), skewed, levels=2, codebook_size=[8, 200])
    held = build_semantic_ids(names(200), skewed, levels=2, codebook_size=[8, 200], balance=balance)
    assert np.bincount(free.codes[:, 0]).max() > 50
    assert np.bincount(held.codes[:, 0]).max() <= 25 * balance
    vectors = skewed.astype(np.float32)
    centroids, codes = balanced_codes(vectors, fit_codebook(vectors, 8, 0, 10), 25)
    assert np.bincount(codes).tolist() == [25] * 8
    assert len(np.unique(centroids, axis=0)) == 8


def test_a_new_item_gets_the_id_beside_its_likes():
    vectors, place = clusters(45)
    ids = build_semantic_ids(names(45), vectors, levels=3, codebook_size=[3, 3, 8])
    new = ids.assign(["new"], vectors[:1] + 0.01)
    assert new.codes[-1, :2].tolist() == ids.codes[0, :2].tolist()
    assert ids.assign(["new"], vectors[:1]).tokens[-1] not in ids.tokens
    gone = new.remove(["i0", "new"])
    assert "i0" not in gone.item_ids
    assert len(gone) == 44
    assert gone.assign(["again"], vectors[:1]).tokens[-1] == ids.tokens[0]  # the ID that became free


def test_fewer_vectors_than_codes_are_their_own_centroids():
    vectors = np.array([[1.0, 0], [0, 1]], np.float32)
    codebook = fit_codebook(vectors, 5, 0, 10)
    assert codebook.tolist() == [[1, 0], [0, 1], [1, 0], [0, 1], [1, 0]]
    assert nearest_codes(vectors, codebook).tolist() == [0, 1]


@pytest.mark.parametrize("unique", UNIQUE)
def test_save_and_load(unique, tmp_path):
    ids = build_semantic_ids(["ä", "b c", "3"], np.eye(3), levels=2, codebook_size=[2, 3], unique=unique)
    ids.save(tmp_path / "ids")
    loaded = SemanticIds.load(tmp_path / "ids")
    assert (loaded.to_dict(), loaded.sizes, loaded.figures) == (ids.to_dict(), ids.sizes, ids.figures)
    assert loaded.assign(["new"], np.eye(3)[:1]).to_dict() == ids.assign(["new"], np.eye(3)[:1]).to_dict()
    (tmp_path / "ids" / "semantic_ids.json").write_text('{"format": 0}')
    with pytest.raises(ValueError, match="format 0, expected 1"):
        SemanticIds.load(tmp_path / "ids")


def test_a_catalogue_of_them():
    ids = build_semantic_ids(["1", "2"], np.eye(2), levels=2, codebook_size=2)
    catalog = ids.catalog({"1": "Pen", "2": "Ink"})
    assert (catalog.kind, catalog.semantic_ids, catalog.titles) == ("semantic_ids", ids.tokens, ["Pen", "Ink"])
    assert ids.catalog().titles is None


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e30])
def test_vectors_that_are_no_numbers_are_refused_by_name(value):
    vectors = np.ones((4, 2))
    vectors[2, 1] = value
    with pytest.raises(ValueError, match=r"The vectors of 1 items are not finite: \['i2'\]"):
        build_semantic_ids(names(4), vectors)
    ids = build_semantic_ids(names(4), np.eye(4)[:, :2])
    with pytest.raises(ValueError, match=r"not finite: \['i6'\]"):
        ids.assign(names(4, 4), vectors)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"codebook_size": [2, 2]}, "Got 3 levels and codebook_size"),
        ({"levels": 0}, "Got 0 levels"),
        ({"levels": 26}, "Got 26 levels"),
        ({"codebook_size": 0}, "codebook_size 0"),
        ({"unique": "none"}, 'expected "last_level"'),
        ({"balance": 0.5}, "Got balance 0.5"),
        ({"balance": float("nan")}, "Got balance nan"),
    ],
)
def test_options_that_make_no_sense(arguments, message):
    with pytest.raises(ValueError, match=message):
        build_semantic_ids(names(3), np.eye(3), **arguments)


def test_items_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"shape \(2, 2\) for 3 items"):
        build_semantic_ids(names(3), np.eye(2))
    with pytest.raises(ValueError, match=r"shape \(0, 2\) for 0 items"):
        build_semantic_ids([], np.empty((0, 2)))
    with pytest.raises(ValueError, match="3 item ids, only 2 of them distinct"):
        build_semantic_ids(["a", "b", "a"], np.eye(3))
    ids = build_semantic_ids(names(3), np.eye(3))
    with pytest.raises(ValueError, match=r"1 items have semantic IDs already: \['i2'\]"):
        ids.assign(["i2"], np.eye(3)[:1])
    with pytest.raises(ValueError, match="vectors of 2 numbers, expected 3"):
        ids.assign(["new"], np.ones((1, 2)))
    with pytest.raises(ValueError, match=r"1 items have no semantic IDs: \['x'\]"):
        ids.remove(["x"])
    with pytest.raises(ValueError, match="Got all 3 items to remove"):
        ids.remove(names(3))
    with pytest.raises(ValueError, match=r"Item 'i1' has the codes \[0\]"):
        SemanticIds(["i0", "i1"], np.zeros((2, 1), np.int64), [np.zeros((2, 1), np.float32)])
    with pytest.raises(ValueError, match="a code outside its codebook"):
        SemanticIds(["i0"], np.array([[2]]), [np.zeros((2, 1), np.float32)])
    with pytest.raises(ValueError, match=r"codes of shape \(1, 2\), expected \(1, 1\)"):
        SemanticIds(["i0"], np.zeros((1, 2), np.int64), [np.zeros((2, 1), np.float32)])
