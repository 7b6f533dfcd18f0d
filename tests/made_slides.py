"""Made slides: pyramidal TIFFs of any size, in the stains of the synthetic tiles, with tumour of known shape."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tifffile

from histolight.data.sources.synthetic import make_slide

SIDE = 256  # pixels of the file's own tiles
BENIGN, TUMOUR = (0.25, 0.5), (0.95, 0.3)  # amounts of haematoxylin and eosin


@dataclass(frozen=True)
class Ellipse:
    """Centre and half axes in pixels at full resolution."""

    x: float
    y: float
    rx: float
    ry: float

    def contains(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return ((x - self.x) / self.rx) ** 2 + ((y - self.y) / self.ry) ** 2 <= 1

    @property
    def area(self) -> float:
        return float(np.pi * self.rx * self.ry)

    def near(self, left: float, upper: float, right: float, lower: float) -> bool:
        return (
            self.x - self.rx < right
            and left < self.x + self.rx
            and self.y - self.ry < lower
            and upper < self.y + self.ry
        )


@dataclass(frozen=True)
class MadeSlide:
    """What a made slide shows.

    Attributes:
        size: (width, height) at full resolution.
        tissue: Where it has tissue.
        tumours: Where that is tumour.
        mpp: Microns per pixel.
        seed: Of the grain.
    """

    size: tuple[int, int]
    tissue: Sequence[Ellipse]
    tumours: Sequence[Ellipse] = ()
    mpp: float = 0.5
    seed: int = 0

    def truth(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Whether places hold tumour."""
        inside = np.zeros(np.broadcast_shapes(x.shape, y.shape), bool)
        for shape in self.tumours:
            inside |= shape.contains(x, y)
        return inside

    def pixels(self, left: int, upper: int, width: int, height: int, factor: int = 1) -> np.ndarray:
        """Draw a part, uint8 (height, width, 3); ``factor`` pixels at full resolution are one here."""
        box = (left * factor, upper * factor, (left + width) * factor, (upper + height) * factor)
        if not any(shape.near(*box) for shape in self.tissue):
            return np.broadcast_to(_light(np.zeros((1, 1, 2))), (height, width, 3))
        x = (np.arange(left, left + width) + 0.5)[None, :] * factor
        y = (np.arange(upper, upper + height) + 0.5)[:, None] * factor
        amounts = np.zeros((height, width, 2))
        for shape in self.tissue:
            amounts[shape.contains(x, y)] = BENIGN
        amounts[self.truth(x, y)] = TUMOUR
        return _light(amounts * _grain(self.seed)[:height, :width, None])

    def whole(self) -> np.ndarray:
        """Draw all of it as the file has it, tile by tile."""
        width, height = self.size
        tiles = iter(self._tiles(width, height, 1))
        rows = [np.concatenate([next(tiles) for _ in range(0, width, SIDE)], axis=1) for _ in range(0, height, SIDE)]
        return np.concatenate(rows)[:height, :width]

    def write(self, path: Path, levels: int = 3, compression: str | None = "jpeg", ome: bool = False) -> Path:
        """Write a tiled TIFF, each level half the one before; its pixel size in its tags, of OME in its XML."""
        options = {"tile": (SIDE, SIDE), "photometric": "rgb", "compression": compression, "dtype": np.uint8}
        dots = {"resolution": (1e4 / self.mpp, 1e4 / self.mpp), "resolutionunit": "CENTIMETER"}
        microns = {"PhysicalSizeX": self.mpp, "PhysicalSizeXUnit": "µm", "PhysicalSizeY": self.mpp}
        microns["PhysicalSizeYUnit"] = "µm"
        first = {"metadata": {"axes": "YXS", **microns}, "subifds": levels - 1} if ome else {"metadata": None, **dots}
        with tifffile.TiffWriter(path, ome=ome, bigtiff=True) as writer:
            for level in range(levels):
                factor = 2**level
                width, height = (size // factor for size in self.size)
                kind = first if level == 0 else {"subfiletype": 1, "metadata": None}
                writer.write(self._tiles(width, height, factor), shape=(height, width, 3), **kind, **options)
        return path

    def _tiles(self, width: int, height: int, factor: int) -> Iterator[np.ndarray]:
        for upper in range(0, height, SIDE):
            for left in range(0, width, SIDE):
                yield np.ascontiguousarray(self.pixels(left, upper, SIDE, SIDE, factor))


def annotate(path: Path, shape: Ellipse, factor: float = 1.0) -> None:
    """Write an ellipse as QuPath would, of the class Tumor; ``factor`` times as large."""
    angles = np.linspace(0, 2 * np.pi, 361)
    ring = np.column_stack([shape.x + shape.rx * np.cos(angles), shape.y + shape.ry * np.sin(angles)]) * factor
    geometry = {"type": "Polygon", "coordinates": [ring.tolist()]}
    properties = {"objectType": "annotation", "classification": {"name": "Tumor"}}
    path.write_text(json.dumps([{"type": "Feature", "geometry": geometry, "properties": properties}]))


def tumour_share(tiles: np.ndarray) -> np.ndarray:
    """Score perfectly: the share of tumour in the centre 32x32 of each tile, uint8 (N, S, S, 3), from its colours."""
    low = (tiles.shape[1] - 32) // 2
    centre = tiles[:, low : low + 32, low : low + 32].astype(np.float32)
    red = centre[..., 0].mean(axis=(1, 2)) / 255
    benign, tumour = (_light(np.array(amounts)[None, None])[0, 0, 0] / 255 for amounts in (BENIGN, TUMOUR))
    return ((benign - red) / (benign - tumour)).clip(0.001, 0.999)


@functools.cache
def _grain(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(1, 0.05, (2 * SIDE, 2 * SIDE)).clip(0.8, 1.2)


def _light(amounts: np.ndarray) -> np.ndarray:
    slide = make_slide(3)
    return np.rint(255 * slide.glass * np.exp(-amounts @ slide.stains)).astype(np.uint8)
