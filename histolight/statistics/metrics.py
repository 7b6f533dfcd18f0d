"""The figures of a binary classifier, and the threshold between its two answers."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from histolight.statistics.figures import metric_intervals
from histolight.statistics.intervals import check_scores


def classification_metrics(logits: Tensor, labels: Tensor, threshold: float = 0.5) -> dict[str, float]:
    """Measure a classifier on N tiles.

    Scores are ``sigmoid(logits.float())``; a tile is called positive when its score is *above* the threshold (as in
    torchmetrics). A ratio without cases (F1 where nothing is, or is called, positive) is 0.

    Args:
        logits: (N,) float, any precision.
        labels: (N,) 0 or 1, both present.
        threshold: In [0, 1].

    Returns:
        Every figure of :data:`histolight.statistics.figures.FIGURES` by name, among them ``auroc`` and
        ``average_precision`` (exact, over all thresholds), ``accuracy``, ``balanced_accuracy``, ``f1``,
        ``sensitivity`` and ``specificity`` (at the threshold), ``sensitivity_at_specificity`` (of 95 %), ``nll``
        (unweighted mean binary cross-entropy in nats, from the logits) and ``ece`` (15 bins of equal width over the
        score, the last one closed; mean distance of the bin's score from its share of positives).

    Raises:
        RequestError: Shapes differ, a label is neither 0 nor 1, or one class is missing.
        HistolightError: A logit is NaN or infinite.

    >>> import torch
    >>> figures = classification_metrics(torch.tensor([-2.0, 1.0, 0.5, 3.0]), torch.tensor([0, 0, 1, 1]))
    >>> figures["auroc"], figures["accuracy"], figures["sensitivity"], figures["specificity"]
    (0.75, 0.75, 1.0, 0.5)
    """
    measured = metric_intervals(logits.detach().float().cpu().numpy(), labels.detach().cpu().numpy(), threshold)
    return {name: figure.value for name, figure in measured.items()}


def best_threshold(scores: Tensor, labels: Tensor) -> float:
    """Find the threshold of the highest balanced accuracy; use it on other tiles than these.

    The candidates lie midway between adjacent distinct scores; of several best ones the nearest to 0.5 is taken. A tile
    is called positive when its score is *above* the threshold.

    Args:
        scores: (N,) float in [0, 1].
        labels: (N,) 0 or 1, both present.

    Returns:
        A float32 value; 0.5 where all scores are equal.

    Raises:
        RequestError: Shapes differ, a label is neither 0 nor 1, or one class is missing.
        HistolightError: A score is NaN or infinite.

    >>> import torch
    >>> best_threshold(torch.tensor([0.125, 0.25, 0.75, 0.875]), torch.tensor([0, 1, 1, 1]))
    0.1875
    """
    values, positive = check_scores(scores.detach().float().cpu().numpy(), labels.detach().cpu().numpy())
    distinct, place = np.unique(values, return_inverse=True)
    if len(distinct) == 1:
        return 0.5
    positives = np.bincount(place, weights=positive)
    negatives = np.bincount(place, weights=~positive)
    below, above = distinct[:-1], distinct[1:]
    # Between neighbouring float32 values there is no middle; the lower one separates them, as "above" is strict.
    middles = np.where((below + above) / 2 < above, (below + above) / 2, below)
    # In whole tiles (times both class sizes), so that equally good candidates compare equal.
    missed, rejected = np.cumsum(positives)[:-1], np.cumsum(negatives)[:-1]
    quality = (positives.sum() - missed) * negatives.sum() + rejected * positives.sum()
    best = middles[quality == quality.max()]
    return float(best[np.argmin(np.abs(best - 0.5))])
