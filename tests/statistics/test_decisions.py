"""Where to abstain, and predictive values: against brute force, independent formulas and simulation."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import brentq
from scipy.special import expit, logit
from scipy.stats import norm

from histolight.statistics.decisions import Band, abstention, choose_band, expected_outside, predictive_values
from histolight.statistics.figures import FIGURES, LabelledScores, sensitivity, specificity


def make_tiles(logits, labels, threshold: float = 0.5, groups=None) -> LabelledScores:
    return LabelledScores(np.asarray(logits, np.float32), np.asarray(labels, bool), threshold, groups, 0.95)


def drawn(seed: int, count: int = 300, gap: float = 2.0) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    labels = random.random(count) < 0.4
    return random.normal(gap * labels - gap / 2, 1), labels


@pytest.mark.parametrize("limit", [0.01, 0.05, 0.2])
def test_the_band_is_the_narrowest_that_keeps_both_shares(limit: float) -> None:
    logits, labels = drawn(0)
    scores = expit(logits)
    band = choose_band(scores, labels, limit, 0.5)
    assert (scores[labels] < band.low).mean() <= limit
    assert (scores[~labels] > band.high).mean() <= limit
    if band.low < band.high:  # the next score further in breaks it
        above = scores[scores > band.low].min()
        below = scores[scores < band.high].max()
        assert (scores[labels] < above).mean() > limit
        assert (scores[~labels] > below).mean() > limit


def test_where_one_threshold_keeps_both_shares_nothing_is_left_out() -> None:
    scores, labels = np.array([0.1, 0.2, 0.3, 0.7, 0.8, 0.9]), [0, 0, 0, 1, 1, 1]
    assert choose_band(scores, labels, 0.05, 0.5) == Band(0.5, 0.5)
    assert choose_band(scores, labels, 0.05, 0.75) == Band(0.7, 0.7)
    measured = abstention(make_tiles(logit(scores), labels), Band(0.5, 0.5))
    assert (measured["coverage"].value, measured["error"].value) == (1, 0)


@pytest.mark.parametrize("count", [10, 19, 20, 100])
def test_of_other_tiles_as_many_lie_outside_the_band_as_is_expected(count: int) -> None:
    random = np.random.default_rng(count)
    labels = np.repeat([0, 1], count)
    outside = []
    for _ in range(2000):
        scores = expit(random.normal(0, 1, 2 * count))  # a band there always is: the classes look alike
        outside.append(norm.cdf(logit(choose_band(scores, labels, 0.05, 0.5).low)))
    assert np.mean(outside) == pytest.approx(expected_outside(count, 0.05), abs=4 * np.std(outside) / 2000**0.5)


def test_coverage_and_error_are_counted_by_hand() -> None:
    tiles = make_tiles([-3, -2, 0, 0.5, 2, 3], [0, 1, 1, 0, 1, 1])
    measured = abstention(tiles, Band(0.3, 0.7))
    assert measured["coverage"].value == pytest.approx(4 / 6)
    assert measured["error"].value == pytest.approx(1 / 4)
    nothing = abstention(tiles, Band(0.01, 0.99))
    assert nothing["coverage"].value == 0
    assert np.isnan(nothing["error"].value)
    assert nothing["error"].note == "no interval: no tile is called"
    for edges in ((0.5, 0.9), (0.1, 0.5)):  # a score at an edge is not called
        assert abstention(make_tiles([0, 0, 3], [0, 1, 1]), Band(*edges))["coverage"].value == pytest.approx(1 / 3)


def test_predictive_values_follow_from_bayes() -> None:
    logits, labels = drawn(1)
    tiles = make_tiles(logits, labels)
    called = tiles.called
    own = predictive_values(tiles, labels.mean())  # at their own prevalence: plain shares of the tiles
    assert own["ppv"].value == pytest.approx(labels[called].mean())
    assert own["npv"].value == pytest.approx((~labels[~called]).mean())
    rare = predictive_values(tiles, 0.05)
    right, wrong = called[labels].mean(), called[~labels].mean()
    assert rare["ppv"].value == pytest.approx(right * 0.05 / (right * 0.05 + wrong * 0.95))
    for values in (own, rare):
        for value in values.values():
            assert value.low < value.value < value.high


@pytest.mark.parametrize("groups", [None, np.arange(300) // 6])
def test_the_interval_is_where_the_interval_of_a_difference_ends_at_zero(groups) -> None:
    """The ratio's end is the R at which the interval of right - R wrong (Zou and Donner 2008) touches 0."""
    logits, labels = drawn(2)
    if groups is not None:  # on some slides both classes are called wrongly
        logits = logits * np.where(np.random.default_rng(0).random(50) < 0.15, -1, 1)[groups]
    tiles = make_tiles(logits, labels, groups=groups)
    right, other = sensitivity(tiles), specificity(tiles)
    wrong, wrong_high = 1 - other.value, 1 - other.low
    together = 0.0
    if groups is not None:
        sums = [
            np.bincount(groups[part], tiles.right[part] - tiles.right[part].mean(), 50) for part in (labels, ~labels)
        ]
        together = sums[0] @ sums[1] / np.sqrt((sums[0] @ sums[0]) * (sums[1] @ sums[1]))
        assert together > 0.1

    def touches(ratio: float) -> float:
        a, b = right.value - right.low, ratio * (wrong_high - wrong)
        return right.value - ratio * wrong - np.sqrt(a**2 + b**2 + 2 * together * a * b)

    end = brentq(touches, 1e-6, right.value / wrong)
    assert predictive_values(tiles, 0.05)["ppv"].low == pytest.approx(end * 0.05 / (end * 0.05 + 0.95))

    def touches_turned(ratio: float) -> float:
        a, b = wrong - (1 - other.high), ratio * (right.high - right.value)
        return wrong - ratio * right.value - np.sqrt(a**2 + b**2 + 2 * together * a * b)

    turned = brentq(touches_turned, 0, wrong / right.value)
    assert predictive_values(tiles, 0.05)["ppv"].high == pytest.approx(0.05 / (0.05 + 0.95 * turned))


