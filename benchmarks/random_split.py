"""Say how much a random split flatters: the same training by a random split and by one across which no tiles overlap.

Prints CSV: one row a training (the seed decides the split too), then the mean difference of the validation AUROCs with
its interval, from the clustered variances of all trainings, taken as independent.

    python benchmarks/random_split.py data=kaggle data.root=FOLDER model=mobilenet_v2 trainer.max_epochs=1 \
        --runs FOLDER > benchmarks/random_split.csv

Runs that are completed in FOLDER are not trained again.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import torch
from scipy.stats import norm

sys.path.insert(0, str(Path(__file__).resolve().parent))
from tables import csv_printer

from histolight import runs
from histolight.config.compose import compose_config, typed
from histolight.statistics.verdict import auroc_covariance
from histolight.training import fit

SEEDS = 3
SPLITS = {"random": "random", "overlap": "auto"}


def main() -> None:
    """Train each seed with both splits."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="+")
    parser.add_argument("--runs", type=Path, required=True)
    torch.set_num_threads(1)
    arguments = parser.parse_args()
    print_row = csv_printer("split", "seed", "tiles", "leaking", "auroc", "low", "high")
    aurocs: dict[str, list[float]] = {name: [] for name in SPLITS}
    variances = []
    for seed in range(SEEDS):
        for name, split in SPLITS.items():
            extra = [f"data.split={split}", f"data.seed={seed}", f"seed={seed}"]
            config = fit.check_request(typed(compose_config([*arguments.overrides, *extra])))
            directory = arguments.runs / f"{name}-{seed}"
            if not (directory / "predictions" / "val.csv").is_file():
                fit.train(config, fit.prepare_data(config, directory), directory, progress=False)
            metrics = runs.read_metrics(directory)
            assert metrics["split"] == name
            val = runs.read_predictions(directory / "predictions" / "val.csv")
            found = auroc_covariance(val["logit"].to_numpy()[None], val["label"], val["cluster"])
            auroc, variance = float(found.aurocs[0]), float(found.covariance[0, 0])
            aurocs[name].append(auroc)
            variances.append(variance)
            interval = metrics["val"]["auroc"]
            figures = [f"{value:.4f}" for value in (auroc, interval["low"], interval["high"])]
            print_row(name, seed, len(val), metrics["leaking"]["val"], *figures)
    difference = float(np.mean(aurocs["random"]) - np.mean(aurocs["overlap"]))
    half = float(norm.ppf(0.975)) * float(np.sqrt(np.sum(variances))) / SEEDS
    figures = [f"{value:+.4f}" for value in (difference, difference - half, difference + half)]
    print_row("random - overlap", "mean", "", "", *figures)


if __name__ == "__main__":
    main()
