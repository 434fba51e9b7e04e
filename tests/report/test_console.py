"""Tables on the terminal."""

import pytest

from ilrec_trl.report.console import duration, list_table, metrics_table, seconds_table, show
from ilrec_trl.report.results import METRICS, MethodResult


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0 s"), (59.4, "59 s"), (59.6, "1 min 0 s"), (200, "3 min 20 s")])
def test_duration(seconds, text):
    assert duration(seconds) == text


def test_tables_show_every_figure(capsys):
    errors = dict.fromkeys(METRICS, 0.0123) | {"mrr": float("nan")}
    figures = MethodResult(dict.fromkeys(METRICS, 0.25), errors, [])
    show(metrics_table({"SFT [x]": figures}))
    show(seconds_table("Time", {"prepare": 20, "train": 50}))
    show(list_table(["item", "text"], [["1", "[bold]lute"]]))
    output = capsys.readouterr().out
    assert output.count("0.2500 ±.0123") == 5
    for text in ["SFT [x]", "1 min 10 s", "[bold]lute"]:
        assert text in output
