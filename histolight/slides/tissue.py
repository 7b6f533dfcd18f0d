"""Where a slide holds tissue, from its overview.

Haematoxylin and eosin both take up green light most (Ruifrok & Johnston 2001). The density in green of tissue is told
from that of glass by Otsu's threshold (Otsu 1979, "A threshold selection method from gray-level histograms"), kept
within limits, since a slide that is all glass or all tissue has no two classes. The lower one is that of Macenko et al.
2009. What is dense but not coloured like a stain is ink, a shadow or a border.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image
from scipy import ndimage

from histolight.config.schema import CENTRE
from histolight.errors import RequestError, system_reason
from histolight.slides.grid import Grid, in_blocks
from histolight.slides.reader import Slide, SlideError

GLASS = 99  # percentile of each channel that is taken for the light through glass ...
LIGHT = (200, 245)  # ... within these limits: a slide may show no glass
DENSITY = (0.15, 0.3)  # limits of the threshold, in natural logarithms
# Of the density in green, 99 % of the tissue of 1,000 tiles of PatchCamelyon and of an Aperio slide stay below these:
RED = 1.0  # blue and green ink exceed it
BLUE = (0.65, 0.3, 0.85)  # 0.65 + 0.3 x red, at most 0.85: red ink, black and grey exceed it
BLACK = 2.0  # density in every channel
SMALLEST = 0.005  # mm²: smaller specks are dirt, smaller holes are tissue
ENOUGH = 0.1  # of the square that the label speaks of, for its tile to be scored


def find_tissue(overview: np.ndarray, mpp: float) -> np.ndarray:
    """Find the tissue of a slide stained with haematoxylin and eosin.

    Args:
        overview: uint8 (H, W, 3).
        mpp: Microns per pixel of it, about 8.

    Returns:
        bool (H, W).
    """
    red, green, blue = (_density(overview[..., channel]) for channel in range(3))
    dense = green >= np.clip(otsu_threshold(green.clip(0, 1.5)), *DENSITY)
    stained = (red <= RED * green) & (blue <= BLUE[0] * green + BLUE[1] * red) & (blue <= BLUE[2] * green)
    stained &= np.minimum(np.minimum(red, green), blue) < BLACK
    mask = ndimage.binary_closing(np.pad(dense & stained, 2), iterations=2)[2:-2, 2:-2]
    pixels = SMALLEST * (1000 / mpp) ** 2
    mask = _without_small(mask, pixels)
    return ~_without_small(~mask, pixels)


def find_masks(kind: str) -> str:
    """Return ``slides.tissue``: ``otsu``, ``none``, or the absolute path of a folder of masks.

    Raises:
        RequestError: It is none of these.
    """
    if kind in ("otsu", "none"):
        return kind
    folder = Path(kind).expanduser().absolute()
    if not folder.is_dir():
        raise RequestError(f"slides.tissue={kind} is not known: otsu, none, or a folder of masks NAME.png")
    return str(folder)


def tissue_mask(slide: Slide, grid: Grid, overview: np.ndarray, kind: str) -> np.ndarray:
    """Say where a slide is to be looked at.

    Args:
        slide: The slide.
        grid: Its tiles.
        overview: uint8 (H, W, 3), from :func:`histolight.slides.grid.read_overview`.
        kind: ``otsu`` finds the tissue, ``none`` takes everything, a folder has the slide's mask, ``NAME.png``.

    Returns:
        bool (H, W).

    Raises:
        SlideError: The mask is missing or damaged.
    """
    if kind == "none":
        return np.ones(overview.shape[:2], bool)
    if kind == "otsu":
        return find_tissue(overview, grid.mpp * grid.overview)
    return read_mask(Path(kind) / f"{slide.name}.png", overview.shape[:2])


def tissue_cells(mask: np.ndarray, grid: Grid) -> np.ndarray:
    """List the tiles whose centre holds tissue, int64 (N, 2) row and column, those of one block after each other."""
    side = min(CENTRE, grid.tile)
    chosen = cells_with_tissue(
        mask,
        (grid.rows, grid.columns),
        grid.stride / grid.overview,
        (grid.tile - side) / 2 / grid.overview,
        side / grid.overview,
    )
    return in_blocks(chosen)


def _density(channel: np.ndarray) -> np.ndarray:
    """Map the values of a channel, uint8, to optical densities in natural logarithms, float32."""
    light = np.clip(np.percentile(channel, GLASS), *LIGHT)
    table: np.ndarray = -np.log((np.arange(256, dtype=np.float32) + 1) / np.float32(light + 1))
    return table[channel]


def otsu_threshold(values: np.ndarray) -> float:
    """Find the threshold that separates two classes best: the one with the largest variance between their means.

    Args:
        values: Any numbers; if all are equal, that number is returned.

    >>> round(otsu_threshold(np.array([0.0, 0.1, 0.9, 1.0])), 1)
    0.1
    """
    counts, edges = np.histogram(values, bins=256)
    centres = (edges[:-1] + edges[1:]) / 2
    below = np.cumsum(counts)[:-1].astype(float)
    above = counts.sum() - below
    sums = np.cumsum(counts * centres)
    with np.errstate(divide="ignore", invalid="ignore"):
        between = below * above * (sums[:-1] / below - (sums[-1] - sums[:-1]) / above) ** 2
    return float(centres[np.nanargmax(between)]) if np.ptp(values) else float(values.flat[0])


def _without_small(mask: np.ndarray, pixels: float) -> np.ndarray:
    labels, count = ndimage.label(mask)
    large = np.bincount(labels.ravel(), minlength=count + 1) >= pixels
    large[0] = False
    return large[labels]


def read_mask(path: Path, shape: tuple[int, int]) -> np.ndarray:
    """Read a mask of one's own, stretched over the slide: whatever is not black is tissue.

    Args:
        path: The picture.
        shape: (H, W) of the overview.

    Returns:
        bool (H, W).

    Raises:
        SlideError: The picture is missing or damaged.
    """
    try:
        with Image.open(path) as picture:
            grey = picture.convert("RGB").convert("L").point(lambda value: 255 if value else 0)
            return np.asarray(grey.resize((shape[1], shape[0]), Image.Resampling.NEAREST)) > 0
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        reason = system_reason(error) if isinstance(error, OSError) else error
        raise SlideError(
            f"{path} can't be read as a mask of tissue ({reason}): give a PNG of the slide's name"
        ) from error


def cells_with_tissue(
    mask: np.ndarray, shape: tuple[int, int], stride: float, offset: float, side: float
) -> np.ndarray:
    """Choose the tiles whose centre holds tissue.

    Args:
        mask: bool (H, W).
        shape: (rows, columns) of the tiles.
        stride: From one tile to the next, in pixels of the mask.
        offset: Where the first tile's centre square begins, likewise.
        side: Of that square, likewise.

    Returns:
        int64 (N, 2): row and column of each.
    """
    sums = np.pad(mask.cumsum(0, dtype=np.int64).cumsum(1), ((1, 0), (1, 0)))
    low, high = [], []
    for count, limit in zip(shape, mask.shape, strict=True):
        start = np.arange(count) * stride + offset
        low.append(np.rint(start).astype(int).clip(0, limit - 1))
        high.append(np.maximum(np.rint(start + side).astype(int).clip(0, limit), low[-1] + 1))
    (top, left), (bottom, right) = low, high
    tissue = (
        sums[np.ix_(bottom, right)] - sums[np.ix_(top, right)] - sums[np.ix_(bottom, left)] + sums[np.ix_(top, left)]
    )
    area = np.outer(bottom - top, right - left)
    return np.argwhere(tissue >= np.maximum(ENOUGH * area, 1))
