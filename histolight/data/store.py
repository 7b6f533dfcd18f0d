"""The tile store: the tiles of a pack, gathered by row and verified as they are read."""

from __future__ import annotations

import math
import shutil
import zlib
from collections.abc import Sequence
from pathlib import Path
from tokenize import TokenError
from typing import Any

import numpy as np

from histolight import files
from histolight.errors import HistolightError

# What NumPy raises on the header of a damaged file; SyntaxError and TokenError come from Python's own parser.
UNREADABLE = (OSError, ValueError, EOFError, SyntaxError, TypeError, KeyError, MemoryError, OverflowError, TokenError)


def save_array(path: Path, values: np.ndarray) -> None:
    """Save as ``np.save`` does, which loses the system's reason where it can't write."""
    values = np.asarray(values, order="C")
    with files.named(path), open(path, "wb") as file:
        np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(values))
        file.write(values.tobytes())


def create_array(path: Path, shape: tuple[int, ...], dtype: type[np.generic]) -> None:
    """Make a file of an array in its full size, to be written piece by piece.

    It is written through the file: through a memmap a full disk would kill the process without a word.

    Raises:
        OSError: It can't be written, or there is no room for it.
    """
    header = {"descr": np.dtype(dtype).str, "fortran_order": False, "shape": shape}
    needed, free = math.prod(shape) * np.dtype(dtype).itemsize, shutil.disk_usage(path.parent).free
    if needed > free:
        raise OSError(f"{path.name} needs {needed / 1e9:.2f} GB, {free / 1e9:.2f} GB are free")
    with files.named(path), open(path, "wb") as store:
        np.lib.format.write_array_header_1_0(store, header)
        store.truncate(store.tell() + needed)


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
        self.folder = folder

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
        self.copy(rows, out)
        # Verified by tile, not by block: a sample of few tiles must not read the rest of their blocks.
        for place in np.flatnonzero(~self._verified[rows]):
            if zlib.crc32(out[place]) != self._checksums[rows[place]]:
                raise HistolightError(
                    f"{self.folder}: tile {rows[place]} is not what was packed (damaged, or its source changed): "
                    "delete this folder to have it made again"
                )
        self._verified[rows] = True
        return out

    def copy(self, rows: np.ndarray, out: np.ndarray) -> None:
        """Copy tiles as they are stored, unverified: for the pack itself, while it is made."""
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
