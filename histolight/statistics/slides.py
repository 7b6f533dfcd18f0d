"""How a model does on each slide, and what it finds at a specificity that is fixed beforehand."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pandas as pd
from sklearn.metrics import roc_auc_score

from histolight.statistics.clusters import find_clusters
from histolight.statistics.intervals import Interval, check_scores, proportion_interval


def slide_figures(predictions: pd.DataFrame, threshold: float) -> pd.DataFrame:
    """Measure each known slide by itself, the slide with the largest share of wrong calls first.

    Args:
        predictions: ``label`` (0/1), ``group`` (slide, or missing) and ``score`` of each tile.
        threshold: A tile is called positive when its score is above it.

    Returns:
        One row a slide: ``slide``, ``tiles``, ``tumour`` (tiles labelled 1), ``wrong`` (share of wrong calls), and
        ``auroc``, ``sensitivity``, ``specificity``, which are NaN where a class that they need is missing.
    """
    rows = []
    for slide, tiles in predictions.groupby("group"):
        positive, called = tiles["label"] == 1, tiles["score"] > threshold
        both = positive.any() and not positive.all()
        rows.append(
            {
                "slide": slide,
                "tiles": len(tiles),
                "tumour": int(positive.sum()),
                "wrong": float((called != positive).mean()),
                "auroc": float(roc_auc_score(positive, tiles["score"])) if both else np.nan,
                "sensitivity": float(called[positive].mean()),
                "specificity": float((~called)[~positive].mean()),
            }
        )
    columns = ["slide", "tiles", "tumour", "wrong", "auroc", "sensitivity", "specificity"]
    table = pd.DataFrame(rows, columns=columns)
    return table.sort_values(["wrong", "slide"], ascending=[False, True], ignore_index=True)


def sensitivity_at_specificity(predictions: pd.DataFrame, specificity: float = 0.95, level: float = 0.95) -> Interval:
    """Measure the highest sensitivity that any threshold reaches with at least this specificity on the same tiles.

    The interval allows for the threshold too (Woodruff, Journal of the American Statistical Association 47 (1952),
    635-646): its ends are those of the sensitivities at the thresholds that the interval of the specificity leaves,
    each at the level ``(1 + level) / 2``, so that both together hold ``level``.

    Args:
        predictions: ``label`` (0/1), ``cluster`` (slide, or tiles that overlap; or missing) and ``score`` of each tile.
        specificity: In [0, 1].
        level: Confidence level.

    >>> tiles = pd.DataFrame({"label": [0, 0, 1, 1], "cluster": None, "score": [0.1, 0.6, 0.5, 0.9]})
    >>> sensitivity_at_specificity(tiles).value, sensitivity_at_specificity(tiles, 0.5).value
    (0.5, 1.0)
    """
    scores, positive = check_scores(predictions["score"].to_numpy(), predictions["label"].to_numpy())
    clusters = find_clusters(predictions["cluster"].to_numpy(), len(scores))
    negatives = np.sort(scores[~positive])
    each = (1 + level) / 2

    def sensitivity(share: float) -> tuple[np.ndarray, Interval]:
        """Calls, and their sensitivity, at the lowest threshold at or below which this share of negatives lies."""
        below = math.ceil(share * len(negatives) - 1e-9)
        called = scores > negatives[below - 1] if below else np.ones_like(positive)
        return called, proportion_interval(called, positive, clusters, "positive", each)

    called, middle = sensitivity(specificity)
    allowed = proportion_interval(~called, ~positive, clusters, "negative", each)
    for part in (middle, allowed):
        if part.method == "none":
            return replace(part, value=middle.value)
    low, high = sensitivity(allowed.high)[1].low, sensitivity(allowed.low)[1].high
    return Interval(middle.value, low, high, "woodruff", clusters.note)
