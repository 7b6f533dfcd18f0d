"""From runs to a verdict: which rows may be the best, on which unit and which population."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from histolight.errors import RequestError
from histolight.ranking.rows import (
    Pair,
    Row,
    best_of_each,
    check_by,
    form_rows,
    named_beforehand,
    on_shared_pairs,
    on_the_same_tiles,
    without_choosing,
)
from histolight.ranking.runs import ScoredRun, ScoredTiles, Unranked, read_runs
from histolight.statistics.verdict import (
    FEWEST_SEEDS,
    AurocCovariance,
    Verdict,
    auroc_covariance,
    combine_folds,
    verdict_of_configurations,
    verdict_of_trainings,
)

LEVEL = 0.95
CHOSEN_HERE = (
    "their points were chosen on these same validation tiles, which favours a row the more, the more points it was "
    "chosen from: give the runs a test part (data.test_fraction=0.2)"
)


@dataclass(frozen=True)
class Ranking:
    """What ``compare`` has to say, before it is put into words.

    Attributes:
        rows: The ranked rows, all with the same (fold, seed) pairs: the set of the best first, then by falling AUROC.
        verdict: On these rows, in their order; None where there are none.
        covariance: Of the AUROCs of all rows and pairs, row by row; None where there are none.
        part: ``val`` or ``test``: where every figure was measured.
        swept: Dotted keys in which the rows differ.
        unranked: Runs and rows without a place.
        by: The key of which each value is shown at its own best point, or None.
        chosen_by: The (fold, seed) pairs that chose, with ``by`` or in a sweep with ``sweep.seeds``; the verdict does
            not count them.
        among: Whether the rows were named beforehand.
        uncounted: Number of runs of ranked rows that are left out, as other rows lack their (fold, seed).
    """

    rows: list[Row]
    verdict: Verdict | None
    covariance: AurocCovariance | None
    part: str
    swept: list[str]
    unranked: list[Unranked]
    by: str | None = None
    chosen_by: list[Pair] = dataclasses.field(default_factory=list)
    among: bool = False
    uncounted: int = 0

    @property
    def pairs(self) -> list[Pair]:
        """The (fold, seed) pairs on which the rows are compared."""
        return self.rows[0].pairs if self.rows else []

    @property
    def unit(self) -> str:
        """``configuration`` (three seeds or more of one split) or ``training``."""
        return unit_of(self.pairs)

    @property
    def folds(self) -> int:
        """Number of folds among the pairs; 0 for a hold-out split."""
        return len({fold for fold, _ in self.pairs} - {None})

    @property
    def split(self) -> str:
        """``random``, ``slide``, ``overlap`` or ``given``."""
        return str(self.rows[0].runs[0].metrics["split"]) if self.rows else ""

    @property
    def parts(self) -> list[ScoredTiles]:
        """The different sets of tiles on which the rows were measured: one, or one for each fold."""
        return list({run.tiles.key: run.tiles for row in self.rows[:1] for run in row.runs}.values())

    @property
    def tiles(self) -> int:
        """Number of tiles on which the rows were measured."""
        return sum(len(part.ids) for part in self.parts)

    @property
    def clusters(self) -> str:
        """What the variance is taken over: ``slides``, ``components`` of overlapping tiles, or ``tiles``."""
        if all(part.clusters is None for part in self.parts):
            return "tiles"
        return "components" if all(part.slides is None for part in self.parts) else "slides"

    @property
    def slides(self) -> int:
        """Number of slides with a name; 0 where they are unknown."""
        return len({name for part in self.parts if part.slides is not None for name in part.slides if name == name})

    @property
    def population(self) -> str:
        """``slides`` where every tile has a slide that training has not seen, else ``tiles``."""
        whole = all(part.slides is not None and all(name == name for name in part.slides) for part in self.parts)
        torn = self.split == "random" or any(run.metrics.get("torn_slides") for run in self.runs)
        return "slides" if whole and not torn else "tiles"

    @property
    def best_set(self) -> list[str]:
        """Names of the rows that no row is significantly above."""
        return [] if self.verdict is None else [self.rows[place].name for place in np.flatnonzero(self.verdict.best)]

    @property
    def runs(self) -> list[ScoredRun]:
        """All counted runs, row by row."""
        return [run for row in self.rows for run in row.runs]


def unit_of(pairs: Sequence[Pair]) -> str:
    """Say what rows with these (fold, seed) pairs are: folds share training tiles, and are no seeds.

    >>> unit_of([(None, 0), (None, 1), (None, 2)]), unit_of([(0, 0), (1, 0), (2, 0)])
    ('configuration', 'training')
    """
    return "configuration" if len(pairs) >= FEWEST_SEEDS and len({fold for fold, _ in pairs}) == 1 else "training"


def compare_runs(folders: Sequence[Path], by: str | None = None, among: str | Sequence[str] | None = None) -> Ranking:
    """Read the runs below some folders and compare all of their rows, each with each.

    Args:
        folders: Run directories, sweeps, or folders of these.
        by: A configuration key, such as ``model.name``: each of its values is shown at its own best point, where
            it has several.
        among: Rows named beforehand, by their names or the folders of their runs; the others are left out.

    Raises:
        RequestError: A folder doesn't exist or holds no run, no run can be compared, ``by`` is not a key, or ``among``
            names no row.
    """
    if by is not None:
        check_by(by)
    runs, part, unranked = read_runs(folders)
    rows, swept = form_rows(runs, part, unranked)
    if not rows:
        first, *others = [run for run in unranked if run.status != "missing"]
        raise RequestError(
            f"none of {1 + len(others)} runs can be compared ({first.directories[0]}: {first.status}, {first.reason}): "
            "give completed runs"
        )
    if among is not None:
        rows = named_beforehand(rows, among)
    rows = on_the_same_tiles(rows, unranked)
    pruned = any(entry.status == "pruned" for entry in unranked)
    if by is not None and not pruned and len({row.config[by] for row in rows}) == len(rows):
        by = None  # nothing to choose: every training counts
    before = {row.name: len(row.runs) for row in rows}
    if by is None:
        rows, chosen_by = without_choosing(rows, unranked)
        rows = on_shared_pairs(rows, unranked)
    else:
        rows, chosen_by = best_of_each(rows, by, unranked)
    uncounted = sum(before[row.name] - len(row.runs) - len(chosen_by) for row in rows)
    unranked.sort(key=lambda row: row.directories[0])
    ranking = Ranking(rows, None, None, part, swept, unranked, by, chosen_by, among is not None, uncounted)
    return judged(ranking) if rows else ranking


def judged(ranking: Ranking) -> Ranking:
    """Add the verdict, and put the rows in its order."""
    covariance = covariance_of(ranking.rows)
    first = verdict_on(covariance, len(ranking.rows), ranking.unit)
    order = np.lexsort((-first.auroc, ~first.best))
    rows = [ranking.rows[place] for place in order]
    covariance = _reordered(covariance, order)
    verdict = verdict_on(covariance, len(rows), ranking.unit)
    chosen = any(row.chosen_from > 1 for row in rows) or any(entry.status == "pruned" for entry in ranking.unranked)
    if ranking.part == "val" and chosen and len(rows) > 1:
        verdict = _without_claims(verdict)
    return dataclasses.replace(ranking, rows=rows, covariance=covariance, verdict=verdict)


def _without_claims(verdict: Verdict) -> Verdict:
    """Keep the AUROCs and the rows' own intervals of rows whose points were chosen by these same tiles."""
    rows = len(verdict.auroc)
    none = np.full((rows, rows), np.nan)
    return dataclasses.replace(
        verdict,
        low=none,
        high=none,
        p=np.ones((rows, rows)),
        better=np.zeros((rows, rows), dtype=bool),
        best=np.ones(rows, dtype=bool),
        ranks=np.tile([1, rows], (rows, 1)),
        reason=CHOSEN_HERE,
    )


