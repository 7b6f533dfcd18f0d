"""Batches of tiles, gathered by index: no per-tile Python, no worker processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import torch

from histolight.data.pack import Tiles
from histolight.threads import map_ahead

_AHEAD = 3  # batches gathered in the background while one is computed on
_BLOCK = 1024  # tiles moved to the device at once: 28 MB at 96x96


class Batch(NamedTuple):
    """One step's tiles.

    Attributes:
        tiles: ``(N, S, S, 3)`` uint8 as gathered; the data module makes them ``(N, 3, S, S)`` floats in [0, 1]. Where
            only the last layer learns they may be what enters it, ``(N, F)`` float32.
        labels: ``(N,)`` float32, 0 or 1; between where CutMix or MixUp mixed tiles.
        rows: ``(N,)`` int64, the place of each tile in the tile store.
        seed: Seeds whatever is random about this batch: a function of (seed, epoch, step, process) alone.
    """

    tiles: torch.Tensor
    labels: torch.Tensor
    rows: torch.Tensor
    seed: int


class TileLoader:
    """Iterates over batches of one part of the tiles.

    Args:
        tiles: The tile store, or what is on the device already of each tile.
        rows: ``(N,)`` int64, the tiles of this part.
        labels: ``(N,)``, 0 or 1.
        batch_size: Tiles per batch.
        epoch: Says which epoch begins whenever an iteration does.
        order: Says for an epoch in which order the N tiles come: places in ``rows``. None keeps that of ``rows``.
        seed: First part of each batch's own seed.
        share: (process, processes): each process iterates over its own share of the order.
        drop_last: Leave out a last, smaller batch; where processes share, also what would make them uneven.
        pin: Gather into page-locked memory, from which a GPU copies while it computes.
    """

    def __init__(
        self,
        tiles: Tiles | DeviceRows,
        rows: np.ndarray,
        labels: np.ndarray,
        batch_size: int,
        *,
        epoch: Callable[[], int] = lambda: 0,
        order: Callable[[int], np.ndarray] | None = None,
        seed: int = 0,
        share: tuple[int, int] = (0, 1),
        drop_last: bool = False,
        pin: bool = False,
    ) -> None:
        self.tiles, self.rows, self.labels, self.batch_size = tiles, rows, labels.astype(np.float32), batch_size
        self.epoch, self.order, self.seed = epoch, order, seed
        self.share, self.drop_last, self.pin = share, drop_last, pin

    def __len__(self) -> int:
        process, processes = self.share
        count = len(self.rows) // processes if self.drop_last else len(range(process, len(self.rows), processes))
        whole, rest = divmod(count, self.batch_size)
        return whole if whole and self.drop_last else whole + bool(rest)

    def __iter__(self) -> Iterator[Batch]:
        # A generator, so that the epoch is read with the first batch: Lightning makes the iterator of a resumed
        # training before it has restored the epoch.
        process, processes = self.share
        epoch = self.epoch()
        order = np.arange(len(self.rows)) if self.order is None else self.order(epoch)
        order = order[process::processes]
        # Batches are views of these: metrics keep labels, and a small array kept from among the large ones that are
        # gathered and freed beside it would stop the allocator from using their place again, batch after batch.
        labels, rows = torch.from_numpy(self.labels[order]), torch.from_numpy(self.rows[order])
        if isinstance(self.tiles, DeviceRows):
            yield from self._resident(self.tiles, epoch, labels, rows)
            return
        if self.pin:
            labels, rows = labels.pin_memory(), rows.pin_memory()
        parts = zip(labels.split(self.batch_size), rows.split(self.batch_size), strict=True)
        steps = zip(range(len(self)), parts, strict=False)
        yield from map_ahead(lambda step: self._batch(epoch, step[0], *step[1]), steps, 1, _AHEAD)

    def _resident(self, tiles: DeviceRows, epoch: int, labels: torch.Tensor, rows: torch.Tensor) -> Iterator[Batch]:
        """Gather on the device; what says which tiles is copied there once an epoch, not batch by batch."""
        whole = (part.to(tiles.device).split(self.batch_size) for part in (labels, rows, tiles.places(rows)))
        for step, (some, which, places) in zip(range(len(self)), zip(*whole, strict=True), strict=False):
            yield Batch(tiles.at(places), some, which, self._seed(epoch, step))

    def _batch(self, epoch: int, step: int, labels: torch.Tensor, rows: torch.Tensor) -> Batch:
        assert isinstance(self.tiles, Tiles)
        size = self.tiles.image_size
        tiles = torch.empty((len(rows), size, size, 3), dtype=torch.uint8, pin_memory=self.pin)
        self.tiles.gather(rows.numpy(), out=tiles.numpy())
        return Batch(tiles, labels, rows, self._seed(epoch, step))

    def _seed(self, epoch: int, step: int) -> int:
        # As an array: a list of these numbers takes NumPy five times as long.
        entropy = np.array([self.seed, epoch, step, self.share[0]], dtype=np.uint32)
        return int(np.random.SeedSequence(entropy).generate_state(1)[0])


class DeviceRows:
    """What is needed of each tile, pixels or features, kept in the device's memory: a batch costs one gather there.

    Args:
        rows: ``(N,)`` int64, the tiles, by their place in the tile store.
        values: ``(N, ...)`` on the device.
    """

    def __init__(self, rows: np.ndarray, values: torch.Tensor) -> None:
        self._place = torch.full((int(rows.max(initial=-1)) + 1,), -1, dtype=torch.int64)
        self._place[torch.tensor(rows)] = torch.arange(len(rows))
        self._store = values
        self.device = values.device

    def places(self, rows: torch.Tensor) -> torch.Tensor:
        """Return where tiles, ``(n,)`` int64 on the CPU, are kept: ``(n,)`` int64 there."""
        return self._place[rows]

    def at(self, places: torch.Tensor) -> torch.Tensor:
        """Gather what is kept at some places, ``(n,)`` int64 on the device: ``(n, ...)`` there."""
        return self._store.index_select(0, places)


class DeviceTiles(DeviceRows):
    """The tiles of a run kept in the device's memory.

    Args:
        tiles: The tile store.
        rows: ``(N,)`` int64, the tiles to keep.
        device: Where.
    """

    def __init__(self, tiles: Tiles, rows: np.ndarray, device: torch.device) -> None:
        store = torch.empty((len(rows), tiles.image_size, tiles.image_size, 3), dtype=torch.uint8, device=device)
        blocks = TileLoader(tiles, rows, np.zeros(len(rows)), _BLOCK, pin=device.type == "cuda")
        for start, block in zip(range(0, len(rows), _BLOCK), blocks, strict=True):
            store[start : start + _BLOCK].copy_(block.tiles, non_blocking=True)
        super().__init__(rows, store)
