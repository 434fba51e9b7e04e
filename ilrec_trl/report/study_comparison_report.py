"""What a study's report says about differences between methods."""

from __future__ import annotations

from typing import Any

from .markdown import METRIC_TITLES, table


def render_comparisons(data: dict[str, Any]) -> list[str]:
    """The declared comparisons on one data set, over all users and over parts of them."""
    rows = data["comparisons"]
    comparisons = f"{len(rows)} comparison{'s' if len(rows) > 1 else ''}"
    others = [METRIC_TITLES[name] for name in rows[0]["metrics"] if name != "ndcg@10"]
    header = ["a", "b", "difference", "95% interval", "each seed", "error: users", "seeds", "p", "p, Holm"]
    single = ", ".join(dict.fromkeys(name for row in rows for name in row["single"] if name != "popularity"))
    one_seed = ", ".join(f"{row['a']} - {row['b']}" for row in rows if len(row["seeds"]) == 1)
    return [
        "### Do they differ?",
        "NDCG@10 of `a` minus that of `b`, paired by user and by seed; 10,000 resamples of users and seeds. In the "
        f"last column the p-value is corrected for {comparisons} (Holm).",
        table(header, _rows(rows)),
        _warnings(rows),
        f"One seed alone, so that its chance is not covered: {one_seed}." if one_seed else "",
        f"One run beside each seed of the other, so that its own chance is not covered: {single}." if single else "",
        "Other metrics, not corrected:",
        table(["a", "b", *others], _other_rows(rows)),
        *(_parts(rows) if rows[0]["parts"] else []),
    ]


def _rows(rows: list[dict[str, Any]]) -> list[list[str]]:
    lines = []
    for row in rows:
        test = row["metrics"]["ndcg@10"]
        seeds_error = "-" if test["seeds_error"] is None else f"{test['seeds_error']:.4f}"
        lines.append(
            [
                *(row["a"], row["b"], f"{test['difference']:+.4f}", interval(test)),
                " ".join(f"{value:+.4f}" for value in row["each_seed"]),
                *(f"{test['users_error']:.4f}", seeds_error, f"{test['p_value']:.2g}", f"{row['holm_p_value']:.2g}"),
            ]
        )
    return lines


def interval(test: dict[str, Any]) -> str:
    """A confidence interval."""
    return f"{test['low']:+.4f} to {test['high']:+.4f}"


def _warnings(rows: list[dict[str, Any]]) -> str:
    """Comparisons in which few seeds tell too little."""
    few = [
        f"{row['a']} - {row['b']}"
        for row in rows
        if (error := row["metrics"]["ndcg@10"]["seeds_error"]) is not None
        and len(row["seeds"]) < 6
        and error > 2 * row["metrics"]["ndcg@10"]["users_error"]
    ]
    if not few:
        return ""
    listed = "; ".join(few)
    return f"**Seeds differ more than users tell; these intervals are too narrow, run more seeds:** {listed}."


def _other_rows(rows: list[dict[str, Any]]) -> list[list[str]]:
    return [
        [
            row["a"],
            row["b"],
            *(
                f"{test['difference']:+.4f} ({interval(test)})"
                for name, test in row["metrics"].items()
                if name != "ndcg@10"
            ),
        ]
        for row in rows
    ]


def _parts(rows: list[dict[str, Any]]) -> list[str]:
    names = list(rows[0]["parts"])
    header = [f"{name}, n = {rows[0]['parts'][name]['questions']:,}" for name in names]
    lines = []
    for row in rows:
        tests = [row["parts"][name] for name in names]
        lines.append([row["a"], row["b"], *(f"{test['difference']:+.4f} ({interval(test)})" for test in tests)])
    text = "NDCG@10 of `a` minus that of `b` for parts of the test questions, with 95% intervals, not corrected:"
    return ["### When does it help?", text, table(["a", "b", *header], lines)]
