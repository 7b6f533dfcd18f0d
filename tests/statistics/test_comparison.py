import math

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import roc_auc_score

from histolight.errors import HistolightError, RequestError
from histolight.statistics.comparison import Paired, holm, paired_bootstrap, paired_delong


def simulated(tiles, seed=0, better=0.5, slides=None):
    """Ids, labels, scores of a better and of a worse model, slides."""
    rng = np.random.default_rng(seed)
    labels = (rng.random(tiles) < 0.4).astype(int)
    slide = rng.integers(0, slides or tiles, tiles)
    common = rng.normal(size=tiles) + 1.5 * labels
    effect = rng.normal(size=slides or tiles)[slide]
    worse = common + 0.5 * effect + rng.normal(size=tiles) * 0.5
    ids = np.array([f"tile {seed} {number}" for number in range(tiles)])
    return ids, labels, common + better * labels, worse, np.array([f"slide {seed} {one}" for one in slide])


def naive_paired_delong(a, b, labels):
    """DeLong, DeLong and Clarke-Pearson (1988) with the full covariance matrix of the two areas."""
    v10, v01 = [], []
    for scores in (a, b):
        ours, theirs = scores[labels == 1][:, None], scores[labels == 0][None, :]
        pairs = (ours > theirs) + 0.5 * (ours == theirs)
        v10.append(pairs.mean(1))
        v01.append(pairs.mean(0))
    covariance = np.cov(v10) / len(v10[0]) + np.cov(v01) / len(v01[0])
    difference = v10[0].mean() - v10[1].mean()
    error = math.sqrt(covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1])
    return (
        difference,
        difference - 1.959964 * error,
        difference + 1.959964 * error,
        math.erfc(abs(difference) / error / 2**0.5),
    )


@pytest.mark.parametrize("decimals", [3, 0])
def test_paired_delong_equals_the_definition(decimals):
    _, labels, a, b, _ = simulated(150, better=0.2)
    a, b = np.round(a, decimals), np.round(b, decimals)
    assert paired_delong(a, b, labels) == pytest.approx(naive_paired_delong(a, b, labels), abs=1e-7)


def test_paired_delong_over_slides_of_one_tile_differs_by_its_quantile_only():
    _, labels, a, b, _ = simulated(150)
    tiles, slides = paired_delong(a, b, labels), paired_delong(a, b, labels, np.arange(150))
    widths = [found.high - found.low for found in (tiles, slides)]
    assert widths[1] / widths[0] == pytest.approx(stats.t.ppf(0.975, 149) / stats.norm.ppf(0.975))


def test_paired_delong_over_slides_is_wider_where_slides_matter():
    _, labels, a, b, groups = simulated(600, slides=15)
    groups = np.array([f"{group} {label}" for group, label in zip(groups, labels, strict=True)])
    tiles, slides = paired_delong(a, b, labels), paired_delong(a, b, labels, groups)
    assert slides.difference == tiles.difference
    assert slides.high - slides.low > 1.2 * (tiles.high - tiles.low)


def test_swapping_the_models_turns_the_sign():
    _, labels, a, b, _ = simulated(100)
    one, other = paired_delong(a, b, labels), paired_delong(b, a, labels)
    assert (one.difference, one.low, one.high, one.p) == pytest.approx(
        (-other.difference, -other.high, -other.low, other.p)
    )


def test_the_same_order_of_tiles_is_no_difference():
    _, labels, a, _, _ = simulated(100)
    assert paired_delong(a, np.exp(a), labels) == (0.0, 0.0, 0.0, 1.0)


def test_no_test_where_the_tiles_do_not_tell():
    found = paired_delong([0.1, 0.2, 0.3], [0.3, 0.2, 0.1], [0, 0, 1])
    assert found.difference == 1
    assert all(math.isnan(part) for part in found[1:])
    perfect, useless = [0, 0, 1, 1], [0, 0, 0, 0]
    assert math.isnan(paired_delong(perfect, useless, [0, 0, 1, 1]).p)


def test_p_values_are_uniform_without_a_difference():
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1], [60, 40])
    found = []
    for _ in range(300):
        common = rng.normal(size=100) + labels
        found.append(paired_delong(common + rng.normal(size=100), common + rng.normal(size=100), labels).p)
    assert stats.kstest(found, "uniform").pvalue > 0.01


def test_holm_by_hand():
    # Sorted: .005 x 4 = .02, .011 x 3 = .033, .02 x 2 = .04, .03 x 1 = .03 raised to .04.
    assert holm([0.02, 0.005, 0.03, 0.011]).tolist() == pytest.approx([0.04, 0.02, 0.04, 0.033])
    assert holm([0.6, 0.7]).tolist() == [1.0, 1.0]
    assert holm([]).tolist() == []
    assert holm([0.03]).tolist() == [0.03]


def test_holm_equals_the_step_down_procedure():
    rng = np.random.default_rng(0)
    for _ in range(50):
        values = rng.random(6) ** 3
        adjusted = holm(values)
        for level in (0.01, 0.05, 0.2):
            rejected = set()
            for step, place in enumerate(np.argsort(values)):
                if values[place] > level / (6 - step):
                    break
                rejected.add(place)
            assert set(np.flatnonzero(adjusted <= level)) == rejected


