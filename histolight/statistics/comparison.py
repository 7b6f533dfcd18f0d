"""Whether one model is better than another on the same tiles: paired DeLong, paired bootstrap, Holm."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import stats

from histolight.errors import RequestError
from histolight.statistics.clusters import find_clusters, lack_of_clusters
from histolight.statistics.intervals import (
    Array,
    auroc_variance,
    check_scores,
    last_of_ties,
    structural_components,
)


class Difference(NamedTuple):
    """AUROC of model A less that of model B.

    Attributes:
        difference: In [-1, 1].
        low: Lower end of the interval; NaN where none can be given.
        high: Upper end of the interval; NaN where none can be given.
        p: Two-sided p value of "no difference"; NaN where none can be given.
    """

    difference: float
    low: float
    high: float
    p: float


@dataclass(frozen=True)
class Paired:
    """Two models' scores on the tiles of one (fold, seed).

    Attributes:
        ids: (N,) tiles; a tile that occurs in several pairs (another seed) is resampled once for all of them.
        labels: (N,) 0 or 1.
        scores_a: (N,) float, in the order of ``ids``.
        scores_b: (N,) float, in the order of ``ids``.
        groups: (N,) slide of each tile, or None.
    """

    ids: npt.ArrayLike
    labels: npt.ArrayLike
    scores_a: npt.ArrayLike
    scores_b: npt.ArrayLike
    groups: npt.ArrayLike | None = None


def paired_delong(
    scores_a: npt.ArrayLike,
    scores_b: npt.ArrayLike,
    labels: npt.ArrayLike,
    groups: npt.ArrayLike | None = None,
    level: float = 0.95,
) -> Difference:
    """Compare two AUROCs on the same tiles.

    DeLong, DeLong and Clarke-Pearson, Biometrics 44 (1988), 837-845, with normal quantiles. With slides: the clustered
    covariance of Obuchowski, Biometrics 53 (1997), 567-578, and the t distribution with (clusters - 1) degrees of
    freedom.

    Args:
        scores_a: (N,) scores of model A.
        scores_b: (N,) scores of model B, in the same order.
        labels: (N,) 0 or 1.
        groups: (N,) slide of each tile; missing values are clusters of their own.
        level: Confidence level.

    Returns:
        Equal orderings have p = 1. Interval and p are NaN where the tiles do not tell the variance (a class with one
        tile or one slide only, or no spread although the AUROCs differ).

    Raises:
        RequestError: Lengths differ, a label is neither 0 nor 1, or one class is missing.
        HistolightError: A score is NaN or infinite.
    """
    first, positive = check_scores(scores_a, labels)
    second, _ = check_scores(scores_b, labels)
    clusters = find_clusters(groups, len(positive))
    components = structural_components(first, positive) - structural_components(second, positive)
    difference = float(components[positive].mean())
    if not components.any():
        return Difference(0.0, 0.0, 0.0, 1.0)
    if lack_of_clusters(positive, clusters):
        return Difference(difference, math.nan, math.nan, math.nan)
    error = math.sqrt(auroc_variance(components, positive, clusters))
    if error == 0:
        return Difference(difference, math.nan, math.nan, math.nan)
    reference = stats.t(clusters.codes.max()) if clusters.slides else stats.norm()
    half = float(reference.ppf((1 + level) / 2)) * error
    return Difference(
        difference, difference - half, difference + half, float(2 * reference.sf(abs(difference) / error))
    )


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


def paired_bootstrap(pairs: Sequence[Paired], level: float = 0.95, resamples: int = 1000, seed: int = 0) -> Difference:
    """Compare the mean AUROC of two models over the (fold, seed) pairs that both have.

    Each resample draws slides where they are known, else tiles within each class of each fold, once for all pairs
    in which they occur. The interval (percentile) therefore says how the mean difference of *these* trainings would
    vary on other tiles, not how other seeds would vary. p is twice the smaller share of resamples on either side of 0,
    never below 2 / (resamples + 1). A resample in which a pair lost a class is left out; interval and p are NaN when
    that is more than half of them, or when no resample differs from the others although the models do.

    Args:
        pairs: One for each (fold, seed).
        level: Confidence level.
        resamples: Resamples drawn.
        seed: Seed of the draws.

    Raises:
        RequestError: No pairs, lengths differ, a label is neither 0 nor 1, one class is missing, or a tile's label
            differs between pairs.
        HistolightError: A score is NaN or infinite.
    """
    if not pairs:
        raise RequestError("the two models have no (fold, seed) in common: nothing to compare")
    tiles = pd.concat([_pair_table(pair, number) for number, pair in enumerate(pairs)], ignore_index=True)
    if (tiles.groupby("id")["positive"].nunique() > 1).any():
        raise RequestError("a tile has label 0 in one (fold, seed) and 1 in another: the runs saw different data")
    units, strata = _units(tiles)
    rankings = [
        (sign / len(pairs), _Ranking.of(part[model].to_numpy(), part["positive"].to_numpy(), units[part.index]))
        for _, part in tiles.groupby("pair")
        for model, sign in (("a", 1), ("b", -1))
    ]

    def mean_difference(counts: Array) -> Array:
        return np.sum([weight * ranking.aurocs(counts) for weight, ranking in rankings], axis=0)

    observed = float(mean_difference(np.ones((1, len(strata))))[0])
    blocks = resample(strata, resamples, np.random.default_rng(seed), width=len(units))
    drawn = np.concatenate([mean_difference(counts) for counts in blocks])
    drawn = drawn[~np.isnan(drawn)]
    if len(drawn) < resamples / 2 or (drawn.min() == drawn.max() and observed != 0):
        return Difference(observed, math.nan, math.nan, math.nan)
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2]).tolist()
    smaller = int(min(np.count_nonzero(drawn <= 0), np.count_nonzero(drawn >= 0)))
    return Difference(observed, low, high, min(1.0, 2 * (smaller + 1) / (len(drawn) + 1)))


def _pair_table(pair: Paired, number: int) -> pd.DataFrame:
    a, positive = check_scores(pair.scores_a, pair.labels)
    b, _ = check_scores(pair.scores_b, pair.labels)
    ids = np.asarray(pair.ids, dtype=object)
    if ids.shape != positive.shape:
        raise RequestError(f"{ids.size} ids for {len(positive)} tiles: give one for each tile")
    slides = np.full(len(ids), None, dtype=object) if pair.groups is None else np.asarray(pair.groups, dtype=object)
    if slides.shape != positive.shape:
        raise RequestError(
            f"{slides.size} slides for {len(positive)} tiles: give one (or a missing value) for each tile"
        )
    return pd.DataFrame({"pair": number, "id": ids, "positive": positive, "a": a, "b": b, "slide": slides})


def _units(tiles: pd.DataFrame) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """What is drawn: the unit (slide or tile) of each row, and the stratum of each unit."""
    if tiles["slide"].notna().any():
        # A tile without a slide stands for itself; the flag keeps its id apart from slides of that name.
        known = tiles["slide"].notna()
        units, _ = pd.factorize(pd.MultiIndex.from_arrays([known, tiles["slide"].where(known, tiles["id"])]))
        return units.astype(np.int64), np.zeros(units.max() + 1, dtype=np.int64)
    units, _ = pd.factorize(tiles["id"])
    first = ~tiles["id"].duplicated()
    strata, _ = pd.factorize(tiles.loc[first, "pair"] * 2 + tiles.loc[first, "positive"])
    return units.astype(np.int64), strata.astype(np.int64)


@dataclass(frozen=True)
class _Ranking:
    """One model's tiles of one pair by falling score, ready to be weighted by how often each unit was drawn."""

    positive: npt.NDArray[np.bool_]
    units: npt.NDArray[np.int64]
    ends: npt.NDArray[np.int64]

    @classmethod
    def of(cls, scores: Array, positive: npt.NDArray[np.bool_], units: npt.NDArray[np.int64]) -> _Ranking:
        order = np.argsort(-scores, kind="stable")
        return cls(positive[order], units[order], last_of_ties(scores[order]))

    def aurocs(self, counts: Array) -> Array:
        """(B,) from counts (B, units); NaN where a class was not drawn."""
        with np.errstate(invalid="ignore"):
            return weighted_aurocs(counts[:, self.units], self.positive, self.ends)


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
