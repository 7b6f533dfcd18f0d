"""How sure one run's figures are, from the tiles (or slides) that they were measured on.

Wherever slides are known they, not tiles, are what was sampled: tiles of one slide resemble each other, and an interval
that takes them for independent is too short. ``docs/statistics.md`` has the methods and the coverage of each.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import special

from histolight.errors import HistolightError, RequestError
from histolight.statistics.clusters import (
    Clusters,
    clustered_variance,
    effective_clusters,
    find_clusters,
    lack_of,
    lack_of_clusters,
    scarcer_clusters,
    sums_by_cluster,
)

Array = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

SMALLEST_VARIANCE = 1e-26  # the smallest step of an AUROC of 10^5 tiles a class is 1e-10; below this lies rounding


@dataclass(frozen=True)
class Interval:
    """A figure with its confidence interval.

    Attributes:
        value: The figure.
        low: Lower end; NaN where no interval can be given.
        high: Upper end; NaN where no interval can be given.
        method: ``delong``, ``obuchowski``, ``clopper-pearson``, ``korn-graubard``, ``mover`` (of the two before),
            ``linearised``, ``gamma``, ``woodruff``, ``mover-ratio``,
            or ``none`` where no interval can be estimated from the tiles.
        note: What a reader must hear of beside the interval, or why there is none, or empty.
    """

    value: float
    low: float
    high: float
    method: str
    note: str = ""


def check_scores(scores: npt.ArrayLike, labels: npt.ArrayLike) -> tuple[npt.NDArray, Bools]:
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
    positive tiles that score higher (V01), ties counting one half. Either class's mean is the AUROC. From midranks, in
    O(N log N): Sun and Xu, "Fast implementation of DeLong's algorithm", IEEE Signal Processing Letters 21 (2014).

    Args:
        scores: (..., N) any real scores; leading axes are rows of their own.
        positive: (N,) bool, both classes present.

    Returns:
        (..., N) float64 in [0, 1].

    >>> structural_components(np.array([0.1, 0.4, 0.4, 0.8]), np.array([False, False, True, True])).tolist()
    [1.0, 0.75, 0.75, 1.0]
    """
    from scipy.stats import rankdata  # half a second, which a wrong request need not pay

    ranks, components = rankdata(scores, axis=-1), np.empty(scores.shape)
    for members in (positive, ~positive):
        lower = ranks[..., members] - rankdata(scores[..., members], axis=-1)  # tiles of the other class
        components[..., members] = lower / np.count_nonzero(~members)
    components[..., ~positive] = 1 - components[..., ~positive]
    return components


def last_of_ties(scores: npt.NDArray) -> npt.NDArray[np.int64]:
    """Indices at which a run of equal values ends in sorted ``scores``."""
    return np.flatnonzero(np.append(scores[1:] != scores[:-1], True))


def auroc_variance(components: Array, positive: Bools, clusters: Clusters) -> float:
    """Variance of an AUROC from its structural components.

    Obuchowski, "Nonparametric analysis of clustered ROC curve data", Biometrics 53 (1997), 567-578. Where every tile is
    its own cluster, this is the variance of DeLong, DeLong and Clarke-Pearson, Biometrics 44 (1988), 837-845. Needs two
    clusters with positive and two with negative tiles (:func:`lack_of_clusters`).
    """
    count = int(clusters.codes.max()) + 1
    whole, terms, both = count / (count - 1), 0.0, np.zeros(count)
    for members in (positive, ~positive):
        share = (components[members] - components[members].mean()) / np.count_nonzero(members)
        sums = np.bincount(clusters.codes[members], weights=share, minlength=count)
        holders = len(np.unique(clusters.codes[members]))
        terms += (holders / (holders - 1) - whole) * float(sums @ sums)
        both += sums
    return terms + whole * float(both @ both)


def hardest_share(components: Array, positive: Bools, clusters: Clusters) -> Array:
    """Largest share of one cluster in ``1 - AUROC``, half of it put down to either tile of a pair in the wrong order.

    Args:
        components: (K, N) from :func:`structural_components`.
        positive: (N,) bool.
        clusters: Of the N tiles.

    Returns:
        (K,) float64.
    """
    weights = np.where(positive, 0.5 / np.count_nonzero(positive), 0.5 / np.count_nonzero(~positive))
    return sums_by_cluster((1 - components) * weights, clusters.codes, int(clusters.codes.max()) + 1).max(axis=1)


