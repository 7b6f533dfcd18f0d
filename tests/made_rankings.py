"""Rankings that are made in memory, with AUROCs and variances that are known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from histolight.ranking.ranking import Ranking
from histolight.ranking.rows import Pair, Row
from histolight.ranking.runs import ScoredRun, ScoredTiles, with_defaults
from histolight.statistics.verdict import AurocCovariance, verdict_of_configurations, verdict_of_trainings

HOLD_OUT = [(None, 0)]
SEEDS = [(None, 0), (None, 1), (None, 2)]


def ranking_of(
    aurocs: list[float],
    variance: float,
    pairs: list[Pair] = HOLD_OUT,
    slides: int = 0,
    split: str = "random",
    freedom: float = 50.0,
    **changes: Any,
) -> Ranking:
    """Rank rows a, b, c... whose independent AUROCs have one variance over 100 tiles, and do not differ by seed."""
    labels = np.tile(np.array([0, 1], np.int8), 50)
    names = np.array([f"s{number % slides}" for number in range(100)], object) if slides else None
    tiles = ScoredTiles("key", np.array([f"{n:03d}" for n in range(100)], object), labels, names, names)
    rows = []
    for number, auroc in enumerate(aurocs):
        name, runs = "abcdefgh"[number], []
        for fold, seed in pairs:
            config = with_defaults({"model": {"name": name}, "data": {"fold": fold}, "seed": seed})
            metrics = {"split": split, "val": {"auroc": {"value": auroc}}, "seconds": 90.0, "parameters": 2_500_000}
            run = ScoredRun(Path(f"{name}{fold}{seed}"), config, metrics)
            run.tiles, run.scores = tiles, np.random.default_rng(seed).random(100, np.float32)
            runs.append(run)
        rows.append(Row(runs[0].config, runs, "val", name))
    configurations = len(pairs) >= 3 and len({fold for fold, _ in pairs}) == 1
    count = len(pairs) if configurations else 1
    flat = np.repeat(aurocs, count)
    matrix = np.kron(np.eye(len(aurocs)), np.full((count, count), variance))
    covariance = AurocCovariance(flat, matrix, freedom, freedom + 1, np.zeros(len(flat)), 0.04)
    judge = verdict_of_configurations if configurations else verdict_of_trainings
    verdict = judge(flat.reshape(-1, count) if configurations else flat, matrix, freedom)
    return Ranking(rows, verdict, covariance, "val", ["model.name"], changes.pop("unranked", []), **changes)
