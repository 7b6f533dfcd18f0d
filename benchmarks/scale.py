"""Pack, train and predict Kaggle's 220,025 tiles and 4,000 of them, as TIFF files and as PCam's HDF5.

Prints for each command the largest anonymous memory (no page cache) of its process, read from Linux twenty times a
second, and how long it took. The tiles are made here: noise with the layout and the size of the real ones, 6 GB.

    OMP_NUM_THREADS=1 python benchmarks/scale.py FOLDER > benchmarks/scale.csv
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
from PIL import Image
from tables import csv_printer

# The cheapest training there is, so that what grows is the data: the last layer of a small network.
TRAIN = ["model.name=shufflenet_v2_x0_5", "model.weights=null", "model.freeze=backbone", "trainer.max_epochs=1"]
TRAIN += ["augment=none", "augment.geometry=flips", "data.batch_size=256"]
BLOCK = 1000


def make_tiles(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Make uint8 (count, 96, 96, 3) of grey noise, and labels that a brighter centre shows."""
    random = np.random.default_rng(seed)
    labels = random.random(count) < 0.405
    tiles = random.integers(60, 200, (count, 96, 96, 1), dtype=np.uint8).repeat(3, axis=3)
    tiles[labels, 32:64, 32:64] += 40
    return tiles, labels.astype(int)


def make_kaggle(root: Path, count: int) -> None:
    """Write ``train_labels.csv``, ``train/`` and, with the same files again, ``test/``; a process a core."""
    (root / "train").mkdir(parents=True)
    starts = range(0, count, BLOCK)
    with ProcessPoolExecutor() as pool:
        blocks = pool.map(
            _write_block, [root / "train"] * len(starts), starts, [min(BLOCK, count - at) for at in starts]
        )
        rows = [row for block in blocks for row in block]
    pd.DataFrame(rows, columns=["id", "label"]).to_csv(root / "train_labels.csv", index=False)
    (root / "test").symlink_to("train")
    pd.DataFrame(rows, columns=["id", "label"]).to_csv(root / "sample_submission.csv", index=False)


def _write_block(folder: Path, start: int, count: int) -> list[tuple[str, int]]:
    rows = []
    for number, (tile, label) in enumerate(zip(*make_tiles(count, start), strict=True), start):
        name = f"{number:040x}"
        Image.fromarray(tile).save(folder / f"{name}.tif")
        rows.append((name, int(label)))
    return rows


def make_pcam(root: Path, count: int) -> None:
    """Write PCam's pairs of HDF5 files; validation has a fifth of the tiles, test as many as training."""
    root.mkdir(parents=True)
    for part, size in (("train", count - count // 5), ("valid", count // 5), ("test", count)):
        stem = f"camelyonpatch_level_2_split_{part}"
        with h5py.File(root / f"{stem}_x.h5", "w") as pixels, h5py.File(root / f"{stem}_y.h5", "w") as labels:
            x = pixels.create_dataset("x", (size, 96, 96, 3), np.uint8)
            y = labels.create_dataset("y", (size, 1, 1, 1), np.uint8)
            for start in range(0, size, BLOCK):
                tiles, truth = make_tiles(min(BLOCK, size - start), start)
                x[start : start + len(tiles)], y[start : start + len(tiles), 0, 0, 0] = tiles, truth


def watch(command: list[str]) -> tuple[float, float]:
    """Run ``histolight`` and return (largest anonymous memory in MB of 1e6 bytes, seconds)."""
    begun, peak = time.perf_counter(), 0.0
    with subprocess.Popen([sys.executable, "-m", "histolight", *command], stdout=subprocess.DEVNULL) as process:
        while process.poll() is None:
            for line in Path(f"/proc/{process.pid}/status").read_text().splitlines():
                if line.startswith("RssAnon"):
                    peak = max(peak, int(line.split()[1]) * 1024 / 1e6)
            time.sleep(0.05)
    if process.returncode:
        raise SystemExit(f"histolight {' '.join(command)} failed")
    return peak, time.perf_counter() - begun


def measure(kind: str, count: int, folder: Path) -> dict[str, tuple[float, float]]:
    """Pack and train in one command, then predict; the pack is there by then."""
    root, run = folder / f"{kind}-{count}", folder / f"{kind}-{count}-run"
    if not root.exists():
        {"kaggle": make_kaggle, "pcam": make_pcam}[kind](root, count)
    data = [f"data={kind}", f"data.root={root}", f"data.cache={folder}/cache"]
    return {
        "pack and train": watch(["train", *data, *TRAIN, f"hydra.run.dir={run}"]),
        "predict": watch(["predict", f"runs=[{run}]", *data, f"hydra.run.dir={run}-predictions"]),
    }


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where tiles, packs and runs go: 31 GB, and stay")
    parser.add_argument("--tiles", type=int, nargs=2, default=[4000, 220025], metavar=("FEW", "MANY"))
    options = parser.parse_args()
    few, many = options.tiles
    fields = (
        "environment",
        "source",
        "command",
        f"mb_of_{few}",
        f"mb_of_{many}",
        "difference_mb",
        f"seconds_of_{many}",
    )
    print_row = csv_printer(*fields)
    environment = " ".join(f"{name}={value}" for name, value in os.environ.items() if name.startswith("MALLOC_"))
    for kind in ("kaggle", "pcam"):
        small, large = (measure(kind, count, options.folder) for count in (few, many))
        for command in small:
            less, more = small[command][0], large[command][0]
            measured = (less, more, more - less, large[command][1])
            print_row(environment or "default", kind, command, *(f"{value:.0f}" for value in measured))


if __name__ == "__main__":
    main()
