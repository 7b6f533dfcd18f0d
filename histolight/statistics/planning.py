"""Before a sweep: how many tiles (or slides) and seeds it takes to detect a difference of a given size."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from scipy import stats

from histolight.statistics.verdict import FEW_ROWS, FEWEST_DEGREES_OF_FREEDOM, FEWEST_SEEDS, variance_components


@dataclass(frozen=True)
class Plan:
    """What decides which differences a comparison can detect.

    Attributes:
        rows: Rows compared, at least 2.
        seeds: Seeds of each row; 1 compares trainings.
        seed_variance: Variance of the AUROC between the seeds of one row (s^2); not used where ``seeds`` is 1.
        tile_variance: Variance, over other tiles (or slides), of the difference of two rows (c).
        degrees_of_freedom: Of ``tile_variance`` (nu1).
        training_variance: ``tile_variance`` of the difference of two trainings, which is larger than that of the means
            over seeds; None where both are the same.
    """

    rows: int
    seeds: int
    seed_variance: float
    tile_variance: float
    degrees_of_freedom: float
    training_variance: float | None = None


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
    between_seeds, within, between = variance_components(values, matrix)
    shared = np.maximum((within[:, None] + within - 2 * between)[pairs], 0)
    own = np.diagonal(matrix).reshape(rows, seeds).mean(axis=1)
    alone = float((own[:, None] + own - 2 * between)[pairs].mean())
    return Plan(rows, seeds, float(between_seeds.mean()), float(shared.mean()), nu1, alone)


def power(plan: Plan, difference: float, level: float = 0.95) -> float:
    """Chance that a true difference of two rows is stated, by Bonferroni's bound over all pairs.

    >>> round(power(Plan(2, 1, 0.0, 1e-4, 100), 0.03), 3)
    0.844
    """
    pairs = plan.rows * (plan.rows - 1) / 2
    of_seeds = 2 * plan.seed_variance / plan.seeds if plan.seeds > 1 else 0.0
    of_tiles = plan.tile_variance
    if plan.seeds == 1 and plan.training_variance is not None:
        of_tiles = plan.training_variance
    variance = of_seeds + of_tiles
    if variance <= 0 or plan.degrees_of_freedom <= 0:
        return math.nan
    if plan.rows > FEW_ROWS and plan.degrees_of_freedom < FEWEST_DEGREES_OF_FREEDOM:
        return 0.0
    spread = of_seeds**2 / (plan.rows * (plan.seeds - 1)) if plan.seeds > 1 else 0.0
    freedom = variance**2 / (spread + of_tiles**2 / plan.degrees_of_freedom)
    bound = stats.t.isf((1 - level) / 2 / pairs, freedom)
    return float(stats.nct.sf(bound, freedom, difference / math.sqrt(variance)))


def tiles_needed(plan: Plan, difference: float, target: float = 0.8, level: float = 0.95) -> float:
    """How many times as many tiles (or slides) give this power, the seeds staying as they are; at least 1.

    Returns:
        A multiple with two digits or so, or infinity where no number of tiles is enough (more seeds are).
    """

    def reached(multiple: float) -> bool:
        freedom = (plan.degrees_of_freedom + 1) * multiple - 1
        larger = replace(
            plan,
            tile_variance=plan.tile_variance / multiple,
            training_variance=plan.training_variance and plan.training_variance / multiple,
            degrees_of_freedom=freedom,
        )
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
