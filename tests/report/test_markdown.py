"""What a reader of `report.md` sees."""

import dataclasses

import numpy as np
import pytest

from ilrec_trl.report.markdown import (
    ExampleList,
    epochs_note,
    render_report,
    run_settings,
    table,
    teacher_note,
    teacher_notes,
    verdict,
)
from ilrec_trl.report.results import (
    METRICS,
    Comparison,
    DataSummary,
    MethodRanks,
    MethodResult,
    RunResult,
    SeedResult,
    summarise_methods,
)


def results(difference=0.01, p_value=0.2):
    figures, errors = dict.fromkeys(METRICS, 0.25), dict.fromkeys(METRICS, 0.0123)
    seeds = [SeedResult(seed, dict.fromkeys(METRICS, 0.2)) for seed in (0, 1)]
    return RunResult(
        data=DataSummary("toy", 12345, 7, 99, 12345, ["Smoke run: 5 of 9 users, drawn by chance."]),
        seeds=[0, 1],
        command="ilrec run --data toy",
        revision="abc123",
        selection="Each method was chosen in some way.",
        versions={"torch": "2.13.0"},
        device="CPU",
        seconds={"prepare": 1.2, "train SFT": 61.0},
        methods={
            "SFT": MethodResult(figures, errors, [SeedResult(0, figures, {"learning_rate": 0.002, "seed": 0})]),
            "ILRec": MethodResult(figures, errors, seeds),
        },
        paired=[
            Comparison(
                *("ILRec", "SFT", "ndcg@10", difference, difference - 0.004, difference + 0.004, p_value, 0.002, None),
                *([0, 1], [difference] * 2, 12345),
                holm_p_value=p_value,
            )
        ],
    )


def test_report_holds_figures_errors_tests_settings_times_and_notes():
    report = render_report(results(), title="Toy run")
    assert report.startswith("# Toy run\n")
    for line in [
        "| toy | 12,345 | 7 | 99 | 12,345 |",
        "- Smoke run: 5 of 9 users, drawn by chance.",
        "Each method was chosen in some way. The test split was read once, after all training.",
        "| SFT | " + " | ".join(["0.2500 (0.0123)"] * 6) + " |",
        "| ILRec | 0 | " + " | ".join(["0.2000"] * 6) + " |",
        "| ILRec | SFT | NDCG@10 | +0.0100 | +0.0060 to +0.0140 | 0.2 | 0, 1 | 0.2 |",
        "| SFT | learning_rate = 0.002; seed = 0 |",
        "| train SFT | 61 |",
        "| torch | 2.13.0 |",
        "Seeds: 0, 1.",
        "ilrec run --data toy",
        "Revision `abc123`, device: CPU.",
    ]:
        assert line in report.splitlines(), line


@pytest.mark.parametrize(
    ("difference", "p_value", "words"),
    [
        (0.01, 0.2, "No difference between ILRec and SFT is shown"),
        (-0.01, 0.01, "ILRec is worse than SFT"),
        (0.01, 0.01, "ILRec is better than SFT"),
    ],
)
def test_verdict(difference, p_value, words):
    sentence = verdict(results(difference, p_value))
    assert words in sentence
    assert f"{difference:+.4f} (95% interval {difference - 0.004:+.4f} to {difference + 0.004:+.4f};" in sentence


@pytest.mark.parametrize("sasrec", [0.1, 0.2])
def test_a_teacher_no_better_than_popularity_is_spoken_of(sasrec):
    shown = results()
    figures = {"SASRec": sasrec, "transitions": 0.3, "popularity": 0.1, "questions": 2000}
    shown.methods["ILRec"].settings["teacher_ndcg@10"] = figures
    said = "SASRec ranks 2,000 validation items no better than popularity does (NDCG@10 0.1000 and 0.1000)."
    assert (said in render_report(shown)) == (sasrec == 0.1)
    assert not teacher_note({"learning_rate": 0.002})
    taught = shown.methods["ILRec"].settings
    notes = teacher_notes({"ILRec": [taught, taught], "popularity": [{}]})
    assert [note.startswith(f"**ILRec:** {said}") for note in notes] == [True] * (sasrec == 0.1)


@pytest.mark.parametrize(
    ("sft", "weaker"),
    [((0.3, 0.2), True), ((0.212, 0.208), False), ((0.2, 0.2), False), ((0.1, 0.2), False), ((), False)],
)
def test_a_teacher_that_ranks_clearly_worse_than_sft_is_spoken_of(sft, weaker):
    figures = {"SASRec": 0.2, "transitions": 0.3, "popularity": 0.1, "questions": 1500}
    taught = {"teacher_ndcg@10": figures, "validation_ndcg@10": 0.9}
    settings = {"plain": [{"validation_ndcg@10": ndcg} for ndcg in sft], "ILRec": [taught], "CRR alone": [taught]}
    notes = teacher_notes(settings, reference="plain")
    said = "**ILRec, CRR alone:** SASRec ranks 1,500 validation items at NDCG@10 0.2000, plain is better with 0.2500. "
    assert [note.startswith(said) for note in notes] == [True] * weaker
    assert not teacher_notes(settings, reference="ILRec")  # taught itself
    shown = results()
    shown.methods["SFT"].settings["validation_ndcg@10"] = 0.25
    shown.methods["ILRec"].settings["teacher_ndcg@10"] = figures
    assert "**ILRec:** SASRec ranks 1,500 validation items at NDCG@10 0.2000, SFT is better" in render_report(shown)


def test_methods_that_were_still_getting_better_are_named():
    runs = {"SFT": [{"best_epoch": 3.0, "num_train_epochs": 6.0}, {"best_epoch": 6.0, "num_train_epochs": 6.0}]}
    others = {
        "ILRec": [{"best_epoch": 5.0, "num_train_epochs": 6.0}],
        "popularity": [{}],
        "fixed": [{"num_train_epochs": 6.0}],
    }
    others["DPO"] = [{"best_epoch": 7.0, "num_train_epochs": 7.0, "preference_steps": 403}]
    assert epochs_note(runs | others).endswith("more epochs may rank better: SFT.")
    assert epochs_note(others) == ""
    # The second seed's, of which the report has no settings
    users, none = ["u"], np.ones(1)
    seeds = [
        MethodRanks("SFT", users, none, none, seed, {"num_train_epochs": 6, "best_epoch": 5 + seed}) for seed in (0, 1)
    ]
    assert "SFT" in epochs_note(run_settings(summarise_methods(seeds)))
    assert epochs_note(run_settings(summarise_methods(seeds[:1]))) == ""


def test_no_verdict_without_the_pair():
    assert verdict(dataclasses.replace(results(), paired=[])) == ""


def test_examples_show_hits_and_keep_semantic_ids_visible():
    example = ExampleList("u1", ["<a_1><b_2>"], "drum & bass", {"SFT": ["drum & bass", "lute"], "ILRec": ["harp"]})
    report = render_report(results(), [example])
    assert "1. &lt;a_1>&lt;b_2>" in report
    assert "| 1 | **drum &amp; bass** | harp |" in report
    assert "| 2 | lute |  |" in report


def test_cells_stay_in_their_cell():
    assert table(["x"], [["a|b\nc"]]).splitlines()[-1] == "| a\\|b c |"
