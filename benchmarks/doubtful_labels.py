"""How many labels that were flipped on purpose does `histolight explore runs=` find?

Takes Kaggle's layout and weights of MobileNetV2. For each seed 2 % of the labels, drawn at random, are flipped in a
copy of train_labels.csv beside a link to the tiles; a linear probe is trained on them in five folds, of which none
shares a pixel with another; and the list of doubtful labels is compared with what was flipped. Prints CSV.

    python benchmarks/doubtful_labels.py FOLDER WEIGHTS > benchmarks/doubtful_labels.csv
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd

sys.path.insert(0, str(Path(__file__).resolve().parent))
from tables import csv_printer

import histolight
from histolight.config.compose import saved_config, typed
from histolight.exploration.labels import LEARNING, doubt_labels, read_out_of_fold

SHARE = 0.02


def main() -> None:
    """Print one row a seed and length of the list."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path)
    parser.add_argument("weights", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    print_row = csv_printer("seed", "tiles", "flipped", "auroc", "list", "length", "right", "precision", "recall")
    none = pd.DataFrame({"id_1": [], "id_2": []})
    with tempfile.TemporaryDirectory() as place:
        for seed in range(options.seeds):
            root, flipped = flip(options.root, Path(place) / f"tiles_{seed}", seed)
            words = ["experiment=linear_probe", f"data.root={root}", f"data.cache={place}/cache", "data.fold=0,1,2,3,4"]
            words += ["model=mobilenet_v2", f"model.weights={options.weights.absolute()}", "trainer=cpu"]
            points = histolight.sweep([*words, f"name=flipped_{seed}", f"hydra.sweep.dir={place}/sweep_{seed}"])
            directories = [point.directory for point in points]
            aurocs = [point.metrics["val"]["auroc"]["value"] for point in points]
            data = read_out_of_fold(directories, typed(saved_config(directories[0])).data)
            ranked = doubt_labels(data.table, none)
            doubted = int((ranked["why"] == LEARNING).sum())
            for kind, length in (("as many as were flipped", len(flipped)), ("all that are doubted", doubted)):
                right = int(ranked["id"].head(length).isin(flipped).sum())
                rates = (f"{right / length:.3f}", f"{right / len(flipped):.3f}")
                print_row(seed, len(ranked), len(flipped), f"{np.mean(aurocs):.4f}", kind, length, right, *rates)


def flip(source: Path, root: Path, seed: int) -> tuple[Path, set[str]]:
    """Make a folder of the same tiles with some labels flipped; return it and the ids of these."""
    root.mkdir()
    (root / "train").symlink_to((source / "train").absolute())
    labels = pd.read_csv(source / "train_labels.csv")
    chosen = np.random.default_rng(seed).choice(len(labels), round(SHARE * len(labels)), replace=False)
    labels.loc[chosen, "label"] = 1 - labels.loc[chosen, "label"]
    labels.to_csv(root / "train_labels.csv", index=False)
    return root, set(labels.loc[chosen, "id"])


if __name__ == "__main__":
    main()
