from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from scipy.special import expit, logit
from scipy.stats import t
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss

from histolight.errors import HistolightError, RequestError
from histolight.statistics.calibration import (
    estimate_prior,
    fit_line,
    fit_temperature,
    negative_log_likelihood,
    speaks_for_both,
)


def simulated(temperature: float, tiles: int = 2000, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Logits that are too sure by a known factor."""
    random = np.random.default_rng(seed)
    true_logits = random.normal(0, 2, tiles)
    return (true_logits * temperature).astype(np.float32), (random.random(tiles) < expit(true_logits)).astype(int)


@pytest.mark.parametrize("temperature", [1 / 60, 0.5, 1.0, 3.0, 60.0])
def test_it_finds_the_temperature_of_the_simulation(temperature: float) -> None:
    assert fit_temperature(*simulated(temperature, 50_000)) == pytest.approx(temperature, rel=0.05)


def test_it_agrees_with_a_logistic_regression_without_intercept() -> None:
    logits, labels = simulated(2.5)
    regression = LogisticRegression(C=np.inf, fit_intercept=False, tol=1e-10, max_iter=1000)
    slope = regression.fit(logits[:, None].astype(float), labels).coef_[0, 0]
    assert fit_temperature(logits, labels) == pytest.approx(1 / slope, rel=1e-5)


def test_the_likelihood_is_scikit_learns_and_is_smallest_there() -> None:
    logits, labels = simulated(3.0)
    best = fit_temperature(logits, labels)
    found = negative_log_likelihood(logits, labels, best)
    assert found == pytest.approx(log_loss(labels, expit(logits.astype(float) / best)))
    for other in (best * 0.99, best * 1.01, 1.0):
        assert negative_log_likelihood(logits, labels, other) > found
    assert negative_log_likelihood(logits, labels) == pytest.approx(log_loss(labels, expit(logits.astype(float))))


def test_a_temperature_at_the_end_of_the_range_is_none() -> None:
    # Four tiles of logit a and one of -a, four of them right: the best temperature is a / log(4).
    def logits(temperature: float) -> np.ndarray:
        return temperature * np.log(4) * np.array([1, 1, 1, 1, -1])

    for temperature in (0.0102, 98.0):
        assert fit_temperature(logits(temperature), [1, 1, 1, 0, 0]) == pytest.approx(temperature)
    for temperature in (0.01005, 99.5):
        with pytest.raises(RequestError, match="finds no temperature"):
            fit_temperature(logits(temperature), [1, 1, 1, 0, 0])


@pytest.mark.parametrize(
    ("logits", "labels", "error", "message"),
    [
        (
            [-1.0, -2.0, 1.0, 2.0],
            [0, 0, 1, 1],
            RequestError,
            "the 4 tiles that choose it are all on the right side of 0.5",
        ),
        ([-1.0, -2.0, 1.0, 2.0], [1, 1, 0, 0], RequestError, "no better than chance"),
        ([1.0, 2.0], [1, 1], RequestError, "one and the same label"),
        ([1.0, np.nan], [1, 0], HistolightError, "NaN"),
    ],
)
def test_where_no_temperature_is_best_it_says_so(logits, labels, error, message) -> None:
    with pytest.raises(error, match=message):
        fit_temperature(logits, labels)


def test_the_line_is_that_of_an_unpenalised_logistic_regression() -> None:
    random = np.random.default_rng(3)
    logits = random.normal(1, 3, 400)
    labels = (random.random(400) < expit(0.4 * logits - 1)).astype(int)
    model = LogisticRegression(C=np.inf, tol=1e-10).fit(logits[:, None], labels)
    assert fit_line(logits, labels) == pytest.approx((model.coef_[0, 0], model.intercept_[0]), rel=1e-4)


@pytest.mark.parametrize(
    ("logits", "words"),
    [
        ([2.0, 2.0, -2.0, -2.0], "completely"),
        ([2.0, 1.0, 1.0, -2.0], "completely"),  # but for a tie at the border
        ([-2.0, -2.0, 2.0, 2.0], "no better than chance"),
        ([-1.0, -2.0, 2.0, 1.0], "no better than chance"),
    ],
)
def test_where_no_line_is_best_it_says_so(logits: list[float], words: str) -> None:
    with pytest.raises(
        RequestError, match=f"no calibration is best: the logits separate the classes of the 4 tiles {words}"
    ):
        fit_line(logits, [1, 1, 0, 0])


def test_the_prior_is_where_expectation_maximisation_ends() -> None:
    random = np.random.default_rng(4)
    labels = random.random(3000) < 0.1
    logits = 4 * random.normal(np.where(labels, 1.0, -1.0), 1 / np.sqrt(2))  # log odds of two normals, both as frequent
    share = 0.5
    for _ in range(3000):
        share = expit(logits + logit(share)).mean()
    assert estimate_prior(logits, 0.5) == pytest.approx(share, rel=1e-6)
    assert share == pytest.approx(labels.mean(), abs=0.02)
    assert estimate_prior(logits + logit(0.3), 0.3) == pytest.approx(share, rel=1e-6)  # the same tiles, told otherwise


def test_where_no_tile_speaks_for_a_class_its_share_is_none() -> None:
    assert estimate_prior([-1.0, -2.0, -0.5], 0.5) == 0
    assert estimate_prior([1.0, 2.0, 0.5], 0.5) == 1
    with np.errstate(all="raise"):
        assert not speaks_for_both([-1.0, -2.0, -0.5], 0.5)
        assert not speaks_for_both([1.0, 2.0, 0.5], 0.5)


def written_out(logits: np.ndarray, prior: float, groups: np.ndarray) -> bool:
    """The likelihood-ratio test from the densities' ratios, its likelihood maximised without a derivative."""
    ratios = np.exp(logits) * (1 - prior) / prior
    best = minimize_scalar(
        lambda share: -np.log(share * ratios + 1 - share).sum(), bounds=(0, 1), options={"xatol": 1e-10}
    )
    gain = 2 * (-best.fun - max(0.0, np.log(ratios).sum()))
    scores = (ratios - 1) / (best.x * ratios + 1 - best.x)
    sizes = np.bincount(groups)
    n_eff = sizes.sum() ** 2 / (sizes**2).sum()
    larger = n_eff / (n_eff - 1) * (np.bincount(groups, scores) ** 2).sum() / (scores**2).sum()
    return gain / max(larger, 1) > t.ppf(0.95, n_eff - 1) ** 2


@pytest.mark.parametrize("prior", [0.5, 0.2])
def test_whether_tiles_speak_for_both_classes_is_the_test_as_it_is_written(prior: float) -> None:
    random = np.random.default_rng(9)
    groups = np.repeat(np.arange(6), [12, 9, 8, 5, 4, 2])
    shares = np.repeat([0.05, 0.5, 0.95], 40)
    sets = [logit(prior) + 2 * random.normal(np.where(random.random(40) < share, 1, -1), 1) for share in shares]
    sets = [one + random.normal(0, 0.7, 6)[groups] for one in sets]
    found = [speaks_for_both(one, prior, groups) for one in sets]
    assert found == [written_out(one, prior, groups) for one in sets]
    assert 30 < sum(found) < 90


@pytest.mark.parametrize("positive", [False, True])
def test_of_tiles_of_one_class_it_finds_both_in_one_set_of_twenty(positive: bool) -> None:
    random = np.random.default_rng(6)
    sets = random.normal(2 if positive else -2, 2, (2000, 200))  # log odds of N(1, 1) against N(-1, 1), times 2
    assert np.mean([speaks_for_both(logits, 0.5) for logits in sets]) == pytest.approx(0.05, abs=0.02)
    sets[:, :25] *= -1
    assert np.mean([speaks_for_both(logits, 0.5) for logits in sets[:200]]) > 0.95


@pytest.mark.parametrize("positive", [False, True])
def test_tiles_of_few_slides_show_less_than_as_many_of_their_own(positive: bool) -> None:
    random = np.random.default_rng(7)
    groups = np.arange(400) // 20

    def logits(labels: np.ndarray) -> np.ndarray:
        """Log odds where a slide's tiles share an effect of spread 1: N(1, 2) against N(-1, 2)."""
        return np.where(labels, 1, -1) + random.normal(0, 1, 20)[groups] + random.normal(0, 1, 400)

    sets = [logits(np.full(400, positive)) for _ in range(300)]
    assert np.mean([speaks_for_both(one, 0.5) for one in sets]) > 0.15  # as if each tile were alone
    assert np.mean([speaks_for_both(one, 0.5, groups) for one in sets]) < 0.05
    mixed = [logits(random.random(400) < 0.3) for _ in range(50)]
    assert np.mean([speaks_for_both(one, 0.5, groups) for one in mixed]) > 0.9
    assert not speaks_for_both(mixed[0], 0.5, np.zeros(400))


def test_copies_of_tiles_show_no_more_than_the_tiles_alone() -> None:
    random = np.random.default_rng(8)
    sets = random.normal(np.where(random.random((60, 100)) < 0.02, 3.0, -3.0), 2.4)
    alone = [speaks_for_both(logits, 0.5) for logits in sets]
    assert 5 < sum(alone) < 55
    assert alone == [speaks_for_both(np.repeat(logits, 5), 0.5, np.repeat(np.arange(100), 5)) for logits in sets]
