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

import pandas as pd
import yaml

import histolight

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


def compare(folder: Path) -> pd.DataFrame:
    records = []
    runs = {
        (config["data"]["seed"], config["seed"]): path.parent
        for path in folder.glob("*/config.yaml")
        for config in [yaml.safe_load(path.read_text())]
    }
    for draw in range(DRAWS):
        for unit, (rows, seeds) in LAYOUTS.items():
            with tempfile.TemporaryDirectory() as place:
                disguise([runs[draw, seed] for seed in range(rows * seeds)], Path(place), seeds)
                found = histolight.compare(place)
            aurocs = [row["auroc"] for row in found.rows]
            record = {"draw": draw, "unit": found.rows[0]["unit"], "rows": rows, "seeds": seeds}
            record |= {"tiles": found.rows[0]["tiles"], "lowest_auroc": min(aurocs), "highest_auroc": max(aurocs)}
            records.append(record | {"rows_in_best_set": len(found.best_set)})
            assert record["unit"] == unit
    return pd.DataFrame(records)


if __name__ == "__main__":
    command, place, *rest = sys.argv[1:]
    if command == "train":
        train(Path(place), rest)
    else:
        compare(Path(place)).to_csv(sys.stdout, index=False, float_format="%.4f")
