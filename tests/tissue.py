"""Made tissue: slides of smooth noise, from which tiles are cut."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image
from scipy.ndimage import gaussian_filter

SIZE = 96


def canvas(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Draw smooth tissue: uint8 (height, width, 3)."""
    noise = gaussian_filter(np.random.default_rng(seed).normal(size=(height, width, 3)), (2, 2, 0))
    return (150 + 30 * noise / noise.std()).clip(0, 255).astype(np.uint8)


def cut(slide: np.ndarray, places: list[tuple[int, int]]) -> np.ndarray:
    return np.stack([slide[y : y + SIZE, x : x + SIZE] for y, x in places])


def as_jpeg(tile: np.ndarray, **options: object) -> bytes:
    file = io.BytesIO()
    Image.fromarray(tile).save(file, "JPEG", **({"quality": 75} | options))
    return file.getvalue()
