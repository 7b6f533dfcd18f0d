"""Before a sweep: how many tiles, slides and seeds detect a difference, from the variance of earlier runs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from histolight.errors import RequestError
from histolight.ranking.ranking import Ranking, compare_runs
from histolight.reports.page import Cell, Table
from histolight.statistics.planning import Plan, plan_like, power, tiles_needed
from histolight.statistics.verdict import FEWEST_SEEDS

DIFFERENCES = (0.01, 0.03)
POWER = 0.8
SEEDS = (1, 3, 5, 10, 20)
ROWS = (2, 27)  # of a plan from one run: a pair, and the size of sweep=grid
SEED_SD = 0.01  # between seeds of one configuration, where the earlier runs have one seed each
CORRELATION = 0.5  # of two rows' AUROCs over other tiles, where there is one earlier run


def plan_of(ranking: Ranking) -> Plan:
    """Estimate the variances from ranked rows; what one row or one seed can't show is assumed.

    Raises:
        RequestError: No variance can be estimated from the tiles.
    """
    covariance, rows = ranking.covariance, len(ranking.rows)
    if covariance is None or covariance.lack:
        reason = covariance.lack if covariance else "no row can be ranked"
        raise RequestError(f"these runs give no variance to plan with ({reason}): give runs on more tiles or slides")
    if rows == 1:
        seeds = covariance.aurocs.reshape(1, -1)
        variance = 2 * (1 - CORRELATION) * float(covariance.covariance.diagonal().mean())
        spread = float(seeds.var(ddof=1)) if seeds.size > 1 else SEED_SD**2
        return Plan(2, len(seeds.T), spread, variance, covariance.degrees_of_freedom)
    earlier = plan_like(covariance.aurocs.reshape(rows, -1), covariance.covariance, covariance.degrees_of_freedom)
    return earlier if earlier.seeds > 1 else replace(earlier, seed_variance=SEED_SD**2)


def plan_table(folders: Sequence[Path]) -> tuple[Table, list[str]]:
    """Lay out what detects a difference of 0.01 and of 0.03 with power 0.8, and what that assumes.

    Args:
        folders: Earlier runs: one, or those of a sweep.

    Raises:
        RequestError: There are no runs, or no variance can be estimated from their tiles.
    """
    ranking = compare_runs(folders)
    earlier = plan_of(ranking)
    counts = (len(ranking.rows),) if len(ranking.rows) > 1 else ROWS
    rows = []
    for count in counts:
        for difference in DIFFERENCES:
            for seeds in SEEDS:
                plan = replace(earlier, rows=count, seeds=seeds)
                multiple = tiles_needed(plan, difference, POWER)
                rows.append(
                    [
                        Cell(f"{difference:g}"),
                        Cell(str(count)),
                        Cell(f"{seeds}", "(trainings)" if seeds < FEWEST_SEEDS else ""),
                        Cell(f"{power(plan, difference):.0%}"),
                        Cell(scaled(multiple, ranking.tiles)),
                        *([Cell(scaled(multiple, ranking.slides))] if ranking.slides else []),
                    ]
                )
    slides = ["slides for 80 %"] if ranking.slides else []
    columns = ["difference", "rows", "seeds each", "chance here", "tiles for 80 %", *slides]
    return Table(columns, rows), _notes(ranking)


def scaled(multiple: float, count: int) -> str:
    """Write a multiple of a number of tiles or slides, to two digits; infinity is none.

    >>> scaled(2.4, 400), scaled(1, 400), scaled(math.inf, 400)
    ('960', '400', 'no number: more seeds')
    """
    if math.isinf(multiple):
        return "no number: more seeds"
    needed = multiple * count
    digits = max(0, math.floor(math.log10(needed)) - 1)
    return f"{count if multiple == 1 else math.ceil(needed / 10**digits) * 10**digits:,}"


def _notes(ranking: Ranking) -> list[str]:
    where = f"{ranking.tiles:,} tiles" + (f" of {ranking.slides} slides" if ranking.slides else "")
    notes = [
        f"Chance that a true difference in AUROC between two rows is stated ({where} here), every pair of rows being "
        "compared and all claims together holding at 95 %. More tiles means tiles spread over slides as these are."
    ]
    if len(ranking.rows) == 1:
        notes.append(
            f"One configuration cannot show how alike two are: assumed that the AUROCs of two rows correlate at "
            f"{CORRELATION:g} over other tiles."
        )
    if ranking.unit == "training":
        notes.append(
            "Fewer than three seeds cannot show how seeds differ: assumed a standard deviation in AUROC of "
            f"{SEED_SD:g}."
        )
    notes.append("Fewer than three seeds compare trainings, not configurations.")
    return notes
