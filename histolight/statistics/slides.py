"""How a model does on each slide."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.special import bdtr
from sklearn.metrics import roc_auc_score

from histolight.statistics.intervals import auroc_interval


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


def slides_of_classes(predictions: pd.DataFrame) -> dict[int, int]:
    """Count the slides that have benign tiles, and those that have tumour tiles; not of a class with unknown slides.

    Args:
        predictions: ``label`` (0/1) and ``group`` (slide, or missing) of each tile.

    >>> slides_of_classes(pd.DataFrame({"label": [0, 0, 1], "group": ["a", "b", "b"]}))
    {0: 2, 1: 1}
    >>> slides_of_classes(pd.DataFrame({"label": [0, 0, 1, 1], "group": ["a", "b", "b", None]}))
    {0: 2}
    """
    groups = {label: predictions.loc[predictions["label"] == label, "group"] for label in (0, 1)}
    return {label: int(group.nunique()) for label, group in groups.items() if group.notna().all()}


def worst_by_chance(tiles: npt.NDArray[np.int64], share: float) -> float:
    """Median of the largest share of wrong calls among slides that differ by chance alone.

    Args:
        tiles: (S,) number of tiles of each slide.
        share: Probability of a wrong call, the same for every tile.

    >>> round(worst_by_chance(np.array([20] * 40), 0.1), 2), round(worst_by_chance(np.array([1000]), 0.1), 2)
    (0.25, 0.1)
    """
    low, high = 0.0, 1.0
    for _ in range(30):  # halvings: to 1e-9
        middle = (low + high) / 2
        half = float(bdtr(np.floor(middle * tiles), tiles, share).prod()) >= 0.5
        low, high = (low, middle) if half else (middle, high)
    return high


def domain_figures(predictions: pd.DataFrame, threshold: float) -> list[dict[str, Any]]:
    """Measure each domain by itself, the one with the lowest AUROC first; those of one class, which have none, last.

    Args:
        predictions: ``label`` (0/1), ``domain``, ``cluster`` (or missing), ``logit`` and ``score`` of each tile.
        threshold: A tile is called positive when its score is above it.

    Returns:
        For each domain ``domain``, ``tiles``, ``tumour`` (tiles labelled 1), ``auroc`` (an :class:`Interval`, or None),
        ``sensitivity`` and ``specificity`` (None where a class is missing).
    """
    measured = []
    for domain, tiles in predictions.groupby("domain"):
        positive, called = (tiles["label"] == 1).to_numpy(), (tiles["score"] > threshold).to_numpy()
        both = positive.any() and not positive.all()
        auroc = auroc_interval(tiles["logit"], tiles["label"], tiles["cluster"].to_numpy()) if both else None
        measured.append(
            {
                "domain": domain,
                "tiles": len(tiles),
                "tumour": int(positive.sum()),
                "auroc": auroc,
                "sensitivity": float(called[positive].mean()) if positive.any() else None,
                "specificity": float((~called)[~positive].mean()) if not positive.all() else None,
            }
        )
    return sorted(measured, key=lambda entry: (entry["auroc"] is None, entry["auroc"] and entry["auroc"].value))
