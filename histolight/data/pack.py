"""The pack: a source's tiles as one uint8 array on disk, made once, with what was measured while making it.

``<cache>/packs/<fingerprint>/`` holds ``tiles.npy`` (N, S, S, 3), unless the source is read in place, ``luma.npy``
(N, S, S) where some tiles are JPEGs, and the index: ``index.json``, ``ids.csv`` and, in row order, one value a tile or
block in ``checksums.npy`` (CRC-32), ``hashes.npy``, ``lumas.npy``, ``contrast.npy``, ``blocks.npy`` and
``luma_blocks.npy``; and the tiles that share pixels, ``overlaps.npy``. While it is made, the folder's name ends in
``.partial``.
"""

from __future__ import annotations

import errno
import json
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from histolight import files
from histolight.data.overlaps import Pairs, jpeg_luma
from histolight.data.packing import MEASURES, build_pack, pack_index
from histolight.data.store import UNREADABLE, Tiles
from histolight.data.table import Source
from histolight.errors import HistolightError, cannot_write, system_reason
from histolight.locks import Lock


@dataclass(frozen=True)
class Pack:
    """A finished pack.

    Attributes:
        tiles: The tiles.
        hashes: uint64 (N,): the first eight bytes of the SHA-256 of each tile's pixels.
        lumas: uint64 (N,): the same of each tile's luma, as it is decoded from a JPEG; of a lossless tile that which it
            would have as a JPEG of quality 75, so that the same tile has the same in both.
        contrast: float32 (N,): the standard deviation of each tile's grey (the mean of its channels), 0 to 127.5.
        blocks: uint64 (N, B): hashes of the 16x16 blocks of each tile's pixels.
        luma_blocks: uint64 (N, B): hashes of the 16x16 blocks of each tile's luma.
        overlaps: int32 (P, 4): the tiles that share pixels, as :mod:`histolight.data.overlaps` describes.
        folder: Where it lies.
        stored_luma: uint8 (N, S, S), where some tiles are JPEGs.
    """

    tiles: Tiles
    hashes: np.ndarray
    lumas: np.ndarray
    contrast: np.ndarray
    blocks: np.ndarray
    luma_blocks: np.ndarray
    overlaps: Pairs
    folder: Path
    stored_luma: np.ndarray | None

    def luma(self, rows: np.ndarray) -> np.ndarray:
        """Return the luma of tiles, uint8 (n, S, S), of which ``lumas`` are the hashes."""
        return jpeg_luma(self.tiles.gather(rows)) if self.stored_luma is None else np.asarray(self.stored_luma[rows])


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
    folder = files.cache_folder(cache) / "packs" / source.fingerprint
    if not folder.exists():
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            with Lock(folder.with_name(f"{folder.name}.lock")):
                if not folder.exists():
                    waiting = 0 if source.read_tiles else 4
                    build_pack(source, folder, image_size, workers or min(32, (os.cpu_count() or 1) + waiting))
        except OSError as error:
            otherwise = "choose another folder with data.cache=FOLDER"
            raise HistolightError(
                f"the tiles can't be packed: {cannot_write(error.filename or folder.parent, error, otherwise)}"
            ) from error
    return _load(source, folder, image_size)


def find_pack(source: Source, cache: Path | None, image_size: int) -> Pack | None:
    """Open the pack of a source where there is one; nothing is made.

    Raises:
        HistolightError: The pack is damaged.
    """
    folder = files.cache_folder(cache) / "packs" / source.fingerprint
    return _load(source, folder, image_size) if folder.exists() else None


def _load(source: Source, folder: Path, image_size: int) -> Pack:
    try:
        with files.named(folder / "index.json"):
            index = json.loads((folder / "index.json").read_text(encoding="utf-8"))
        measures = {name: _in_memory(_load_array(folder / f"{name}.npy")) for name in MEASURES}
        overlaps = np.array(_load_array(folder / "overlaps.npy"))
        arrays = source.arrays or (_load_array(folder / "tiles.npy"),)
        luma = _load_array(folder / "luma.npy") if source.read_luma else None
        expected = pack_index(source, folder, image_size)
    except UNREADABLE as error:
        if isinstance(error, OSError) and error.errno not in (None, errno.ENOENT):
            place = f"{error.filename or folder} can't be read: {system_reason(error)}"
            raise HistolightError(f"{place}; choose another folder with data.cache=FOLDER") from error
        reason = " ".join(str(error).split()) or type(error).__name__
        raise HistolightError(f"{folder} is damaged ({reason}): delete this folder to have it made again") from error
    count = len(source.table)
    tile = (image_size, image_size, 3)
    right = sum(len(array) for array in arrays) == count and all(len(values) == count for values in measures.values())
    right &= luma is None or luma.shape == (count, *tile[:2])
    if index != expected or not right or any(array.shape[1:] != tile for array in arrays):
        raise HistolightError(f"{folder} is not the pack of these tiles: delete this folder to have it made again")
    plain = [np.asarray(array) if isinstance(array, np.memmap) else array for array in arrays]
    tiles = Tiles(plain, measures.pop("checksums"), folder)
    return Pack(tiles, **measures, overlaps=overlaps, folder=folder, stored_luma=luma)


def _load_array(path: Path) -> np.ndarray:
    with files.named(path):
        values: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
    return values


def _in_memory(values: np.ndarray) -> np.ndarray:
    """Read one value a tile into memory; one a block, needed only where tiles are compared, stays on disk."""
    return values if values.ndim == 2 else np.array(values)
