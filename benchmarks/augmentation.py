"""Tiles per second of each augmentation and of stain normalisation, alone and together, on one core, as CSV.

python benchmarks/augmentation.py > benchmarks/augmentation.csv
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable

import numpy as np
import torch
from tables import csv_printer

from histolight.config.compose import compose_config, typed
from histolight.config.schema import AugmentConfig, DataConfig
from histolight.data.datamodule import augmented, to_floats
from histolight.data.loader import Batch
from histolight.data.sources import load_source

TILES, ROUNDS, STEPS = 64, 7, 3


def tiles_per_second(work: Callable[[], object]) -> float:
    """Return the median of ``ROUNDS`` rounds, in seconds of the processor: other work does not count."""
    work()
    rates = []
    for _ in range(ROUNDS):
        begun = time.process_time()
        for _ in range(STEPS):
            work()
        rates.append(TILES * STEPS / (time.process_time() - begun))
    return statistics.median(rates)


def main() -> int:
    torch.set_num_threads(1)
    read_tile = load_source(DataConfig()).read_tile
    pixels = torch.from_numpy(np.stack([read_tile(31 * number) for number in range(TILES)]))
    batch = Batch(pixels, torch.arange(TILES).remainder(2).float(), torch.arange(TILES), seed=0)
    strong = typed(compose_config(["augment=strong"])).augment
    strengths = {key: value for key, value in vars(strong).items() if value} | {"cutmix": 0.5, "mixup": 0.2}
    print_row = csv_printer("setting", "tiles_per_second")

    def show(name: str, work: Callable[[], object]) -> None:
        print_row(name, f"{tiles_per_second(work):.0f}")

    show("nothing (bytes to floats)", lambda: to_floats(pixels, "none"))
    for key, value in strengths.items():
        settings = AugmentConfig(**{key: value})
        show(f"`augment.{key}={value}`", lambda settings=settings: augmented(batch, settings, "none"))
    for name in ("dihedral", "stain", "strong"):
        settings = typed(compose_config([f"augment={name}"])).augment
        show(f"`augment={name}`", lambda settings=settings: augmented(batch, settings, "none"))
    for method in ("macenko", "reinhard"):
        show(f"`data.stain={method}`", lambda method=method: to_floats(pixels, method))
    return 0


if __name__ == "__main__":
    sys.exit(main())
