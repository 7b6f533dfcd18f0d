"""Which of many rows is best: all pairs, every claim together at the stated level.

A row is one training, or one configuration with several seeds. The covariance of all AUROCs comes from the structural
components of the tiles (DeLong, DeLong and Clarke-Pearson 1988) added up by cluster (Obuchowski 1997). Configurations
follow Obuchowski and Rockette's model with seeds as readers nested in configurations (Hillis, Statistics in Medicine 33
(2014), 330-360). The leader was picked on the same tiles, so all pairs are tested, with Holm's correction.
``docs/statistics.md`` has the procedure in full and what simulation says of it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import special

from histolight.errors import RequestError
from histolight.statistics.clusters import find_clusters, lack_of_clusters, scarcer_clusters, sums_by_cluster
from histolight.statistics.intervals import (
    SMALLEST_VARIANCE,
    Array,
    Bools,
    auroc_ends,
    check_scores,
    hardest_share,
    structural_components,
    tile_share,
)

FEWEST_DEGREES_OF_FREEDOM = 5.0  # below it, more than FEW_ROWS rows are not ranked
FEW_ROWS = 3
FEWEST_SEEDS = 3  # of a configuration
ROUNDING = 1e-12  # a variance below this share of its parts is rounding
TILES_AT_ONCE = 2**19  # scores whose structural components are held at once; it bounds the memory
SMALLEST_P = float(np.finfo(np.float64).tiny)


@dataclass(frozen=True)
class AurocCovariance:
    """AUROCs of several trainings on the same tiles, with their covariance over other tiles (or slides) like these.

    Attributes:
        aurocs: (K,) float64.
        covariance: (K, K) float64; NaN where ``lack`` says why.
        degrees_of_freedom: Of every variance in it: ``n_eff - 1``, 0 where ``lack`` says why.
        n_eff: Effective number of clusters of the scarcer class: the smaller over the two classes of (sum n)^2 / sum
            n^2, n being a cluster's tiles of the class; tiles are clusters where none are given.
        hardest: (K,) largest share of one cluster in ``1 - AUROC``; 0 where tiles are independent.
        share: 1 / positives + 1 / negatives; of a mean over folds the mean, divided by the number of folds.
        lack: Why there is no covariance, or empty.
    """

    aurocs: Array
    covariance: Array
    degrees_of_freedom: float
    n_eff: float
    hardest: Array
    share: float
    lack: str = ""


@dataclass(frozen=True)
class Verdict:
    """What can be said of m rows, all claims together at one level.

    Attributes:
        auroc: (m,) AUROC of each row (of a configuration: the mean over its seeds).
        row_low: (m,) lower end of each row's own interval (not simultaneous); NaN where there is none.
        row_high: (m,) upper end.
        difference: (m, m) ``auroc[j] - auroc[k]``.
        low: (m, m) lower end of the simultaneous interval of the difference; NaN where there is none.
        high: (m, m) upper end.
        p: (m, m) two-sided p value of "no difference" after Holm over all pairs; 1 where there is no test.
        better: (m, m) whether row j is significantly above row k.
        best: (m,) whether no row is significantly above this one.
        ranks: (m, 2) first and last rank that the claims leave to the row, from 1 on.
        degrees_of_freedom: (m, m) of the t distribution of each pair.
        reason: Why no pair was tested, or empty.
    """

    auroc: Array
    row_low: Array
    row_high: Array
    difference: Array
    low: Array
    high: Array
    p: Array
    better: Bools
    best: Bools
    ranks: npt.NDArray[np.int64]
    degrees_of_freedom: Array
    reason: str = ""


def auroc_covariance(
    scores: npt.ArrayLike, labels: npt.ArrayLike, groups: npt.ArrayLike | None = None
) -> AurocCovariance:
    """Covariance of many AUROCs on the same tiles.

    Obuchowski, "Nonparametric analysis of clustered ROC curve data", Biometrics 53 (1997), 567-578, for any number of
    rows; without groups: DeLong, DeLong and Clarke-Pearson, Biometrics 44 (1988), 837-845.

    Args:
        scores: (K, N) one row for each training, any real scores, higher for positive tiles.
        labels: (N,) 0 or 1.
        groups: (N,) cluster (slide, or component of overlapping tiles) of each tile; missing values are clusters of
            their own.

    Raises:
        RequestError: Shapes differ, a label is neither 0 nor 1, or one class is missing.
        HistolightError: A score is NaN or infinite.

    >>> result = auroc_covariance([[0.1, 0.3, 0.2, 0.4], [0.1, 0.2, 0.3, 0.4]], [0, 0, 1, 1])
    >>> result.aurocs.tolist(), result.degrees_of_freedom
    ([0.75, 1.0], 1.0)
    """
    rows = np.atleast_2d(np.asarray(scores))
    positive = check_scores(rows, labels)[1]
    clusters = find_clusters(groups, len(positive))
    lack = lack_of_clusters(positive, clusters)
    count = int(clusters.codes.max()) + 1
    aurocs, hardest = np.empty(len(rows)), np.zeros(len(rows))
    sums = np.empty((2, len(rows), count))  # by class, row and cluster
    block = max(1, TILES_AT_ONCE // len(positive))
    for start in range(0, len(rows), block):
        part = slice(start, start + block)
        components = structural_components(rows[part], positive)
        aurocs[part] = components[:, positive].mean(axis=1)
        if clusters.slides:
            hardest[part] = hardest_share(components, positive, clusters)
        for members, share in zip((positive, ~positive), sums[:, part], strict=True):
            deviations = (components[:, members] - aurocs[part, None]) / np.count_nonzero(members)
            share[:] = sums_by_cluster(deviations, clusters.codes[members], count)
    if lack:
        unknown = np.full((len(rows), len(rows)), math.nan)
        return AurocCovariance(aurocs, unknown, 0.0, 1.0, hardest, tile_share(positive), lack)
    whole, *factors = (
        holders / (holders - 1)
        for holders in (count, *(len(np.unique(clusters.codes[m])) for m in (positive, ~positive)))
    )
    # Obuchowski's three terms, arranged as a sum of squares: no difference of large numbers, never negative.
    both = sums[0] + sums[1]
    covariance = whole * both @ both.T
    for factor, one in zip(factors, sums, strict=True):
        covariance += (factor - whole) * one @ one.T
    n_eff = scarcer_clusters(positive, clusters)
    return AurocCovariance(aurocs, covariance, n_eff - 1, n_eff, hardest, tile_share(positive))


def combine_folds(parts: Sequence[AurocCovariance]) -> AurocCovariance:
    """Mean AUROCs over folds that share neither tiles nor clusters, with the covariance of these means.

    The degrees of freedom are Satterthwaite's (Biometrics Bulletin 2 (1946), 110-114), each fold's variance being taken
    as proportional to 1 / n_eff.

    Args:
        parts: One for each fold, with the same rows in the same order.

    Raises:
        RequestError: No folds, or folds with different numbers of rows.
    """
    if not parts:
        raise RequestError("there are no folds to combine")
    if len({len(part.aurocs) for part in parts}) > 1:
        raise RequestError(f"folds have different numbers of rows: {[len(part.aurocs) for part in parts]}")
    aurocs = np.mean([part.aurocs for part in parts], axis=0)
    hardest = np.max([part.hardest for part in parts], axis=0) / len(parts)
    lack = next((part.lack for part in parts if part.lack), "")
    covariance = np.sum([part.covariance for part in parts], axis=0) / len(parts) ** 2
    share = sum(part.share for part in parts) / len(parts) ** 2
    if lack:
        return AurocCovariance(aurocs, covariance, 0.0, 1.0, hardest, share, lack)
    variances = np.array([1 / part.n_eff for part in parts])
    freedom = np.array([part.degrees_of_freedom for part in parts])
    total = float(variances.sum() ** 2 / (variances**2 / np.maximum(freedom, 1e-9)).sum())
    return AurocCovariance(aurocs, covariance, total, total + 1, hardest, share)


def verdict_of_trainings(
    aurocs: npt.ArrayLike,
    covariance: npt.ArrayLike,
    nu1: float,
    level: float = 0.95,
    hardest: npt.ArrayLike | None = None,
    share: float = 0.0,
) -> Verdict:
    """Compare m trainings, each with each.

    Args:
        aurocs: (m,) from :func:`auroc_covariance` (or the means of :func:`combine_folds`).
        covariance: (m, m) of them.
        nu1: Its degrees of freedom.
        level: Of all claims together.
        hardest: (m,) of :class:`AurocCovariance`, for the rows' own intervals.
        share: Of :class:`AurocCovariance`.

    >>> verdict = verdict_of_trainings([0.95, 0.9, 0.8], np.eye(3) * 1e-4, 200)
    >>> verdict.best.tolist(), verdict.ranks.tolist()
    ([True, False, False], [[1, 1], [2, 2], [3, 3]])
    """
    values, matrix = np.asarray(aurocs, dtype=np.float64), np.asarray(covariance, dtype=np.float64)
    if values.ndim != 1 or matrix.shape != (len(values),) * 2:
        raise RequestError(f"{values.shape} AUROCs need as many rows and columns of covariance: {matrix.shape}")
    own = np.diagonal(matrix)
    parts = own[:, None] + own
    variance = _beyond_rounding(parts - 2 * matrix, parts)
    freedom = np.full(matrix.shape, nu1)
    apart = np.zeros(len(values)) if hardest is None else np.asarray(hardest, dtype=np.float64)
    ends = auroc_ends(values, own, np.full(len(values), nu1), apart, share, level)
    return _verdict(values, own, variance, freedom, ends, nu1, share, level)


def verdict_of_configurations(
    aurocs: npt.ArrayLike,
    covariance: npt.ArrayLike,
    nu1: float,
    level: float = 0.95,
    hardest: npt.ArrayLike | None = None,
    share: float = 0.0,
) -> Verdict:
    """Compare m configurations of R seeds each, each with each: what holds for other seeds as well as other tiles.

    Args:
        aurocs: (m, R) one row for each configuration, one column for each seed.
        covariance: (m R, m R) of them, in row-major order (all seeds of the first configuration first).
        nu1: Its degrees of freedom.
        level: Of all claims together.
        hardest: (m R,) of :class:`AurocCovariance`, for the rows' own intervals.
        share: Of :class:`AurocCovariance`.

    Raises:
        RequestError: Fewer than three seeds, or shapes that do not fit.
    """
    values, matrix = np.asarray(aurocs, dtype=np.float64), np.asarray(covariance, dtype=np.float64)
    if values.ndim != 2 or matrix.shape != (values.size,) * 2:
        raise RequestError(f"{values.shape} AUROCs need as many rows and columns of covariance: {matrix.shape}")
    rows, seeds = values.shape
    if seeds < FEWEST_SEEDS:
        raise RequestError(f"a configuration needs at least {FEWEST_SEEDS} seeds, not {seeds}, to be compared")
    between_seeds, within, between = variance_components(values, matrix)
    parts = within[:, None] + within
    shared = _beyond_rounding(parts - 2 * between, parts)
    pooled = _pooled(between_seeds, seeds)
    spread = np.maximum(between_seeds, pooled)
    of_seeds = (spread[:, None] + spread) / seeds
    variance = _beyond_rounding(of_seeds + shared, parts)
    row_variance = spread / seeds + np.maximum(within, 0)
    # A row's own variance, where it exceeds the pooled one, has the degrees of freedom of this row only.
    row_of_seeds = (pooled**2 / rows + (spread - pooled) ** 2) / (seeds - 1) / seeds**2
    row_freedom = _satterthwaite(row_variance, row_of_seeds, np.maximum(within, 0), nu1)
    apart = np.zeros(rows) if hardest is None else np.reshape(hardest, (rows, seeds)).mean(axis=1)
    means = values.mean(axis=1)
    ends = auroc_ends(means, row_variance, row_freedom, apart, share, level)
    freedom = _satterthwaite(variance, of_seeds**2 / (rows * (seeds - 1)), shared, nu1)
    return _verdict(means, row_variance, variance, freedom, ends, nu1, share, level)


def _beyond_rounding(variance: Array, parts: Array) -> Array:
    return np.where(variance > np.maximum(ROUNDING * parts, SMALLEST_VARIANCE), variance, 0.0)


def _pooled(variances: Array, seeds: int) -> float:
    """Variance between seeds of all rows: the mean, or where rows differ in it, a root mean square that is larger.

    With one true variance v, normal AUROCs have E[s^4] = v^2 (R + 1) / (R - 1): both estimate v then.
    """
    return float(max(variances.mean(), math.sqrt((variances**2).mean() * (seeds - 1) / (seeds + 1))))


def variance_components(values: Array, covariance: Array) -> tuple[Array, Array, Array]:
    """Split what makes AUROCs differ: seeds of one row, and tiles.

    Args:
        values: (m, R) AUROCs, R of 2 or more.
        covariance: (m R, m R) of them over other tiles, in row-major order.

    Returns:
        Variance between the seeds of each row (m,), mean covariance between different seeds of a row (m,), and mean
        covariance between the seeds of two rows (m, m).
    """
    rows, seeds = values.shape
    blocks = covariance.reshape(rows, seeds, rows, seeds)
    between = blocks.mean(axis=(1, 3))
    own = np.einsum("jrjr->j", blocks)
    within = (np.diagonal(between) * seeds**2 - own) / (seeds * (seeds - 1))
    return values.var(axis=1, ddof=1), within, between


def _satterthwaite(variance: Array, of_seeds: Array, shared: Array, nu1: float) -> Array:
    with np.errstate(divide="ignore", invalid="ignore"):
        freedom = variance**2 / (of_seeds + shared**2 / nu1)
    return np.where(variance > 0, freedom, nu1)


def _verdict(
    aurocs: Array,
    own: Array,
    variance: Array,
    freedom: Array,
    ends: tuple[Array, Array],
    nu1: float,
    share: float,
    level: float,
) -> Verdict:
    rows = len(aurocs)
    difference = aurocs[:, None] - aurocs
    low, high = np.full((rows, rows), math.nan), np.full((rows, rows), math.nan)
    p, better = np.ones((rows, rows)), np.zeros((rows, rows), dtype=bool)
    reason = _reason(rows, nu1, variance)
    if not reason:
        first, second = np.triu_indices(rows, 1)
        away, error, nu = difference[first, second], np.sqrt(variance[first, second]), freedom[first, second]
        known = error > 0
        size = np.abs(away) / np.where(known, error, 1)
        plain = np.where(known, np.maximum(2 * special.stdtr(nu, -size), SMALLEST_P), 1)
        adjusted = holm(plain)
        claimed = adjusted <= 1 - level
        each = 1 - (1 - level) / len(first)
        half = np.where(known, special.stdtrit(nu, (1 + each) / 2) * error, math.nan)
        largest = np.fmax(np.abs(away) + half, _largest_difference(aurocs, own, variance, freedom, share, each))
        # Holm claims a little more than these (Bonferroni's) intervals do; such an interval ends at 0.
        smallest = np.where(claimed, np.maximum(np.abs(away) - half, 0), np.abs(away) - half)
        lower, upper = np.where(away >= 0, (smallest, largest), (-largest, -smallest))
        p[first, second] = p[second, first] = adjusted
        low[first, second], high[first, second] = lower, upper
        low[second, first], high[second, first] = -upper, -lower
        better[first, second], better[second, first] = claimed & (away > 0), claimed & (away < 0)
    ranks = np.stack([1 + better.sum(axis=0), rows - better.sum(axis=1)], axis=1)
    best = np.logical_not(better.any(axis=0))
    return Verdict(aurocs, *ends, difference, low, high, p, better, best, ranks, freedom, reason)


def _largest_difference(
    aurocs: Array, own: Array, variance: Array, freedom: Array, share: float, level: float
) -> Array:
    """Upper end of each pair's absolute difference, from the ends of both rows' intervals and their correlation.

    A row that is high by chance has a small variance by chance, and the difference from it seems too sure. Zou and
    Donner, Statistics in Medicine 27 (2008), 1693-1702: the ends of the rows' own intervals stand for their variances.
    """
    first, second = np.triu_indices(len(aurocs), 1)
    swap = aurocs[first] < aurocs[second]
    upper, lower = np.where(swap, (second, first), (first, second))
    nu, alone = freedom[first, second], np.zeros(len(first))
    rise = auroc_ends(aurocs[upper], own[upper], nu, alone, share, level)[1] - aurocs[upper]
    fall = aurocs[lower] - auroc_ends(aurocs[lower], own[lower], nu, alone, share, level)[0]
    with np.errstate(divide="ignore", invalid="ignore"):
        shared = (own[upper] + own[lower] - variance[first, second]) / np.sqrt(own[upper] * own[lower])
    square = rise**2 + fall**2 - np.clip(shared, -2, 2) * rise * fall
    end: Array = aurocs[upper] - aurocs[lower] + np.sqrt(np.maximum(square, 0))
    return end


def holm(p_values: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Correct the p values of one table of tests.

    Holm, "A simple sequentially rejective multiple test procedure", Scandinavian Journal of Statistics 6 (1979), 65-70:
    the chance of any false finding in the table stays below the level at which the results are read.

    Args:
        p_values: (T,) in [0, 1]; NaN (no test was possible) stays NaN and does not count.

    Returns:
        (T,) adjusted p values, in the same order.

    >>> holm([0.01, 0.04, 0.03]).tolist()
    [0.03, 0.06, 0.06]
    """
    values = np.asarray(p_values, dtype=np.float64)
    if values.ndim != 1 or ((values < 0) | (values > 1)).any():
        raise RequestError(f"p values must be a list of numbers from 0 to 1: {values.tolist()}")
    adjusted = np.full(len(values), math.nan)
    order = np.argsort(values)[: np.count_nonzero(~np.isnan(values))]
    adjusted[order] = np.minimum(np.maximum.accumulate(values[order] * np.arange(len(order), 0, -1)), 1)
    return adjusted


def _reason(rows: int, nu1: float, variance: Array) -> str:
    if rows < 2:
        return "there is one row: nothing to compare"
    if not nu1 > 0 or not np.isfinite(variance).all():
        return "the variance of a difference can't be estimated from these tiles"
    if rows > FEW_ROWS and nu1 < FEWEST_DEGREES_OF_FREEDOM:
        return (
            f"{nu1 + 1:.1f} effective clusters of the scarcer class cannot rank {rows} rows: add slides (or tiles) of "
            f"that class, or name up to {FEW_ROWS} rows beforehand (among=...)"
        )
    if not (variance[np.triu_indices(rows, 1)] > 0).any():
        return "the rows order the tiles alike: no difference has a variance"
    return ""
