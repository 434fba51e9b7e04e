"""
Naive float64 and plain-python twins of every loss, trie query and metric, written from the equations with plain loops.
Tests compare values and gradients with them; benchmarks use them as baselines.
"""

import math


# ---------------------------------------------------------------------------------------------------------- metrics


def naive_expected_metrics(start, ties, cuts=(1, 5, 10)):
    """Every metric for one user: average over each rank that the target may have, counted one by one."""
    totals = {f"hit@{k}": 0.0 for k in cuts} | {f"ndcg@{k}": 0.0 for k in cuts if k > 1} | {"mrr": 0.0}
    for place in range(ties):
        rank = start + place
        if math.isinf(rank):
            continue
        for k in cuts:
            if rank <= k:
                totals[f"hit@{k}"] += 1
                if k > 1:
                    totals[f"ndcg@{k}"] += 1 / math.log2(rank + 1)
        totals["mrr"] += 1 / rank
    return {name: total / ties for name, total in totals.items()}


# ------------------------------------------------------------------------------------------------ end of metrics
