"""Say what finding overlaps costs: made tiles with as many neighbours as a whole data set has.

Tumour tiles are cut at random places of a 16 px grid, so densely that each has about 18 neighbours that share pixels;
other tiles about 2. Prints CSV: tiles, pairs, tiles with a neighbour; wall and processor seconds of the block hashes
and of the luma (both part of packing, in two threads) and of the search; and the memory that the search took beyond the
tiles, which stay on disk.

    python benchmarks/overlaps.py 220025 > benchmarks/overlaps.csv
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent))
from tables import csv_printer

from histolight.data.overlaps import block_hashes, find_components, find_overlaps, jpeg_luma, tile_hashes

SIZE, GRID, TUMOUR = 96, 16, 0.405
NEIGHBOURS = {True: 18, False: 2}
PLACES = 11**2 - 1  # offsets on the grid at which two tiles share pixels
STEP = 256


def made_tiles(path: Path, count: int) -> np.ndarray:
    """Write tiles of two noisy slides, uint8 (count, 96, 96, 3), in random order; return them as a memmap."""
    random = np.random.default_rng(0)
    tiles = np.lib.format.open_memmap(path, "w+", np.uint8, (count, SIZE, SIZE, 3))
    order, done = random.permutation(count), 0
    for tumour, neighbours in NEIGHBOURS.items():
        number = round(count * TUMOUR) if tumour else count - done
        side = int(np.ceil((number * PLACES / neighbours) ** 0.5))
        places = random.choice(side * side, number, replace=False)
        # Rows of the slide are drawn as they are needed: a whole one would take gigabytes.
        for strip in range(0, side, 64):
            inside = places[(places // side >= strip) & (places // side < strip + 64)]
            height = (64 + SIZE // GRID) * GRID
            rows = [np.random.default_rng([tumour, strip * GRID + row]) for row in range(height)]
            slide = np.stack([row.integers(0, 256, ((side + 6) * GRID, 3), dtype=np.uint8) for row in rows])
            for place in inside:
                y, x = (place // side - strip) * GRID, place % side * GRID
                tiles[order[done]] = slide[y : y + SIZE, x : x + SIZE]
                done += 1
    tiles.flush()
    return np.asarray(np.load(path, mmap_mode="r"))


def in_threads(function: Callable[[np.ndarray], np.ndarray], tiles: np.ndarray) -> np.ndarray:
    """Apply a function to blocks of tiles in two threads."""
    with ThreadPoolExecutor(2) as pool:
        starts = range(0, len(tiles), STEP)
        return np.concatenate(list(pool.map(lambda first: function(np.array(tiles[first : first + STEP])), starts)))


def timed(function: Callable[[], np.ndarray]) -> tuple[np.ndarray, list[str]]:
    """Return a result, and the wall and processor seconds that it took."""
    started = time.perf_counter(), time.process_time()
    result = function()
    ended = time.perf_counter(), time.process_time()
    return result, [f"{end - start:.1f}" for start, end in zip(started, ended, strict=True)]


def measured(tiles: np.ndarray) -> list[object]:
    """Search tiles and return the columns of their row."""
    hashes = in_threads(tile_hashes, tiles)
    blocks, of_hashes = timed(lambda: in_threads(block_hashes, tiles))
    _, of_luma = timed(lambda: in_threads(lambda block: tile_hashes(jpeg_luma(block)), tiles))
    before = private_mb()
    with MemoryWatch() as watch:
        pairs, of_search = timed(lambda: find_overlaps(hashes, blocks, lambda rows: tiles[rows]))
    _, sizes = np.unique(find_components(len(tiles), pairs), return_counts=True)
    joined = int(sizes[sizes > 1].sum())
    return [len(tiles), len(pairs), joined, *of_hashes, *of_luma, *of_search, round(watch.highest - before)]


def private_mb() -> float:
    """Return this process's memory without the pages of mapped files, in MB."""
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("RssAnon")) / 1024


class MemoryWatch(threading.Thread):
    """Note the highest memory every tenth of a second."""

    def __enter__(self) -> MemoryWatch:
        self.highest, self.ended = private_mb(), threading.Event()
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.ended.set()
        self.join()

    def run(self) -> None:
        """Watch until the block ends."""
        while not self.ended.wait(0.1):
            self.highest = max(self.highest, private_mb())


def main() -> None:
    """Measure each number of tiles."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tiles", type=int, nargs="+")
    counts = parser.parse_args().tiles
    steps = ("hashes", "luma", "search")
    print_row = csv_printer(
        *("tiles", "pairs", "joined", *(f"{step}_{clock}" for step in steps for clock in ("s", "cpu_s")), "search_mb")
    )
    for count in counts:
        with tempfile.TemporaryDirectory() as folder:
            print_row(*measured(made_tiles(Path(folder, "tiles.npy"), count)))


if __name__ == "__main__":
    main()
