"""How often the verdict on many rows is false, how often it speaks, and how often its intervals hold the truth.

``python benchmarks/verdict.py [--studies 2000] [--processes 1]`` simulates every cell that ``verdict.csv`` beside this
script lacks, and adds it there; ``verdict_summary.csv`` has the worst cells. ``populations.py`` has the simulated
tiles. In a cell every row has one and the same true AUROC, but for the first, which is ``difference`` better; a study
is one set of tiles with one set of trainings.

Columns: ``false`` is the share of studies in which any row is called better than a row that is as good or better, and
``false_low`` its lower 99.9 % bound (Clopper-Pearson, one-sided); ``coverage`` the share of studies in which all
simultaneous intervals hold the true differences (among those that have intervals), ``row_coverage`` the share of rows'
own intervals that hold the row's true AUROC; ``power`` the share of claims "the first row is better than row k" that
are made, and ``known_power`` that of the same test with the true variance (normal quantiles, Holm).
"""

from __future__ import annotations

import argparse
import csv
import os
import platform
import subprocess
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path

import numpy as np
import pandas as pd
from populations import Population, draw_scores, shift_for, spread_of_shift
from scipy import stats

from histolight.statistics.verdict import (
    Verdict,
    auroc_covariance,
    combine_folds,
    holm,
    verdict_of_configurations,
    verdict_of_trainings,
)

RESULTS = Path(__file__).with_suffix(".csv")
SPREADS = {"none": (0.0,), "equal": (0.01,), "unequal": (0.005, 0.015), "one": (0.02, *[0.005] * 26)}


@dataclass(frozen=True)
class Cell:
    """One row of the table."""

    rows: int
    seeds: int
    spread: str
    difference: float
    auroc: float
    folds: int
    unit: str
    tiles: int
    slides: int
    tumour: int
    unequal: bool
    prevalence: float = 0.4

    @property
    def population(self) -> Population:
        """Where its tiles come from."""
        return Population(self.unit, self.tiles, self.slides, self.tumour, self.unequal, self.prevalence)

    @property
    def key(self) -> tuple[str, ...]:
        """What tells it from others, as it stands in the CSV."""
        return tuple(str(value) for value in asdict(self).values())


def cells() -> list[Cell]:
    """Every cell, those that matter most first."""
    tiles, components = Population("tiles"), Population("components")
    few = [Population("slides", 600, 60, tumour, unequal) for tumour in (3, 5, 10) for unequal in (False, True)]
    slides = [Population("slides", 600, count, 0, unequal) for count in (3, 8, 22, 60) for unequal in (False, True)]
    listed: list[Cell] = []

    def add(
        populations: list[Population],
        rows: int,
        seeds: int,
        spread: str,
        difference: float = 0.0,
        folds: int = 1,
        auroc: float = 0.92,
    ):
        listed.extend(
            Cell(rows, seeds, spread, difference, auroc, folds, *asdict(population).values())
            for population in populations
        )

    for rows in (3, 10, 27):
        add([tiles, components, *few, *slides], rows, 1, "none")
        for spread in ("equal", "unequal"):
            add([tiles, slides[4], slides[5], few[3], few[5]], rows, 3, spread)
    many = [tiles, Population("tiles", 2400), slides[4], slides[6], slides[7]]
    for rows in (3, 10, 27):
        for difference in (0.01, 0.03):
            add(many, rows, 1, "none", difference)
            add(many, rows, 3, "equal", difference)
    for rows in (3, 10, 27):
        add([Population("tiles", 200), Population("slides", 200, 12, 0, True)], rows, 1, "none", 0.0, folds=5)
        add([Population("slides", 200, 12, 3, False), Population("components", 200)], rows, 1, "none", 0.0, folds=5)
        for spread in ("equal", "unequal"):
            add([tiles, slides[5], few[5]], rows, 5, spread)
            add([components, slides[2], slides[3], slides[7], few[1]], rows, 3, spread)
        add([tiles, Population("tiles", 5000)], rows, 3, "one")
        add([Population("tiles", 5000)], rows, 3, "unequal")
    for rows in (3, 10, 27):
        add([Population("tiles", 200)], rows, 1, "none", 0.03, folds=5)
        for difference in (0.01, 0.03):
            add([tiles, slides[4], slides[7]], rows, 3, "unequal", difference)
            add([tiles, slides[4], slides[7]], rows, 5, "equal", difference)
    for rows in (3, 10):
        add([slides[4], slides[5], slides[6]], rows, 1, "none", 0.06)
        add([slides[4], slides[5], slides[6]], rows, 3, "equal", 0.06)
    rare = [Population("tiles", 800, prevalence=0.05), Population("tiles", 2000, prevalence=0.05)]
    for rows in (2, 3, 10):
        add(rare, rows, 1, "none", 0.02, auroc=0.97)
        add(rare, rows, 1, "none", auroc=0.99)
    add([tiles, slides[4]], 2, 3, "one")  # the known limit
    return listed


def verdict_of_study(cell: Cell, truths: np.ndarray, spread: np.ndarray, rng: np.random.Generator) -> Verdict:
    parts = []
    for _ in range(cell.folds):
        labels, clusters = cell.population.draw(rng)
        shifts = shift_for(truths, spread)[:, None] + spread[:, None] * rng.normal(size=(cell.rows, cell.seeds))
        scores = draw_scores(labels, clusters, shifts, cell.population.has_clusters, rng)
        parts.append(auroc_covariance(scores, labels, clusters if cell.population.has_clusters else None))
    whole = combine_folds(parts) if cell.folds > 1 else parts[0]
    given = (whole.covariance, whole.degrees_of_freedom)
    if cell.seeds == 1:
        return verdict_of_trainings(whole.aurocs, *given, hardest=whole.hardest, share=whole.share)
    aurocs = whole.aurocs.reshape(cell.rows, cell.seeds)
    return verdict_of_configurations(aurocs, *given, hardest=whole.hardest, share=whole.share)


