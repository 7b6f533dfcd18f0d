"""Random small data sets through every interval and test.

    python benchmarks/small_sets.py > benchmarks/small_sets.csv

2 to 14 tiles, 2 to 6 rows, scores of 1 to 5 distinct values, one to four slides or none, some slides of one class, some
tiles without a slide. Counts crashes, p values of 0 (or outside (0, 1]), and intervals that are narrower than 0.001.
"""

from __future__ import annotations

import sys
from collections import Counter

import numpy as np
from tables import csv_printer

from histolight.statistics.figures import metric_intervals
from histolight.statistics.verdict import auroc_covariance, verdict_of_configurations, verdict_of_trainings

DATA_SETS = 100_000


def draw(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Scores (rows, tiles), labels, slides or None."""
    tiles, rows = int(rng.integers(2, 15)), int(rng.choice([2, 3, 4, 6]))
    labels = rng.permutation(np.r_[0, 1, rng.integers(0, 2, tiles - 2)])
    scores = rng.integers(0, rng.integers(1, 6), (rows, tiles)).astype(float)
    slides = rng.integers(0, rng.integers(1, 5), tiles).astype(object)
    if rng.random() < 0.3:
        slides = slides + 10 * labels
    if rng.random() < 0.2:
        slides[rng.integers(tiles)] = None
    return scores, labels, None if rng.random() < 0.4 else slides


def faults(scores: np.ndarray, labels: np.ndarray, slides: np.ndarray | None) -> set[str]:
    found = set()
    result = auroc_covariance(scores, labels, slides)
    given = (result.covariance, result.degrees_of_freedom)
    verdicts = [verdict_of_trainings(result.aurocs, *given, hardest=result.hardest)]
    if len(scores) % 3 == 0:
        verdicts.append(verdict_of_configurations(result.aurocs.reshape(-1, 3), *given, hardest=result.hardest))
    if not all(((one.p > 0) & (one.p <= 1)).all() for one in verdicts):
        found.add("p")
    if any(one.high - one.low < 1e-3 for one in metric_intervals(scores[0], labels, 0.5, slides).values()):
        found.add("width")
    return found


def main(data_sets: int) -> None:
    rng = np.random.default_rng(0)
    counts: Counter[str] = Counter()
    for _ in range(data_sets):
        try:
            counts.update(faults(*draw(rng)))
        except Exception as fault:
            counts["crash"] += 1
            print(type(fault).__name__, fault, file=sys.stderr)
    print_row = csv_printer("data_sets", "crashes", "p_zero", "too_narrow")
    print_row(data_sets, counts["crash"], counts["p"], counts["width"])


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else DATA_SETS)
