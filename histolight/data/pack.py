"""The pack: a source's tiles as one uint8 array on disk, made once, with what was measured while making it.

``<cache>/packs/<fingerprint>/`` holds ``tiles.npy`` (N, S, S, 3), unless the source is read in place, and the index:
``index.json``, ``ids.csv`` and, one value a tile in row order, ``checksums.npy`` (CRC-32), ``hashes.npy`` and
``contrast.npy``. While it is made, the folder's name ends in ``.partial``.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import sys
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from tokenize import TokenError
from typing import Any, BinaryIO, TypeVar

import numpy as np
import platformdirs
from filelock import FileLock
from tqdm import tqdm

from histolight.data.checks import describe, problem_frame
from histolight.data.table import PACK_FORMAT, Source, TileError
from histolight.errors import DataError, HistolightError

_BLOCK = 256  # tiles decoded, written and journaled together: 7 MB at 96x96
# What NumPy raises on the header of a damaged file; SyntaxError and TokenError come from Python's own parser.
_UNREADABLE = (OSError, ValueError, EOFError, SyntaxError, TypeError, KeyError, MemoryError, OverflowError, TokenError)
_MEASURES = {"checksums": np.uint32, "hashes": np.uint64, "contrast": np.float32}

Item = TypeVar("Item")
Result = TypeVar("Result")


class Tiles:
    """The tiles of a pack, gathered by row; safe to use from several threads.

    Args:
        arrays: Array-likes of shape (n_i, S, S, 3), uint8, concatenated in row order.
        checksums: uint32 (N,): CRC-32 of each tile's bytes.
        folder: The pack, for messages.
    """

    def __init__(self, arrays: Sequence[Any], checksums: np.ndarray, folder: Path) -> None:
        self.image_size: int = arrays[0].shape[1]
        self._arrays = arrays
        self._ends = np.cumsum([len(array) for array in arrays])
        self._checksums = checksums
        self._verified = np.zeros(len(self), dtype=bool)
        self._folder = folder

    def __len__(self) -> int:
        return int(self._ends[-1])

    def gather(self, rows: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        """Copy tiles into one array; a tile's checksum is verified the first time it is read.

        Args:
            rows: int64 (n,): rows, in any order and repeated at will.
            out: uint8 (n, S, S, 3), C-contiguous, to fill instead of a new array.

        Returns:
            uint8 (n, S, S, 3), C-contiguous, in the order of ``rows``.

        Raises:
            IndexError: A row is outside 0 to N - 1.
            HistolightError: A tile is no longer what was packed.
        """
        rows = np.asarray(rows, dtype=np.int64)
        if out is None:
            out = np.empty((len(rows), self.image_size, self.image_size, 3), dtype=np.uint8)
        if len(rows) == 0:
            return out
        if rows.min() < 0 or rows.max() >= len(self):
            raise IndexError(f"rows {rows.min()} to {rows.max()} of a pack of {len(self)} tiles")
        self._copy(rows, out)
        # Verified by tile, not by block: a sample of few tiles must not read the rest of their blocks.
        for place in np.flatnonzero(~self._verified[rows]):
            if zlib.crc32(out[place]) != self._checksums[rows[place]]:
                raise HistolightError(
                    f"{self._folder}: tile {rows[place]} is not what was packed (damaged, or its source changed): "
                    "delete this folder to have it made again"
                )
        self._verified[rows] = True
        return out

    def _copy(self, rows: np.ndarray, out: np.ndarray) -> None:
        owner = np.searchsorted(self._ends, rows, side="right")
        for index in np.unique(owner):
            array = self._arrays[index]
            places = np.flatnonzero(owner == index)
            own = rows[places] - (self._ends[index] - len(array))
            if not isinstance(array, np.ndarray):
                _read_runs(array, own, places, out)
            elif len(places) == len(rows):
                # mode="clip" writes straight into out, where the default mode would buffer; the bounds are checked.
                np.take(array, own, axis=0, out=out, mode="clip")
            else:
                out[places] = array[own]


def _read_runs(dataset: Any, rows: np.ndarray, places: np.ndarray, out: np.ndarray) -> None:
    """Read rows of an HDF5 dataset in runs of consecutive rows; h5py itself lets one thread in at a time."""
    order = np.argsort(rows, kind="stable")
    for run in np.split(order, np.flatnonzero(np.diff(rows[order]) != 1) + 1):
        out[places[run]] = dataset[rows[run[0]] : rows[run[-1]] + 1]


@dataclass(frozen=True)
class Pack:
    """A finished pack.

    Attributes:
        tiles: The tiles.
        hashes: uint64 (N,): the first eight bytes of the SHA-256 of each tile's pixels.
        contrast: float32 (N,): the standard deviation of each tile's grey (the mean of its channels), 0 to 127.5.
        folder: Where it lies.
    """

    tiles: Tiles
    hashes: np.ndarray
    contrast: np.ndarray
    folder: Path


def cache_folder(cache: str | Path | None) -> Path:
    """Say where packs and unpacked downloads go: ``data.cache``, or the user's cache folder."""
    return Path(cache or platformdirs.user_cache_dir("histolight")).expanduser().absolute()