def auroc_interval(
    scores: npt.ArrayLike, labels: npt.ArrayLike, groups: npt.ArrayLike | None = None, level: float = 0.95
) -> Interval:
    """AUROC with its interval, symmetric on the logit scale but for a lower end that few errors would put too high.

    The logit keeps the interval inside (0, 1) and, near 1, close to the stated level, where the plain (Wald) interval
    is too short. The variance is DeLong's, with slides Obuchowski's; the quantile that of the t distribution with
    ``n_eff - 1`` degrees of freedom, n_eff being the effective number of tiles (slides) of the scarcer class. With
    slides, the lower end allows for one more slide like the hardest (:func:`logit_interval`); it is never above that
    of the score interval (:func:`auroc_ends`).

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
    components = structural_components(values, positive)
    auroc = float(components[positive].mean())
    if lack := lack_of_clusters(positive, clusters):
        return no_interval(auroc, lack)
    if auroc in (0.0, 1.0):
        bound = ((1 - level) / 2) ** (1 / _disjoint_pairs(positive, clusters))
        low, high = (bound, 1.0) if auroc == 1 else (0.0, 1 - bound)
        return Interval(auroc, low, high, "clopper-pearson", clusters.note)
    variance = auroc_variance(components, positive, clusters)
    hardest = hardest_share(components[None], positive, clusters)[0] if clusters.slides else 0.0
    freedom = scarcer_clusters(positive, clusters) - 1
    alone = np.array([[auroc], [variance], [freedom], [hardest]])
    [low], [high] = auroc_ends(alone[0], alone[1], alone[2], alone[3], tile_share(positive), level)
    if math.isnan(low):
        return no_interval(auroc, "no interval: the scores do not vary from tile to tile")
    return Interval(auroc, float(low), float(high), "obuchowski" if clusters.slides else "delong", clusters.note)


def tile_share(positive: Bools) -> float:
    """1 / positives + 1 / negatives: what :func:`normal_variance` is multiplied by."""
    positives = np.count_nonzero(positive)
    return 1 / positives + 1 / (len(positive) - positives)


def normal_variance(aurocs: Array) -> Array:
    """Variance of AUROCs of normal scores of equal spread, but for the factor :func:`tile_share`.

    It is that of DeLong's structural components: the probability that a positive tile is above both of two negative
    ones, less the AUROC's square. The former is Phi(d) - 2 T(d, 1 / sqrt(3)) with Phi(d) the AUROC and Owen's T.

    >>> normal_variance(np.array([0.5, 0.99])).round(4).tolist()
    [0.0833, 0.0012]
    """
    distance = special.ndtri(aurocs)
    variance: Array = np.maximum(aurocs - 2 * special.owens_t(distance, math.sqrt(1 / 3)) - aurocs**2, 0)
    return variance


def auroc_ends(
    aurocs: Array, variance: Array, freedom: Array, hardest: Array, share: float, level: float = 0.95
) -> tuple[Array, Array]:
    """Ends of intervals of AUROCs: those of :func:`logit_interval`, or of the score interval where it reaches further.

    With few errors an AUROC that is high by chance has a small variance by chance, and 20 to 100 positive tiles near
    0.99 leave the logit interval with a coverage of 0.88 to 0.90. The score interval takes the variance at its end
    instead of at the estimate: (estimate - end)^2 = t^2 V(end), V having the shape of :func:`normal_variance`, through
    the estimated variance. As Newcombe (Statistics in Medicine 25 (2006), 559-573, his method 5), who takes Hanley and
    McNeil's shape.

    Args:
        aurocs: (K,).
        variance: (K,).
        freedom: (K,) degrees of freedom.
        hardest: (K,) as in :func:`logit_interval`.
        share: :func:`tile_share` of the tiles; the variance counts as that of independent tiles with normal scores at
            least.
        level: Confidence level.

    Returns:
        (K,) lower and (K,) upper ends, NaN where the variance is zero up to rounding.
    """
    rows = zip(aurocs.tolist(), variance.tolist(), freedom.tolist(), hardest.tolist(), strict=True)
    low, high = np.array([logit_interval(a, v, f, h, level) for a, v, f, h in rows]).reshape(-1, 2).T
    quantile = special.stdtrit(freedom, (1 + level) / 2)
    with np.errstate(divide="ignore", invalid="ignore"):
        shape = np.maximum(variance / normal_variance(aurocs), share)
        return (
            np.minimum(low, _score_end(aurocs, shape, quantile)),
            np.maximum(high, 1 - _score_end(1 - aurocs, shape, quantile)),
        )


def _score_end(aurocs: Array, shape: Array, quantile: Array) -> Array:
    low, high = np.zeros_like(aurocs), aurocs.copy()
    for _ in range(30):  # halvings: to 1e-9
        middle = (low + high) / 2
        inside = (aurocs - middle) ** 2 < quantile**2 * shape * normal_variance(middle)
        low, high = np.where(inside, low, middle), np.where(inside, middle, high)
    return low


def logit_interval(value: float, variance: float, freedom: float, hardest: float, level: float) -> tuple[float, float]:
    """Ends of a t interval of a figure in (0, 1), on the logit scale; NaN where the variance is zero up to rounding.

    Over slides the errors of a good model come from a few of them, and a sample without the hardest ones has a high
    figure and a small variance at once. The lower end is therefore that of a sample with one more cluster like the
    hardest, as Fay and Feuer (Statistics in Medicine 16 (1997), 791-801) do for sums of unequal weights.

    Args:
        value: The figure.
        variance: Of the figure.
        freedom: Degrees of freedom.
        hardest: Largest share of a cluster in ``1 - value``; 0 where no cluster stands out.
        level: Confidence level.
    """
    if not variance > SMALLEST_VARIANCE or not 0 < value < 1 or freedom <= 0:
        return math.nan, math.nan
    quantile = t_quantile((1 + level) / 2, freedom)

    def end(centre: float, spread: float) -> float:
        return float(special.expit(special.logit(centre) + quantile * spread / (centre * (1 - centre))))

    lower = value - hardest
    low = end(lower, -math.sqrt(variance + hardest**2)) if lower > 0 else 0.0
    return low, end(value, math.sqrt(variance))


def t_quantile(share: float, freedom: float) -> float:
    """Quantile of Student's t distribution (``scipy.stats.t.ppf`` without its overhead)."""
    return float(special.stdtrit(freedom, share))


