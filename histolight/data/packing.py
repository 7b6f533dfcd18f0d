"""Making a pack: decode, measure, store and journal block by block, then find the tiles that share pixels."""

from __future__ import annotations

import contextlib
import json
import math
import os
import sys
import zlib
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import pandas as pd
from tqdm import tqdm

from histolight import files
from histolight.config.schema import CENTRE
from histolight.data.checks import NEAR_BLANK_CONTRAST, describe, problem_frame
from histolight.data.overlaps import BLOCK, Pairs, block_hashes, find_overlaps, jpeg_luma, tile_hashes
from histolight.data.store import UNREADABLE, Tiles, create_array, save_array
from histolight.data.table import PACK_FORMAT, Source, TileError
from histolight.errors import DataError, HistolightError
from histolight.progress import waiting
from histolight.threads import map_ahead

MEASURES = {
    "checksums": np.uint32,
    "hashes": np.uint64,
    "lumas": np.uint64,
    "contrast": np.float32,
    "blocks": np.uint64,
    "luma_blocks": np.uint64,
}

_BLOCK = 256  # tiles decoded, written and journaled together: 7 MB at 96x96


def pack_index(source: Source, folder: Path, image_size: int) -> dict[str, Any]:
    """Say what a pack is of, with the CRC-32 of the files of measures: those of its tiles stand in one of them."""
    return {
        "format": PACK_FORMAT,
        "source": source.kind,
        "fingerprint": source.fingerprint,
        "tiles": len(source.table),
        "image_size": image_size,
        "measures": {name: _checksum(folder / f"{name}.npy") for name in (*MEASURES, "overlaps")},
    }


def _checksum(path: Path) -> int:
    with files.named(path):
        return zlib.crc32(path.read_bytes())


@dataclass(frozen=True)
class _Block:
    """Consecutive tiles from row ``start`` on, what was measured on them, and whether they are stored already."""

    start: int
    pixels: np.ndarray
    luma: np.ndarray
    measures: dict[str, np.ndarray]
    problems: list[tuple[int, TileError]]
    done: bool = False


