"""Where the tiles of a slide lie, and how they are read: in blocks, by threads, while the network computes."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image

from histolight.errors import RequestError
from histolight.slides.reader import Slide, SlideError
from histolight.threads import map_ahead

OVERVIEW = 8.0  # microns per pixel of the overview, about
BLOCK = 16  # tiles along each side of a block that is read at once
READ = 1536  # pixels along each side of what is read at once for the overview
THREADS = min(4, os.cpu_count() or 1)
AHEAD = THREADS + 1  # blocks read or waiting while one is computed on


@dataclass(frozen=True)
class Grid:
    """The tiles of a slide: tile (row, column) begins at ``stride`` times (row, column), and lies inside the slide.

    Attributes:
        level: The level that is read.
        scale: The level's pixels per pixel of a tile; 1 takes them as they are.
        pixel: Pixels at full resolution per pixel of a tile.
        mpp: Microns per pixel of a tile.
        tile: Pixels along each side of a tile.
        stride: Pixels from one tile to the next.
        columns: Tiles beside each other.
        rows: Tiles above each other.
        overview: Pixels of a tile per pixel of the overview.
    """

    level: int
    scale: float
    pixel: float
    mpp: float
    tile: int
    stride: int
    columns: int
    rows: int
    overview: int

    @property
    def overview_pixel(self) -> float:
        """Pixels at full resolution per pixel of the overview."""
        return self.pixel * self.overview

    @property
    def cell_mm2(self) -> float:
        """Area in mm² of the square of ``stride`` x ``stride`` pixels about a tile's centre."""
        return (self.stride * self.mpp / 1000) ** 2

    def corner(self, index: np.ndarray) -> np.ndarray:
        """Map a column or row of the map to where its cell begins, in pixels at full resolution."""
        return (index * self.stride + (self.tile - self.stride) / 2) * self.pixel


def check_stride(stride: int, tile: int) -> None:
    """Raise :class:`RequestError` for a ``slides.stride`` that leaves gaps between tiles."""
    if stride > tile:
        raise RequestError(f"slides.stride={stride} leaves gaps between tiles of {tile} pixels: use at most {tile}")


