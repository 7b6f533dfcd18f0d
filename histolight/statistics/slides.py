"""How a model does on each slide, and what it finds at a specificity that is fixed beforehand."""

from __future__ import annotations

import numpy as np
import pandas as pd
from sklearn.metrics import roc_auc_score

from histolight.statistics.intervals import (
    Array,
    Interval,
    check_scores,
    find_clusters,
    lack_of_clusters,
    last_of_ties,
    resample_tiles,
)


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


def sensitivity_at_specificity(predictions: pd.DataFrame, specificity: float = 0.95, seed: int = 0) -> Interval:
    """Measure the highest sensitivity that any threshold reaches with at least this specificity on the same tiles.

    The interval is the bootstrap's, over slides where they are known; each resample chooses its threshold anew.

    Args:
        predictions: ``label`` (0/1), ``group`` (slide, or missing) and ``score`` of each tile.
        specificity: In [0, 1].
        seed: Of the bootstrap.

    >>> tiles = pd.DataFrame({"label": [0, 0, 1, 1], "group": None, "score": [0.1, 0.6, 0.5, 0.9]})
    >>> sensitivity_at_specificity(tiles).value, sensitivity_at_specificity(tiles, 0.5).value
    (0.5, 1.0)
    """
    scores, positive = check_scores(predictions["score"].to_numpy(), predictions["label"].to_numpy())
    order = np.argsort(-scores, kind="stable")
    positive, ends = positive[order], last_of_ties(scores[order])
    clusters = find_clusters(predictions["group"].to_numpy()[order], len(scores))
    value = float(_sensitivity(np.ones_like(scores)[None], positive, ends, specificity)[0])
    if reason := lack_of_clusters(positive, clusters):
        return Interval(value, np.nan, np.nan, "none", reason)
    blocks = resample_tiles(positive, clusters, 1000, seed)
    drawn = np.concatenate([_sensitivity(weights, positive, ends, specificity) for weights in blocks])
    low, high = np.quantile(drawn, [0.025, 0.975]).tolist()
    return Interval(value, low, high, "slide bootstrap" if clusters.slides else "stratified bootstrap", clusters.note)


def _sensitivity(weights: Array, positive: np.ndarray, ends: np.ndarray, specificity: float) -> Array:
    """Measure under each row of weights (B, N), for tiles sorted by falling score: (B,)."""
    true, false = (np.cumsum(weights * members, axis=1)[:, ends] for members in (positive, ~positive))
    allowed = false <= (1 - specificity) * false[:, -1:] + 1e-9
    return np.where(allowed, true, 0).max(axis=1) / true[:, -1]
