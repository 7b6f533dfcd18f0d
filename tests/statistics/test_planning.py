"""Power and what reaches it, against closed forms; ``test_verdict.py`` compares it with simulated studies."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from histolight.statistics.planning import Plan, plan_like, power, seeds_needed, tiles_needed

LARGE = 1e9  # degrees of freedom with which t is normal


@pytest.mark.parametrize(("rows", "pairs"), [(2, 1), (3, 3), (10, 45)])
@pytest.mark.parametrize("level", [0.95, 0.8])
def test_power_of_trainings_on_many_tiles_is_that_of_a_normal_test(rows: int, pairs: int, level: float) -> None:
    expected = stats.norm.sf(stats.norm.isf((1 - level) / 2 / pairs) - 0.03 / 0.01)
    assert power(Plan(rows, 1, 7.0, 1e-4, LARGE), 0.03, level) == pytest.approx(expected, abs=1e-6)


def test_power_of_seeds_alone_is_that_of_a_two_sample_t_test() -> None:
    noncentrality = 0.03 / math.sqrt(2 * 4e-4 / 5)
    expected = stats.nct.sf(stats.t.isf(0.025, 8), 8, noncentrality)
    assert power(Plan(2, 5, 4e-4, 0.0, 100), 0.03) == pytest.approx(expected)


def test_the_variance_of_trainings_counts_where_there_is_one_seed() -> None:
    single, several = (Plan(2, seeds, 0.0, 1e-4, 50, training_variance=4e-4) for seeds in (1, 4))
    assert power(single, 0.03) == power(Plan(2, 1, 0.0, 4e-4, 50), 0.03)
    assert power(several, 0.03) == power(Plan(2, 4, 0.0, 1e-4, 50), 0.03)


def test_no_power_is_known_without_a_variance_and_there_is_none_where_many_rows_are_not_ranked() -> None:
    assert math.isnan(power(Plan(2, 1, 0.0, 0.0, 50), 0.03))
    assert math.isnan(power(Plan(2, 1, 0.0, 1e-4, 0.0), 0.03))
    few = {rows: power(Plan(rows, 1, 0.0, 1e-9, 4.9), 0.03) for rows in (3, 4)}
    assert few[3] > 0.9
    assert few[4] == 0
    assert power(Plan(4, 1, 0.0, 1e-9, 5.0), 0.03) > 0.9


@pytest.mark.parametrize("training_variance", [None, 1e-3])
def test_tiles_that_are_needed_divide_the_variance(training_variance: float | None) -> None:
    plan = Plan(2, 1, 0.0, 1e-3, LARGE, training_variance)
    # (z(0.975) + z(0.8))^2 variances make 0.01; multiples are 2.3 % apart.
    multiple = tiles_needed(plan, 0.01)
    assert 1 <= multiple / (1e-3 * (1.959964 + 0.841621) ** 2 / 0.01**2) < 1.024
    assert tiles_needed(plan, 0.01, target=0.5) < tiles_needed(plan, 0.01) < tiles_needed(plan, 0.01, level=0.99)
    assert tiles_needed(plan, 1.0) == 1.0
    assert math.isinf(tiles_needed(plan, 1e-5))


def test_tiles_bring_degrees_of_freedom() -> None:
    plan = Plan(2, 1, 0.0, 1e-4, 3.0)
    multiple = tiles_needed(plan, 0.03)
    reached = {part: power(Plan(2, 1, 0.0, 1e-4 / part, 4 * part - 1), 0.03) for part in (multiple, multiple / 1.024)}
    assert reached[multiple] >= 0.8 > reached[multiple / 1.024]


def test_seeds_that_are_needed_are_three_to_a_hundred() -> None:
    assert seeds_needed(Plan(2, 3, 1e-6, 1e-9, 100), 0.03) == 3
    # Two normal means of n each are 0.01 apart with power 0.8 where n >= 2 (1.96 + 0.84)^2 s^2 / 0.01^2 = 99.7.
    variance = 99.7 * 0.01**2 / (2 * (1.959964 + 0.841621) ** 2)
    assert seeds_needed(Plan(2, 3, variance * 0.985, 0.0, LARGE), 0.01) == 100
    assert math.isinf(seeds_needed(Plan(2, 3, variance * 1.02, 0.0, LARGE), 0.01))
    assert seeds_needed(Plan(2, 3, variance, 0.0, LARGE), 0.01, target=0.5) < 60


def test_a_plan_of_trainings_is_the_mean_over_pairs() -> None:
    matrix = np.array([[4.0, 1.0, 0.0], [1.0, 2.0, 0.5], [0.0, 0.5, 3.0]]) * 1e-4
    plan = plan_like([[0.9], [0.8], [0.7]], matrix, 33.0)
    # 4 + 2 - 2 x 1, 4 + 3 - 2 x 0 and 2 + 3 - 2 x 0.5
    assert plan == Plan(3, 1, 0.0, pytest.approx((4 + 7 + 4) / 3 * 1e-4), 33.0)


def test_a_plan_of_configurations_tells_seeds_tiles_and_single_trainings_apart() -> None:
    # Each training has 5e-4, two seeds of a row share 3e-4, two rows 1e-4.
    rows = np.kron(np.eye(2), np.ones((2, 2)))
    matrix = 1e-4 * (1 + 2 * rows + 2 * np.eye(4))
    plan = plan_like([[0.90, 0.92], [0.80, 0.84]], matrix, 40.0)
    assert (plan.rows, plan.seeds, plan.degrees_of_freedom) == (2, 2, 40.0)
    assert plan.seed_variance == pytest.approx((2e-4 + 8e-4) / 2)
    assert plan.tile_variance == pytest.approx(3e-4 + 3e-4 - 2e-4)
    assert plan.training_variance == pytest.approx(5e-4 + 5e-4 - 2e-4)
    contrary = plan_like([[0.90, 0.92], [0.80, 0.84]], 1e-4 * (3 - 2 * rows + 2 * np.eye(4)), 40.0)
    assert contrary.tile_variance == 0  # never negative
