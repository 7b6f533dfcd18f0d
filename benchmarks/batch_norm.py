"""Say where batch-norm statistics of unlabelled tiles help, and where they collapse: benchmarks/batch_norm.csv.

A run is measured on a sample of other tiles as it is, and adapted to few and to many others of them, as they come and
with a stated share of tumour, at the run's threshold. Adapting needs no labels; here they choose what to adapt to.

    python benchmarks/batch_norm.py RECIPE RUN data=folder data.root=OTHER > benchmarks/batch_norm.csv
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from tables import csv_printer

from histolight import runs
from histolight.config.keys import run_config
from histolight.data.prepare import load_tiles
from histolight.data.sources import load_source
from histolight.inference import adaptation
from histolight.inference.evaluate_request import KEYS, TAKEN
from histolight.inference.networks import load_classifier, predict_logits
from histolight.statistics.metrics import classification_metrics

MEASURED = 800
ADAPTED_TO = [
    *(("both classes, as they come", size, None) for size in (16, 64, 128, 512)),
    *((f"{share:.0%} tumour", 512, share) for share in (0, 0.05, 0.2, 0.5, 0.8, 1)),
]


def main() -> None:
    """Print a row for each set of tiles adapted to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe")
    parser.add_argument("run", type=Path)
    parser.add_argument("overrides", nargs="+", help="other tiles, as for histolight evaluate")
    options = parser.parse_args()
    config = run_config(options.run, options.overrides, KEYS, TAKEN, "evaluate")
    packed = load_tiles(load_source(config.data), config.data)
    threshold, store = runs.completed_metrics(options.run)["threshold"], packed.pack.tiles
    table = packed.table.sample(frac=1, random_state=0)
    measured, rest = table[:MEASURED], table[MEASURED:]
    row = csv_printer("recipe", "adapted_to", "tiles", "auroc", "accuracy", "sensitivity", "specificity", "ece")
    for name, size, share in [("nothing", 0, None), *ADAPTED_TO]:
        classifier = load_classifier(options.run)
        if size:
            counts = {} if share is None else {0: size - round(share * size), 1: round(share * size)}
            chosen = [rest[rest["label"] == label][:count] for label, count in counts.items()] or [rest[:size]]
            adaptation.adapt_batch_norm(classifier, store, pd.concat(chosen)["row"].to_numpy(), config.trainer)
        batches = predict_logits([classifier], store, measured["row"].to_numpy(), config.trainer, 64)
        logits = torch.from_numpy(np.concatenate(list(batches))[:, 0])
        labels = torch.tensor(measured["label"].to_numpy())
        figures, at = (classification_metrics(logits, labels, level) for level in (0.5, threshold))
        names = ("accuracy", "sensitivity", "specificity")
        row(
            options.recipe,
            name,
            size,
            *(f"{value:.3f}" for value in (figures["auroc"], *(at[figure] for figure in names), figures["ece"])),
        )


if __name__ == "__main__":
    main()