def lay_grid(slide: Slide, mpp: float, tolerance: float, tile: int, stride: int) -> Grid:
    """Choose the level to read and lay the tiles on it.

    Args:
        slide: The slide.
        mpp: Microns per pixel that the network expects.
        tolerance: A level whose pixel size differs by no more than this part is taken as it is; else a finer one is
            resampled.
        tile: Pixels along each side of a tile.
        stride: Pixels from one tile to the next.

    Raises:
        SlideError: All levels are coarser than that, or the slide is smaller than a tile.
    """
    fine = [level for level, factor in enumerate(slide.downsamples) if slide.mpp * factor <= mpp * (1 + tolerance)]
    if not fine:
        raise SlideError(
            f"{slide.name} has {slide.mpp:.4g} µm a pixel and the network needs {mpp:g}: scan it again more finely, or "
            "correct data.mpp"
        )
    level = max(fine, key=lambda level: slide.downsamples[level])
    factor = slide.downsamples[level]
    scale = mpp / (slide.mpp * factor)
    scale = 1.0 if abs(1 / scale - 1) <= tolerance else scale
    size = [int(pixels / scale) for pixels in slide.sizes[level]]
    if min(size) < tile:
        raise SlideError(
            f"{slide.name} is smaller than a tile: {size[0]}x{size[1]} pixels at {mpp:g} µm, and a tile has "
            f"{tile}x{tile}"
        )
    columns, rows = ((pixels - tile) // stride + 1 for pixels in size)
    own = slide.mpp * factor * scale
    return Grid(level, scale, factor * scale, own, tile, stride, columns, rows, max(1, round(OVERVIEW / own)))


def read_overview(slide: Slide, pixel: float) -> np.ndarray:
    """Read the whole slide at low resolution, part by part.

    Args:
        slide: The slide.
        pixel: Pixels at full resolution per pixel of the overview.

    Returns:
        uint8 (H, W, 3).
    """
    level = max((n for n, factor in enumerate(slide.downsamples) if factor <= pixel), default=0)
    scale = pixel / slide.downsamples[level]
    width, height = (max(1, int(pixels / scale)) for pixels in slide.sizes[level])
    overview = np.empty((height, width, 3), np.uint8)
    side = max(1, int(READ / scale))
    parts = [(x, y) for y in range(0, height, side) for x in range(0, width, side)]

    def read(part: tuple[int, int]) -> None:
        x, y = part
        w, h = min(side, width - x), min(side, height - y)
        overview[y : y + h, x : x + w] = read_scaled(slide, level, scale, x, y, w, h)

    for _ in map_ahead(read, parts, THREADS, AHEAD):
        pass
    return overview


def read_scaled(slide: Slide, level: int, scale: float, x: int, y: int, width: int, height: int) -> np.ndarray:
    """Read a part of a level as if the whole level had been resampled first (a triangle filter, anti-aliased).

    Args:
        slide: The slide.
        level: The level.
        scale: Its pixels per pixel of the result, at least 1.
        x: Left border in pixels of the result.
        y: Upper border likewise.
        width: Of the result.
        height: Likewise.

    Returns:
        uint8 (height, width, 3).
    """
    if scale == 1:
        return slide.read(level, x, y, width, height)
    margin = math.ceil(scale) + 1  # what the filter sees beyond the borders
    limits = slide.sizes[level]
    left, upper = (max(0, math.floor(place * scale) - margin) for place in (x, y))
    right = min(limits[0], math.ceil((x + width) * scale) + margin)
    lower = min(limits[1], math.ceil((y + height) * scale) + margin)
    pixels = Image.fromarray(slide.read(level, left, upper, right - left, lower - upper))
    box = (x * scale - left, y * scale - upper, (x + width) * scale - left, (y + height) * scale - upper)
    return np.asarray(pixels.resize((width, height), Image.Resampling.BILINEAR, box=box))


def in_blocks(cells: np.ndarray) -> np.ndarray:
    """Sort (N, 2) places (row, column) so that those of one block follow each other."""
    block = cells // BLOCK
    return cells[np.lexsort((cells[:, 1], cells[:, 0], block[:, 1], block[:, 0]))]


def tile_batches(slide: Slide, grid: Grid, cells: np.ndarray, batch_size: int, first: int = 0) -> Iterator[np.ndarray]:
    """Cut tiles from blocks that threads read ahead, in memory that does not grow with their number.

    Args:
        slide: The slide.
        grid: Its tiles.
        cells: ``(N, 2)`` (row, column) from :func:`in_blocks`.
        batch_size: Tiles per batch; the last one may be smaller.
        first: The batch to begin with.

    Yields:
        uint8 (n, tile, tile, 3), in the order of ``cells``.
    """
    cells = cells[first * batch_size :]
    ends = np.flatnonzero(np.diff(cells // BLOCK, axis=0).any(axis=1)) + 1
    waiting: list[np.ndarray] = []
    count = 0
    blocks = np.split(cells, ends) if len(cells) else []
    for tiles in map_ahead(lambda block: read_block(slide, grid, block), blocks, THREADS, AHEAD):
        waiting.append(tiles)
        count += len(tiles)
        if count >= batch_size:
            joined = np.concatenate(waiting)
            whole = count // batch_size * batch_size
            yield from np.split(joined[:whole], whole // batch_size)
            waiting, count = [joined[whole:]], count - whole
    if count:
        yield np.concatenate(waiting)


def read_block(slide: Slide, grid: Grid, cells: np.ndarray) -> np.ndarray:
    """Read tiles that lie near each other, with the rectangle that holds them: uint8 (n, tile, tile, 3).

    Args:
        slide: The slide.
        grid: Its tiles.
        cells: (n, 2) row and column of each tile.
    """
    places = cells * grid.stride
    (y, x), (lower, right) = places.min(axis=0), places.max(axis=0) + grid.tile
    pixels = read_scaled(slide, grid.level, grid.scale, int(x), int(y), int(right - x), int(lower - y))
    tiles = np.empty((len(cells), grid.tile, grid.tile, 3), np.uint8)
    for tile, (top, left) in zip(tiles, places - [y, x], strict=True):
        tile[:] = pixels[top : top + grid.tile, left : left + grid.tile]
    return tiles
