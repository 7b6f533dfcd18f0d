import math

import numpy as np
import pytest

from histolight.errors import RequestError
from histolight.statistics.intervals import auroc_with_variance
from histolight.statistics.verdict import auroc_covariance, holm, verdict_of_trainings


def simulated(rows, tiles, slides=None, seed=0, decimals=1):
    """Scores (rows, tiles) with ties, labels, slides."""
    rng = np.random.default_rng(seed)
    slide = rng.integers(0, slides or tiles, tiles)
    labels = (rng.random(tiles) < rng.beta(1, 1.5, slides or tiles)[slide]).astype(int)
    common = 1.5 * labels + rng.normal(size=tiles) + 0.7 * rng.normal(size=slides or tiles)[slide]
    return np.round(common + 0.5 * rng.normal(size=(rows, tiles)), decimals), labels, slide


def naive_covariance(scores, labels, groups):
    """Obuchowski's (1997) terms from loops over pairs of tiles."""
    positives, negatives = np.flatnonzero(labels == 1), np.flatnonzero(labels == 0)
    m, n, clusters = len(positives), len(negatives), sorted(set(groups))
    psi = np.zeros((len(scores), m, n))
    for row, values in enumerate(scores):
        for i, x in enumerate(positives):
            for j, y in enumerate(negatives):
                psi[row, i, j] = 1.0 if values[x] > values[y] else 0.5 if values[x] == values[y] else 0.0
    areas = psi.mean(axis=(1, 2))
    with_positive, with_negative = len(set(groups[positives])), len(set(groups[negatives]))
    covariance = np.zeros((len(scores),) * 2)
    for r in range(len(scores)):
        for q in range(len(scores)):
            s10 = s01 = s11 = s11_turned = 0.0
            for cluster in clusters:
                x, y = groups[positives] == cluster, groups[negatives] == cluster
                a_r, a_q = ((psi[k].mean(axis=1)[x] - areas[k]).sum() for k in (r, q))
                b_r, b_q = ((psi[k].mean(axis=0)[y] - areas[k]).sum() for k in (r, q))
                s10, s01, s11, s11_turned = s10 + a_r * a_q, s01 + b_r * b_q, s11 + a_r * b_q, s11_turned + a_q * b_r
            covariance[r, q] = (
                s10 * with_positive / (with_positive - 1) / m / m
                + s01 * with_negative / (with_negative - 1) / n / n
                + (s11 + s11_turned) * len(clusters) / (len(clusters) - 1) / m / n
            )
    return areas, covariance


@pytest.mark.parametrize("slides", [3, 12, None])
def test_covariance_equals_the_definition(slides):
    scores, labels, groups = simulated(4, 80, slides)
    result = auroc_covariance(scores, labels, groups)
    areas, covariance = naive_covariance(scores, labels, groups)
    assert result.aurocs == pytest.approx(areas, rel=1e-12)
    assert result.covariance == pytest.approx(covariance, rel=1e-9, abs=1e-12)
    for row in range(4):
        assert (result.aurocs[row], result.covariance[row, row]) == pytest.approx(
            auroc_with_variance(scores[row], labels, groups)
        )


def test_one_clear_order():
    verdict = verdict_of_trainings([0.8, 0.95, 0.9], np.eye(3) * 1e-4, 200)
    assert verdict.best.tolist() == [False, True, False]
    assert verdict.ranks.tolist() == [[3, 3], [1, 1], [2, 2]]


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
