"""A/A trial: seeds of one configuration, given to `compare` as rows of their own, must not be told apart.

    python benchmarks/same_configuration.py WEIGHTS data=kaggle data.root=FOLDER > benchmarks/same_configuration.csv

Features of 1,000 tiles by a frozen MobileNetV2 (WEIGHTS: its ImageNet weights as a state dict); DRAWS random splits of
them; SEEDS last layers trained on each split, which differ in initial weights, order and dropout. Their predictions go
into run directories, and these to `compare`: as ten rows of one seed, judged as trainings, and as three rows of three
seeds, judged as configurations. Every row belongs in the set of the best.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from sklearn.model_selection import train_test_split
from torchvision.models import mobilenet_v2

import histolight
from histolight.ranking.ranking import compare_runs

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from fake_runs import write_run
from tables import csv_printer

DRAWS = 8
SEEDS = 10
TILES, VALIDATION = 1000, 400
EPOCHS, BATCH = 20, 32
LAYOUTS = {"training": (10, 1), "configuration": (3, 3)}  # rows, seeds of each
MEAN, SD = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])


def features(weights: str, overrides: list[str]) -> tuple[pd.DataFrame, torch.Tensor]:
    """Return the tiles' table and their features, (N, 1280) float32."""
    tiles = histolight.load_tiles([*overrides, f"data.limit={TILES}"])
    network = mobilenet_v2()
    network.load_state_dict(torch.load(weights, weights_only=True), strict=False)
    network.classifier = torch.nn.Identity()
    network.eval()
    found = []
    with torch.inference_mode():
        for start in range(0, len(tiles.table), BATCH):
            batch = torch.from_numpy(tiles.pack.tiles.gather(tiles.table["row"].to_numpy()[start : start + BATCH]))
            found.append(network(((batch / 255 - MEAN) / SD).permute(0, 3, 1, 2)))
    return tiles.table, torch.cat(found).clone()


def head_logits(train: torch.Tensor, labels: torch.Tensor, validation: torch.Tensor, seed: int) -> np.ndarray:
    """Train a last layer with one seed; return its logits of the validation tiles."""
    torch.manual_seed(seed)
    head = torch.nn.Sequential(torch.nn.Dropout(0.5), torch.nn.Linear(train.shape[1], 1))
    optimizer = torch.optim.AdamW(head.parameters(), lr=1e-3)
    for _ in range(EPOCHS):
        for rows in torch.randperm(len(train)).split(BATCH):
            loss = torch.nn.functional.binary_cross_entropy_with_logits(head(train[rows])[:, 0], labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    with torch.inference_mode():
        return head.eval()(validation)[:, 0].numpy()


def main() -> None:
    weights, *overrides = sys.argv[1:]
    table, vectors = features(weights, overrides)
    labels = table["label"].to_numpy()
    print_row = csv_printer(
        "draw", "unit", "rows", "seeds", "tiles", "lowest", "highest", "seed_sd", "correlation", "best_set"
    )
    for draw in range(DRAWS):
        split = train_test_split(np.arange(len(table)), test_size=VALIDATION, stratify=labels, random_state=draw)
        train, validation = map(torch.from_numpy, split)
        truth = torch.from_numpy(labels[split[0]].astype(np.float32))
        logits = [head_logits(vectors[train], truth, vectors[validation], seed) for seed in range(SEEDS)]
        tiles = pd.DataFrame({"id": table["id"].to_numpy()[split[1]], "label": labels[split[1]], "group": None})
        for unit, (rows, seeds) in LAYOUTS.items():
            with tempfile.TemporaryDirectory() as folder:
                for number in range(rows * seeds):
                    logit = logits[number]
                    predictions = tiles.assign(logit=logit, score=1 / (1 + np.exp(-logit)))
                    name = {"model__name": f"model {number // seeds}", "seed": number % seeds}
                    write_run(Path(folder, str(number)), {"val": predictions}, **name)
                ranking = compare_runs([Path(folder)])
            assert (ranking.unit, len(ranking.rows)) == (unit, rows)
            aurocs, matrix = ranking.covariance.aurocs, ranking.covariance.covariance
            scale = np.sqrt(np.diagonal(matrix))
            correlation = (matrix / scale[:, None] / scale)[np.triu_indices(len(aurocs), 1)].mean()
            figures = [f"{figure:.4f}" for figure in (aurocs.min(), aurocs.max(), aurocs.std(ddof=1), correlation)]
            print_row(draw, unit, rows, seeds, ranking.tiles, *figures, len(ranking.best_set))


if __name__ == "__main__":
    main()
