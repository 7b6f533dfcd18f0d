"""A/A trial: seeds of one configuration, given to `compare` as rows of their own, must not be told apart.

    python benchmarks/same_configuration.py train RUNS data=kaggle data.root=FOLDER [overrides]
    python benchmarks/same_configuration.py compare RUNS > benchmarks/same_configuration.csv

`train` makes DRAWS samples of tiles (`data.seed`) x SEEDS trainings in RUNS. `compare` gives each draw to
`histolight.compare` twice, with one changed key a row, which had no part in the training: ten rows of one seed, judged
as trainings, and three rows of three seeds, judged as configurations. Every row belongs in the set of the best.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np
import yaml
from tables import csv_printer

import histolight
from histolight.ranking.ranking import compare_runs

DRAWS = 4
SEEDS = 10
SETTINGS = ["data.limit=1000", "data.val_fraction=0.4", "data.batch_size=32", "trainer=cpu", "trainer.max_epochs=1"]
LAYOUTS = {"training": (10, 1), "configuration": (3, 3)}  # rows, seeds of each


def train(folder: Path, overrides: list[str]) -> None:
    draws, seeds = ",".join(map(str, range(DRAWS))), ",".join(map(str, range(SEEDS)))
    histolight.sweep([*SETTINGS, *overrides, f"data.seed={draws}", f"seed={seeds}", f"hydra.sweep.dir={folder}"])


def disguise(runs: list[Path], folder: Path, seeds: int) -> None:
    """Copy runs of one configuration as rows of `seeds` runs: row r is called `model r`, its seeds count from 0."""
    for number, run in enumerate(runs):
        copy = folder / str(number)
        (copy / "predictions").mkdir(parents=True)
        shutil.copy(run / "metrics.json", copy)
        shutil.copy(run / "predictions" / "val.csv", copy / "predictions")
        config = yaml.safe_load((run / "config.yaml").read_text())
        config["model"]["name"] = f"model {number // seeds}"
        config["seed"] = number % seeds
        (copy / "config.yaml").write_text(yaml.safe_dump(config))


def compare(folder: Path) -> None:
    print_row = csv_printer(
        "draw", "unit", "rows", "seeds", "tiles", "lowest", "highest", "seed_sd", "correlation", "best_set"
    )
    runs = {
        (config["data"]["seed"], config["seed"]): path.parent
        for path in folder.glob("*/config.yaml")
        for config in [yaml.safe_load(path.read_text())]
    }
    for draw in range(DRAWS):
        for unit, (rows, seeds) in LAYOUTS.items():
            with tempfile.TemporaryDirectory() as place:
                disguise([runs[draw, seed] for seed in range(rows * seeds)], Path(place), seeds)
                ranking = compare_runs([Path(place)])
            assert (ranking.unit, len(ranking.rows)) == (unit, rows)
            aurocs, matrix = ranking.covariance.aurocs, ranking.covariance.covariance
            scale = np.sqrt(np.diagonal(matrix))
            correlation = (matrix / scale[:, None] / scale)[np.triu_indices(len(aurocs), 1)].mean()
            figures = (aurocs.min(), aurocs.max(), aurocs.std(ddof=1), correlation)
            written = [f"{figure:.4f}" for figure in figures]
            print_row(draw, unit, rows, seeds, ranking.tiles, *written, len(ranking.best_set))


if __name__ == "__main__":
    command, place, *rest = sys.argv[1:]
    if command == "train":
        train(Path(place), rest)
    else:
        compare(Path(place))
