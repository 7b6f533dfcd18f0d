"""From runs to a ranking: form rows, keep apart what was measured on other tiles, rank, test.

A *row* is one configuration: runs that differ only in seed or fold belong to one row. A *group* holds the rows that
were measured on the same tiles; only these are ranked together.
"""

from __future__ import annotations

import dataclasses
import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from histolight.errors import RequestError, nearest
from histolight.ranking.runs import Run, Unranked, read_runs, with_defaults
from histolight.statistics.comparison import Difference, Paired, holm, paired_bootstrap, paired_delong
from histolight.statistics.intervals import auroc_with_variance

ALPHA = 0.05
METRICS = (
    "average_precision",
    "accuracy",
    "balanced_accuracy",
    "f1",
    "sensitivity",
    "specificity",
    "nll",
    "ece",
)
COSTS = ("parameters", "seconds", "tiles_per_second")
REPEATED = ("seed", "data.fold")
LOGGING = ("logger.name", "logger.project", "logger.uri", "logger.offline")
BOOKKEEPING = ("name", "run", "like", "data.cache", "trainer.profiler", *LOGGING)


@dataclass(frozen=True)
class Comparison:
    """The best row of a group against another one.

    Attributes:
        difference: AUROC of the best row less that of the other, on the tiles of the pairs that both have.
        method: ``DeLong``, ``DeLong over slides``, ``bootstrap``, ``slide bootstrap`` or, without a test, why not.
        pairs: Number of (fold, seed) pairs that both have.
        p: Holm's p value; NaN where no test was possible.
    """

    difference: Difference
    method: str
    pairs: int
    p: float = math.nan


@dataclass
class Row:
    """One configuration and its runs.

    Attributes:
        config: Flat configuration, without seed and fold.
        runs: Its runs, by fold and seed.
        part: ``val`` or ``test``.
        pooled: Pooled out-of-fold AUROC, the mean over seeds; None unless every fold is there.
        test: The best row of the group against this one; None for the best row itself.
        chosen_from: With ``by``: number of rows that this one was the best of.
    """

    config: dict[str, Any]
    runs: list[Run]
    part: str
    pooled: float | None = None
    test: Comparison | None = None
    chosen_from: int = 1

    def values(self, name: str) -> npt.NDArray[np.float64]:
        """Return one figure or cost of each run, (runs,), NaN where a run does not have it."""
        found = [run.metrics.get(name) if name in COSTS else self._figure(run, name).get("value") for run in self.runs]
        return np.array([math.nan if value is None else value for value in found], dtype=np.float64)

    def mean(self, name: str) -> float:
        """Return the mean of a figure over the runs."""
        return float(self.values(name).mean())

    def sd(self, name: str) -> float:
        """Return the standard deviation of a figure over the runs (n - 1); NaN for one run."""
        return float(self.values(name).std(ddof=1)) if len(self.runs) > 1 else math.nan

    def interval(self, name: str) -> tuple[float, float]:
        """Return the interval of a figure of a row of one run; NaN for a row of several, or where there is none."""
        figure = self._figure(self.runs[0], name) if len(self.runs) == 1 else {}
        low, high = figure.get("low"), figure.get("high")
        return (math.nan, math.nan) if low is None or high is None else (low, high)

    def _figure(self, run: Run, name: str) -> dict[str, Any]:
        return run.metrics[self.part].get(name) or {}

    @property
    def tiles_of_folds(self) -> dict[int | None, str]:
        """Map each fold to the key of its tiles."""
        return {run.pair[0]: run.tiles.key for run in self.runs}


@dataclass
class Group:
    """Rows measured on the same tiles, the best first.

    Attributes:
        rows: By falling mean AUROC.
        split: ``random``, ``slide`` or ``given``.
        reason: Why it is apart from the first group; empty for the first.
    """

    rows: list[Row]
    split: str
    reason: str = ""

    @property
    def tiles(self) -> int:
        """Number of different tiles."""
        parts = {run.tiles.key: len(run.tiles.ids) for row in self.rows for run in row.runs}
        return sum(parts.values())

    @property
    def folds(self) -> int:
        """Number of folds among its runs; 0 for a hold-out split."""
        return len({run.pair[0] for row in self.rows for run in row.runs} - {None})