def _reordered(covariance: AurocCovariance, order: npt.NDArray[np.int64]) -> AurocCovariance:
    places = np.arange(len(covariance.aurocs)).reshape(len(order), -1)[order].ravel()
    matrix = covariance.covariance[np.ix_(places, places)]
    return dataclasses.replace(
        covariance, aurocs=covariance.aurocs[places], hardest=covariance.hardest[places], covariance=matrix
    )


def covariance_of(rows: Sequence[Row]) -> AurocCovariance:
    """AUROCs of rows with the same pairs, with their covariance.

    Returns:
        Of every (row, seed), row by row, for configurations; else of each row's mean over its trainings.
    """
    pairs = rows[0].pairs
    places_of_tiles: dict[str, list[int]] = {}
    for place, run in enumerate(rows[0].runs):
        places_of_tiles.setdefault(run.tiles.key, []).append(place)
    parts = []
    for places in places_of_tiles.values():
        tiles = rows[0].runs[places[0]].tiles
        scores = np.stack([row.runs[place].scores for row in rows for place in places])
        parts.append(auroc_covariance(scores, tiles.labels, tiles.clusters))
    if unit_of(pairs) == "configuration":
        return parts[0]
    return combine_folds([_mean_over_trainings(part, len(rows)) for part in parts])


def _mean_over_trainings(part: AurocCovariance, rows: int) -> AurocCovariance:
    trainings = len(part.aurocs) // rows
    return dataclasses.replace(
        part,
        aurocs=part.aurocs.reshape(rows, trainings).mean(axis=1),
        hardest=part.hardest.reshape(rows, trainings).mean(axis=1),
        covariance=part.covariance.reshape(rows, trainings, rows, trainings).mean(axis=(1, 3)),
    )


def verdict_on(covariance: AurocCovariance, rows: int, unit: str) -> Verdict:
    """Compare rows, each with each, with the covariance of :func:`covariance_of`."""
    aurocs = covariance.aurocs.reshape(rows, -1) if unit == "configuration" else covariance.aurocs
    verdict_of = verdict_of_configurations if unit == "configuration" else verdict_of_trainings
    return verdict_of(
        aurocs, covariance.covariance, covariance.degrees_of_freedom, LEVEL, covariance.hardest, covariance.share
    )