def open_pack(source: Source, cache: Path | None, image_size: int, workers: int | None = None) -> Pack:
    """Open the pack of a source; make it first where there is none.

    Of several processes one makes it and the others wait. A build that was killed goes on where it stopped.

    Args:
        source: The whole source; ``data.limit`` chooses rows later.
        cache: ``data.cache``; None is the user's cache folder.
        image_size: Height and width of a tile in pixels.
        workers: Threads that read and decode; None is one for each core and four more, at most 32 (those of a source
            that computes its tiles would only wait for one another: one for each core).

    Raises:
        DataError: Tiles that can't be decoded, all of them.
        HistolightError: The cache can't be written, or the pack in it is damaged.
    """
    folder = cache_folder(cache) / "packs" / source.fingerprint
    if not folder.exists():
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(f"{folder}.lock"):
                if not folder.exists():
                    waiting = 0 if source.read_tiles else 4
                    _build(source, folder, image_size, workers or min(32, (os.cpu_count() or 1) + waiting))
        except OSError as error:
            raise HistolightError(
                f"cannot pack the tiles in {folder.parent}: {error.strerror or error}; "
                "make room there, or choose another folder with data.cache=FOLDER"
            ) from error
    return _load(source, folder, image_size)


def _load(source: Source, folder: Path, image_size: int) -> Pack:
    try:
        index = json.loads((folder / "index.json").read_text(encoding="utf-8"))
        measures = {name: np.load(folder / f"{name}.npy", allow_pickle=False) for name in _MEASURES}
        arrays = source.arrays or (np.load(folder / "tiles.npy", mmap_mode="r", allow_pickle=False),)
        expected = _index(source, folder, image_size)
    except _UNREADABLE as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise HistolightError(f"{folder} is damaged ({reason}): delete this folder to have it made again") from error
    count = len(source.table)
    tile = (image_size, image_size, 3)
    right = sum(len(array) for array in arrays) == count and all(len(values) == count for values in measures.values())
    if index != expected or not right or any(array.shape[1:] != tile for array in arrays):
        raise HistolightError(f"{folder} is not the pack of these tiles: delete this folder to have it made again")
    plain = [np.asarray(array) if isinstance(array, np.memmap) else array for array in arrays]
    return Pack(Tiles(plain, measures["checksums"], folder), measures["hashes"], measures["contrast"], folder)


def _index(source: Source, folder: Path, image_size: int) -> dict[str, Any]:
    """Say what a pack is of, with the CRC-32 of the files of measures: those of its tiles stand in one of them."""
    return {
        "format": PACK_FORMAT,
        "source": source.kind,
        "fingerprint": source.fingerprint,
        "tiles": len(source.table),
        "image_size": image_size,
        "measures": {name: zlib.crc32((folder / f"{name}.npy").read_bytes()) for name in _MEASURES},
    }


@dataclass(frozen=True)
class _Block:
    """Consecutive tiles from row ``start`` on, what was measured on them, and whether they are stored already."""

    start: int
    pixels: np.ndarray
    measures: dict[str, np.ndarray]
    problems: list[tuple[int, TileError]]
    done: bool = False


def _build(source: Source, folder: Path, image_size: int, workers: int) -> None:
    partial = folder.with_name(f"{folder.name}.partial")
    partial.mkdir(exist_ok=True)
    count = len(source.table)
    starts = range(0, count, _BLOCK)
    if source.read_tile is None:
        blocks = _stored(Tiles(source.arrays, np.zeros(count, np.uint32), folder), starts, workers)
    else:
        blocks = _decoded(source, partial / "tiles.npy", (count, image_size, image_size, 3), starts, workers)
    measures: dict[str, np.ndarray] = {name: np.zeros(count, dtype) for name, dtype in _MEASURES.items()}
    ids = source.table.set_index("row")["id"].sort_index()
    problems: list[tuple[str, str, str]] = []
    with tqdm(total=count, desc="packing", unit="tile", mininterval=0.1 if sys.stderr.isatty() else 30) as bar:
        for block in blocks:
            for name, values in block.measures.items():
                measures[name][block.start : block.start + len(values)] = values
            problems += [(ids[row], error.problem, error.detail) for row, error in block.problems]
            bar.update(len(block.pixels))
    if problems:
        shutil.rmtree(partial)  # mending a file changes the fingerprint, so nothing could resume from this
        frame = problem_frame(problems)
        raise DataError(f"{len(frame)} tiles cannot be used: {describe(frame)}", frame)
    for name, values in measures.items():
        np.save(partial / f"{name}.npy", values)
    ids.to_csv(partial / "ids.csv", index=False)
    (partial / "index.json").write_text(json.dumps(_index(source, partial, image_size), indent=1) + "\n")
    (partial / "journal").unlink(missing_ok=True)
    partial.rename(folder)