def test_holm_leaves_out_what_was_not_tested():
    adjusted = holm([0.01, math.nan, 0.03])
    assert adjusted[[0, 2]].tolist() == [0.02, 0.03]
    assert math.isnan(adjusted[1])


@pytest.mark.parametrize("values", [[0.1, 1.2], [-0.1], [[0.1]]])
def test_holm_refuses_what_is_no_p_value(values):
    with pytest.raises(RequestError, match="from 0 to 1"):
        holm(values)


def test_bootstrap_of_one_pair_agrees_with_delong():
    ids, labels, a, b, _ = simulated(400, better=0.1)
    drawn, exact = paired_bootstrap([Paired(ids, labels, a, b)], resamples=4000), paired_delong(a, b, labels)
    assert drawn.difference == pytest.approx(exact.difference)
    assert (drawn.low, drawn.high) == pytest.approx((exact.low, exact.high), abs=0.006)
    assert drawn.p == pytest.approx(exact.p, abs=0.05)


def test_bootstrap_of_folds_equals_scipy():
    folds = [simulated(60, seed) for seed in (1, 2)]
    found = paired_bootstrap([Paired(*fold[:4]) for fold in folds], resamples=4000)

    def difference(*samples):
        total = 0.0
        for positive, negative, (_, _, a, b, _) in zip(samples[::2], samples[1::2], folds, strict=True):
            for scores, sign in ((a, 0.5), (b, -0.5)):
                total += sign * (scores[positive.astype(int)][:, None] > scores[negative.astype(int)]).mean()
        return total

    samples = [np.flatnonzero(fold[1] == label) for fold in folds for label in (1, 0)]
    expected = stats.bootstrap(
        samples, difference, n_resamples=1000, vectorized=False, method="percentile", rng=np.random.default_rng(1)
    ).confidence_interval
    mean = np.mean([roc_auc_score(fold[1], fold[2]) - roc_auc_score(fold[1], fold[3]) for fold in folds])
    assert found.difference == pytest.approx(mean)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=0.012)


def test_more_seeds_on_the_same_tiles_are_no_more_tiles():
    ids, labels, a, b, _ = simulated(200)
    pair = Paired(ids, labels, a, b)
    once, thrice = paired_bootstrap([pair], resamples=3000), paired_bootstrap([pair] * 3, resamples=3000)
    assert thrice.difference == pytest.approx(once.difference)
    assert thrice.high - thrice.low == pytest.approx(once.high - once.low, rel=0.1)


def test_slides_are_drawn_where_they_are_known():
    ids, labels, a, b, groups = simulated(600, slides=15)
    groups = np.array([f"{group} {label}" for group, label in zip(groups, labels, strict=True)])
    tiles = paired_bootstrap([Paired(ids, labels, a, b)])
    slides = paired_bootstrap([Paired(ids, labels, a, b, groups)])
    exact = paired_delong(a, b, labels, groups)
    assert slides.high - slides.low > 1.2 * (tiles.high - tiles.low)
    assert slides.high - slides.low == pytest.approx(exact.high - exact.low, rel=0.2)


def test_tiles_without_a_slide_are_drawn_alone():
    ids, labels, a, b, _ = simulated(300)
    known = [None] * 299 + ["slide"]
    tiles, slides = paired_bootstrap([Paired(ids, labels, a, b)]), paired_bootstrap([Paired(ids, labels, a, b, known)])
    assert (slides.low, slides.high) == pytest.approx((tiles.low, tiles.high), abs=0.01)


def test_identical_models_do_not_differ():
    ids, labels, a, _, _ = simulated(100)
    assert paired_bootstrap([Paired(ids, labels, a, a)]) == (0.0, 0.0, 0.0, 1.0)


def test_one_slide_tells_nothing():
    ids, labels, a, b, _ = simulated(100)
    found = paired_bootstrap([Paired(ids, labels, a, b, ["slide"] * 100)])
    assert found.difference > 0
    assert all(math.isnan(part) for part in found[1:])


def test_bad_input_is_named():
    ids, labels, a, b, groups = simulated(20)
    with pytest.raises(RequestError, match="shape"):
        paired_delong(a, b[:-1], labels)
    with pytest.raises(HistolightError, match="NaN or infinite"):
        paired_delong(a, np.where(b > 0, np.nan, b), labels)
    with pytest.raises(RequestError, match="19 slides for 20 tiles"):
        paired_delong(a, b, labels, groups[:-1])
    with pytest.raises(RequestError, match="no \\(fold, seed\\) in common"):
        paired_bootstrap([])
    with pytest.raises(RequestError, match="shape"):
        paired_bootstrap([Paired(ids, labels, a[:-1], b)])
    with pytest.raises(RequestError, match="19 ids for 20 tiles"):
        paired_bootstrap([Paired(ids[:-1], labels, a, b)])
    with pytest.raises(RequestError, match="19 slides for 20 tiles"):
        paired_bootstrap([Paired(ids, labels, a, b, groups[:-1])])
    with pytest.raises(RequestError, match="the runs saw different data"):
        paired_bootstrap([Paired(ids, labels, a, b), Paired(ids, 1 - labels, a, b)])
    with pytest.raises(RequestError, match="one and the same label"):
        paired_bootstrap([Paired(ids, np.ones(20), a, b)])
