"""Simulate what choices on the same tiles, and chance, add to figures: benchmarks/choices.csv.

Independent tiles, 40 % of them tumour, whose scores are right: each is the probability of tumour. Ten epochs of one and
the same true AUROC are ten sets of scores that correlate by 0.8 within a class, of which the one with the highest AUROC
is taken, and its threshold chosen on the same tiles. Band and calibration are chosen on one such set and measured on
all others like it; every label that confident learning doubts is right.

    python benchmarks/choices.py > benchmarks/choices.csv
"""

from __future__ import annotations

import numpy as np
import torch
from cleanlab.filter import find_label_issues
from scipy.special import expit, logit
from scipy.stats import norm
from tables import csv_printer

from histolight.errors import RequestError
from histolight.statistics.calibration import fit_line, fit_temperature, negative_log_likelihood
from histolight.statistics.decisions import choose_band
from histolight.statistics.figures import metric_intervals
from histolight.statistics.intervals import auroc_interval
from histolight.statistics.metrics import best_threshold

STUDIES = 400
EPOCHS, ALIKE = 10, 0.8
TUMOUR = 0.4
OTHERS = 20_000


def draw(random: np.random.Generator, tiles: int, shift: float) -> tuple[np.ndarray, np.ndarray]:
    """Return labels, and what the score of each tile depends on: normal, ``shift`` higher for tumour."""
    labels = (np.arange(tiles) < TUMOUR * tiles).astype(int)
    return labels, random.normal(shift * labels, 1)


def right_logits(values: np.ndarray, shift: float) -> np.ndarray:
    """Return the log odds of tumour."""
    return shift * values - shift**2 / 2 + logit(TUMOUR)


def epochs_and_threshold(random: np.random.Generator, tiles: int, shift: float) -> dict[str, float]:
    """Return how far the best epoch's AUROC, and its balanced accuracy at its own threshold, lie above the truth."""
    labels, shared = draw(random, tiles, 0.0)
    own = random.normal(size=(EPOCHS, tiles))
    values = shift * labels + np.sqrt(ALIKE) * shared + np.sqrt(1 - ALIKE) * own
    aurocs = [auroc_interval(row, labels).value for row in values]
    scores = expit(right_logits(values[np.argmax(aurocs)], shift)).astype(np.float32)
    threshold = best_threshold(torch.tensor(scores), torch.tensor(labels))
    called, edge = scores > threshold, (logit(threshold) - logit(TUMOUR) + shift**2 / 2) / shift
    seen = (called[labels == 1].mean() + (~called[labels == 0]).mean()) / 2
    return {
        "auroc_gain": max(aurocs) - float(norm.cdf(shift / np.sqrt(2))),
        "balanced_accuracy_gain": seen - (norm.sf(edge - shift) + norm.cdf(edge)) / 2,
    }


def levels(random: np.random.Generator, tiles: int, shift: float, others: tuple) -> dict[str, float]:
    """Return what a band and a calibration that tiles chose do to others, and what chance does to the tiles."""
    labels, values = draw(random, tiles, shift)
    logits = right_logits(values, shift)
    scores = expit(logits)
    band = choose_band(scores, labels, 0.05, 0.5)
    low = (logit(band.low) - logit(TUMOUR) + shift**2 / 2) / shift
    probabilities = np.stack([1 - scores, scores], axis=1)
    doubted = find_label_issues(labels, probabilities, filter_by="prune_by_noise_rate", n_jobs=1)
    found = {
        "tumour_below_band": float(norm.cdf(low - shift)) if band.low < band.high else np.nan,
        "ece": metric_intervals(logits, labels)["ece"].value,
        "doubted": float(doubted.mean()),
        "nll_temperature": np.nan,
        "nll_line": np.nan,
    }
    before = negative_log_likelihood(*others)
    try:
        found["nll_temperature"] = negative_log_likelihood(*others, fit_temperature(logits, labels)) / before - 1
        slope, intercept = fit_line(logits, labels)
        found["nll_line"] = negative_log_likelihood(slope * others[0] + intercept, others[1]) / before - 1
    except RequestError:  # the tiles are all called rightly, or the classes lie apart: none is fitted
        pass
    return found


def main() -> None:
    """Print a row for each number of tiles and AUROC: means, for calibrations medians, over the studies."""
    random = np.random.default_rng(0)
    print_row = None
    for auroc in (0.8, 0.9, 0.95, 0.99):
        shift = float(norm.ppf(auroc) * np.sqrt(2))
        labels, values = draw(random, OTHERS, shift)
        others = right_logits(values, shift), labels
        for tiles in (40, 100, 400, 2000):
            studies = [
                epochs_and_threshold(random, tiles, shift) | levels(random, tiles, shift, others)
                for _ in range(STUDIES)
            ]
            columns = {name: np.array([study[name] for study in studies]) for name in studies[0]}
            if print_row is None:
                print_row = csv_printer("auroc", "tiles", "studies", *columns)
            means = [
                np.nanmedian(column) if name.startswith("nll") else np.nanmean(column)
                for name, column in columns.items()
            ]
            print_row(auroc, tiles, STUDIES, *(f"{mean:.3f}" for mean in means))


if __name__ == "__main__":
    main()
