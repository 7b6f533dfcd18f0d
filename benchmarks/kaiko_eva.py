"""The same probe by kaiko-eva and by histolight: the same tiles, the same frozen network, five runs each.

    uv venv EVA && uv pip install --python EVA/bin/python 'kaiko-eva[vision]'
    python benchmarks/kaiko_eva.py EVA/bin/python TRAIN.parquet VALIDATION.parquet WEIGHTS > benchmarks/kaiko_eva.csv

Tiles in the Hub's Parquet form (columns image and label) are written as PatchCamelyon's HDF5 files, drawn with the same
number of each class: TRAIN for training, VALIDATION for validation and, other tiles of it, for test. eva runs its
PatchCamelyon protocol in its own environment, histolight ``experiment=eva_pcam``, each with STEPS steps and a patience
of a fifth of the epochs, as eva's documentation has it. WEIGHTS is a state dict of timm's tf_efficientnet_lite0, which
sees the tiles at SIZE pixels; LR is the learning rate of both. The figure is the
balanced accuracy on the test part at a threshold of 0.5.
"""

from __future__ import annotations

import io
import json
import subprocess
import sys
import tempfile
from pathlib import Path

NETWORK, WIDTH, MEAN, SIZE = "tf_efficientnet_lite0", 1280, (0.5, 0.5, 0.5), 96
COUNTS = {"train": 4096, "valid": 1024, "test": 1024}
BATCH, EPOCHS, RUNS, LR = 128, 30, 5, 0.001
STEPS = COUNTS["train"] // BATCH * EPOCHS
PATIENCE = EPOCHS // 5


def write_tiles(train: str, validation: str, folder: Path) -> None:
    import h5py
    import numpy as np
    import pandas as pd
    from PIL import Image

    random = np.random.default_rng(0)
    tables = {"train": pd.read_parquet(train), "rest": pd.read_parquet(validation)}
    for part, count in COUNTS.items():
        name = "train" if part == "train" else "rest"
        drawn = np.concatenate(
            [
                random.choice(np.flatnonzero(tables[name]["label"] == label), count // 2, replace=False)
                for label in (0, 1)
            ]
        )
        table = tables[name].iloc[drawn]
        tables[name] = tables[name].drop(index=table.index).reset_index(drop=True)
        pixels = np.stack(
            [np.asarray(Image.open(io.BytesIO(image["bytes"])).convert("RGB")) for image in table["image"]]
        )
        for kind, values in (("x", pixels), ("y", table["label"].to_numpy().reshape(-1, 1, 1, 1))):
            with h5py.File(folder / f"camelyonpatch_level_2_split_{part}_{kind}.h5", "w") as file:
                file[kind] = values


def run_eva(tiles: str, weights: str, output: str) -> None:
    """Run eva's protocol; called in its own environment."""
    import timm
    import torch
    from eva.core import callbacks
    from eva.core.data.dataloaders import DataLoader
    from eva.core.data.datamodules import DataModule
    from eva.core.data.datamodules.schemas import DataloadersSchema, DatasetsSchema
    from eva.core.data.datasets import EmbeddingsClassificationDataset
    from eva.core.interface import Interface
    from eva.core.metrics import AverageLoss, BinaryClassificationMetrics
    from eva.core.metrics.structs import MetricsSchema
    from eva.core.models.modules import HeadModule
    from eva.core.trainers import Trainer
    from eva.vision.data.datasets import PatchCamelyon
    from eva.vision.data.transforms.common import ResizeAndCrop
    from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
    from torchvision.transforms import v2

    PatchCamelyon._expected_length = {"train": COUNTS["train"], "val": COUNTS["valid"], "test": COUNTS["test"]}
    backbone = timm.create_model(NETWORK, num_classes=0)
    state = torch.load(weights, weights_only=True)
    backbone.load_state_dict({key: value for key, value in state.items() if not key.startswith("classifier.")})
    torch.set_num_threads(1)
    watched = {"monitor": "val/BinaryBalancedAccuracy", "mode": "max"}
    embeddings = Path(output, "embeddings")
    to_float = v2.ToDtype(dtype=torch.float32)
    parts = {
        part: EmbeddingsClassificationDataset(str(embeddings), "manifest.csv", split=part, target_transforms=to_float)
        for part in ("train", "val", "test")
    }
    pictures = [PatchCamelyon(tiles, part, transforms=ResizeAndCrop(SIZE, mean=MEAN, std=MEAN)) for part in parts]
    loaders = {
        part: DataLoader(
            batch_size=BATCH, shuffle=part == "train", num_workers=0, prefetch_factor=None, persistent_workers=False
        )
        for part in parts
    }
    predicted = DataLoader(batch_size=64, num_workers=0, prefetch_factor=None, persistent_workers=False)
    trainer = Trainer(
        n_runs=RUNS,
        default_root_dir=output,
        max_steps=STEPS,
        accelerator="cpu",
        enable_progress_bar=False,
        log_every_n_steps=1,
        callbacks=[
            ModelCheckpoint(filename="best", save_top_k=1, **watched),
            EarlyStopping(min_delta=0, patience=PATIENCE, **watched),
            callbacks.ClassificationEmbeddingsWriter(
                str(embeddings), backbone.eval(), {0: "train", 1: "val", 2: "test"}, overwrite=False
            ),
        ],
    )
    model = HeadModule(
        head=torch.nn.Linear(WIDTH, 1),
        criterion=torch.nn.BCEWithLogitsLoss(),
        optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=LR),
        metrics=MetricsSchema(common=[AverageLoss(), BinaryClassificationMetrics()]),
    )
    data = DataModule(DatasetsSchema(**parts, predict=pictures), DataloadersSchema(**loaders, predict=predicted))
    Interface().predict_fit(trainer, model, data)