def build_pack(source: Source, folder: Path, image_size: int, workers: int) -> None:
    """Make the pack of a source, going on where a build that was killed stopped; the caller holds its lock.

    Raises:
        DataError: Tiles that can't be decoded, all of them.
        OSError: The folder can't be written.
    """
    partial = folder.with_name(f"{folder.name}.partial")
    partial.mkdir(exist_ok=True)
    count = len(source.table)
    starts = range(0, count, _BLOCK)
    shape = (count, image_size, image_size, 3)
    if source.read_tile is None:
        blocks = _stored(Tiles(source.arrays, np.zeros(count, np.uint32), folder), starts, workers)
    else:
        blocks = _decoded(source, partial / "tiles.npy", shape, starts, workers)
    per_tile = {name: (count, (image_size // BLOCK) ** 2) if "blocks" in name else count for name in MEASURES}
    measures: dict[str, np.ndarray] = {name: np.zeros(per_tile[name], dtype) for name, dtype in MEASURES.items()}
    ids = source.table.set_index("row")["id"].sort_index()
    problems: list[tuple[str, str, str]] = []
    with tqdm(total=count, desc="packing", unit="tile", mininterval=0.1 if sys.stderr.isatty() else 30) as bar:
        for block in blocks:
            for name, values in block.measures.items():
                measures[name][block.start : block.start + len(values)] = values
            problems += [(ids[row], error.problem, error.detail) for row, error in block.problems]
            bar.update(len(block.pixels))
    if problems:
        for name in ("tiles.npy", "luma.npy", "journal"):  # a mended file has another fingerprint: nothing could resume
            (partial / name).unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # not empty
            partial.rmdir()
        frame = problem_frame(problems)
        advice = _another_size(frame, count)
        said = f"{len(frame)} tiles cannot be used: {describe(frame)}{f'; {advice}' if advice else ''}"
        raise DataError(said, frame, advice)
    for name, values in measures.items():
        save_array(partial / f"{name}.npy", values)
    save_array(partial / "overlaps.npy", _overlaps(source, partial, measures))
    with files.named(partial / "ids.csv"):
        ids.to_csv(partial / "ids.csv", index=False)
    with files.named(partial / "index.json"):
        (partial / "index.json").write_text(json.dumps(pack_index(source, partial, image_size), indent=1) + "\n")
    (partial / "journal").unlink(missing_ok=True)
    partial.rename(folder)


def _another_size(problems: pd.DataFrame, tiles: int) -> str:
    """Name the key that helps where most tiles have one size, which is not the configured one."""
    wrong = problems.loc[problems["problem"] == "wrong size", "detail"]
    sizes = Counter(map(tuple, wrong.str.extract(r"^(\d+)x(\d+) pixels").dropna().to_numpy()))
    for (width, height), count in sizes.most_common(1):
        if width == height and int(width) >= CENTRE and count > tiles / 2:
            if count == tiles:
                return f"all have this size: use data.image_size={width}"
            return f"{count} of all {tiles} tiles have {width}x{width} pixels: use data.image_size={width}"
    return "cut the tiles of a wrong size to one size" if len(wrong) else ""


def _overlaps(source: Source, partial: Path, measures: dict[str, np.ndarray]) -> Pairs:
    """Find the tiles that share pixels, among JPEGs also in luma."""
    arrays = source.arrays or (np.load(partial / "tiles.npy", mmap_mode="r", allow_pickle=False),)
    tiles = Tiles(arrays, measures["checksums"], partial)

    def read(rows: np.ndarray) -> np.ndarray:
        pixels = np.empty((len(rows), tiles.image_size, tiles.image_size, 3), dtype=np.uint8)
        tiles.copy(rows, pixels)
        return pixels

    with waiting("finding tiles that share pixels"):
        pairs = find_overlaps(measures["hashes"], measures["blocks"], read)
    if source.read_luma is None:
        return pairs
    luma = np.load(partial / "luma.npy", mmap_mode="r", allow_pickle=False)
    alike = find_overlaps(measures["lumas"], measures["luma_blocks"], lambda rows: np.asarray(luma[rows]), least=2)
    shown = measures["contrast"][alike[:, 0]] >= NEAR_BLANK_CONTRAST  # of blank JPEGs many have the same luma
    alike = alike[shown | alike[:, 2:].any(axis=1)]
    return np.unique(np.concatenate([pairs, alike]), axis=0)


def _stored(tiles: Tiles, starts: Iterable[int], workers: int) -> Iterator[_Block]:
    """Measure the tiles of a source that is read in place."""

    def read(start: int) -> _Block:
        rows = np.arange(start, min(start + _BLOCK, len(tiles)))
        pixels = np.empty((len(rows), tiles.image_size, tiles.image_size, 3), dtype=np.uint8)
        try:
            tiles.copy(rows, pixels)
        except OSError as error:
            raise HistolightError(f"tiles {rows[0]} to {rows[-1]} of the source cannot be read: {error}") from error
        luma = jpeg_luma(pixels)
        return _Block(start, pixels, luma, _measure(pixels, luma), [])

    return map_ahead(read, starts, workers, 2 * workers)


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
                luma = _luma(source, start, pixels, [])
                return _Block(start, pixels, luma, _measure(pixels, luma), [], done=True)
        if read_tiles is not None:
            pixels = read_tiles(range(start, stop))
            luma = _luma(source, start, pixels, [])
            return _Block(start, pixels, luma, _measure(pixels, luma), [])
        pixels = np.zeros((stop - start, *shape[1:]), dtype=np.uint8)
        problems = []
        for row in range(start, stop):
            try:
                pixels[row - start] = read_tile(row)
            except TileError as error:
                problems.append((row, error))
        luma = _luma(source, start, pixels, [row for row, _ in problems])
        return _Block(start, pixels, luma, _measure(pixels, luma), problems)

    with contextlib.ExitStack() as opened:
        store, journal = _opened(opened, path, "r+b"), _opened(opened, journal_path, "a")
        if source.read_luma is not None:
            create_array(path.with_name("luma.npy"), shape[:3], np.uint8)
            luma_store = _opened(opened, path.with_name("luma.npy"), "r+b")
            luma_first = luma_store.seek(0, os.SEEK_END) - math.prod(shape[:3])
        first = path.stat().st_size - math.prod(shape)
        for block in map_ahead(read, starts, workers, 2 * workers):
            if not block.done and not block.problems:
                _write(store, first + block.start * math.prod(shape[1:]), block.pixels)
                with files.named(journal_path):
                    journal.write(f"{block.start} {zlib.crc32(block.pixels.data)}\n")
                    journal.flush()
            if source.read_luma is not None:
                _write(luma_store, luma_first + block.start * math.prod(shape[1:3]), block.luma)
            yield block
        with files.named(path):
            os.fsync(store.fileno())


def _opened(stack: contextlib.ExitStack, path: Path, mode: str) -> IO[Any]:
    """Open a file for the rest of a stack; whatever goes wrong when it is closed has its name."""
    stack.enter_context(files.named(path))
    file: IO[Any] = stack.enter_context(open(path, mode))  # noqa: SIM115
    return file


def _luma(source: Source, start: int, pixels: np.ndarray, damaged: Collection[int]) -> np.ndarray:
    """Return the luma of consecutive tiles: as decoded where they are JPEGs, else as a JPEG would have it."""
    luma = jpeg_luma(pixels)
    if source.read_luma is not None:
        for row in range(start, start + len(pixels)):
            decoded = None if row in damaged else source.read_luma(row)
            if decoded is not None:
                luma[row - start] = decoded
    return luma


def _open_store(path: Path, shape: tuple[int, ...], journal: Path) -> tuple[np.ndarray, dict[int, int]]:
    """Open the file of tiles, with the CRC-32 of each finished block by its first row; make it where there is none.

    A journal line that a kill cut short fails its block's CRC-32, or is no line at all: that block is done again.
    """
    try:
        lines = [line.split() for line in journal.read_text(errors="replace").splitlines()]
        stored = np.load(path, mmap_mode="r", allow_pickle=False)
        finished = {int(words[0]): int(words[1]) for words in lines if len(words) == 2 and "".join(words).isdecimal()}
    except UNREADABLE:
        finished = {}
        journal.unlink(missing_ok=True)
        create_array(path, shape, np.uint8)
        stored = np.load(path, mmap_mode="r", allow_pickle=False)
    return stored, finished


def _write(store: IO[Any], offset: int, pixels: np.ndarray) -> None:
    """Write through the file, not through a memmap, where a full disk would kill the process without a word."""
    with files.named(Path(store.name)):
        store.seek(offset)
        store.write(pixels.data)
        store.flush()


def _measure(pixels: np.ndarray, luma: np.ndarray) -> dict[str, np.ndarray]:
    """Measure each tile of uint8 (n, S, S, 3), with its luma (n, S, S)."""
    total = pixels[..., 0].astype(np.uint16)
    total += pixels[..., 1]
    total += pixels[..., 2]
    total = total.reshape(len(pixels), -1)  # uint16 (n, S * S): three times the grey
    # Integer sums are exact, so the same tiles give the same bytes on every machine.
    squares = np.einsum("ij,ij->i", total, total, dtype=np.int64)
    variance = squares / total.shape[1] - (total.sum(axis=1, dtype=np.int64) / total.shape[1]) ** 2
    return {
        "checksums": np.array([zlib.crc32(tile) for tile in pixels]),
        "hashes": tile_hashes(pixels),
        "lumas": tile_hashes(luma),
        "blocks": block_hashes(pixels),
        "luma_blocks": block_hashes(luma),
        "contrast": np.sqrt(np.maximum(variance, 0)) / 3,
    }