def _stored(tiles: Tiles, starts: Iterable[int], workers: int) -> Iterator[_Block]:
    """Measure the tiles of a source that is read in place."""

    def read(start: int) -> _Block:
        rows = np.arange(start, min(start + _BLOCK, len(tiles)))
        pixels = np.empty((len(rows), tiles.image_size, tiles.image_size, 3), dtype=np.uint8)
        try:
            tiles._copy(rows, pixels)
        except OSError as error:
            raise HistolightError(f"tiles {rows[0]} to {rows[-1]} of the source cannot be read: {error}") from error
        return _Block(start, pixels, _measure(pixels), [])

    return _ahead(read, starts, workers)


def _decoded(
    source: Source, path: Path, shape: tuple[int, ...], starts: Iterable[int], workers: int
) -> Iterator[_Block]:
    """Decode a source of files into ``path``, and note each block that is done in the journal beside it."""
    read_tile, read_tiles = source.read_tile, source.read_tiles
    assert read_tile is not None
    journal_path = path.with_name("journal")
    stored, finished = _open_store(path, shape, journal_path)

    def read(start: int) -> _Block:
        stop = min(start + _BLOCK, shape[0])
        if start in finished:
            pixels = np.array(stored[start:stop])
            if zlib.crc32(pixels.data) == finished[start]:
                return _Block(start, pixels, _measure(pixels), [], done=True)
        if read_tiles is not None:
            pixels = read_tiles(range(start, stop))
            return _Block(start, pixels, _measure(pixels), [])
        pixels = np.zeros((stop - start, *shape[1:]), dtype=np.uint8)
        problems = []
        for row in range(start, stop):
            try:
                pixels[row - start] = read_tile(row)
            except TileError as error:
                problems.append((row, error))
        return _Block(start, pixels, _measure(pixels), problems)

    with open(path, "r+b") as store, open(journal_path, "a") as journal:
        first = path.stat().st_size - math.prod(shape)
        for block in _ahead(read, starts, workers):
            if not block.done and not block.problems:
                _write(store, first + block.start * math.prod(shape[1:]), block.pixels)
                journal.write(f"{block.start} {zlib.crc32(block.pixels.data)}\n")
                journal.flush()
            yield block
        os.fsync(store.fileno())


def _open_store(path: Path, shape: tuple[int, ...], journal: Path) -> tuple[np.ndarray, dict[int, int]]:
    """Open the file of tiles, with the CRC-32 of each finished block by its first row; make it where there is none.

    A journal line that a kill cut short fails its block's CRC-32, or is no line at all: that block is done again.
    """
    try:
        stored = np.load(path, mmap_mode="r", allow_pickle=False)
        lines = [line.split() for line in journal.read_text(errors="replace").splitlines()]
        finished = {int(words[0]): int(words[1]) for words in lines if len(words) == 2 and "".join(words).isdecimal()}
    except _UNREADABLE:
        finished = {}
        journal.unlink(missing_ok=True)
        _create(path, shape)
        stored = np.load(path, mmap_mode="r", allow_pickle=False)
    return stored, finished


def _create(path: Path, shape: tuple[int, ...]) -> None:
    """Make the file in its full size."""
    needed, free = math.prod(shape), shutil.disk_usage(path.parent).free
    if needed > free:
        raise OSError(f"the tiles need {needed / 1e9:.2f} GB, {free / 1e9:.2f} GB are free")
    with open(path, "wb") as store:
        np.lib.format.write_array_header_1_0(store, {"descr": "|u1", "fortran_order": False, "shape": shape})
        store.truncate(store.tell() + needed)


def _write(store: BinaryIO, offset: int, pixels: np.ndarray) -> None:
    """Write through the file, not through a memmap, where a full disk would kill the process without a word."""
    store.seek(offset)
    store.write(pixels.data)
    store.flush()


def _measure(pixels: np.ndarray) -> dict[str, np.ndarray]:
    """Measure each tile of uint8 (n, S, S, 3)."""
    total = pixels[..., 0].astype(np.uint16)
    total += pixels[..., 1]
    total += pixels[..., 2]
    total = total.reshape(len(pixels), -1)  # uint16 (n, S * S): three times the grey
    # Integer sums are exact, so the same tiles give the same bytes on every machine.
    squares = np.einsum("ij,ij->i", total, total, dtype=np.int64)
    variance = squares / total.shape[1] - (total.sum(axis=1, dtype=np.int64) / total.shape[1]) ** 2
    return {
        "checksums": np.array([zlib.crc32(tile) for tile in pixels]),
        "hashes": np.array([int.from_bytes(hashlib.sha256(tile).digest()[:8], "big") for tile in pixels], np.uint64),
        "contrast": np.sqrt(np.maximum(variance, 0)) / 3,
    }


def _ahead(function: Callable[[Item], Result], items: Iterable[Item], workers: int) -> Iterator[Result]:
    """Map in threads and in order, with only a few results waiting, so that memory does not grow with the items."""
    waiting: deque[Future[Result]] = deque()
    pool = ThreadPoolExecutor(workers, thread_name_prefix="pack")
    try:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > 2 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
