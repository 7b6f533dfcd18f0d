"""The figures of merit, in one table: whoever measures, compares, draws or tabulates them reads it.

A new figure of merit is one entry of :data:`FIGURES`: what people call it, what it depends on, its direction, and the
function that measures it with its interval. ``docs/statistics.md`` has the coverage of each interval.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy.special import expit

from histolight.statistics.clusters import (
    Clusters,
    clustered_variance,
    effective_clusters,
    find_clusters,
    lack_of_clusters,
    scarcer_clusters,
)
from histolight.statistics.intervals import (
    Bools,
    Interval,
    auroc_interval,
    check_scores,
    last_of_ties,
    logit_interval,
    mean_interval,
    no_interval,
    proportion_interval,
)

ECE_BINS = 15
FEWEST_WRONG = 5  # effective slides with wrong calls, below which 95 % intervals held 0.90: benchmarks/decisions.csv

Basis = Literal["order", "calls", "scores"]
SPECIFICITY = 0.95  # at which one figure reads the sensitivity


@dataclass(frozen=True)
class LabelledScores:
    """What a figure of merit is computed from.

    Attributes:
        logits: (N,) float32, finite.
        positive: (N,) bool, both classes present.
        threshold: A tile is called positive when its score is above it.
        groups: (N,) slide of each tile, missing where unknown; or None.
        level: Confidence level of the intervals.
    """

    logits: npt.NDArray[np.float32]
    positive: Bools
    threshold: float
    groups: npt.ArrayLike | None
    level: float

    @cached_property
    def scores(self) -> npt.NDArray[np.float32]:
        """(N,) the sigmoid of the logits."""
        return expit(self.logits)

    @property
    def called(self) -> Bools:
        """(N,) which tiles are called positive."""
        return self.scores > np.float32(self.threshold)

    @property
    def right(self) -> Bools:
        """(N,) which calls are right."""
        return self.called == self.positive

    @cached_property
    def clusters(self) -> Clusters:
        """Which tiles were sampled together."""
        return find_clusters(self.groups, len(self.positive))


def auroc(tiles: LabelledScores) -> Interval:
    """Measure the AUROC."""
    return auroc_interval(tiles.scores, tiles.positive, tiles.groups, tiles.level)


def accuracy(tiles: LabelledScores) -> Interval:
    """Measure the share of right calls."""
    return with_caution(share_right(tiles, ""), "accuracy", ~tiles.right, tiles.clusters)


def sensitivity(tiles: LabelledScores) -> Interval:
    """Measure the share of right calls among positive tiles."""
    missed = ~tiles.right & tiles.positive
    return with_caution(share_right(tiles, "positive"), "sensitivity", missed, tiles.clusters)


def specificity(tiles: LabelledScores) -> Interval:
    """Measure the share of right calls among negative tiles."""
    false = ~tiles.right & ~tiles.positive
    return with_caution(share_right(tiles, "negative"), "specificity", false, tiles.clusters)


def share_right(tiles: LabelledScores, name: str) -> Interval:
    """Measure the share of right calls among the tiles called ``positive`` or ``negative``, or all of them (empty)."""
    members = {"": np.ones_like(tiles.positive), "positive": tiles.positive, "negative": ~tiles.positive}[name]
    return proportion_interval(tiles.right, members, tiles.clusters, name, tiles.level)


def with_caution(figure: Interval, name: str, wrong: Bools, clusters: Clusters) -> Interval:
    """Say so where wrong calls come from so few slides that others may well have many more of them.

    Args:
        figure: A figure that counts them.
        name: What people call it.
        wrong: (N,) which tiles are called wrongly.
        clusters: Of the N tiles.
    """
    if figure.method == "none" or not clusters.slides or not wrong.any():
        return figure
    if effective_clusters(clusters.codes[wrong]) >= FEWEST_WRONG:
        return figure
    caution = f"{name}: the wrong calls count as fewer than {FEWEST_WRONG} slides, so the interval may be too short"
    return replace(figure, note="; ".join(filter(None, [caution, figure.note])))


def f1(tiles: LabelledScores) -> Interval:
    """Measure F1 = 2 J / (1 + J), with the interval of the proportion J = TP / (TP + FP + FN)."""
    overlap = proportion_interval(tiles.right, tiles.positive | tiles.called, tiles.clusters, "positive", tiles.level)
    value, low, high = (2 * share / (1 + share) for share in (overlap.value, overlap.low, overlap.high))
    return with_caution(replace(overlap, value=value, low=low, high=high), "F1", ~tiles.right, tiles.clusters)


def negative_log_likelihood(tiles: LabelledScores) -> Interval:
    """Measure the mean binary cross-entropy in nats, unweighted; slides of the scarcer class decide how sure it is."""
    loss = np.logaddexp(0, np.where(tiles.positive, -1.0, 1.0) * tiles.logits.astype(np.float64))
    if lack := lack_of_clusters(tiles.positive, tiles.clusters):
        return no_interval(float(loss.mean()), lack)
    return mean_interval(loss, tiles.groups, tiles.level, scarcer_clusters(tiles.positive, tiles.clusters))


def balanced_accuracy(tiles: LabelledScores) -> Interval:
    """Measure the balanced accuracy, with an interval from those of sensitivity and specificity.

    Zou and Donner, "Construction of confidence limits about effect measures", Statistics in Medicine 27 (2008),
    1693-1702.
    """
    sensitivity, specificity = share_right(tiles, "positive"), share_right(tiles, "negative")
    right, positive, clusters = tiles.right, tiles.positive, tiles.clusters
    value = (sensitivity.value + specificity.value) / 2
    for part in (sensitivity, specificity):
        if part.method == "none":
            return no_interval(value, part.note)
    together = correlation(right, positive, clusters)

    def half(*sides: float) -> float:
        a, b = sides
        return math.sqrt(a**2 + b**2 + 2 * together * a * b) / 2

    low = value - half(sensitivity.value - sensitivity.low, specificity.value - specificity.low)
    high = value + half(sensitivity.high - sensitivity.value, specificity.high - specificity.value)
    return Interval(value, low, high, "mover", clusters.note)


def correlation(right: Bools, positive: Bools, clusters: Clusters) -> float:
    """Correlation of sensitivity and specificity over slides, at least 0; 0 where tiles are independent."""
    sums = []
    for members in (positive, ~positive):
        deviations = right[members] - right[members].mean()
        sums.append(np.bincount(clusters.codes[members], deviations, minlength=int(clusters.codes.max()) + 1))
    size = math.sqrt(float(sums[0] @ sums[0]) * float(sums[1] @ sums[1]))
    return max(float(sums[0] @ sums[1]) / size, 0.0) if size > 0 else 0.0


def average_precision(tiles: LabelledScores) -> Interval:
    """Measure the average precision, linearised, with an interval on the logit scale."""
    scores, positive, clusters = tiles.scores, tiles.positive, tiles.clusters
    order = np.argsort(-scores, kind="stable")
    ranked, codes = positive[order], clusters.codes[order]
    ends = last_of_ties(scores[order])
    block = np.searchsorted(ends, np.arange(len(ranked)))  # of equal scores
    above = ends + 1.0
    true = np.cumsum(ranked)[ends].astype(np.float64)
    precision, gain = true / above, np.diff(true, prepend=0.0)
    total = float(ranked.sum())
    value = float(gain @ precision / total)
    if lack := lack_of_clusters(positive, clusters):
        return no_interval(value, lack)
    # The derivative by the weight of each tile: its own precision, and what it does to every precision from it on.
    later = np.cumsum((gain / above)[::-1])[::-1]
    later_precision = np.cumsum((gain * precision / above)[::-1])[::-1]
    influence = (ranked * (precision[block] + later[block] - value) - later_precision[block]) / total
    # Half of what is lost counts against the positive tile, half against the negative tiles above it.
    blame = np.where(ranked, 1 - precision[block], later[block]) / 2 / total
    low, high = logit_interval(
        value,
        clustered_variance(influence, codes),
        scarcer_clusters(positive, clusters) - 1,
        float(np.bincount(codes, weights=blame).max()),
        tiles.level,
    )
    if math.isnan(low):
        return no_interval(value, "no interval: the precision does not vary from tile to tile")
    return Interval(value, low, high, "linearised", clusters.note)


def sensitivity_at_specificity(tiles: LabelledScores, specificity: float = SPECIFICITY) -> Interval:
    """Measure the highest sensitivity that any threshold reaches with at least this specificity on the same tiles.

    The interval allows for the threshold too (Woodruff, Journal of the American Statistical Association 47 (1952),
    635-646): its ends are those of the sensitivities at the thresholds that the interval of the specificity leaves,
    each at the level ``(1 + level) / 2``, so that both together hold ``level``. There is none where all negative tiles
    may lie below the threshold sought with a probability above ``1 - level``, as fewer than 59 do for 95 %.

    Args:
        tiles: The tiles.
        specificity: In [0, 1].

    >>> tiles = LabelledScores(np.array([-2, 0.5, 0.1, 2], np.float32), np.array([0, 0, 1, 1], bool), 0.5, None, 0.95)
    >>> sensitivity_at_specificity(tiles).value, sensitivity_at_specificity(tiles, 0.5).value
    (0.5, 1.0)
    """
    scores, positive, clusters = tiles.scores, tiles.positive, tiles.clusters
    negatives = np.sort(scores[~positive])
    each = (1 + tiles.level) / 2

    def sensitivity_at(share: float) -> tuple[Bools, Interval]:
        """Calls, and their sensitivity, at the lowest threshold at or below which this share of negatives lies."""
        below = math.ceil(share * len(negatives) - 1e-9)
        called = scores > negatives[below - 1] if below else np.ones_like(positive)
        return called, proportion_interval(called, positive, clusters, "positive", each)

    called, middle = sensitivity_at(specificity)
    allowed = proportion_interval(~called, ~positive, clusters, "negative", each)
    for part in (middle, allowed):
        if part.method == "none":
            return replace(part, value=middle.value)
    if specificity ** len(negatives) > 1 - tiles.level:
        reason = f"{len(negatives)} negative tiles are too few to find the threshold of {specificity:.0%} specificity"
        return no_interval(middle.value, f"no interval: {reason}")
    low, high = sensitivity_at(allowed.high)[1].low, sensitivity_at(allowed.low)[1].high
    return Interval(middle.value, low, high, "woodruff", clusters.note)


def calibration_error(tiles: LabelledScores) -> Interval:
    """Measure the ECE, without an interval: it is larger than the true one, the more so the fewer tiles."""
    scores, positive = tiles.scores, tiles.positive
    gaps = np.bincount(_bins(scores), weights=scores.astype(np.float64) - positive, minlength=ECE_BINS)
    value = float(np.abs(gaps).sum() / len(scores))
    return no_interval(
        value,
        "no interval: an ECE is larger than the true one, the more so the fewer tiles; scores that are right would "
        f"have about {error_by_chance(scores)[0]:.3f} here",
    )


def error_by_chance(scores: npt.NDArray) -> tuple[float, float]:
    """Mean and standard deviation of the ECE where every score is right, that is the probability of a positive tile.

    Each bin then has a gap of a mean of 0 and the variance of its tiles' labels, and takes part by its absolute value,
    as normal. For independent tiles; those of few slides have more.

    Args:
        scores: (N,) in [0, 1].

    >>> [round(number, 4) for number in error_by_chance(np.full(100, 0.5))]  # of 100 coins: sqrt(2 / pi) / 20
    [0.0399, 0.0301]
    """
    numbers = scores.astype(np.float64)
    variance = np.bincount(_bins(scores), weights=numbers * (1 - numbers)) / len(scores) ** 2
    return float(np.sqrt(2 / math.pi * variance).sum()), math.sqrt((1 - 2 / math.pi) * variance.sum())


def _bins(scores: npt.NDArray) -> npt.NDArray[np.int64]:
    edges = np.linspace(0, 1, ECE_BINS + 1, dtype=np.float32)
    bins: npt.NDArray[np.int64] = np.minimum(np.searchsorted(edges, scores, side="right") - 1, ECE_BINS - 1)
    return bins


@dataclass(frozen=True)
class FigureOfMerit:
    """One figure of merit of a binary classifier.

    Attributes:
        name: Its key in ``metrics.json`` and, behind the part, in TensorBoard: ``val/auroc``.
        heading: What people call it.
        basis: What it depends on: the ``order`` of the scores alone, the ``calls`` at a threshold, or the ``scores``
            themselves. A temperature changes neither order nor calls at 0.5; only calls need a threshold.
        measure: Computes it, with its interval.
        higher_is_better: Its direction.
    """

    name: str
    heading: str
    basis: Basis
    measure: Callable[[LabelledScores], Interval]
    higher_is_better: bool = True


FIGURES = {
    figure.name: figure
    for figure in (
        FigureOfMerit("auroc", "AUROC", "order", auroc),
        FigureOfMerit("average_precision", "average precision", "order", average_precision),
        FigureOfMerit("accuracy", "accuracy", "calls", accuracy),
        FigureOfMerit("balanced_accuracy", "balanced accuracy", "calls", balanced_accuracy),
        FigureOfMerit("f1", "F1", "calls", f1),
        FigureOfMerit("sensitivity", "sensitivity", "calls", sensitivity),
        FigureOfMerit("specificity", "specificity", "calls", specificity),
        FigureOfMerit(
            "sensitivity_at_specificity",
            f"sensitivity at {SPECIFICITY:.0%} specificity",
            "order",
            sensitivity_at_specificity,
        ),
        FigureOfMerit("nll", "NLL", "scores", negative_log_likelihood, higher_is_better=False),
        FigureOfMerit("ece", "ECE", "scores", calibration_error, higher_is_better=False),
    )
}


def names_of(*bases: Basis) -> list[str]:
    """List the names of the figures that depend on any of these.

    >>> names_of("scores")
    ['nll', 'ece']
    """
    return [figure.name for figure in FIGURES.values() if figure.basis in bases]


def metric_intervals(
    logits: npt.ArrayLike,
    labels: npt.ArrayLike,
    threshold: float = 0.5,
    groups: npt.ArrayLike | None = None,
    level: float = 0.95,
) -> dict[str, Interval]:
    """Measure every figure of :data:`FIGURES`, with its interval.

    Args:
        logits: (N,) float.
        labels: (N,) 0 or 1.
        threshold: A tile is called positive when its score, the float32 sigmoid of its logit, is above it.
        groups: (N,) slide of each tile; missing values are clusters of their own.
        level: Confidence level.

    Raises:
        RequestError: Lengths differ, a label is neither 0 nor 1, or one class is missing.
        HistolightError: A logit is NaN or infinite.

    >>> metric_intervals([-2.0, -1.0, 1.0, 0.5], [0, 0, 1, 1])["auroc"].value
    1.0
    """
    values, positive = check_scores(logits, labels)
    tiles = LabelledScores(values.astype(np.float32), positive, threshold, groups, level)
    return {name: figure.measure(tiles) for name, figure in FIGURES.items()}