def test_wrong_calls_of_few_slides_are_a_caution() -> None:
    labels = np.arange(120) % 2 == 0
    groups = np.arange(120) // 6
    logits = np.where(labels, 2.0, -2.0)
    logits[groups == 3] *= np.where(labels[groups == 3], 1, -1)  # false calls of tumour on one slide
    logits[(groups % 2 == 0) & (np.arange(120) % 6 == 0)] = -2  # missed tumour on ten slides
    tiles = make_tiles(logits, labels, groups=groups)
    values = predictive_values(tiles, 0.05)
    assert values["ppv"].note == "PPV: the wrong calls count as fewer than 5 slides, so the interval may be too short"
    assert values["npv"].note == ""
    assert predictive_values(make_tiles(logits, labels), 0.05)["ppv"].note == ""  # tiles for themselves
    error = {edge: abstention(tiles, Band(1 - edge, edge))["error"] for edge in (0.6, 0.95)}
    assert error[0.6].note == ""
    few = abstention(make_tiles(np.where(labels, 2, logits), labels, groups=groups), Band(0.4, 0.6))["error"]
    assert few.note == "error: the wrong calls count as fewer than 5 slides, so the interval may be too short"
    assert np.isnan(error[0.95].value)


@pytest.mark.parametrize(("slides", "cautious"), [(4, True), (5, False)])
def test_a_caution_stands_where_wrong_calls_are_on_fewer_than_five_slides(slides: int, cautious: bool) -> None:
    labels, groups = np.arange(120) % 2 == 0, np.arange(120) // 6
    missed = labels & (groups < slides)
    tiles = make_tiles(np.where(labels & ~missed, 2.0, -2.0), labels, groups=groups)
    note = "NPV: the wrong calls count as fewer than 5 slides, so the interval may be too short"
    assert predictive_values(tiles, 0.05)["npv"].note == note * cautious
    assert sensitivity(tiles).note == note.replace("NPV", "sensitivity") * cautious
    assert specificity(tiles).note == ""
    for name in ("accuracy", "F1"):
        assert FIGURES[name.lower()].measure(tiles).note == note.replace("NPV", name) * cautious


def test_no_interval_where_one_slide_holds_a_class() -> None:
    labels = np.arange(12) < 6
    tiles = make_tiles(np.tile([2.0, 2.0, -2.0], 4), labels, groups=np.where(labels, "one", np.arange(12).astype(str)))
    for value, expected in zip(predictive_values(tiles, 0.5).values(), (4 / 8, 2 / 4), strict=True):
        assert value.value == pytest.approx(expected)
        assert (value.method, value.note) == ("none", "no interval: one slide holds every positive tile")


def test_perfect_and_empty_calls() -> None:
    labels = np.arange(40) < 20
    perfect = predictive_values(make_tiles(np.where(labels, 2, -2), labels), 0.05)
    for value in perfect.values():
        assert value.value == value.high == 1
        assert 0 < value.low < 1
    assert perfect["ppv"].low == pytest.approx(0.25, abs=0.1)  # 20 benign tiles rule out few false calls in 95 %
    never = predictive_values(make_tiles(np.full(40, -2.0), labels), 0.05)
    assert np.isnan(never["ppv"].value)
    assert (never["ppv"].method, never["ppv"].note) == ("none", "no interval: no tile is called so")
    assert never["npv"].value == pytest.approx(0.95)


@pytest.mark.slow
@pytest.mark.parametrize(("spread", "count"), [(0.0, 200), (0.0, 2000), (1.0, 2000)])
def test_the_intervals_hold_their_level(spread: float, count: int) -> None:
    """Independent tiles, few and many, and tiles in 100 clusters, at a threshold that was not chosen on them."""
    random = np.random.default_rng(5)
    right = norm.cdf(1 / np.hypot(1, spread))  # of either class
    truth = {
        "ppv": 0.05 * right / (0.05 * right + 0.95 * (1 - right)),
        "npv": 0.95 * right / (0.95 * right + 0.05 * (1 - right)),
    }
    held: dict[str, list[bool]] = {name: [] for name in truth}
    for _ in range(500):
        groups = random.integers(0, 100, count) if spread else None
        labels = random.random(count) < 0.5
        effect = random.normal(0, spread, 100)[groups] if groups is not None else 0.0
        tiles = make_tiles(random.normal(np.where(labels, 1.0, -1.0) + effect, 1), labels, groups=groups)
        for name, value in predictive_values(tiles, 0.05).items():
            held[name].append(value.low <= truth[name] <= value.high)
    for name, hits in held.items():
        assert np.mean(hits) > 0.925, (name, np.mean(hits))  # 500 studies: 0.95 - 2.6 standard errors
