"""The LightningDataModule: loaders of the parts, and what happens to a batch once it is on the device."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial

import lightning as L
import numpy as np
import torch
from tqdm import tqdm

from histolight.augment import as_floats, augment_tiles
from histolight.augment.mixing import mix_tiles
from histolight.augment.normalisation import normalise_stain
from histolight.config.schema import AugmentConfig, Config, DataConfig
from histolight.data.features import FeatureCache
from histolight.data.loader import Batch, DeviceRows, DeviceTiles, TileLoader
from histolight.data.pack import Tiles
from histolight.data.prepare import PreparedData
from histolight.hardware import free_memory

_RESIDENT_PART = 0.5  # of the GPU memory that is free to this process may be tiles when data.residency=auto
_FEATURES = 4096  # tiles evaluated at once where the last layer alone computes: 20 MB of 1,280 features


class TileDataModule(L.LightningDataModule):
    """Batches of prepared tiles for Lightning.

    Args:
        data: The tiles and their parts.
        config: The whole configuration; ``data``, ``augment`` and ``seed`` are used.
        features: Maps tiles ``(N, 3, S, S)``, floats in [0, 1], to ``(N, F)``. The batches then hold these, computed
            once, in the tiles' place: for an ``augment`` that changes nothing.
        kept: Where these are kept for other runs; None keeps them for this one only.
    """

    def __init__(
        self,
        data: PreparedData,
        config: Config,
        features: Callable[[torch.Tensor], torch.Tensor] | None = None,
        kept: FeatureCache | None = None,
    ) -> None:
        super().__init__()
        self.data, self.config, self.features, self.kept = data, config, features, kept
        self._store: Tiles | DeviceRows | None = None

    def train_dataloader(self) -> TileLoader:
        """Training tiles, in an order that is a function of (seed, epoch)."""
        return self._loader("train", training=True)

    def val_dataloader(self) -> TileLoader:
        """Validation tiles, in the order of the table."""
        return self._loader("val")

    def test_dataloader(self) -> TileLoader:
        """Test tiles, in the order of the table."""
        return self._loader("test")

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        """Move a batch, unless it was gathered there."""
        return (
            batch if batch.tiles.device == device else super().transfer_batch_to_device(batch, device, dataloader_idx)
        )

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Turn uint8 NHWC into floats in [0, 1], NCHW in channels_last memory, and augment training tiles."""
        trainer = self.trainer
        assert trainer is not None
        if batch.tiles.ndim == 2:
            return batch
        if trainer.training:
            return augmented(batch, self.config.augment, self.config.data.stain)
        if self.config.data.augment_val and trainer.validating | trainer.sanity_checking:
            unmixed = replace(self.config.augment, cutmix=0.0, mixup=0.0)  # figures need whole labels
            return augmented(batch, unmixed, self.config.data.stain)
        return batch._replace(tiles=to_floats(batch.tiles, self.config.data.stain))

    def _loader(self, part: str, training: bool = False) -> TileLoader:
        trainer, table = self.trainer, self.data.part(part)
        assert trainer is not None
        rows, labels = table["row"].to_numpy(), table["label"].to_numpy()
        tiles, batch_size = self._tiles(trainer.strategy.root_device), self.config.data.batch_size
        if self.features is not None:
            tiles = DeviceRows(rows, self._features(tiles, rows, part))
            batch_size = batch_size if training else max(batch_size, _FEATURES)
        return TileLoader(
            tiles,
            rows,
            labels,
            batch_size,
            epoch=lambda: trainer.current_epoch,
            order=(lambda epoch: self._training_order(labels, epoch)) if training else None,
            seed=self.config.seed,
            share=(trainer.global_rank, trainer.world_size),
            drop_last=training,
            pin=trainer.strategy.root_device.type == "cuda",
        )

    def part_features(self, part: str) -> torch.Tensor:
        """Compute the features of a part, or read those kept: float32 ``(n, F)``, in the order of the table."""
        assert self.trainer is not None
        rows = self.data.part(part)["row"].to_numpy()
        return self._features(self._tiles(self.trainer.strategy.root_device), rows, part)

    def _features(self, tiles: Tiles | DeviceRows, rows: np.ndarray, part: str) -> torch.Tensor:
        trainer, size = self.trainer, self.config.data.batch_size
        assert trainer is not None
        device = trainer.strategy.root_device
        if self.kept is not None:
            return self.kept.features(rows, partial(self._computed, tiles), part, size).to(device)
        batches = -(-len(rows) // size)
        bar = tqdm(self._computed(tiles, rows), f"features of {part}", batches, unit="batch", disable=None)
        values, place = torch.empty(0), 0
        for features in bar:
            if place == 0:
                values = features.new_empty((len(rows), *features.shape[1:]))
            values[place : place + len(features)] = features
            place += len(features)
        return values

    def _computed(self, tiles: Tiles | DeviceRows, rows: np.ndarray) -> Iterator[torch.Tensor]:
        trainer = self.trainer
        assert trainer is not None
        assert self.features is not None
        device, precision = trainer.strategy.root_device, trainer.precision_plugin.forward_context
        return compute_features(self.features, tiles, rows, self.config.data, device, precision)

    def _training_order(self, labels: np.ndarray, epoch: int) -> np.ndarray:
        random = np.random.default_rng([self.config.seed, epoch])
        if self.config.data.sampler == "shuffle":
            return random.permutation(len(labels))
        chosen = [random.choice(np.flatnonzero(labels == label), (len(labels) + label) // 2) for label in (0, 1)]
        return random.permutation(np.concatenate(chosen))

    def _tiles(self, device: torch.device) -> Tiles | DeviceRows:
        """Keep the tiles on the device when they were asked to be there, or fit; load them once for these data."""
        if self._store is None:
            rows, kept = self.data.table["row"].to_numpy(), self.data.resident
            key = (device, rows.tobytes())
            if self.config.data.residency == "memmap":
                self._store = self.data.tiles
            elif key in kept or self._fit(len(rows), device):
                if key not in kept:
                    kept.clear()
                    kept[key] = DeviceTiles(self.data.tiles, rows, device)
                self._store = kept[key]
            else:
                self._store = self.data.tiles
        return self._store

    def _fit(self, count: int, device: torch.device) -> bool:
        """Say whether so many tiles are to be kept on the device."""
        if self.config.data.residency == "device":
            return True
        size = count * self.data.tiles.image_size**2 * 3
        return device.type == "cuda" and size < _RESIDENT_PART * free_memory(device)


def augmented(
    batch: Batch,
    augment: AugmentConfig,
    stain: str,
    new_generator: Callable[[torch.device], torch.Generator] = torch.Generator,
) -> Batch:
    """Augment a batch as its own seed says: uint8 ``(N, S, S, 3)`` to ``(N, 3, S, S)`` floats, channels_last.

    Stain normalisation comes first: the other way round it would take most of the augmentation back. Mixing turns the
    labels, 0 or 1, into numbers between.

    Args:
        batch: On its device.
        augment: What changes.
        stain: ``data.stain``.
        new_generator: Makes the source of random numbers on a device; PyTorch's fake CUDA devices have none.
    """
    generator = new_generator(batch.tiles.device).manual_seed(batch.seed)
    # Without normalisation bytes are what is turned and mirrored: faster.
    tiles = batch.tiles.permute(0, 3, 1, 2) if stain == "none" else to_floats(batch.tiles, stain)
    tiles = augment_tiles(tiles, augment, generator)
    tiles, labels = mix_tiles(tiles, batch.labels, augment.cutmix, augment.mixup, generator)
    return batch._replace(tiles=tiles.contiguous(memory_format=torch.channels_last), labels=labels)


def compute_features(
    features: Callable[[torch.Tensor], torch.Tensor],
    tiles: Tiles | DeviceRows,
    rows: np.ndarray,
    config: DataConfig,
    device: torch.device,
    precision: Callable[[], AbstractContextManager[None]],
) -> Iterator[torch.Tensor]:
    """Compute features batch by batch.

    Args:
        features: Maps tiles ``(n, 3, S, S)``, floats in [0, 1], to ``(n, F)``.
        tiles: The tile store.
        rows: ``(N,)`` int64: which of them, in this order.
        config: Its ``batch_size`` and ``stain``.
        device: Where ``features`` computes.
        precision: The context in which it does.

    Yields:
        float32 ``(n, F)`` on the device.
    """
    for batch in TileLoader(tiles, rows, np.zeros(len(rows)), config.batch_size, pin=device.type == "cuda"):
        with torch.no_grad(), precision():
            found = features(to_floats(batch.tiles.to(device, non_blocking=True), config.stain)).float()
        yield found


def to_floats(tiles: torch.Tensor, stain: str) -> torch.Tensor:
    """Turn ``(N, S, S, 3)`` uint8 into ``(N, 3, S, S)`` float32 in [0, 1], stains normalised; channels_last memory.

    Every tile that a network sees comes this way, with that network's own ``stain``.
    """
    return normalise_stain(as_floats(tiles.permute(0, 3, 1, 2)), stain).contiguous(memory_format=torch.channels_last)