@dataclass
class Ranking:
    """What ``compare`` has to say, before it is put into words.

    Attributes:
        groups: The largest first.
        part: ``val`` or ``test``: where every figure was measured.
        swept: Dotted keys in which the rows differ.
        unranked: Runs without a place.
        by: The key of which each value is shown at its own best point, or None.
    """

    groups: list[Group]
    part: str
    swept: list[str]
    unranked: list[Unranked]
    by: str | None = None

    @property
    def rows(self) -> list[Row]:
        """All rows, group by group."""
        return [row for group in self.groups for row in group.rows]

    @property
    def runs(self) -> list[Run]:
        """All runs, row by row."""
        return [run for row in self.rows for run in row.runs]


def compare_runs(folders: Sequence[Path], by: str | None = None) -> Ranking:
    """Read the runs below some folders, rank them and test the best against the others.

    Args:
        folders: Run directories, sweeps, or folders of these.
        by: A configuration key, such as ``model.name``: each of its values is shown at its own best point.

    Raises:
        RequestError: A folder doesn't exist or holds no run, no run can be compared, or ``by`` is not a key.
    """
    if by is not None:
        check_by(by)
    runs, part, unranked = read_runs(folders)
    rows = form_rows(runs, part, unranked)
    if not rows:
        first = f"{unranked[0].directory}: {unranked[0].status}, {unranked[0].reason}"
        raise RequestError(f"none of {len(unranked)} runs can be compared ({first}): give completed runs")
    unranked.sort(key=lambda one: one.directory)
    swept = [key for key in rows[0].config if len({row.config[key] for row in rows}) > 1]
    swept.sort(key=lambda key: not key.startswith("model."))  # what one looks for first
    groups = form_groups(rows)
    if by is not None:
        for group in groups:
            group.rows = best_of_each(group.rows, by)
    add_tests(groups)
    return Ranking(groups, part, swept, unranked, by)


def check_by(key: str) -> None:
    """Refuse a key that rows don't have.

    Raises:
        RequestError: It is no configuration key, or one that a row's runs differ in.
    """
    if key in REPEATED:
        raise RequestError(f"by={key} is not possible: runs that differ only in seed or fold are one row")
    if key not in with_defaults({}):
        raise RequestError(f"by={key} is not a key of the configuration: {nearest(key, with_defaults({}))}")


def form_rows(runs: Sequence[Run], part: str, unranked: list[Unranked]) -> list[Row]:
    """Put runs that differ only in seed or fold into one row.

    A second run of the same configuration, fold and seed, and a fold whose tiles differ from those of its row, go to
    ``unranked``.
    """
    rows: dict[Any, Row] = {}
    for run in runs:
        config = {key: value for key, value in run.config.items() if key not in (*REPEATED, *BOOKKEEPING)}
        # With folds, each has tiles of its own: there the fingerprint says that the data are the same.
        data = run.tiles.key if run.pair[0] is None else run.metrics.get("data_fingerprint")
        key = (tuple(sorted(config.items())), run.metrics["split"], run.pair[0] is None, data)
        row = rows.setdefault(key, Row(config, [], part))
        if twin := next((other for other in row.runs if other.pair == run.pair), None):
            reason = f"the same configuration, fold and seed as {twin.directory}"
            unranked.append(Unranked(run.directory, "not comparable", reason))
        elif row.tiles_of_folds.get(run.pair[0], run.tiles.key) != run.tiles.key:
            reason = f"its fold {run.pair[0]} has other tiles than the runs of the same configuration have"
            unranked.append(Unranked(run.directory, "not comparable", reason))
        else:
            row.runs.append(run)
    for row in rows.values():
        row.runs.sort(key=lambda run: (run.pair[0] is not None, run.pair[0] or 0, run.pair[1]))
        row.pooled = pooled_auroc(row)
    return list(rows.values())


def pooled_auroc(row: Row) -> float | None:
    """AUROC over the validation tiles of all folds together, the mean over the seeds that have every fold.

    None for a hold-out split, a test part (the same in every fold) and incomplete folds.
    """
    by_seed: dict[int, list[Run]] = defaultdict(list)
    for run in row.runs:
        by_seed[run.pair[1]].append(run)
    whole = [runs for runs in by_seed.values() if {run.pair[0] for run in runs} == set(range(row.config["data.folds"]))]
    if row.part != "val" or not whole:
        return None
    pooled = [
        auroc_with_variance(
            np.concatenate([run.scores for run in runs]), np.concatenate([run.tiles.labels for run in runs])
        )
        for runs in whole
    ]
    return float(np.mean([auroc for auroc, _ in pooled]))