def known_variance_power(aurocs: np.ndarray) -> float:
    """Share of claims for the first row if the variances, here those over all studies (S, rows), were known."""
    first, second = np.triu_indices(aurocs.shape[1], 1)
    away = aurocs[:, first] - aurocs[:, second]
    p = 2 * stats.norm.sf(np.abs(away) / away.std(axis=0, ddof=1))
    claimed = np.array([holm(one) <= 0.05 for one in p]) & (away > 0)
    return float(claimed[:, first == 0].mean())


def simulate(cell: Cell, studies: int) -> dict[str, object]:
    start = time.perf_counter()
    rng = np.random.default_rng([ord(letter) for letter in " ".join(cell.key)])
    spread = np.resize(SPREADS[cell.spread], cell.rows).astype(float)
    truths = np.full(cell.rows, cell.auroc)
    truths[0] += cell.difference
    spread = np.asarray(spread_of_shift(cell.auroc, spread))
    true_difference = truths[:, None] - truths
    verdicts = [verdict_of_study(cell, truths, spread, rng) for _ in range(studies)]
    false = sum(bool((verdict.better & (true_difference <= 0)).any()) for verdict in verdicts)
    given = [verdict for verdict in verdicts if not verdict.reason]
    off = ~np.eye(cell.rows, dtype=bool)
    held = [((verdict.low <= true_difference) & (true_difference <= verdict.high))[off].all() for verdict in given]
    rows = np.array([(verdict.row_low <= truths) & (truths <= verdict.row_high) for verdict in verdicts])
    has_row = np.array([~np.isnan(verdict.row_low) for verdict in verdicts])
    share = float if cell.difference else lambda value: ""
    return asdict(cell) | {
        "studies": studies,
        "ranked": len(given) / studies,
        "false": false / studies,
        "false_low": round(stats.binomtest(false, studies, 0.05, "greater").proportion_ci(0.999).low, 4),
        "coverage": round(float(np.mean(held)), 4) if given else "",
        "row_coverage": round(float(rows[has_row].mean()), 4) if has_row.any() else "",
        "power": share(np.mean([verdict.better[0, 1:].mean() for verdict in verdicts])),
        "known_power": share(known_variance_power(np.array([verdict.auroc for verdict in verdicts])))
        if cell.difference
        else "",
        "seconds": round(time.perf_counter() - start, 1),
    }


def provenance() -> dict[str, str]:
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return {
        "date": date.today().isoformat(),
        "commit": commit.stdout.strip(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
    }


def add_results(path: Path, done: set[tuple[str, ...]], todo: list, function, studies: int, processes: int) -> None:
    """Simulate every cell that is not done, and append its row as soon as it is there."""
    todo = [cell for cell in dict.fromkeys(todo) if cell.key not in done]
    with ProcessPoolExecutor(processes) as pool:
        for future in as_completed([pool.submit(function, cell, studies) for cell in todo]):
            row = future.result() | provenance()
            new = not path.exists()
            with path.open("a", newline="") as file:
                writer = csv.DictWriter(file, row, lineterminator="\n")
                if new:
                    writer.writeheader()
                writer.writerow(row)
            print(*row.values(), flush=True)


def done_cells(path: Path, names: list[str]) -> set[tuple[str, ...]]:
    if not path.exists():
        return set()
    with path.open(newline="") as file:
        return {tuple(row[name] for name in names) for row in csv.DictReader(file)}


def summary(results: pd.DataFrame) -> pd.DataFrame:
    """The worst cell of each kind of population and of rows; power where the true variance would give 0.8 or more."""
    kinds = results.assign(
        population=np.where(results["unit"] == "slides", results["slides"].astype(str) + " slides", results["unit"])
        + np.where(results["tumour"] > 0, ", " + results["tumour"].astype(str) + " with tumour", ""),
        power=results["power"].where(results["known_power"] >= 0.8),
        false_high=stats.beta.ppf(
            0.999, results["false"] * results["studies"] + 1, results["studies"] * (1 - results["false"])
        ),
    )
    worst = {
        "cells": ("studies", "size"),
        "studies": ("studies", "min"),
        "ranked": ("ranked", "min"),
        "false": ("false", "max"),
        "false_low": ("false_low", "max"),
        "false_high": ("false_high", "max"),
        "coverage": ("coverage", "min"),
        "row_coverage": ("row_coverage", "min"),
        "power": ("power", "min"),
    }
    provenance = {
        name: (name, lambda values: " and ".join(dict.fromkeys(values))) for name in ("date", "commit", "machine")
    }
    return kinds.groupby(["population", "folds", "rows", "seeds"], as_index=False).agg(**worst, **provenance).round(4)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--studies", type=int, default=2000)
    parser.add_argument("--processes", type=int, default=1)
    options = parser.parse_args()
    finished = done_cells(RESULTS, list(Cell.__dataclass_fields__))
    add_results(RESULTS, finished, cells(), simulate, options.studies, options.processes)
    summary(pd.read_csv(RESULTS)).to_csv(RESULTS.with_stem("verdict_summary"), index=False)
