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
from collections.abc import Callable
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
from histolight.slides.grid import in_blocks, lay_grid, tile_batches
from histolight.slides.reader import open_slide

SIDE = 1122  # pixels: a block of 16 x 16 tiles of a 20x slide
BLOCKS = 40
SPEED_SIDE = 7000  # pixels of the slide of which the command's speed is measured
BATCHES = 16  # of the run's own size, before and after each command
ROUNDS = 3


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


def speed(folder: Path, run: Path) -> None:
    """The whole command and the network alone in turns, so that both see the same of what else the machine does."""
    print_row = csv_printer("what", "tiles", "tiles_per_second", "low", "high", "tiles_per_cpu_second")
    slides = folder / "slides"
    slides.mkdir()
    path = made(SPEED_SIDE, 0.4, 0.48 * SPEED_SIDE).write(slides / "made.tif")
    config = typed(saved_config(run))
    score = tile_scorer([load_classifier(run)], config.trainer)
    slide, size = open_slide(path), config.data.batch_size
    grid = lay_grid(slide, 0.972, 0.1, config.data.image_size, 32)
    cells = in_blocks(np.argwhere(np.ones((grid.rows, grid.columns), bool)))
    resident = torch.from_numpy(next(tile_batches(slide, grid, cells[len(cells) // 2 :], size)))
    score(resident)
    measured: dict[str, list[tuple[int, float, float]]] = {"network alone": [], "whole command": []}
    for number in range(ROUNDS):
        alone = [_alone(score, resident)]
        out = folder / f"out{number}"
        seconds, cpu, _ = command(f"run={run}", "data=slides", f"data.root={slides}", f"hydra.run.dir={out}")
        measured["whole command"].append((int(pd.read_csv(out / "slides.csv")["tiles"][0]), seconds, cpu))
        alone.append(_alone(score, resident))
        tiles, seconds, cpu = (sum(values) for values in zip(*alone, strict=True))
        measured["network alone"].append((int(tiles), seconds, cpu))
    rates = {
        what: np.array([[tiles / seconds, tiles / cpu] for tiles, seconds, cpu in rounds])
        for what, rounds in measured.items()
    }
    for what, rate in rates.items():
        print_row(what, measured[what][0][0], *_summary(rate[:, 0]), f"{np.median(rate[:, 1]):.1f}")
    ratio = rates["whole command"] / rates["network alone"]
    print_row("command / network", "", *_summary(ratio[:, 0], 3), f"{np.median(ratio[:, 1]):.3f}")


def _alone(score: Callable[[torch.Tensor], np.ndarray], batch: torch.Tensor) -> tuple[float, float, float]:
    begun, cpu = time.perf_counter(), time.process_time()
    tiles = sum(len(score(batch)) for _ in range(BATCHES))
    return tiles, time.perf_counter() - begun, time.process_time() - cpu


def _summary(rates: np.ndarray, digits: int = 1) -> tuple[str, str, str]:
    """Median, lowest and highest of the rounds."""
    low, middle, high = (f"{value:.{digits}f}" for value in np.percentile(rates, (0, 50, 100)))
    return middle, low, high


def main() -> None:
    part, *words = sys.argv[1:] or ["--help"]
    parts = {"readers": readers, "memory": memory, "speed": speed}
    if part not in parts:
        raise SystemExit(__doc__)
    with tempfile.TemporaryDirectory() as folder:
        parts[part](Path(folder), *map(Path, words))


if __name__ == "__main__":
    main()
