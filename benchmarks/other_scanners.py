"""Measure runs on their own validation tiles as other laboratories and scanners might have shown them.

A validation for choosing a recipe where all tiles come from one place. Each of the run's validation tiles is shown by
every one of a few imaginary scanners, the same for all runs: absorption that mixes between the colours and is stronger
or weaker, another white balance and gamma, blur, JPEG. None of this is a function that `augment` has. The scores of all
scanners are pooled, so that a scanner that moves all logits costs too. Beside them stand the AUROCs of evaluations of
the run on other slides, with one view and with eight, where they are given.

    python benchmarks/other_scanners.py 'NAME=RUN[,EVALUATION[,EVALUATION]]' …
"""

from __future__ import annotations

import argparse
import io
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageFilter
from sklearn.metrics import roc_auc_score
from tables import csv_printer
from torch.utils.data import DataLoader
from tqdm import tqdm

from histolight import api, runs
from histolight.data.datamodule import to_floats
from histolight.data.prepare import prepare
from histolight.models.classifier import Classifier

SCANNERS = 6
BLOCK = 256


def other_scanner(tiles: np.ndarray, seed: int) -> np.ndarray:
    """Show uint8 (N, S, S, 3) tiles as the imaginary scanner ``seed`` would."""
    random = np.random.default_rng(seed)
    mixing = np.eye(3) * random.uniform(0.7, 1.3) + random.normal(0, 0.07, (3, 3))
    white = random.uniform(0.9, 1.0, 3)
    gamma = random.uniform(0.85, 1.2)
    blur, quality = random.uniform(0, 0.9), int(random.integers(55, 95))
    absorption = -np.log((tiles.astype(np.float32) + 1) / 256) @ mixing.T.astype(np.float32)
    light = np.clip(np.exp(-absorption) * white, 0, 1) ** gamma
    shown = np.empty_like(tiles)
    for index, tile in enumerate((light * 255).round().astype(np.uint8)):
        file = io.BytesIO()
        Image.fromarray(tile).filter(ImageFilter.GaussianBlur(blur)).save(file, "JPEG", quality=quality)
        shown[index] = np.asarray(Image.open(file))
    return shown


def logits(classifier: Classifier, tiles: np.ndarray) -> np.ndarray:
    """Return the float32 logits (N,) for uint8 (N, S, S, 3)."""
    batches = DataLoader(torch.from_numpy(tiles), BLOCK)
    with torch.inference_mode():
        return torch.cat([classifier(to_floats(tiles, classifier.stain)) for tiles in batches]).numpy()


def main() -> None:
    """Print one row a run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", help="NAME=RUN[,EVALUATION[,EVALUATION]]")
    print_row = csv_printer("run", "own_validation", "other_scanners", "worst_scanner", "other_slides", "eight_views")
    for argument in tqdm(parser.parse_args().runs, unit="run"):
        name, folders = argument.rsplit("=", 1)
        directory, *evaluations = map(Path, folders.split(","))
        run = api.load_run(directory)
        data, classifier = prepare(run.config.data), run.classifier()
        part = data.table[data.table["split"] == "val"]
        tiles, labels = data.tiles.gather(part["row"].to_numpy()), part["label"].to_numpy()
        own = roc_auc_score(labels, logits(classifier, tiles))
        shown = np.stack([logits(classifier, other_scanner(tiles, seed)) for seed in range(SCANNERS)])
        worst = min(roc_auc_score(labels, row) for row in shown)
        pooled = roc_auc_score(np.tile(labels, SCANNERS), shown.ravel())
        others = [runs.read_metrics(folder)["test"]["auroc"]["value"] for folder in evaluations]
        blank = [""] * (2 - len(others))
        print_row(name, *(f"{value:.3f}" for value in (own, pooled, worst, *others)), *blank)


if __name__ == "__main__":
    main()