def form_groups(rows: Sequence[Row]) -> list[Group]:
    """Keep rows apart that were measured on other tiles or split in another way; rank within each group.

    Rows with folds belong together when they share a fold and every fold that both have has the same tiles.
    """
    groups: list[Group] = []
    tiles: list[dict[int | None, str]] = []
    for row in sorted(rows, key=lambda row: -len(row.tiles_of_folds)):
        split, own = row.runs[0].metrics["split"], row.tiles_of_folds
        for group, theirs in zip(groups, tiles, strict=True):
            shared = own.keys() & theirs.keys()
            if group.split == split and shared and all(own[fold] == theirs[fold] for fold in shared):
                group.rows.append(row)
                theirs.update(own)
                break
        else:
            groups.append(Group([row], split))
            tiles.append(dict(own))
    for group in groups:
        group.rows.sort(key=lambda row: -row.mean("auroc"))
    groups.sort(key=lambda group: (-len(group.rows), -group.tiles))
    for group in groups[1:]:
        group.reason = _reason_apart(groups[0], group)
    return groups


def _reason_apart(first: Group, other: Group) -> str:
    if other.split != first.split:
        reason = f"the split is of another kind ({other.split} instead of {first.split})"
    elif bool(other.folds) != bool(first.folds):
        reason = "one was cross-validated, the other has one hold-out split"
    elif other.tiles != first.tiles:
        reason = f"the tiles are others ({other.tiles:,} instead of {first.tiles:,})"
    else:
        reason = "the tiles, their labels or their slides are others"
    ours, theirs = first.rows[0].config, other.rows[0].config
    differing = [key for key in ours if key.startswith("data.") and ours[key] != theirs[key]]
    return f"{reason}; {', '.join(differing)} differs" if differing else reason


def best_of_each(rows: Sequence[Row], key: str) -> list[Row]:
    """Keep, of ranked rows, the best one for each value of a key, with the number that it was chosen from.

    It is chosen by its mean validation AUROC, also where the rows are ranked by that of the test part.
    """
    points: dict[Any, list[Row]] = defaultdict(list)
    for row in rows:
        points[row.config[key]].append(row)
    best = {id(max(same, key=_validation_auroc)): len(same) for same in points.values()}
    return [dataclasses.replace(row, chosen_from=best[id(row)]) for row in rows if id(row) in best]


def _validation_auroc(row: Row) -> float:
    return float(np.mean([run.metrics["val"]["auroc"]["value"] for run in row.runs]))


def add_tests(groups: Sequence[Group]) -> None:
    """Test the best row of each group against each of its others; Holm's correction runs over all these tests."""
    others = [(group.rows[0], row) for group in groups for row in group.rows[1:]]
    tests = [
        compare_rows(best, row, len(others)) for best, row in tqdm(others, desc="tests", leave=False, disable=None)
    ]
    adjusted = holm([test.difference.p for test in tests])
    for (_, row), test, p in zip(others, tests, adjusted.tolist(), strict=True):
        row.test = dataclasses.replace(test, p=p)


def compare_rows(best: Row, other: Row, tests: int = 1) -> Comparison:
    """Test one row against another of the same group.

    One run against one on the same tiles: paired DeLong. Otherwise: paired bootstrap of the mean difference over the
    (fold, seed) pairs that both have, with enough resamples for Holm's correction over ``tests`` tests.
    """
    ours, theirs = ({run.pair: run for run in row.runs} for row in (best, other))
    if len(best.runs) == len(other.runs) == 1 and best.runs[0].tiles is other.runs[0].tiles:
        a, b, tiles = best.runs[0], other.runs[0], best.runs[0].tiles
        difference = paired_delong(a.scores, b.scores, tiles.labels, tiles.slides)
        return Comparison(difference, "DeLong" if tiles.slides is None else "DeLong over slides", 1)
    common = [pair for pair in ours if pair in theirs]
    if not common:
        gap = best.mean("auroc") - other.mean("auroc")
        return Comparison(Difference(gap, math.nan, math.nan, math.nan), "no test: no (fold, seed) in common", 0)
    pairs = []
    for pair in common:
        tiles = ours[pair].tiles
        pairs.append(Paired(tiles.ids, tiles.labels, ours[pair].scores, theirs[pair].scores, tiles.slides))
    difference = paired_bootstrap(pairs, resamples=max(1000, 100 * tests))
    return Comparison(difference, "bootstrap" if tiles.slides is None else "slide bootstrap", len(common))
