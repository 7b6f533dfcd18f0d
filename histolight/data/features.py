"""Features of a frozen backbone, computed once and kept: every run, fold, seed and sweep point reads the same file.

``<cache>/features/<pack>-<key>/`` holds ``values.npy`` (N, F) float32 and ``done.npy`` (N,) bool, one row a tile of the
pack; ``<key>`` is a digest of the backbone's weights, its preprocessing and the precision. What a killed run had
computed is kept.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from histolight import files
from histolight.data.store import UNREADABLE, create_array, save_array
from histolight.errors import HistolightError, cannot_write
from histolight.locks import Lock

Compute = Callable[[np.ndarray], Iterator[torch.Tensor]]


def features_key(network: nn.Module, head: str, preprocessing: dict[str, object]) -> str:
    """Digest what features depend on, apart from the tiles.

    Args:
        network: With the weights that it computes with.
        head: Dotted name of its last layer, which takes no part.
        preprocessing: Everything else, as JSON can hold it: normalisation, size, precision ...
    """
    digest = hashlib.blake2b(json.dumps(preprocessing, sort_keys=True).encode(), digest_size=16)
    for name, value in network.state_dict().items():
        if not name.startswith(f"{head}."):
            digest.update(f"{name}{tuple(value.shape)}{value.dtype}".encode())
            digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


class FeatureCache:
    """The kept features of the tiles of a pack.

    Args:
        folder: Made where it does not exist.
        tiles: Number of tiles in the pack.
    """

    def __init__(self, folder: Path, tiles: int) -> None:
        self.folder, self.tiles = folder, tiles

    def features(self, rows: np.ndarray, compute: Compute, part: str, batch_size: int) -> torch.Tensor:
        """Return the features of some tiles, float32 ``(n, F)`` on the CPU, as :meth:`fill` keeps them."""
        return torch.from_numpy(self.fill(rows, compute, part, batch_size)[rows])

    def fill(self, rows: np.ndarray, compute: Compute, part: str, batch_size: int) -> np.ndarray:
        """Compute the features of some tiles that are missing.

        Other runs that want the same wait meanwhile, and then read them.

        Args:
            rows: ``(n,)`` int64: places in the pack.
            compute: Maps rows to their features, float32 ``(b, F)`` a batch, in their order.
            part: Names them in the progress bar.
            batch_size: Rows a batch of ``compute``.

        Returns:
            float32 ``(N, F)``, a memmap: one row a tile of the pack, of which those of ``rows`` are computed.

        Raises:
            HistolightError: The folder can't be written.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with Lock(self.folder.with_name(f"{self.folder.name}.lock")):
                done = self._done()
                missing = np.unique(rows[~done[rows]])
                if len(missing):
                    self._fill(missing, done, compute, part, batch_size)
                with files.reading(self._values):
                    values: np.ndarray = np.load(self._values, mmap_mode="r")
                return values
        except OSError as error:
            otherwise = "choose another folder with data.cache=FOLDER"
            raise HistolightError(cannot_write(error.filename or self.folder, error, otherwise)) from error

    @property
    def _values(self) -> Path:
        return self.folder / "values.npy"

    def _done(self) -> np.ndarray:
        try:
            done = np.load(self.folder / "done.npy")
            np.load(self._values, mmap_mode="r")
        except UNREADABLE:
            return np.zeros(self.tiles, bool)
        return done if done.shape == (self.tiles,) and done.dtype == bool else np.zeros(self.tiles, bool)

    def _fill(self, rows: np.ndarray, done: np.ndarray, compute: Compute, part: str, batch_size: int) -> None:
        begun = bool(done.any())
        with tqdm(total=len(rows), desc=f"features of {part}", unit="tile", disable=None) as bar:
            for start, batch in zip(range(0, len(rows), batch_size), compute(rows), strict=True):
                features = batch.float().cpu().numpy()
                if not np.isfinite(features).all():
                    raise HistolightError(
                        "the network gives features that are not finite: try trainer.precision=32-true, and see "
                        "whether model.weights fits the network"
                    )
                if not begun:
                    create_array(self._values, (self.tiles, features.shape[1]), np.float32)
                    begun = True
                place = rows[start : start + len(features)]
                self._write(place, features)
                done[place] = True
                self._mark(done)
                bar.update(len(features))

    def _write(self, rows: np.ndarray, features: np.ndarray) -> None:
        with files.named(self._values), open(self._values, "r+b") as store:
            first = store.seek(0, os.SEEK_END) - self.tiles * features[0].nbytes
            for row, vector in zip(rows, features, strict=True):
                store.seek(first + int(row) * vector.nbytes)
                store.write(vector.tobytes())

    def _mark(self, done: np.ndarray) -> None:
        beside = self.folder / "done.partial.npy"
        save_array(beside, done)
        beside.replace(self.folder / "done.npy")
