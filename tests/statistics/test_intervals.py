import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.metrics import average_precision_score, roc_auc_score

from histolight.errors import HistolightError, RequestError
from histolight.statistics.intervals import (
    auroc_interval,
    auroc_with_variance,
    bootstrap_auroc,
    metric_intervals,
    structural_components,
)
from histolight.statistics.metrics import classification_metrics


def simulated(tiles, slides=None, seed=0, shift=1.5, effect=0.7, decimals=None):
    """Logits, labels and slides; tiles of one slide share an effect."""
    rng = np.random.default_rng(seed)
    slide = rng.integers(0, slides or tiles, tiles)
    labels = (rng.random(tiles) < rng.beta(1, 1.5, slides or tiles)[slide]).astype(int)
    logits = shift * labels + rng.normal(size=tiles) + effect * rng.normal(size=slides or tiles)[slide] - 0.7
    return logits if decimals is None else np.round(logits, decimals), labels, np.array([f"slide {s}" for s in slide])


def pair_matrix(scores, labels):
    """1 where a positive tile scores above a negative one, one half where they tie: (positives, negatives)."""
    ours, theirs = scores[labels == 1][:, None], scores[labels == 0][None, :]
    return (ours > theirs) + 0.5 * (ours == theirs)


def naive_delong(scores, labels):
    pairs = pair_matrix(scores, labels)
    m, n = pairs.shape
    return pairs.mean(), pairs.mean(1).var(ddof=1) / m + pairs.mean(0).var(ddof=1) / n


def naive_obuchowski(scores, labels, groups):
    """Term by term as Obuchowski (1997) writes it."""
    pairs = pair_matrix(scores, labels)
    m, n = pairs.shape
    area, v10, v01 = pairs.mean(), pairs.mean(1), pairs.mean(0)
    ours, theirs = groups[labels == 1], groups[labels == 0]
    s10 = s01 = s11 = 0.0
    for slide in np.unique(groups):
        a = v10[ours == slide].sum() - (ours == slide).sum() * area
        b = v01[theirs == slide].sum() - (theirs == slide).sum() * area
        s10, s01, s11 = s10 + a * a, s01 + b * b, s11 + a * b
    i, i10, i01 = len(set(groups)), len(set(ours)), len(set(theirs))
    s10 *= i10 / ((i10 - 1) * m)
    s01 *= i01 / ((i01 - 1) * n)
    s11 *= i / (i - 1)
    return area, s10 / m + s01 / n + 2 * s11 / (m * n)


@pytest.mark.parametrize("decimals", [None, 1, 0])
def test_delong_equals_the_definition(decimals):
    scores, labels, _ = simulated(150, decimals=decimals)
    assert auroc_with_variance(scores, labels) == pytest.approx(naive_delong(scores, labels), rel=1e-12)
    assert auroc_with_variance(scores, labels)[0] == pytest.approx(roc_auc_score(labels, scores))


@pytest.mark.parametrize("decimals", [None, 1])
@pytest.mark.parametrize("slides", [3, 12])
def test_obuchowski_equals_the_definition(slides, decimals):
    scores, labels, groups = simulated(150, slides, decimals=decimals)
    found = auroc_with_variance(scores, labels, groups)
    assert found == pytest.approx(naive_obuchowski(scores, labels, groups), rel=1e-12)


def test_obuchowski_of_single_tile_slides_is_delong():
    scores, labels, _ = simulated(60)
    assert auroc_with_variance(scores, labels, np.arange(60)) == pytest.approx(auroc_with_variance(scores, labels))


def test_structural_components_equal_the_definition():
    scores, labels, _ = simulated(40, decimals=1)
    pairs = pair_matrix(scores, labels)
    components = structural_components(scores, labels == 1)
    assert components[labels == 1] == pytest.approx(pairs.mean(1))
    assert components[labels == 0] == pytest.approx(pairs.mean(0))


