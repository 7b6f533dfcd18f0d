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
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from scipy import special, stats

from histolight.errors import RequestError
from histolight.statistics.comparison import holm
from histolight.statistics.intervals import (
    Array,
    check_scores,
    effective_clusters,
    find_clusters,
    lack_of_clusters,
    structural_components,
)

Bools = npt.NDArray[np.bool_]

FEWEST_DEGREES_OF_FREEDOM = 5.0  # below it, more than FEW_ROWS rows are not ranked
FEW_ROWS = 3
FEWEST_SEEDS = 3  # of a configuration
ROUNDING = 1e-10  # a variance below this share of its parts is rounding
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
        lack: Why there is no covariance, or empty.
    """

    aurocs: Array
    covariance: Array
    degrees_of_freedom: float
    n_eff: float
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
    positive = check_scores(rows[0], labels)[1]
    clusters = find_clusters(groups, len(positive))
    lack = lack_of_clusters(positive, clusters)
    count = int(clusters.codes.max()) + 1
    aurocs = np.empty(len(rows))
    sums = np.empty((2, len(rows), count))  # by class, row and cluster
    for place, row in enumerate(rows):
        components = structural_components(check_scores(row, labels)[0], positive)
        aurocs[place] = components[positive].mean()
        for members, share in zip((positive, ~positive), sums[:, place], strict=True):
            deviations = (components[members] - aurocs[place]) / np.count_nonzero(members)
            share[:] = np.bincount(clusters.codes[members], weights=deviations, minlength=count)
    if lack:
        return AurocCovariance(aurocs, np.full((len(rows), len(rows)), math.nan), 0.0, 1.0, lack)
    whole, *factors = (
        holders / (holders - 1)
        for holders in (count, *(len(np.unique(clusters.codes[m])) for m in (positive, ~positive)))
    )
    # Obuchowski's three terms, arranged as a sum of squares: no difference of large numbers, never negative.
    both = sums[0] + sums[1]
    covariance = whole * both @ both.T
    for factor, one in zip(factors, sums, strict=True):
        covariance += (factor - whole) * one @ one.T
    n_eff = effective_clusters(positive, clusters)
    return AurocCovariance(aurocs, covariance, n_eff - 1, n_eff)


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
    lack = next((part.lack for part in parts if part.lack), "")
    covariance = np.sum([part.covariance for part in parts], axis=0) / len(parts) ** 2
    if lack:
        return AurocCovariance(aurocs, covariance, 0.0, 1.0, lack)
    variances = np.array([1 / part.n_eff for part in parts])
    freedom = np.array([part.degrees_of_freedom for part in parts])
    total = float(variances.sum() ** 2 / (variances**2 / np.maximum(freedom, 1e-9)).sum())
    return AurocCovariance(aurocs, covariance, total, total + 1)


def verdict_of_trainings(aurocs: npt.ArrayLike, covariance: npt.ArrayLike, nu1: float, level: float = 0.95) -> Verdict:
    """Compare m trainings, each with each.

    Args:
        aurocs: (m,) from :func:`auroc_covariance` (or the means of :func:`combine_folds`).
        covariance: (m, m) of them.
        nu1: Its degrees of freedom.
        level: Of all claims together.

    >>> verdict = verdict_of_trainings([0.95, 0.9, 0.8], np.eye(3) * 1e-4, 200)
    >>> verdict.best.tolist(), verdict.ranks.tolist()
    ([True, False, False], [[1, 1], [2, 2], [3, 3]])
    """
    values, matrix = np.asarray(aurocs, dtype=np.float64), np.asarray(covariance, dtype=np.float64)
    if values.ndim != 1 or matrix.shape != (len(values),) * 2:
        raise RequestError(f"{values.shape} AUROCs need as many rows and columns of covariance: {matrix.shape}")
    own = np.diagonal(matrix)
    parts = own[:, None] + own
    variance = parts - 2 * matrix
    variance = np.where(variance > ROUNDING * parts, variance, 0.0)
    freedom = np.full(matrix.shape, nu1)
    return _verdict(values, variance, freedom, own, np.full(len(values), nu1), nu1, level)


def verdict_of_configurations(
    aurocs: npt.ArrayLike, covariance: npt.ArrayLike, nu1: float, level: float = 0.95
) -> Verdict:
    """Compare m configurations of R seeds each, each with each: what holds for other seeds as well as other tiles.

    Args:
        aurocs: (m, R) one row for each configuration, one column for each seed.
        covariance: (m R, m R) of them, in row-major order (all seeds of the first configuration first).
        nu1: Its degrees of freedom.
        level: Of all claims together.

    Raises:
        RequestError: Fewer than three seeds, or shapes that do not fit.
    """
    values, matrix = np.asarray(aurocs, dtype=np.float64), np.asarray(covariance, dtype=np.float64)
    if values.ndim != 2 or matrix.shape != (values.size,) * 2:
        raise RequestError(f"{values.shape} AUROCs need as many rows and columns of covariance: {matrix.shape}")
    rows, seeds = values.shape
    if seeds < FEWEST_SEEDS:
        raise RequestError(f"a configuration needs at least {FEWEST_SEEDS} seeds, not {seeds}, to be compared")
    between_seeds, within, between = _components(values, matrix)
    parts = within[:, None] + within
    shared = parts - 2 * between
    shared = np.where(shared > ROUNDING * parts, shared, 0.0)
    spread = np.maximum(between_seeds, between_seeds.mean())
    variance = (spread[:, None] + spread) / seeds + shared
    of_seeds = (spread[:, None] ** 2 + spread**2) / seeds**2 / (rows * (seeds - 1))
    row_variance = spread / seeds + np.maximum(within, 0)
    row_of_seeds = spread**2 / seeds**2 / (rows * (seeds - 1))
    return _verdict(
        values.mean(axis=1),
        variance,
        _satterthwaite(variance, of_seeds, shared, nu1),
        row_variance,
        _satterthwaite(row_variance, row_of_seeds, np.maximum(within, 0), nu1),
        nu1,
        level,
    )


def _components(values: Array, covariance: Array) -> tuple[Array, Array, Array]:
    """Variance between the seeds of each row (m,), mean covariance between its seeds (m,), and between rows (m, m)."""
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
    aurocs: Array, variance: Array, freedom: Array, row_variance: Array, row_freedom: Array, nu1: float, level: float
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
        plain = np.where(known, np.maximum(2 * stats.t.sf(size, nu), SMALLEST_P), 1)
        adjusted = holm(plain)
        claimed = adjusted <= 1 - level
        half = np.where(known, stats.t.isf((1 - level) / 2 / len(first), nu) * error, math.nan)
        # Holm claims a little more than these (Bonferroni's) intervals do; such an interval ends at 0.
        lower = np.where(claimed & (away > 0), np.maximum(away - half, 0), away - half)
        upper = np.where(claimed & (away < 0), np.minimum(away + half, 0), away + half)
        p[first, second] = p[second, first] = adjusted
        low[first, second], high[first, second] = lower, upper
        low[second, first], high[second, first] = -upper, -lower
        better[first, second], better[second, first] = claimed & (away > 0), claimed & (away < 0)
    row_low, row_high = _logit_intervals(aurocs, row_variance, row_freedom, level)
    ranks = np.stack([1 + better.sum(axis=0), rows - better.sum(axis=1)], axis=1)
    return Verdict(
        aurocs, row_low, row_high, difference, low, high, p, better, ~better.any(axis=0), ranks, freedom, reason
    )


def _reason(rows: int, nu1: float, variance: Array) -> str:
    if rows < 2:
        return "there is one row: nothing to compare"
    if not nu1 > 0 or not np.isfinite(variance).all():
        return "these tiles do not tell how sure a difference is"
    if rows > FEW_ROWS and nu1 < FEWEST_DEGREES_OF_FREEDOM:
        return (
            f"{nu1 + 1:.1f} effective clusters of the scarcer class cannot rank {rows} rows: add slides (or tiles) of "
            f"that class, or name up to {FEW_ROWS} rows beforehand (among=...)"
        )
    if not (variance[np.triu_indices(rows, 1)] > 0).any():
        return "the rows order the tiles alike: no difference has a variance"
    return ""


def _logit_intervals(aurocs: Array, variance: Array, freedom: Array, level: float) -> tuple[Array, Array]:
    slope = aurocs * (1 - aurocs)
    known = (variance > ROUNDING * slope**2) & (slope > 0) & (freedom > 0)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        half = stats.t.isf((1 - level) / 2, np.where(known, freedom, 1)) * np.sqrt(variance) / slope
        low, high = special.expit(special.logit(aurocs) - half), special.expit(special.logit(aurocs) + half)
    return np.where(known, low, math.nan), np.where(known, high, math.nan)


@dataclass(frozen=True)
class Plan:
    """What decides which differences a comparison can tell.

    Attributes:
        rows: Rows compared, at least 2.
        seeds: Seeds of each row; 1 compares trainings.
        seed_variance: Variance of the AUROC between the seeds of one row (s^2); not used where ``seeds`` is 1.
        tile_variance: Variance, over other tiles (or slides), of the difference of two rows (c).
        degrees_of_freedom: Of ``tile_variance`` (nu1).
    """

    rows: int
    seeds: int
    seed_variance: float
    tile_variance: float
    degrees_of_freedom: float


def plan_like(aurocs: npt.ArrayLike, covariance: npt.ArrayLike, nu1: float) -> Plan:
    """Read the variance components off an earlier comparison: means over its rows and pairs.

    Args:
        aurocs: (m, R) with m of 2 or more; R may be 1.
        covariance: (m R, m R) in row-major order.
        nu1: Its degrees of freedom.
    """
    values, matrix = np.asarray(aurocs, dtype=np.float64), np.asarray(covariance, dtype=np.float64)
    rows, seeds = values.shape
    pairs = np.triu_indices(rows, 1)
    if seeds == 1:
        own = np.diagonal(matrix)
        return Plan(rows, 1, 0.0, float((own[:, None] + own - 2 * matrix)[pairs].mean()), nu1)
    between_seeds, within, between = _components(values, matrix)
    shared = np.maximum((within[:, None] + within - 2 * between)[pairs], 0)
    return Plan(rows, seeds, float(between_seeds.mean()), float(shared.mean()), nu1)


def power(plan: Plan, difference: float, level: float = 0.95) -> float:
    """Chance that a true difference of two rows is stated, by Bonferroni's bound over all pairs.

    >>> round(power(Plan(2, 1, 0.0, 1e-4, 100), 0.03), 3)
    0.844
    """
    pairs = plan.rows * (plan.rows - 1) / 2
    of_seeds = 2 * plan.seed_variance / plan.seeds if plan.seeds > 1 else 0.0
    variance = of_seeds + plan.tile_variance
    if variance <= 0 or plan.degrees_of_freedom <= 0:
        return math.nan
    if plan.rows > FEW_ROWS and plan.degrees_of_freedom < FEWEST_DEGREES_OF_FREEDOM:
        return 0.0
    spread = of_seeds**2 / 2 / (plan.rows * (plan.seeds - 1)) if plan.seeds > 1 else 0.0
    freedom = variance**2 / (spread + plan.tile_variance**2 / plan.degrees_of_freedom)
    bound = stats.t.isf((1 - level) / 2 / pairs, freedom)
    return float(stats.nct.sf(bound, freedom, difference / math.sqrt(variance)))


def tiles_needed(plan: Plan, difference: float, target: float = 0.8, level: float = 0.95) -> float:
    """How many times as many tiles (or slides) give this power, the seeds staying as they are; at least 1.

    Returns:
        A multiple with two digits or so, or infinity where no number of tiles is enough (more seeds are).
    """

    def reached(multiple: float) -> bool:
        freedom = (plan.degrees_of_freedom + 1) * multiple - 1
        larger = replace(plan, tile_variance=plan.tile_variance / multiple, degrees_of_freedom=freedom)
        return power(larger, difference, level) >= target

    return next((float(multiple) for multiple in np.geomspace(1, 1e4, 401) if reached(multiple)), math.inf)


def seeds_needed(plan: Plan, difference: float, target: float = 0.8, level: float = 0.95) -> float:
    """How many seeds a row give this power, the tiles staying as they are; at least three.

    Returns:
        A whole number, or infinity where a hundred are not enough (more tiles are).
    """
    enough = (
        seeds for seeds in range(FEWEST_SEEDS, 101) if power(replace(plan, seeds=seeds), difference, level) >= target
    )
    return next((float(seeds) for seeds in enough), math.inf)
