"""Figures of semantic IDs by hand, the report's files, and any catalogue that has IDs."""

import json

import numpy as np
import pytest

from ilrec_trl.report.semantic_id_report import (
    distinctive_words,
    render_semantic_id_report,
    semantic_id_figures,
    write_semantic_id_report,
)


INDEX = {
    "1": ["<a_0>", "<b_0>", "<c_0>"],
    "2": ["<a_0>", "<b_0>", "<c_1>"],
    "3": ["<a_0>", "<b_1>", "<c_0>"],
    "4": ["<a_3>", "<b_1>", "<c_0>"],
    "5": ["<a_3>", "<b_1>", "<c_0>"],  # the ID of 4
}
TITLES = {"1": "Red lute", "2": "Blue lute", "3": "Lute | large", "4": "Steel screw", "5": "Long steel screw"}


def test_figures_by_hand():
    figures = semantic_id_figures(INDEX, TITLES, codebook_sizes=[4, 2, 2])
    assert (figures["items"], figures["distinct"], figures["collisions"], figures["built"]) == (5, 4, 1, None)
    first, second, third = figures["levels"]
    entropy = -(0.6 * np.log2(0.6) + 0.4 * np.log2(0.4))
    assert first == {
        "codes_used": 2,
        "entropy_bits": pytest.approx(entropy),
        "perplexity": pytest.approx(2**entropy),
        "largest_code": 3,
        "prefixes": 2,
        "mean_children": 2.0,
        "mean_group": 2.5,
        "median_group": 2.5,
        "largest_group": 3,
        "codebook_size": 4,
    }
    assert (second["prefixes"], second["mean_children"], second["largest_code"]) == (3, 1.5, 3)
    assert (second["mean_group"], second["median_group"], second["largest_group"]) == (5 / 3, 2.0, 2)
    assert (third["prefixes"], third["mean_children"], third["largest_group"]) == (4, 4 / 3, 2)
    assert figures["prefixes"][0] == {
        "prefix": "<a_0>",
        "items": 3,
        "words": ["lute", "blue", "large"],
        "examples": [{"item": item, "title": TITLES[item]} for item in "123"],
    }


def test_one_item_and_ids_of_different_lengths():
    figures = semantic_id_figures({"1": ["<a_0>"]})
    assert figures["levels"][0]["entropy_bits"] == 0
    assert figures["levels"][0]["perplexity"] == 1
    uneven = semantic_id_figures({"1": ["x"], "2": ["x", "y"], "3": ["z", "y"]})
    assert [level["prefixes"] for level in uneven["levels"]] == [2, 2]
    assert uneven["levels"][1]["largest_code"] == 2
    assert uneven["levels"][1]["mean_children"] == 1
    with pytest.raises(ValueError, match="Got no semantic IDs"):
        semantic_id_figures({})


def test_distinctive_words():
    texts = ["steel screw", "steel bolt", "red lute", "blue lute pack"]
    assert distinctive_words(texts, texts[2:]) == ["lute", "blue", "pack"]
    assert distinctive_words(texts, texts) == []


@pytest.mark.parametrize(
    ("index", "titles"),
    [(INDEX, TITLES), (INDEX, None), ({"1": ["<a_0>"]}, None), ({"1": ["x"], "2": ["x", "y"], "3": ["z"]}, None)],
)
def test_the_files(index, titles, tmp_path):
    built = {"settings": {"levels": 3}, "collisions": 2, "moved": 1, "reconstruction_error": [0.5, 0.25]}
    figures = write_semantic_id_report(tmp_path, index, titles, built)
    assert json.loads((tmp_path / "report.json").read_text()) == figures
    report = (tmp_path / "report.md").read_text()
    assert "2 items would have had the ID of an item before them; 1 were given another code" in report
    assert "| 50.0% |" in report


def test_the_report_shows_titles_and_collisions():
    report = render_semantic_id_report(semantic_id_figures(INDEX, TITLES))
    assert "**1 items have the ID of an item before them.**" in report
    assert "### `<a_0>`, 3 items: lute, blue, large" in report
    assert "| 3 | Lute \\| large |" in report
    assert "No two items share one" in render_semantic_id_report(semantic_id_figures({"1": ["<a_0>"]}))