def test_published_example():
    # Hanley and McNeil, Radiology 143 (1982), table I: ratings 1 to 5 of 58 normal and 51 abnormal CT images. Stata's
    # manual ([R] roctab) gives DeLong's figures for them: 0.8932, standard error 0.0307, 0.83295 to 0.95339 (Wald).
    normal, abnormal = [33, 6, 6, 11, 2], [3, 2, 2, 11, 33]
    scores = np.concatenate([np.repeat(range(5), normal), np.repeat(range(5), abnormal)])
    labels = np.repeat([0, 1], [58, 51])
    area, variance = auroc_with_variance(scores, labels)
    error = math.sqrt(variance)
    assert round(area, 4) == 0.8932
    assert round(error, 4) == 0.0307
    assert np.round([area - 1.959964 * error, area + 1.959964 * error], 5).tolist() == [0.83295, 0.95339]


def test_logit_interval_by_hand():
    scores, labels, groups = simulated(200, 25)
    for slides, quantile, method in ((None, 1.959964, "delong"), (groups, stats.t.ppf(0.975, 24), "obuchowski")):
        area, variance = auroc_with_variance(scores, labels, slides)
        centre, half = math.log(area / (1 - area)), quantile * math.sqrt(variance) / (area * (1 - area))
        interval = auroc_interval(scores, labels, slides)
        assert interval.low == pytest.approx(1 / (1 + math.exp(half - centre)), abs=1e-6)
        assert interval.high == pytest.approx(1 / (1 + math.exp(-half - centre)), abs=1e-6)
        assert (interval.value, interval.method, interval.note) == (area, method, "")


def test_a_lower_level_is_shorter():
    scores, labels, _ = simulated(200)
    wide, narrow = auroc_interval(scores, labels, level=0.99), auroc_interval(scores, labels, level=0.8)
    assert wide.low < narrow.low < narrow.high < wide.high


def test_few_slides_are_pointed_out():
    scores, labels, groups = simulated(200, 8)
    assert "only 8 slides" in auroc_interval(scores, labels, groups).note
    assert "only 8 slides" in bootstrap_auroc(scores, labels, groups, resamples=50).note
    assert "only 8 slides" in metric_intervals(scores, labels, groups=groups, resamples=50)["f1"].note


def test_tiles_without_a_slide_are_slides_of_their_own():
    scores, labels, groups = simulated(200, 25)
    partly = groups.astype(object)
    partly[:30] = None
    named = groups.astype(object)
    named[:30] = [f"alone {number}" for number in range(30)]
    found, expected = auroc_interval(scores, labels, partly), auroc_interval(scores, labels, named)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    assert "30 tiles without a slide" in found.note
    partly[:30] = math.nan
    assert auroc_interval(scores, labels, partly) == found


def test_no_slide_at_all_is_delong():
    scores, labels, _ = simulated(50)
    assert auroc_interval(scores, labels, [None] * 50) == auroc_interval(scores, labels)


@pytest.mark.parametrize("sign", [1, -1])
def test_a_perfect_auroc_has_an_interval(sign):
    labels = np.array([0] * 30 + [1] * 10)
    interval = auroc_interval(sign * labels, labels)
    # All of ten independent pairs in order: the Clopper-Pearson bound of ten successes in ten trials.
    low = stats.binomtest(10, 10).proportion_ci(0.95, method="exact").low
    expected = (1.0, low, 1.0) if sign == 1 else (0.0, 0.0, 1 - low)
    assert (interval.value, interval.low, interval.high) == pytest.approx(expected)
    assert interval.method == "clopper-pearson"


def test_a_perfect_auroc_counts_slides_not_tiles():
    labels = np.tile([0, 1], 50)
    interval = auroc_interval(labels, labels, np.repeat(["a", "b", "c", "d"], 25))
    assert interval.low == pytest.approx(0.025 ** (1 / 2))  # four slides make two pairs of different slides


