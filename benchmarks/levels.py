"""Say what a threshold and a calibration are worth on slides that had no part in choosing them: benchmarks/levels.csv.

Takes the predictions of a run on other slides, and those on labelled tiles that could choose its levels, such as its
own random part (files of several folds are joined by commas). The former are cut in two halves, no component of
overlapping tiles on both sides; each half is measured with the levels of the other, or of what was given. Halves are
drawn ten times: figures are means; coverage and error of the band, and every interval (over the components of all
tiles), are of the first time. With `--shares`: what the estimated share of tumour is worth where few tiles of a class,
or few tiles, are there: benchmarks/prior.csv.

    python benchmarks/levels.py RECIPE TARGET.csv 'own random part=CHOSEN.csv' … > benchmarks/levels.csv
    python benchmarks/levels.py RECIPE TARGET.csv CHOSEN.csv --shares > benchmarks/prior.csv
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from scipy.special import expit, logit
from tables import csv_printer

from histolight import runs
from histolight.data.splits import deal
from histolight.statistics.calibration import estimate_prior, fit_line, fit_temperature, speaks_for_both
from histolight.statistics.clusters import find_clusters
from histolight.statistics.decisions import choose_band
from histolight.statistics.intervals import Interval, proportion_interval
from histolight.statistics.metrics import best_threshold

TIMES = 10
SPECIFICITY = 0.95
BINS = 15
HALF = "the other half"


def halves(target: pd.DataFrame, seed: int) -> np.ndarray:
    """Cut tiles in two, whole components, both classes alike: bool (N,)."""
    clusters = find_clusters(target["cluster"].to_numpy(), len(target)).codes.astype(object)
    first = deal(np.arange(len(target)), target["label"].to_numpy(), clusters, np.array([0.5, 0.5]), seed)[0]
    return np.isin(np.arange(len(target)), first)


def calibration_error(scores: np.ndarray, labels: np.ndarray) -> float:
    """Return the ECE of 15 bins of equal width."""
    bins = np.minimum((scores * BINS).astype(int), BINS - 1)
    return float(np.abs(np.bincount(bins, scores - labels, minlength=BINS)).sum() / len(labels))


def measured(chosen: pd.DataFrame, tiles: pd.DataFrame) -> dict[str, np.ndarray]:
    """Use the levels of some tiles on others: what was called, and the scores under each calibration, (N,) each."""
    scores, labels, logits = (chosen[name].to_numpy() for name in ("score", "label", "logit"))
    threshold = best_threshold(torch.tensor(scores), torch.tensor(labels))
    specific = np.quantile(scores[labels == 0], SPECIFICITY, method="higher")
    band = choose_band(scores, labels, 0.05, threshold)
    slope, intercept = fit_line(logits, labels)
    line = slope * tiles["logit"].to_numpy(np.float64) + intercept
    prior = estimate_prior(line, labels.mean())
    score = tiles["score"].to_numpy()
    return {
        "called": score > threshold,
        "specific": score > specific,
        "kept": (score < band.low) | (score > band.high),
        "high": score > band.high,
        "temperature": expit(tiles["logit"].to_numpy(np.float64) / fit_temperature(logits, labels)),
        "line": expit(line),
        "prior": expit(line + logit(np.clip(prior, 1e-6, 1 - 1e-6)) - logit(labels.mean())),
    }


def crossed(target: pd.DataFrame, chosen: pd.DataFrame | None, seed: int) -> pd.DataFrame:
    """Measure each half with the levels of the other, or of what was chosen: one row a tile of the target."""
    first = halves(target, seed)
    parts = []
    for side in (first, ~first):
        tiles = target[side]
        parts.append(pd.DataFrame(measured(target[~side] if chosen is None else chosen, tiles), index=tiles.index))
    return pd.concat(parts).loc[target.index].assign(first=first)


def levels_row(target: pd.DataFrame, chosen: pd.DataFrame | None) -> list[object]:
    """Return the figures of one way to choose."""
    labels = target["label"].to_numpy()
    times = [crossed(target, chosen, seed) for seed in range(TIMES)]

    def interval(values: np.ndarray, members: np.ndarray) -> Interval:
        return proportion_interval(values, members, find_clusters(target["cluster"].to_numpy(), len(target)))

    def mean(figure) -> float:
        return float(np.mean([figure(table) for table in times]))

    def errors(name: str) -> float:
        return mean(
            lambda table: np.mean(
                [
                    calibration_error(table[name].to_numpy()[side], labels[side])
                    for side in (table["first"].to_numpy(), ~table["first"].to_numpy())
                ]
            )
        )

    right = times[0]["called"].to_numpy() == (labels == 1)
    accuracy = interval(right, np.ones_like(right))
    kept = times[0]["kept"].to_numpy()
    error = interval(times[0]["high"].to_numpy() != (labels == 1), kept)
    return [
        f"{mean(lambda t: (t['called'] == (labels == 1)).mean()):.3f}",
        *(f"{end:.3f}" for end in (accuracy.low, accuracy.high)),
        f"{mean(lambda t: t['called'][labels == 1].mean()):.3f}",
        f"{mean(lambda t: 1 - t['called'][labels == 0].mean()):.3f}",
        f"{mean(lambda t: t['specific'][labels == 1].mean()):.3f}",
        f"{mean(lambda t: 1 - t['specific'][labels == 0].mean()):.3f}",
        *(f"{errors(name):.3f}" for name in ("temperature", "line", "prior")),
        *(f"{value:.3f}" for value in (kept.mean(), error.value, error.low, error.high)),
    ]


def print_levels(recipe: str, target: pd.DataFrame, choosers: list[str]) -> None:
    """Print a row for each way to choose."""
    row = csv_printer(
        *("recipe", "tiles", "chosen_on", "choosing", "accuracy", "low", "high", "sensitivity", "specificity"),
        *("sensitivity_at_95", "specificity_at_95", "ece_temperature", "ece_line", "ece_prior"),
        *("coverage", "error", "error_low", "error_high"),
    )
    for chooser in choosers:
        name, _, path = chooser.partition("=")
        chosen = pd.concat([runs.read_predictions(Path(part)) for part in path.split(",")])
        row(recipe, len(target), name, len(chosen), *levels_row(target, chosen))
    row(recipe, len(target), HALF, len(target) // 2, *levels_row(target, None))


def print_shares(recipe: str, target: pd.DataFrame, chosen: pd.DataFrame, draws: int = 200) -> None:
    """Print how well the share of tumour is estimated in samples of other shares and sizes."""
    row = csv_printer(
        *(
            "recipe",
            "tiles",
            "share",
            "estimated",
            "estimated_low",
            "estimated_high",
            "refused",
            "ece_line",
            "ece_prior",
        )
    )
    slope, intercept = fit_line(chosen["logit"], chosen["label"])
    before, labels = chosen["label"].mean(), target["label"].to_numpy()
    clusters = find_clusters(target["cluster"].to_numpy(), len(target)).codes
    line = slope * target["logit"].to_numpy(np.float64) + intercept
    random = np.random.default_rng(0)
    for size in (100, 1000):
        for share in (0.0, 0.05, 0.2, 0.5, 0.8, 1.0):
            counts = [size - round(share * size), round(share * size)]
            found, refused, plain, adapted = [], [], [], []
            for _ in range(draws):
                drawn = [random.choice(np.flatnonzero(labels == label), counts[label]) for label in (0, 1)]
                rows = np.concatenate(drawn)
                prior = estimate_prior(line[rows], before)
                found.append(prior)
                refused.append(not speaks_for_both(line[rows], before, clusters[rows]))
                shifted = line[rows] + logit(np.clip(prior, 1e-6, 1 - 1e-6)) - logit(before)
                plain.append(calibration_error(expit(line[rows]), labels[rows]))
                adapted.append(calibration_error(expit(shifted), labels[rows]))
            low, high = np.quantile(found, [0.025, 0.975])
            numbers = (np.mean(found), low, high, np.mean(refused), np.mean(plain), np.mean(adapted))
            row(recipe, size, share, *(f"{number:.3f}" for number in numbers))


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe")
    parser.add_argument("target", type=Path, help="predictions on other slides, with the column cluster")
    parser.add_argument("choosers", nargs="*", help="NAME=predictions that choose")
    parser.add_argument("--shares", action="store_true")
    options = parser.parse_args()
    target = runs.read_predictions(options.target)
    if options.shares and not options.choosers:
        parser.error("--shares needs CHOSEN.csv, the tiles that calibrate")
    if options.shares:
        print_shares(options.recipe, target, runs.read_predictions(Path(options.choosers[0])))
    else:
        print_levels(options.recipe, target, options.choosers)


if __name__ == "__main__":
    main()