def start_eva(python: str, tiles: Path, weights: str, output: Path) -> subprocess.Popen[bytes]:
    command = [python, str(Path(__file__).resolve()), "--eva", str(tiles), weights, str(output)]
    return subprocess.Popen(command, stdout=sys.stderr, start_new_session=True)


def eva_figures(output: Path) -> list[float]:
    results = json.loads(next(output.glob("*/results.json")).read_text())
    return results["metrics"]["test"][0]["test/BinaryBalancedAccuracy"]["values"]


def own_figures(tiles: Path, weights: str, output: Path) -> list[float]:
    import histolight

    figures = []
    for seed in range(RUNS):
        overrides = [
            "experiment=eva_pcam",
            f"data.root={tiles}",
            f"data.cache={output / 'cache'}",
            f"model.name=timm/{NETWORK}",
            f"model.weights={weights}",
            f"model.input_size={SIZE}",
            f"data.batch_size={BATCH}",
            f"optimizer.lr={LR}",
            f"trainer.max_epochs={EPOCHS}",
            f"trainer.patience={PATIENCE}",
            "trainer=cpu",
            f"seed={seed}",
            f"hydra.run.dir={output / str(seed)}",
        ]
        run = histolight.train(overrides)
        figures.append(run.metrics["test"]["balanced_accuracy"]["value"])
    return figures


def main() -> int:
    if sys.argv[1] == "--eva":
        run_eva(*sys.argv[2:])
        return 0
    from tables import csv_printer

    python, train, validation, weights = sys.argv[1:]
    print_row = csv_printer("by", "runs", "balanced_accuracy", "lowest", "highest", "lr", *COUNTS)
    with tempfile.TemporaryDirectory() as folder:
        tiles = Path(folder, "tiles")
        tiles.mkdir()
        write_tiles(train, validation, tiles)
        weights = str(Path(weights).resolve())
        process = start_eva(python, tiles, weights, Path(folder, "eva"))
        own = own_figures(tiles, weights, Path(folder, "histolight"))
        if process.wait() != 0:
            return 1
        eva = eva_figures(Path(folder, "eva"))
    for name, figures in (("kaiko-eva", eva), ("histolight", own)):
        mean, spread = sum(figures) / RUNS, (min(figures), max(figures))
        print_row(name, RUNS, f"{mean:.4f}", *(f"{value:.4f}" for value in spread), LR, *COUNTS.values())
    return 0


if __name__ == "__main__":
    sys.exit(main())
