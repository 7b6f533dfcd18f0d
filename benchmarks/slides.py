"""What whole slides cost: the readers, the memory of a large slide, and the command against its network alone.

    python benchmarks/slides.py readers SVS > benchmarks/slide_readers.csv
    python benchmarks/slides.py memory      > benchmarks/slides_memory.csv
    python benchmarks/slides.py speed RUN   > benchmarks/slides_speed.csv

CPU seconds are counted beside those of the clock, since they hold on a machine that is shared too. The slides are made
here, of at most 2 GB, and deleted again.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import openslide
import pandas as pd
import tiffslide
import torch
from tables import ROOT, csv_printer

sys.path.insert(0, str(ROOT / "tests"))
from made_slides import Ellipse, MadeSlide
from untrained_runs import untrained_run

from histolight.config.compose import saved_config, typed
from histolight.inference.networks import load_classifier, tile_scorer

SIDE = 1122  # pixels: a block of 16 x 16 tiles of a 20x slide
BLOCKS = 40
NETWORK_TILES = 2048


def made(side: int, mpp: float, radius: float) -> MadeSlide:
    """A square slide with a disc of tissue in its middle, a quarter of that tumour."""
    middle = side / 2
    tissue = Ellipse(middle, middle, radius, radius)
    return MadeSlide((side, side), [tissue], [Ellipse(middle, middle, radius / 2, radius / 2)], mpp)


def command(*words: str) -> tuple[float, float, float]:
    """Run ``histolight predict``; return seconds, CPU seconds and the peak of its memory in MB."""
    begun = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-m", "histolight", "predict", *words], stdout=sys.stderr)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"histolight predict ended with {status}")
    return time.perf_counter() - begun, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024


def readers(folder: Path, svs: Path) -> None:
    print_row = csv_printer("file", "reader", "mpx_per_cpu_second", "mpx_per_second")
    tiff = made(6000, 0.5, 2900).write(folder / "made.tif")
    for path in (svs, tiff):
        for reader in (openslide.OpenSlide, tiffslide.TiffSlide):
            with reader(str(path)) as slide:
                width, height = slide.dimensions
                places = np.random.default_rng(0).integers(0, (width - SIDE, height - SIDE), (BLOCKS, 2))
                begun, cpu = time.perf_counter(), time.process_time()
                for x, y in places:
                    np.asarray(slide.read_region((int(x), int(y)), 0, (SIDE, SIDE)))
                seconds, cpu = time.perf_counter() - begun, time.process_time() - cpu
            size = BLOCKS * SIDE**2 / 1e6
            print_row(path.name, reader.__name__, f"{size / cpu:.0f}", f"{size / seconds:.0f}")


def memory(folder: Path) -> None:
    print_row = csv_printer("side", "file_mb", "tiles", "peak_mb", "cpu_seconds")
    network = ["data=kaggle", "data.root=x", "model.name=shufflenet_v2_x0_5", "model.weights=null", "trainer=cpu"]
    run = untrained_run(folder / "run", network)
    for side in (4000, 40000):
        slides = folder / str(side)
        slides.mkdir()
        path = made(side, 0.5, 0.45 * side if side < 10000 else 0.15 * side).write(slides / "made.tif", levels=5)
        words = [f"run={run}", "data=slides", f"data.root={slides}", f"hydra.run.dir={folder / f'out{side}'}"]
        _, cpu, peak = command(*words, "slides.stride=96")
        table = pd.read_csv(folder / f"out{side}" / "slides.csv")
        print_row(side, f"{path.stat().st_size / 1e6:.0f}", table["tiles"][0], f"{peak:.0f}", f"{cpu:.0f}")
        path.unlink()


def network_alone(run: Path) -> tuple[float, float]:
    """Tiles per second and per CPU second of the run's network on one resident batch of its own size."""
    config = typed(saved_config(run))
    score = tile_scorer([load_classifier(run)], config.trainer)
    size = config.data.image_size
    batch = torch.randint(0, 256, (config.data.batch_size, size, size, 3), dtype=torch.uint8)
    score(batch)
    begun, cpu = time.perf_counter(), time.process_time()
    for _ in range(NETWORK_TILES // len(batch)):
        score(batch)
    return NETWORK_TILES / (time.perf_counter() - begun), NETWORK_TILES / (time.process_time() - cpu)


def speed(folder: Path, run: Path) -> None:
    print_row = csv_printer("what", "tiles", "tiles_per_second", "tiles_per_cpu_second")
    counts, costs = [], []
    for side in (2500, 8000):
        before = network_alone(run)
        print_row("network alone", NETWORK_TILES, f"{before[0]:.1f}", f"{before[1]:.1f}")
        slides = folder / str(side)
        slides.mkdir()
        made(side, 0.4, 0.48 * side).write(slides / "made.tif")
        words = [f"run={run}", "data=slides", f"data.root={slides}", f"hydra.run.dir={folder / f'out{side}'}"]
        seconds, cpu, _ = command(*words)
        counts.append(int(pd.read_csv(folder / f"out{side}" / "slides.csv")["tiles"][0]))
        costs.append((seconds, cpu))
        print_row("whole command", counts[-1], f"{counts[-1] / seconds:.1f}", f"{counts[-1] / cpu:.1f}")
    more = counts[1] - counts[0]
    rates = [more / (large - small) for small, large in zip(*costs, strict=True)]
    print_row("whole command, each further tile", more, f"{rates[0]:.1f}", f"{rates[1]:.1f}")


def main() -> None:
    part, *words = sys.argv[1:] or ["--help"]
    parts = {"readers": readers, "memory": memory, "speed": speed}
    if part not in parts:
        raise SystemExit(__doc__)
    with tempfile.TemporaryDirectory() as folder:
        parts[part](Path(folder), *map(Path, words))


if __name__ == "__main__":
    main()