@pytest.mark.parametrize(
    ("labels", "groups", "words"),
    [
        ([0, 0, 0, 1], None, "one positive tile"),
        ([0, 1, 1, 1], None, "one negative tile"),
        ([0, 1, 0, 1], ["a"] * 4, "one slide holds every positive tile"),
        ([0, 1, 0, 0], ["a", "b", "c", "d"], "one slide holds every positive tile"),
    ],
)
def test_no_interval_where_the_tiles_do_not_tell(labels, groups, words):
    scores = [0.1, 0.4, 0.3, 0.2]
    for interval in (auroc_interval(scores, labels, groups), bootstrap_auroc(scores, labels, groups, resamples=20)):
        assert (interval.method, math.isnan(interval.low), math.isnan(interval.high)) == ("none", True, True)
        assert interval.value == pytest.approx(roc_auc_score(labels, scores))
        assert words in interval.note
    assert metric_intervals(scores, labels, groups=groups)["average_precision"].method == "none"


def test_constant_scores_have_no_interval():
    interval = auroc_interval([0.5] * 6, [0, 1] * 3)
    assert (interval.value, interval.method) == (0.5, "none")
    assert "do not vary" in interval.note
    everything = metric_intervals([0.0] * 6, [0, 1] * 3)
    assert everything["average_precision"].method == everything["ece"].method == "none"


@pytest.mark.parametrize("slides", [None, 30])
@pytest.mark.parametrize("decimals", [None, 1])
@pytest.mark.parametrize("threshold", [0.5, 0.31])
def test_values_are_those_of_the_metrics(slides, decimals, threshold):
    logits, labels, groups = simulated(900, slides, decimals=decimals)
    logits[:3] = [30, -30, 25]
    intervals = metric_intervals(logits, labels, threshold, groups if slides else None, resamples=40)
    expected = classification_metrics(torch.tensor(logits), torch.tensor(labels), threshold)
    assert sorted(intervals) == sorted(expected)
    assert {name: interval.value for name, interval in intervals.items()} == pytest.approx(expected, abs=1e-6)
    assert all(interval.low <= interval.value <= interval.high for interval in intervals.values())


def test_methods_without_and_with_slides():
    logits, labels, groups = simulated(300, 25)
    tiles = {name: one.method for name, one in metric_intervals(logits, labels, resamples=40).items()}
    slides = {name: one.method for name, one in metric_intervals(logits, labels, groups=groups, resamples=40).items()}
    assert tiles.pop("auroc") == "delong"
    assert slides.pop("auroc") == "obuchowski"
    assert {tiles.pop(name) for name in ("accuracy", "sensitivity", "specificity")} == {"wilson"}
    assert tiles.pop("ece") == "stratified bootstrap, basic"
    assert slides.pop("ece") == "slide bootstrap, basic"
    assert set(tiles.values()) == {"stratified bootstrap"}
    assert set(slides.values()) == {"slide bootstrap"}


def test_wilson_by_hand():
    # 8 of 10 positive and 9 of 10 negative tiles right: Wilson's closed form.
    logits = np.array([1.0] * 8 + [-1.0] * 2 + [-1.0] * 9 + [1.0])
    intervals = metric_intervals(logits, [1] * 10 + [0] * 10, resamples=20)
    for name, share, tiles in (("sensitivity", 0.8, 10), ("specificity", 0.9, 10), ("accuracy", 0.85, 20)):
        z2 = 1.959964**2
        centre = (share + z2 / (2 * tiles)) / (1 + z2 / tiles)
        half = 1.959964 / (1 + z2 / tiles) * math.sqrt(share * (1 - share) / tiles + z2 / (4 * tiles**2))
        assert (intervals[name].low, intervals[name].high) == pytest.approx((centre - half, centre + half), abs=1e-6)


def scipy_bootstrap(statistic, ours, theirs):
    found = stats.bootstrap(
        (ours, theirs), statistic, n_resamples=1000, vectorized=False, method="percentile", rng=np.random.default_rng(1)
    )
    return found.confidence_interval.low, found.confidence_interval.high


