"""How sure one run's figures are: DeLong, Obuchowski, Wilson and the bootstrap.

Wherever slides are known they, not tiles, are what was sampled: tiles of one slide resemble each other, and an interval
that takes them for independent is too short. ``benchmarks/coverage.md`` has the simulated coverage of each method.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import special, stats

from histolight.errors import HistolightError, RequestError

Array = npt.NDArray[np.float64]

FEW_SLIDES = 20
ECE_BINS = 15
PROPORTIONS = ("accuracy", "sensitivity", "specificity")


@dataclass(frozen=True)
class Interval:
    """A figure with its confidence interval.

    Attributes:
        value: The figure.
        low: Lower end; NaN where no interval can be given.
        high: Upper end; NaN where no interval can be given.
        method: ``delong``, ``obuchowski``, ``clopper-pearson``, ``wilson``, ``stratified bootstrap``,
            ``slide bootstrap`` (both percentile, or with ``, basic`` behind), or ``none`` where the tiles do not tell
            how sure the figure is.
        note: What a reader must hear of beside the interval, or empty.
    """

    value: float
    low: float
    high: float
    method: str
    note: str = ""


@dataclass(frozen=True)
class Clusters:
    """Which tiles were sampled together.

    Attributes:
        codes: (N,) int, the cluster of each tile, from 0 on without gaps.
        slides: Number of named slides, or 0 where every tile is its own cluster.
        missing: Number of tiles without a slide among tiles that have one; each is a cluster of its own.
    """

    codes: npt.NDArray[np.int64]
    slides: int
    missing: int

    @property
    def note(self) -> str:
        """What a reader of the interval must hear of, or empty."""
        notes = []
        if 0 < self.slides < FEW_SLIDES:
            notes.append(f"only {self.slides} slides: the interval is likely too short (below {FEW_SLIDES} slides)")
        if self.missing:
            notes.append(f"{self.missing} tiles without a slide count as slides of their own")
        return "; ".join(notes)


def find_clusters(groups: npt.ArrayLike | None, tiles: int) -> Clusters:
    """Number the slides; without any slide every tile is its own cluster.

    Args:
        groups: (N,) slide of each tile, None or NaN where unknown; None when no slide is known.
        tiles: N.

    >>> find_clusters(["a", None, "b", "a"], 4).codes.tolist()
    [0, 2, 1, 0]
    """
    if groups is None:
        return Clusters(np.arange(tiles), 0, 0)
    names = pd.Series(groups)
    if len(names) != tiles:
        raise RequestError(f"{len(names)} slides for {tiles} tiles: give one slide (or a missing value) for each tile")
    codes, slides = pd.factorize(names)
    unknown = codes < 0
    if unknown.all():
        return Clusters(np.arange(tiles), 0, 0)
    codes[unknown] = len(slides) + np.arange(unknown.sum())
    return Clusters(codes.astype(np.int64), len(slides), int(unknown.sum()))


def check_scores(scores: npt.ArrayLike, labels: npt.ArrayLike) -> tuple[npt.NDArray, npt.NDArray[np.bool_]]:
    """Return scores (N,), or (K, N) of several rows, and labels (N,) as arrays.

    Raises:
        RequestError: Lengths differ, a label is neither 0 nor 1, or one class is missing.
        HistolightError: A score is NaN or infinite.
    """
    values, classes = np.asarray(scores), np.asarray(labels)
    if values.ndim not in (1, 2) or values.shape[-1:] != classes.shape:
        raise RequestError(
            f"scores have shape {values.shape} and labels {classes.shape}: give one of each for every tile"
        )
    if not np.isfinite(values).all():
        raise HistolightError(
            f"{np.count_nonzero(~np.isfinite(values))} of {values.size} scores are NaN or infinite: the training "
            "diverged; try a smaller optimizer.lr or trainer.precision=32-true"
        )
    if not np.isin(classes, (0, 1)).all():
        raise RequestError("labels must be 0 or 1")
    positive = classes.astype(bool)
    if positive.all() or not positive.any():
        raise RequestError(
            f"all {len(positive)} tiles have one and the same label: AUROC and its relatives need both classes"
        )
    return values, positive


def structural_components(scores: npt.NDArray, positive: npt.NDArray[np.bool_]) -> Array:
    """Place each tile among the tiles of the other class.

    For a positive tile it is the share of negative tiles that score lower (V10), for a negative tile the share of
    positive tiles that score higher (V01), ties counting one half. Either class's mean is the AUROC. From one sort, in
    O(N log N): Sun and Xu, "Fast implementation of DeLong's algorithm", IEEE Signal Processing Letters 21 (2014).

    Args:
        scores: (..., N) any real scores; leading axes are rows of their own.
        positive: (N,) bool, both classes present.

    Returns:
        (..., N) float64 in [0, 1].

    >>> structural_components(np.array([0.1, 0.4, 0.4, 0.8]), np.array([False, False, True, True])).tolist()
    [1.0, 0.75, 0.75, 1.0]
    """
    order = np.argsort(scores, axis=-1)
    ranked, called, place = np.take_along_axis(scores, order, axis=-1), positive[order], np.arange(len(positive))
    edges = np.ones((*ranked.shape[:-1], len(positive) + 1), dtype=bool)
    edges[..., 1:-1] = ranked[..., 1:] != ranked[..., :-1]
    first = np.maximum.accumulate(np.where(edges[..., :-1], place, 0), axis=-1)
    last = np.minimum.accumulate(np.where(edges[..., 1:], place, len(positive))[..., ::-1], axis=-1)[..., ::-1]
    # Of the tied tiles half count as lower.
    lower = (first + last + 1) / 2
    counts = np.cumsum(called, axis=-1)
    before: npt.NDArray[np.int64] = np.take_along_axis(counts - called, first, axis=-1)
    lower_positive = (before + np.take_along_axis(counts, last, axis=-1)) / 2
    positives, negatives = np.count_nonzero(positive), np.count_nonzero(~positive)
    ranked_components = np.where(called, (lower - lower_positive) / negatives, 1 - lower_positive / positives)
    components = np.empty(scores.shape)
    np.put_along_axis(components, order, ranked_components, axis=-1)
    return components


def clustered_variance(components: Array, positive: npt.NDArray[np.bool_], clusters: Clusters) -> float:
    """Variance of an AUROC, or of a difference of two, from structural components or their differences.

    Obuchowski, "Nonparametric analysis of clustered ROC curve data", Biometrics 53 (1997), 567-578. Where every tile is
    its own cluster, this is the variance of DeLong, DeLong and Clarke-Pearson, Biometrics 44 (1988), 837-845. Needs two
    clusters with positive and two with negative tiles (:func:`lack_of_clusters`).
    """
    codes, count = clusters.codes, int(clusters.codes.max()) + 1
    sums, factors = [], []
    for one in (positive, ~positive):
        share = (components[one] - components[one].mean()) / np.count_nonzero(one)
        sums.append(np.bincount(codes[one], weights=share, minlength=count))
        holders = len(np.unique(codes[one]))
        factors.append(holders / (holders - 1))
    ours, theirs = sums
    return float(factors[0] * ours @ ours + factors[1] * theirs @ theirs + 2 * count / (count - 1) * ours @ theirs)


def effective_clusters(positive: npt.NDArray[np.bool_], clusters: Clusters) -> float:
    """Effective number of clusters of the scarcer class: the smaller of (sum n)^2 / sum n^2 over the two classes.

    n is a cluster's number of tiles of the class: clusters of equal size count as one each, and a cluster that holds
    nearly all the tiles of a class leaves little more than one.

    >>> effective_clusters(np.array([True, True, False, False]), find_clusters(["a", "b", "c", "c"], 4))
    1.0
    """
    sizes = [np.bincount(clusters.codes[members]).astype(np.float64) for members in (positive, ~positive)]
    return min(float(size.sum() ** 2 / (size @ size)) for size in sizes)


def lack_of_clusters(positive: npt.NDArray[np.bool_], clusters: Clusters) -> str:
    """Say why these tiles cannot tell how sure a figure is, or return an empty string."""
    for name, members in (("positive", positive), ("negative", ~positive)):
        if len(np.unique(clusters.codes[members])) < 2:
            where = f"one slide holds every {name} tile" if clusters.slides else f"there is one {name} tile"
            return f"no interval: {where}"
    return ""


def auroc_with_variance(
    scores: npt.ArrayLike, labels: npt.ArrayLike, groups: npt.ArrayLike | None = None
) -> tuple[float, float]:
    """AUROC and its variance: DeLong's, or Obuchowski's over slides.

    Args:
        scores: (N,) any real scores, higher for positive tiles.
        labels: (N,) 0 or 1.
        groups: (N,) slide of each tile; missing values are clusters of their own.

    Returns:
        AUROC and variance; the variance is NaN where a class has one tile only (one slide only).
    """
    values, positive = check_scores(scores, labels)
    return _auroc_with_variance(values, positive, find_clusters(groups, len(values)))


def _auroc_with_variance(
    scores: npt.NDArray, positive: npt.NDArray[np.bool_], clusters: Clusters
) -> tuple[float, float]:
    components = structural_components(scores, positive)
    auroc = float(components[positive].mean())
    if lack_of_clusters(positive, clusters):
        return auroc, math.nan
    return auroc, clustered_variance(components, positive, clusters)


def auroc_interval(
    scores: npt.ArrayLike, labels: npt.ArrayLike, groups: npt.ArrayLike | None = None, level: float = 0.95
) -> Interval:
    """AUROC with its interval, symmetric on the logit scale.

    The logit keeps the interval inside (0, 1) and, near 1, close to the stated level, where the plain (Wald) interval
    is too short. Without slides: DeLong's variance and normal quantiles. With slides: Obuchowski's clustered variance
    and the t distribution with (clusters - 1) degrees of freedom.

    An AUROC of exactly 0 or 1 has an estimated variance of 0. Then k pairs of a positive and a negative tile that share
    nothing are all in order, which an AUROC of A allows with probability A^k at most: the interval ends at
    ((1 - level) / 2)^(1/k), method ``clopper-pearson``. k is the number of such pairs of tiles, or of pairs of
    different slides.

    Args:
        scores: (N,) any real scores, higher for positive tiles.
        labels: (N,) 0 or 1.
        groups: (N,) slide of each tile; missing values are clusters of their own.
        level: Confidence level.

    >>> auroc_interval([0.1, 0.2, 0.3, 0.4], [0, 0, 1, 1]).method
    'clopper-pearson'
    """
    values, positive = check_scores(scores, labels)
    clusters = find_clusters(groups, len(values))
    auroc, variance = _auroc_with_variance(values, positive, clusters)
    if math.isnan(variance):
        return _no_interval(auroc, lack_of_clusters(positive, clusters))
    if auroc in (0.0, 1.0):
        bound = ((1 - level) / 2) ** (1 / _disjoint_pairs(positive, clusters))
        low, high = (bound, 1.0) if auroc == 1 else (0.0, 1 - bound)
        return Interval(auroc, low, high, "clopper-pearson", clusters.note)
    if variance == 0:
        return _no_interval(auroc, "no interval: the scores do not vary")
    tail = (1 + level) / 2
    quantile = stats.t.ppf(tail, clusters.codes.max()) if clusters.slides else stats.norm.ppf(tail)
    half = quantile * math.sqrt(variance) / (auroc * (1 - auroc))
    low, high = special.expit(special.logit(auroc) + np.array([-half, half])).tolist()
    return Interval(auroc, low, high, "obuchowski" if clusters.slides else "delong", clusters.note)


def _no_interval(value: float, reason: str) -> Interval:
    return Interval(value, math.nan, math.nan, "none", reason)


def _disjoint_pairs(positive: npt.NDArray[np.bool_], clusters: Clusters) -> int:
    """Count the most pairs of a positive and a negative tile in which no cluster occurs twice."""
    holders = [len(np.unique(clusters.codes[members])) for members in (positive, ~positive)]
    return min(*holders, (int(clusters.codes.max()) + 1) // 2)


def resample(strata: npt.NDArray[np.int64], resamples: int, rng: np.random.Generator, width: int) -> Iterator[Array]:
    """Draw bootstrap resamples, with replacement within each stratum, a block at a time.

    Args:
        strata: (U,) stratum of each unit (tile or slide), from 0 on.
        resamples: How many.
        rng: Where the draws come from.
        width: Numbers that the caller holds for each resample; it bounds the size of a block.

    Yields:
        (block, U) float64: how often each unit was drawn; the blocks' lengths add up to ``resamples``.
    """
    members = [np.flatnonzero(strata == stratum) for stratum in range(int(strata.max()) + 1)]
    block = max(1, 2**18 // width)
    for start in range(0, resamples, block):
        rows = min(block, resamples - start)
        counts = np.zeros((rows, len(strata)))
        for units in members:
            draws = rng.integers(len(units), size=(rows, len(units))) + len(units) * np.arange(rows)[:, None]
            counts[:, units] = np.bincount(draws.ravel(), minlength=rows * len(units)).reshape(rows, len(units))
        yield counts


def resample_tiles(
    positive: npt.NDArray[np.bool_], clusters: Clusters, resamples: int, seed: int
) -> Iterator[npt.NDArray[np.float64]]:
    """Draw tile weights: slides where they are known, else tiles within each class.

    A resample of slides that lost a class is left out. With two slides of each class or more
    (:func:`lack_of_clusters`) these are at most 27 of 100.

    Yields:
        (block, N) float64.
    """
    rng = np.random.default_rng(seed)
    if not clusters.slides:
        yield from resample(positive.astype(np.int64), resamples, rng, len(positive))
        return
    for counts in resample(np.zeros(clusters.codes.max() + 1, dtype=np.int64), resamples, rng, len(positive)):
        weights = counts[:, clusters.codes]
        both = (weights @ positive > 0) & (weights @ ~positive > 0)
        yield weights[both]


def last_of_ties(scores: npt.NDArray) -> npt.NDArray[np.int64]:
    """Indices at which a run of equal values ends in sorted ``scores``."""
    return np.flatnonzero(np.append(scores[1:] != scores[:-1], True))


def weighted_aurocs(weights: Array, positive: npt.NDArray[np.bool_], ends: npt.NDArray[np.int64]) -> Array:
    """AUROC under each row of weights, for tiles sorted by falling score.

    Args:
        weights: (B, N), each row with weight in both classes.
        positive: (N,) bool.
        ends: From :func:`last_of_ties`.

    Returns:
        (B,) float64.
    """
    true, false = _weights_above(weights, positive, ends)
    whole = true[:, -1] * false[:, -1]
    # The trapezoids under the curve, summed as a polygon (shoelace): no copy, and exact, as the weights are whole.
    turns = np.einsum("bk,bk->b", false[:, 1:], true[:, :-1]) - np.einsum("bk,bk->b", false[:, :-1], true[:, 1:])
    return (whole + turns) / (2 * whole)


def _weights_above(weights: Array, positive: npt.NDArray[np.bool_], ends: npt.NDArray[np.int64]) -> tuple[Array, Array]:
    true = np.cumsum(weights * positive, axis=1)
    false = np.cumsum(weights, axis=1) - true
    if len(ends) == weights.shape[1]:
        return true, false
    return true[:, ends], false[:, ends]


def _weighted_average_precisions(weights: Array, positive: npt.NDArray[np.bool_], ends: npt.NDArray[np.int64]) -> Array:
    true, false = _weights_above(weights, positive, ends)
    precision = true / np.maximum(true + false, 1)
    return np.einsum("bk,bk->b", np.diff(true, prepend=0.0), precision) / true[:, -1]


def bootstrap_auroc(
    scores: npt.ArrayLike,
    labels: npt.ArrayLike,
    groups: npt.ArrayLike | None = None,
    level: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> Interval:
    """AUROC with its percentile bootstrap interval: over slides where known, else over tiles within each class.

    Args:
        scores: (N,) any real scores, higher for positive tiles.
        labels: (N,) 0 or 1.
        groups: (N,) slide of each tile; missing values are clusters of their own.
        level: Confidence level.
        resamples: Resamples drawn; those that lost a class are left out (:func:`resample_tiles`).
        seed: Seed of the draws.
    """
    values, positive = check_scores(scores, labels)
    clusters = find_clusters(groups, len(values))
    auroc = float(structural_components(values, positive)[positive].mean())
    reason = lack_of_clusters(positive, clusters)
    if reason:
        return _no_interval(auroc, reason)
    order = np.argsort(-values, kind="stable")
    positive, clusters = positive[order], replace(clusters, codes=clusters.codes[order])
    ends = last_of_ties(values[order])
    blocks = resample_tiles(positive, clusters, resamples, seed)
    drawn = np.concatenate([weighted_aurocs(weights, positive, ends) for weights in blocks])
    return _percentile_interval(auroc, drawn, level, clusters)


def _percentile_interval(value: float, drawn: Array, level: float, clusters: Clusters) -> Interval:
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2]).tolist()
    if low == high:
        return _no_interval(value, "no interval: every resample gave the same value")
    return Interval(value, low, high, "slide bootstrap" if clusters.slides else "stratified bootstrap", clusters.note)


def _basic_interval(percentile: Interval) -> Interval:
    if percentile.method == "none":
        return percentile
    value = percentile.value
    low, high = max(2 * value - percentile.high, 0.0), max(2 * value - percentile.low, value)
    return replace(percentile, low=min(low, value), high=high, method=f"{percentile.method}, basic")


def metric_intervals(
    logits: npt.ArrayLike,
    labels: npt.ArrayLike,
    threshold: float = 0.5,
    groups: npt.ArrayLike | None = None,
    level: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, Interval]:
    """Every figure of ``metrics.classification_metrics`` with its interval.

    AUROC: :func:`auroc_interval`. Without slides, accuracy, sensitivity and specificity: Wilson; the rest: percentile
    bootstrap over tiles within each class. With slides, all but AUROC: percentile bootstrap over slides, leaving out
    resamples that lost a class (:func:`resample_tiles`).

    ECE takes the basic bootstrap (Davison and Hinkley, "Bootstrap Methods and their Application", 1997, section 5.2),
    cut off at 0 and stretched to hold the figure itself: a resample's ECE is larger than its data's, as the data's is
    larger than the true one, so that the percentile interval often misses the true one altogether.

    Args:
        logits: (N,) float.
        labels: (N,) 0 or 1.
        threshold: A tile is called positive when its score, the float32 sigmoid of its logit, is above it.
        groups: (N,) slide of each tile; missing values are clusters of their own.
        level: Confidence level.
        resamples: Resamples of each bootstrap.
        seed: Seed of the draws.
    """
    values, positive = check_scores(logits, labels)
    values = values.astype(np.float32)
    scores = special.expit(values)
    auroc = auroc_interval(scores, positive, groups, level)
    clusters = find_clusters(groups, len(values))

    order = np.argsort(-scores, kind="stable")
    values, scores, positive = values[order], scores[order], positive[order]
    clusters = replace(clusters, codes=clusters.codes[order])
    terms, ends = _terms(values, scores, positive, threshold), last_of_ties(scores)

    point = _figures(np.ones((1, len(values))), positive, terms, ends)
    reason = lack_of_clusters(positive, clusters)
    intervals = {"auroc": auroc}
    intervals |= {name: _no_interval(float(value[0]), reason) for name, value in point.items()}
    if not reason:
        blocks = [
            _figures(weights, positive, terms, ends) for weights in resample_tiles(positive, clusters, resamples, seed)
        ]
        for name, value in point.items():
            drawn = np.concatenate([block[name] for block in blocks])
            intervals[name] = _percentile_interval(float(value[0]), drawn, level, clusters)
        intervals["ece"] = _basic_interval(intervals["ece"])
    if not clusters.slides:
        correct = (scores > np.float32(threshold)) == positive
        for name, members in zip(PROPORTIONS, (np.ones_like(positive), positive, ~positive), strict=True):
            intervals[name] = _wilson(int(correct[members].sum()), int(members.sum()), level)
    return intervals


def _wilson(correct: int, tiles: int, level: float) -> Interval:
    found = stats.binomtest(correct, tiles).proportion_ci(level, method="wilson")
    return Interval(correct / tiles, float(found.low), float(found.high), "wilson")


def _terms(
    logits: npt.NDArray[np.float32], scores: npt.NDArray[np.float32], positive: npt.NDArray[np.bool_], threshold: float
) -> Array:
    """What each tile adds to the sums that the figures are made of: (N, 5 + ECE_BINS) float64."""
    called = scores > np.float32(threshold)
    loss = np.logaddexp(0, np.where(positive, -1.0, 1.0) * logits)
    edges = np.linspace(0, 1, ECE_BINS + 1, dtype=np.float32)
    bins = np.minimum(np.searchsorted(edges, scores, side="right") - 1, ECE_BINS - 1)
    gaps = np.where(bins[:, None] == np.arange(ECE_BINS), (scores - positive)[:, None], 0)
    return np.column_stack([positive & called, positive, ~positive & ~called, ~positive, loss, gaps]).astype(np.float64)


def _figures(
    weights: Array, positive: npt.NDArray[np.bool_], terms: Array, ends: npt.NDArray[np.int64]
) -> dict[str, Array]:
    """Every figure but AUROC under each row of weights (B, N): nine names less one, each (B,)."""
    sums = weights @ terms
    true_positive, positives, true_negative, negatives, loss = sums[:, :5].T
    tiles = positives + negatives
    sensitivity, specificity = true_positive / positives, true_negative / negatives
    false_negative, false_positive = positives - true_positive, negatives - true_negative
    return {
        "average_precision": _weighted_average_precisions(weights, positive, ends),
        "accuracy": (true_positive + true_negative) / tiles,
        "balanced_accuracy": (sensitivity + specificity) / 2,
        "f1": 2 * true_positive / (2 * true_positive + false_positive + false_negative),
        "sensitivity": sensitivity,
        "specificity": specificity,
        "nll": loss / tiles,
        "ece": np.abs(sums[:, 5:]).sum(axis=1) / tiles,
    }
