"""What calls are worth to whoever acts on them: where to abstain, and what a call means where tumour is rare."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from histolight.statistics.figures import LabelledScores, correlation, share_right, with_caution
from histolight.statistics.intervals import Interval, check_scores, no_interval, proportion_interval


@dataclass(frozen=True)
class Band:
    """The scores that are called neither benign nor tumour.

    Attributes:
        low: Lower scores are called benign.
        high: Higher scores are called tumour.
    """

    low: float
    high: float


def choose_band(scores: npt.ArrayLike, labels: npt.ArrayLike, limit: float, threshold: float) -> Band:
    """Choose the narrowest band outside which each class has no more than a share of wrong calls.

    At most ``limit`` of the positive tiles lie below it, and at most ``limit`` of the negative ones above: the
    intermediate range of Greiner, Sohr and Göbel, Journal of Immunological Methods 185 (1995), 123-132. Neither share
    depends on how frequent tumour is. Choose it on validation, and use it on others.

    Args:
        scores: (N,) float in [0, 1].
        labels: (N,) 0 or 1, both present.
        limit: In (0, 0.5).
        threshold: Where one threshold alone keeps both shares, the band is that single score: this one, or the nearest
            that does.

    Raises:
        RequestError: Lengths differ, a label is neither 0 nor 1, or one class is missing.
        HistolightError: A score is NaN or infinite.

    >>> choose_band([0.1, 0.2, 0.6, 0.4, 0.8, 0.9], [0, 0, 0, 1, 1, 1], 0.05, 0.5)
    Band(low=0.4, high=0.6)
    """
    values, positive = check_scores(scores, labels)
    positives, negatives = np.sort(values[positive]), np.sort(values[~positive])[::-1]
    low, high = (float(ranked[math.floor(limit * len(ranked) + 1e-9)]) for ranked in (positives, negatives))
    if low > high:
        low = high = min(max(threshold, high), low)
    return Band(low, high)


def expected_outside(tiles: int, limit: float) -> float:
    """Share of other tiles of a class that is expected on the wrong side of a band that so many tiles chose.

    Where ``floor(limit * tiles)`` of them lie outside the band, as :func:`choose_band` allows, another tile like them
    takes any place in their order with the same probability.

    Args:
        tiles: Those of the class that chose the band.
        limit: As in :func:`choose_band`.

    >>> expected_outside(20, 0.05), round(expected_outside(1999, 0.05), 3)
    (0.09523809523809523, 0.05)
    """
    return (math.floor(limit * tiles + 1e-9) + 1) / (tiles + 1)


def abstention(tiles: LabelledScores, band: Band) -> dict[str, Interval]:
    """Measure a classifier that abstains: ``coverage``, the share of tiles called, and ``error``, of wrong calls.

    Args:
        tiles: Other tiles than those that the band was chosen on, or the figures are optimistic.
        band: From :func:`choose_band`.

    Returns:
        Both with their intervals (:func:`histolight.statistics.intervals.proportion_interval`), the share of wrong
        calls among the tiles that are called. A note says where wrong calls come from few slides.
    """
    low, high = tiles.scores < np.float32(band.low), tiles.scores > np.float32(band.high)
    called, everywhere = low | high, np.ones_like(tiles.positive)
    coverage = proportion_interval(called, everywhere, tiles.clusters, level=tiles.level)
    if not called.any():
        return {"coverage": coverage, "error": no_interval(math.nan, "no interval: no tile is called")}
    wrong = (low & tiles.positive) | (high & ~tiles.positive)
    error = proportion_interval(wrong, called, tiles.clusters, "called", tiles.level)
    return {"coverage": coverage, "error": with_caution(error, "error", wrong, tiles.clusters)}


def predictive_values(tiles: LabelledScores, prevalence: float) -> dict[str, Interval]:
    """Measure what a call means where tumour is as frequent as stated, whatever its share of these tiles.

    The positive predictive value is the share of tumour among tiles called tumour, the negative one that of benign
    tiles among those called benign: P / (P + (1 - P) q), P the prevalence of the called class and q the ratio of the
    rate of wrong to that of right calls. Sensitivity and specificity, from which they follow, are those of these tiles.

    The interval of the ratio of rates is made of theirs: Donner and Zou, "Closed-form confidence intervals for
    functions of the normal mean and standard deviation", Statistical Methods in Medical Research 21 (2012), 347-359;
    with the correlation of the two over slides where it makes the interval wider.

    Args:
        tiles: The tiles.
        prevalence: Share of tumour tiles, in (0, 1).

    Returns:
        ``ppv`` and ``npv``; NaN where no tile is called so. A note says where wrong calls come from few slides.
    """
    rates = share_right(tiles, "positive"), share_right(tiles, "negative")
    together = correlation(tiles.right, tiles.positive, tiles.clusters)
    odds = prevalence / (1 - prevalence)
    found = {}
    for name, (right, other), prior, wrong in (
        ("ppv", rates, odds, tiles.called & ~tiles.positive),
        ("npv", rates[::-1], 1 / odds, ~tiles.called & tiles.positive),
    ):
        value = _predictive_value(right, other, prior, together)
        found[name] = with_caution(value, name.upper(), wrong, tiles.clusters)
    return found


def _predictive_value(right: Interval, other: Interval, odds: float, together: float) -> Interval:
    """Predictive value of a call.

    Args:
        right: Rate of right calls of the class.
        other: That of the other class.
        odds: Of the class, beforehand.
        together: Correlation of the two rates, 0 or more.
    """
    wrong = 1 - other.value
    total = odds * right.value + wrong
    value = odds * right.value / total if total > 0 else math.nan
    for part in (right, other):
        if part.method == "none":
            return no_interval(value, part.note)
    if total == 0:
        return no_interval(value, "no interval: no tile is called so")
    least = _lowest_ratio(right.value, right.low, wrong, 1 - other.low, together)
    most = _lowest_ratio(wrong, 1 - other.high, right.value, right.high, together)  # of wrong to right calls
    high = odds / (odds + most)
    return Interval(value, odds * least / (odds * least + 1), high, "mover-ratio", right.note)


def _lowest_ratio(a: float, a_low: float, b: float, b_high: float, together: float) -> float:
    """Lower end of the interval of a / b, from the lower end of a's and the upper end of b's.

    Args:
        a: Above or at 0.
        a_low: At most a.
        b: Above or at 0.
        b_high: At least b, above 0.
        together: How far a falls where b rises: minus their correlation.
    """
    cross = a * b + together * (a - a_low) * (b_high - b)
    top = a_low * (2 * a - a_low)
    return top / (cross + math.sqrt(max(cross**2 - top * b_high * (2 * b - b_high), 0.0))) if top > 0 else 0.0
