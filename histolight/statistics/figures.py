"""The figures of merit, in one table: whoever measures, compares, draws or tabulates them reads it.

A new figure of merit is one entry of :data:`FIGURES`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy.special import expit

from histolight.statistics.intervals import Interval, check_scores, metric_intervals

Basis = Literal["order", "calls", "scores"]


@dataclass(frozen=True)
class LabelledScores:
    """What a figure of merit is computed from.

    Attributes:
        logits: (N,) float32, finite.
        positive: (N,) bool, both classes present.
        threshold: A tile is called positive when its score is above it.
        groups: (N,) slide of each tile, missing where unknown; or None.
    """

    logits: npt.NDArray[np.float32]
    positive: npt.NDArray[np.bool_]
    threshold: float
    groups: npt.ArrayLike | None

    @property
    def scores(self) -> npt.NDArray[np.float32]:
        """(N,) the sigmoid of the logits."""
        return expit(self.logits)

    @property
    def called(self) -> npt.NDArray[np.bool_]:
        """(N,) which tiles are called positive."""
        return self.scores > np.float32(self.threshold)


@dataclass(frozen=True)
class FigureOfMerit:
    """One figure of merit of a binary classifier.

    Attributes:
        name: Its key in ``metrics.json`` and, behind the part, in TensorBoard: ``val/auroc``.
        heading: What people call it.
        basis: What it depends on: the ``order`` of the scores alone, the ``calls`` at a threshold, or the ``scores``
            themselves. A temperature changes neither order nor calls at 0.5; only calls need a threshold.
        higher_is_better: Its direction.
        measure: Computes it, with its interval; None where :func:`metric_intervals` does so, for several at once.
    """

    name: str
    heading: str
    basis: Basis
    higher_is_better: bool = True
    measure: Callable[[LabelledScores], Interval] | None = None


FIGURES = {
    figure.name: figure
    for figure in (
        FigureOfMerit("auroc", "AUROC", "order"),
        FigureOfMerit("average_precision", "average precision", "order"),
        FigureOfMerit("accuracy", "accuracy", "calls"),
        FigureOfMerit("balanced_accuracy", "balanced accuracy", "calls"),
        FigureOfMerit("f1", "F1", "calls"),
        FigureOfMerit("sensitivity", "sensitivity", "calls"),
        FigureOfMerit("specificity", "specificity", "calls"),
        FigureOfMerit("nll", "NLL", "scores", higher_is_better=False),
        FigureOfMerit("ece", "ECE", "scores", higher_is_better=False),
    )
}


def names_of(*bases: Basis) -> list[str]:
    """List the names of the figures that depend on any of these.

    >>> names_of("scores")
    ['nll', 'ece']
    """
    return [figure.name for figure in FIGURES.values() if figure.basis in bases]


def labelled_scores(
    logits: npt.ArrayLike, labels: npt.ArrayLike, threshold: float = 0.5, groups: npt.ArrayLike | None = None
) -> LabelledScores:
    """Check logits and labels, each (N,), and put them together.

    Raises:
        RequestError: Lengths differ, a label is neither 0 nor 1, or one class is missing.
        HistolightError: A logit is NaN or infinite.
    """
    values, positive = check_scores(logits, labels)
    return LabelledScores(values.astype(np.float32), positive, threshold, groups)


def measure_figures(tiles: LabelledScores) -> dict[str, Interval]:
    """Measure every figure of :data:`FIGURES`, with its interval.

    Args:
        tiles: From :func:`labelled_scores`.

    >>> measured = measure_figures(labelled_scores([-2.0, -1.0, 1.0, 0.5], [0, 0, 1, 1]))
    >>> list(measured) == list(FIGURES), measured["auroc"].value
    (True, 1.0)
    """
    together = metric_intervals(tiles.logits, tiles.positive, tiles.threshold, tiles.groups)
    return {
        name: together[name] if figure.measure is None else figure.measure(tiles) for name, figure in FIGURES.items()
    }