def test_stratified_bootstrap_equals_scipy():
    logits, labels, _ = simulated(80, decimals=1)

    def two_samples(function):
        def statistic(ours, theirs):
            return function(np.repeat([1, 0], [len(ours), len(theirs)]), np.concatenate([ours, theirs]))

        return scipy_bootstrap(statistic, logits[labels == 1], logits[labels == 0])

    auroc = bootstrap_auroc(logits, labels, resamples=4000)
    assert (auroc.low, auroc.high) == pytest.approx(
        two_samples(lambda truth, scores: pair_matrix(scores, truth).mean()), abs=0.015
    )
    precision = metric_intervals(logits, labels, resamples=4000)["average_precision"]
    assert (precision.low, precision.high) == pytest.approx(two_samples(average_precision_score), abs=0.02)


def test_slide_bootstrap_equals_scipy():
    logits, labels, groups = simulated(400, 25)
    slides = [np.flatnonzero(groups == name) for name in np.unique(groups)]

    def statistic(numbers):
        drawn = np.concatenate([slides[int(number)] for number in numbers])
        return pair_matrix(logits[drawn], labels[drawn]).mean()

    found = stats.bootstrap(
        (np.arange(len(slides)),),
        statistic,
        n_resamples=1000,
        vectorized=False,
        method="percentile",
        rng=np.random.default_rng(1),
    ).confidence_interval
    ours = bootstrap_auroc(logits, labels, groups, resamples=4000)
    assert (ours.low, ours.high) == pytest.approx((found.low, found.high), abs=0.012)
    assert ours.method == "slide bootstrap"


def test_bootstrap_is_repeatable():
    logits, labels, _ = simulated(100)
    assert bootstrap_auroc(logits, labels, seed=3) == bootstrap_auroc(logits, labels, seed=3)
    assert bootstrap_auroc(logits, labels, seed=3) != bootstrap_auroc(logits, labels, seed=4)


def test_the_order_of_tiles_does_not_matter():
    logits, labels, groups = simulated(300, 25)
    order = np.random.default_rng(5).permutation(300)
    found, shuffled = (
        auroc_interval(logits, labels, groups),
        auroc_interval(logits[order], labels[order], groups[order]),
    )
    assert (found.low, found.high) == pytest.approx((shuffled.low, shuffled.high))


def test_coverage_of_the_logit_intervals():
    rng = np.random.default_rng(0)
    for auroc, least in ((0.8, 0.91), (0.98, 0.91)):
        shift = math.sqrt(2) * stats.norm.ppf(auroc)
        labels = np.repeat([0, 1], [60, 40])
        intervals = [auroc_interval(rng.normal(size=100) + shift * labels, labels) for _ in range(300)]
        assert least <= np.mean([one.low <= auroc <= one.high for one in intervals]) <= 0.99


def test_slides_need_the_clustered_interval():
    rng = np.random.default_rng(0)
    shift = math.sqrt(2 * 1.5) * stats.norm.ppf(0.9)
    groups = np.arange(600) % 30
    held = {"tiles": 0, "slides": 0}
    for _ in range(300):
        labels = (rng.random(600) < rng.beta(0.8, 1.2, 30)[groups]).astype(int)
        scores = shift * labels + rng.normal(size=600) + math.sqrt(0.5) * rng.normal(size=30)[groups]
        for name, slides in (("tiles", None), ("slides", groups)):
            interval = auroc_interval(scores, labels, slides)
            held[name] += interval.low <= 0.9 <= interval.high
    assert held["slides"] / 300 > 0.9
    assert held["tiles"] / 300 < 0.85


@pytest.mark.parametrize("function", [auroc_interval, auroc_with_variance, bootstrap_auroc, metric_intervals])
def test_bad_input_is_named(function):
    with pytest.raises(RequestError, match="one and the same label"):
        function([0.1, 0.2], [1, 1])
    with pytest.raises(HistolightError, match="NaN or infinite"):
        function([0.1, math.nan], [0, 1])
    with pytest.raises(RequestError, match="shape"):
        function([0.1, 0.2, 0.3], [0, 1])
    with pytest.raises(RequestError, match="labels must be 0 or 1"):
        function([0.1, 0.2], [0, 2])
    with pytest.raises(RequestError, match="1 slides for 2 tiles"):
        function([0.1, 0.2], [0, 1], groups=["a"])


def test_torch_is_not_imported():
    command = "import sys, histolight.statistics.comparison; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", command], check=False).returncode == 0