def no_interval(value: float, reason: str) -> Interval:
    """Give a figure without an interval, and the reason why it has none."""
    return Interval(value, math.nan, math.nan, "none", reason)


def _disjoint_pairs(positive: Bools, clusters: Clusters) -> int:
    """Count the most pairs of a positive and a negative tile in which no cluster occurs twice."""
    holders = [len(np.unique(clusters.codes[members])) for members in (positive, ~positive)]
    return min(*holders, (int(clusters.codes.max()) + 1) // 2)


def proportion_interval(
    right: Bools, members: Bools, clusters: Clusters, name: str = "", level: float = 0.95
) -> Interval:
    """Share of right calls among some tiles, with an interval that holds its level for few tiles too.

    Clopper and Pearson, Biometrika 26 (1934), 404-413. With slides: Korn and Graubard, "Confidence intervals for
    proportions with small expected number of positive counts estimated from survey data", Survey Methodology 24 (1998),
    193-201: the same with the effective number of tiles, p (1 - p) / V, of the clustered variance V, made smaller for
    its degrees of freedom (n_eff - 1). Where all calls are right (or all wrong) an effective slide counts as one tile.

    Args:
        right: (N,) which calls are right.
        members: (N,) which tiles count.
        clusters: Of all N tiles.
        name: Of the members, for the note where there is no interval.
        level: Confidence level.
    """
    values, codes = right[members], clusters.codes[members]
    share, tiles = float(values.mean()), len(values)
    if not clusters.slides:
        return Interval(share, *_clopper_pearson(share, tiles, level), "clopper-pearson", clusters.note)
    if lack := lack_of(name, codes, clusters):
        return no_interval(share, lack)
    size = n_eff = effective_clusters(codes)
    if 0 < share < 1:
        variance = max(clustered_variance((values - share) / tiles, codes), share * (1 - share) / tiles)
        tail = (1 + level) / 2
        size = share * (1 - share) / variance
        size *= (t_quantile(tail, tiles - 1) / t_quantile(tail, n_eff - 1)) ** 2
    return Interval(share, *_clopper_pearson(share, size, level), "korn-graubard", clusters.note)


def _clopper_pearson(share: float, tiles: float, level: float) -> tuple[float, float]:
    tail, right = (1 - level) / 2, share * tiles
    low = 0.0 if share == 0 else float(special.betaincinv(right, tiles - right + 1, tail))
    high = 1.0 if share == 1 else float(special.betaincinv(right + 1, tiles - right, 1 - tail))
    return low, high


def mean_interval(
    values: npt.ArrayLike, groups: npt.ArrayLike | None = None, level: float = 0.95, n_eff: float | None = None
) -> Interval:
    """Mean of values that are not negative (losses, shares), with an interval that allows for their skewness.

    Fay and Feuer, "Confidence intervals for directly standardized rates: a method based on the gamma distribution",
    Statistics in Medicine 16 (1997), 791-801: a gamma distribution with the mean and the (clustered) variance, for the
    upper end with one more cluster like the largest; the variance is made larger for its degrees of freedom, n_eff - 1.

    Args:
        values: (N,) float, 0 or more.
        groups: (N,) slide of each tile; missing values are clusters of their own.
        level: Confidence level.
        n_eff: Effective number of clusters, where it is not that of all tiles but of a class that decides more.
    """
    numbers = np.asarray(values, dtype=np.float64)
    clusters = find_clusters(groups, len(numbers))
    mean = float(numbers.mean())
    if lack := lack_of("", clusters.codes, clusters):
        return no_interval(mean, lack)
    variance = clustered_variance((numbers - mean) / len(numbers), clusters.codes)
    if not variance > max(SMALLEST_VARIANCE, 1e-24 * mean**2):
        return no_interval(mean, "no interval: the values do not vary")
    tail = (1 + level) / 2
    n_eff = effective_clusters(clusters.codes) if n_eff is None else n_eff
    variance *= (t_quantile(tail, n_eff - 1) / float(special.ndtri(tail))) ** 2
    largest = float(np.bincount(clusters.codes, weights=numbers).max()) / len(numbers)
    low = _gamma_quantile(1 - tail, mean, variance)
    high = _gamma_quantile(tail, mean + largest, variance + largest**2)
    return Interval(mean, low, high, "gamma", clusters.note)


def _gamma_quantile(share: float, mean: float, variance: float) -> float:
    return float(special.gammaincinv(mean**2 / variance, share)) * variance / mean
