"""How often the 95 % interval of each figure of one run holds the true figure.

``python benchmarks/intervals.py [--studies 2000] [--processes 1]`` simulates every cell that ``intervals.csv`` beside
this script lacks, and adds it there. ``populations.py`` has the simulated tiles. A model's logit is the log odds of its
score where tiles are independent, divided by ``temperature`` (below 1: too sure of itself). The true figures are those
of 1,000,000 tiles or so, but the AUROC's, which is known. ``given``: share of studies that have an interval;
``coverage``: share of these that hold the true figure.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from populations import TOTAL, Population, draw_scores, shift_for
from scipy.special import logit
from verdict import add_results, done_cells

from histolight.statistics.figures import metric_intervals

RESULTS = Path(__file__).with_suffix(".csv")
TRUTH = 1_000_000


@dataclass(frozen=True)
class Cell:
    """One row of the table."""

    auroc: float
    temperature: float
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
    """Every cell, those near an AUROC of 1 first."""
    slides = [(count, 0, unequal) for count in (3, 8, 22, 60) for unequal in (False, True)]
    slides += [(60, tumour, unequal) for tumour in (3, 5, 10) for unequal in (False, True)]
    listed = [Cell(auroc, 1.0, "tiles", 800, 0, 0, False, 0.05) for auroc in (0.995, 0.99, 0.95)]
    listed += [Cell(auroc, 1.0, "tiles", 1000, 0, 0, False, 0.93) for auroc in (0.95, 0.8)]  # 70 benign tiles
    for auroc in (0.99, 0.95, 0.8):
        for tiles in (100, 800):
            listed += [Cell(auroc, temperature, "tiles", tiles, 0, 0, False) for temperature in (1.0, 0.7)]
        listed.append(Cell(auroc, 1.0, "components", 800, 0, 0, False))
        listed += [Cell(auroc, 1.0, "slides", 800, *kind) for kind in slides]
        listed += [Cell(auroc, 1.0, "slides", 100, *kind) for kind in slides if kind[0] in (8, 22)]
    return listed


def draw(cell: Cell, prevalence: float, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Logits, labels and clusters of one study."""
    labels, clusters = cell.population.draw(rng)
    shift = float(shift_for(cell.auroc))
    scores = draw_scores(labels, clusters, np.array([[shift]]), cell.population.has_clusters, rng)[0]
    return (shift / TOTAL * (scores - shift / 2) + logit(prevalence)) / cell.temperature, labels, clusters


def simulate(cell: Cell, studies: int) -> dict[str, object]:
    start = time.perf_counter()
    rng = np.random.default_rng([ord(letter) for letter in " ".join(cell.key)])
    prevalence = float(np.mean([cell.population.draw(rng)[0].mean() for _ in range(500)]))
    large = cell if cell.unit == "slides" else replace(cell, tiles=TRUTH // 10)
    many = [draw(large, prevalence, rng)[:2] for _ in range(TRUTH // large.tiles)]
    truth = {name: one.value for name, one in metric_intervals(*map(np.concatenate, zip(*many, strict=True))).items()}
    truth["auroc"] = cell.auroc
    held, given = dict.fromkeys(truth, 0), dict.fromkeys(truth, 0)
    for _ in range(studies):
        logits, labels, clusters = draw(cell, prevalence, rng)
        intervals = metric_intervals(logits, labels, groups=clusters if cell.population.has_clusters else None)
        for name, interval in intervals.items():
            given[name] += interval.method != "none"
            held[name] += interval.low <= truth[name] <= interval.high
    figures = {}
    for name in truth:
        figures[f"{name}_given"] = given[name] / studies
        figures[f"{name}_coverage"] = round(held[name] / given[name], 4) if given[name] else ""
    return asdict(cell) | {"studies": studies} | figures | {"seconds": round(time.perf_counter() - start, 1)}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--studies", type=int, default=2000)
    parser.add_argument("--processes", type=int, default=1)
    options = parser.parse_args()
    finished = done_cells(RESULTS, list(Cell.__dataclass_fields__))
    add_results(RESULTS, finished, cells(), simulate, options.studies, options.processes)
