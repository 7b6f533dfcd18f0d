"""Training tiles/s on one device: a plain notebook loop, the usual fast path, and histolight, on the same tiles.

The notebook is float32, eager, NCHW, with a tile opened, decoded and flipped in Python by a DataLoader. The usual path
is what scripts of timm and Lightning do: half precision, channels_last, a fused optimizer, a DataLoader with a worker a
core, pinned memory and prefetch. histolight is the epoch of ``histolight bench``, with each ``trainer.compile``.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from torch.utils.data import DataLoader, RandomSampler

from histolight.config.compose import typed
from histolight.config.request import requested_config
from histolight.config.schema import Config
from histolight.data.prepare import PreparedData, prepare
from histolight.hardware import resolve_precision
from histolight.models.classifier import Classifier
from histolight.training.bench import NotebookTiles, bench, rate, tile_files
from histolight.training.fit import check_request

SECONDS = 20.0


def train_steps(config: Config, loader: DataLoader, device: torch.device, usual: bool) -> Iterator[torch.Tensor]:
    """Train for ever on what a loader gives; random labels, which cost the same."""
    classifier = Classifier.from_config(config, 1.0)
    layout = torch.channels_last if usual else torch.contiguous_format
    classifier.to(device, memory_format=layout).train()
    optimizer = torch.optim.Adam(classifier.parameters(), config.optimizer.lr, fused=usual)
    criterion = torch.nn.BCEWithLogitsLoss()
    half = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}.get(
        resolve_precision(config.trainer.precision, config.trainer.accelerator)
    )
    scaler = torch.amp.GradScaler(device.type, enabled=usual and half is torch.float16)
    for batch in loader:
        tiles = batch.to(device, non_blocking=usual, memory_format=layout)
        labels = torch.randint(2, (len(tiles),), device=device).float()
        optimizer.zero_grad()
        with torch.autocast(device.type, half, enabled=usual and half is not None):
            loss = criterion(classifier(tiles), labels)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        if not usual:
            loss.item()  # the notebook adds up the loss of each step
        yield tiles


def measure_loop(config: Config, data: PreparedData, device: torch.device, workers: int, usual: bool) -> float:
    """Return tiles/s of one of the two loops that are not ours."""
    with tempfile.TemporaryDirectory() as folder:
        tiles = NotebookTiles(tile_files(config, data, Path(folder, "tiles")))
        loader = DataLoader(
            tiles,
            config.data.batch_size,
            sampler=RandomSampler(tiles, replacement=True, num_samples=2**40),
            num_workers=workers,
            pin_memory=usual and device.type == "cuda",
            persistent_workers=usual and workers > 0,
            prefetch_factor=4 if usual and workers > 0 else None,
        )
        return rate(train_steps(config, loader, device, usual), device, SECONDS)


def main() -> None:
    """Print the table for the overrides on the command line, such as data=kaggle data.root=FOLDER model=densenet121."""
    overrides = sys.argv[1:]
    config = check_request(typed(requested_config(overrides)))
    data = prepare(config.data)
    cuda = torch.cuda.is_available() and config.trainer.accelerator != "cpu"
    device = torch.device("cuda" if cuda else "cpu")
    cores = os.cpu_count() or 1
    found = {
        "notebook, no workers": measure_loop(config, data, device, 0, usual=False),
        f"notebook, {cores} workers": measure_loop(config, data, device, cores, usual=False),
        f"usual path, {cores} workers": measure_loop(config, data, device, cores, usual=True),
    }
    for compiled in ("none", "default", "reduce-overhead") if cuda else ("none",):
        with tempfile.TemporaryDirectory() as folder:
            figures = bench([*overrides, f"trainer.compile={compiled}"], Path(folder))
        found[f"histolight, compile {compiled}"] = figures["tiles_per_second"]["epoch"]
    where = torch.cuda.get_device_name(device) if cuda else f"CPU, {cores} cores"
    print(f"{where}, torch {torch.__version__}, {config.model.name}, batch {config.data.batch_size}\n")
    print("| training | tiles/s | against the notebook | against the usual path |\n|:---|---:|---:|---:|")
    notebook, usual = (
        next(value for name, value in found.items() if name.startswith(kind)) for kind in ("note", "usu")
    )
    for name, value in found.items():
        print(f"| {name} | {value:,.0f} | {value / notebook:.2f} | {value / usual:.2f} |")


if __name__ == "__main__":
    main()
