"""EASE as the benchmark fits it, against what it is defined by."""

import torch

from benchmarks.accuracy.ease_rank import bags, ease, main


def test_each_column_of_the_weights_is_the_ridge_regression_of_one_item_on_the_others():
    number = {item: place for place, item in enumerate("abcd")}
    users = bags([["a", "b"], ["a", "b", "c"], ["c"], ["b", "d"], ["a"], ["d", "c", "b"]], number)
    weights = ease(users, regularization=2.0)
    for item in range(4):
        others = [each for each in range(4) if each != item]
        x, y = users[:, others].double(), users[:, item].double()
        expected = torch.linalg.solve(x.T @ x + 2.0 * torch.eye(3, dtype=torch.float64), x.T @ y)
        torch.testing.assert_close(weights[others, item], expected.float())
        assert weights[item, item] == 0


def test_the_script_runs(capsys):
    main(["--quick", "--exclude_history"])
    lines = [line for line in capsys.readouterr().out.splitlines() if "dimensions" in line and "hold" not in line]
    assert lines[0].split()[0] == "all"
    assert all(0 < float(line.split()[2]) < 1 for line in lines)
