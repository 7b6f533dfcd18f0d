"""Validation AUROC after each epoch of every point of sweep=grid, by schedules of several lengths, as CSV.

    OMP_NUM_THREADS=1 python benchmarks/pruning.py data=kaggle data.root=FOLDER data.limit=600 data.val_fraction=0.4 \
        model.name=timm/test_resnet model.weights=null trainer=cpu --runs FOLDER > benchmarks/pruning.csv

A search that prunes by epoch judges a point by its first epochs. Under one_cycle these lie before the anneal. A point
can be judged there all the same, at equal epochs of the one schedule (the rows with 5 epochs), or by a training whose
schedule ends where it is judged (the rows with 1 and 3 epochs, of one seed). ``asha.py`` says what becomes of each.
Runs that are completed in FOLDER are not trained again.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))
from tables import csv_printer

from histolight import runs
from histolight.config.compose import compose_config, typed
from histolight.reports.curves import read_curves
from histolight.training import fit

TRAININGS = [(0, 5), (1, 5), (2, 5), (0, 1), (0, 3)]  # seed, and epochs of the schedule


def main() -> None:
    """Train what is not completed, and print every curve."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="+")
    parser.add_argument("--runs", type=Path, required=True)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    axes = compose_config(["sweep=grid"]).hydra.sweeper.params
    grid = [list(values) for values in itertools.product(*(text.split(",") for text in axes.values()))]
    print_row = csv_printer("seed", *axes, "schedule_epochs", "epoch", "val_auroc")
    data = None
    for seed, epochs in TRAININGS:
        for values in grid:
            extra = [f"{key}={value}" for key, value in zip(axes, values, strict=True)]
            extra += [f"seed={seed}", f"trainer.max_epochs={epochs}", "logger=csv"]
            directory = arguments.runs / "_".join([str(seed), str(epochs), *values])
            if not (directory / "metrics.json").is_file() or runs.read_metrics(directory)["status"] != "completed":
                config = fit.check_request(typed(compose_config([*arguments.overrides, *extra])))
                data = data or fit.prepare_data(config, directory)
                fit.train(config, data, directory, progress=False, drawn=False)
            for epoch, auroc in enumerate(read_curves(directory)["val/auroc"], start=1):
                print_row(seed, *values, epochs, epoch, f"{auroc:.4f}")


if __name__ == "__main__":
    main()
