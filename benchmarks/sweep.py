"""What a point of a sweep costs beside its training, and how soon a wrong request is refused, as CSV.

    OMP_NUM_THREADS=1 python benchmarks/sweep.py [POINTS] > sweep.csv

Points of hardly any work: 60 tiles of 32 pixels, one epoch, ShuffleNetV2 x0.5. What counts are processor seconds,
which other work on the machine moves little; wall time stands beside them. The script runs on older commits too.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image
from tables import csv_printer

from histolight.sweeps.sweep import run_sweep

SIZE = 32


def main(points: int = 40) -> None:
    print_row = csv_printer("measured", "points", "cpu_seconds", "cpu_seconds_of_pages", "wall_seconds")
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        small = write_tiles(base)
        for what in ("data=kaggle data.root=nowhere", f"data=folder data.root={base / 'tiles'} model.weights=no.pth"):
            command = [sys.executable, "-m", "histolight", "train", *what.split()]
            _, pages, wall = cost(lambda command=command: subprocess.run(command, capture_output=True, check=False))
            print_row(f"refuse {what.split()[-1].partition('=')[0]}", 0, f"{pages:.2f}", "", f"{wall:.2f}")
        run_sweep([*small, "seed=1000", f"hydra.sweep.dir={base / 'first'}"], progress=False)  # imports, and the pack
        sweep = [*small, f"seed=range({points})", f"hydra.sweep.dir={base / 'sweep'}"]
        own, pages, wall = cost(lambda: run_sweep(sweep, progress=False))
        print_row("a further point, serial", points, *(f"{seconds / points:.2f}" for seconds in (own, pages, wall)))


def cost(work: Callable[[], object]) -> tuple[float, float, float]:
    """Processor seconds of this process and of those that it waited for, and wall seconds."""
    before, began = usage(), time.perf_counter()
    work()
    after = usage()
    return after[0] - before[0], after[1] - before[1], time.perf_counter() - began


def usage() -> tuple[float, float]:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return used[0].ru_utime + used[0].ru_stime, used[1].ru_utime + used[1].ru_stime


def write_tiles(base: Path) -> list[str]:
    random = np.random.default_rng(0)
    for number in range(60):
        tile = random.normal(170, 40, (SIZE, SIZE, 3))
        tile[8:24, 8:24] -= 45 * (number % 2)
        path = base / "tiles" / str(number % 2) / f"tile_{number:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(tile.clip(0, 255).astype(np.uint8)).save(path)
    data = ["data=folder", f"data.root={base / 'tiles'}", f"data.cache={base / 'cache'}", f"data.image_size={SIZE}"]
    network = ["model=resnet18", "model.name=shufflenet_v2_x0_5", "model.weights=null"]
    return [*data, *network, "data.batch_size=8", "trainer=cpu", "trainer.max_epochs=1"]


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
