from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from made_slides import Ellipse, MadeSlide
from PIL import Image

from histolight.slides.grid import (
    BLOCK,
    Grid,
    in_blocks,
    lay_grid,
    read_overview,
    read_scaled,
    tile_batches,
)
from histolight.slides.reader import Slide, SlideError, open_slide


def fake(size: tuple[int, int], mpp: float, downsamples: tuple[float, ...] = (1.0,), seed: int = 0) -> Slide:
    """A slide of smooth noise in memory, the same at each level."""
    random = np.random.default_rng(seed)
    small = Image.fromarray(random.integers(0, 255, (16, 16, 3), dtype=np.uint8))
    sizes = tuple((int(size[0] / factor), int(size[1] / factor)) for factor in downsamples)
    levels = [np.asarray(small.resize(level, Image.Resampling.BICUBIC)) for level in sizes]

    def region(x: int, y: int, level: int, width: int, height: int) -> np.ndarray:
        x, y = round(x / downsamples[level]), round(y / downsamples[level])
        assert 0 <= x <= x + width <= sizes[level][0]
        assert 0 <= y <= y + height <= sizes[level][1]
        return levels[level][y : y + height, x : x + width]

    return Slide("fake", mpp, sizes, downsamples, region, lambda: None)


@pytest.mark.parametrize(
    ("mpp", "downsamples", "level", "scale"),
    [
        (0.972, (1, 4), 0, 1),
        (0.25, (1, 4, 16), 1, 1),  # 1.0 is within 10 %
        (0.2521, (1, 4.0003, 16), 1, 1),
        (0.499, (1, 4), 0, 0.972 / 0.499),
        (0.25, (1, 2, 8), 1, 0.972 / 0.5),
        (1.05, (1, 2), 0, 1),
    ],
)
def test_the_coarsest_level_that_is_fine_enough_is_read(mpp, downsamples, level, scale) -> None:
    grid = lay_grid(fake((4000, 3000), mpp, downsamples), 0.972, 0.1, 96, 32)
    assert (grid.level, grid.scale) == (level, pytest.approx(scale))
    assert grid.pixel == pytest.approx(downsamples[level] * scale)
    assert grid.mpp == pytest.approx(mpp * downsamples[level] * scale)
    assert grid.columns == (int(int(4000 / downsamples[level]) / scale) - 96) // 32 + 1


def test_coarser_than_the_network_is_refused() -> None:
    with pytest.raises(SlideError, match=r"fake has 1.1 µm a pixel and the network needs 0.972"):
        lay_grid(fake((500, 500), 1.1), 0.972, 0.1, 96, 32)
    assert lay_grid(fake((500, 500), 1.1), 0.972, 0.15, 96, 32).scale == 1


def test_smaller_than_a_tile_is_refused() -> None:
    with pytest.raises(SlideError, match=r"fake is smaller than a tile: 154x95 pixels at 0.972 µm"):
        lay_grid(fake((300, 185), 0.5), 0.972, 0.1, 96, 32)
    assert (lay_grid(fake((300, 187), 0.5), 0.972, 0.1, 96, 32).rows) == 1


@pytest.mark.parametrize("scale", [1.0, 1.947, 3.2])
def test_parts_are_those_of_the_whole_slide_resampled(scale: float) -> None:
    slide = fake((700, 500), 0.3)
    width, height = int(700 / scale), int(500 / scale)
    whole = np.asarray(
        Image.fromarray(slide.read(0, 0, 0, 700, 500)).resize(
            (width, height), Image.Resampling.BILINEAR, box=(0, 0, width * scale, height * scale)
        )
    )
    for x, y, w, h in ((0, 0, 50, 40), (33, 21, 64, 64), (width - 40, height - 30, 40, 30)):
        part = read_scaled(slide, 0, scale, x, y, w, h).astype(int)
        assert np.abs(part - whole[y : y + h, x : x + w]).max() <= 1  # Pillow's weights are rounded


@pytest.mark.parametrize(("stride", "first"), [(32, 0), (32, 1), (20, 1)])
def test_batches_hold_the_tiles_of_their_places_in_order(stride: int, first: int) -> None:
    slide = fake((1500, 1300), 0.5)
    grid = lay_grid(slide, 0.972, 0.1, 96, stride)
    random = np.random.default_rng(1)
    cells = in_blocks(np.argwhere(random.random((grid.rows, grid.columns)) < 0.4))
    batches = list(tile_batches(slide, grid, cells, 64, first))
    assert [len(batch) for batch in batches[:-1]] == [64] * (len(batches) - 1)
    tiles = np.concatenate(batches)
    assert len(tiles) == len(cells) - 64 * first
    for tile, (row, column) in list(zip(tiles, cells[64 * first :], strict=True))[::17]:
        expected = read_scaled(slide, grid.level, grid.scale, column * stride, row * stride, 96, 96)
        assert np.abs(tile.astype(int) - expected).max() <= 1


def test_a_later_first_batch_continues_with_the_same_bytes() -> None:
    slide = fake((1500, 1300), 0.5)
    grid = lay_grid(slide, 0.972, 0.1, 96, 32)
    cells = in_blocks(np.argwhere(np.ones((grid.rows, grid.columns), bool)))
    whole = list(tile_batches(slide, grid, cells, 50))
    for first in (1, 5, len(whole) - 1, len(whole)):
        rest = list(tile_batches(slide, grid, cells, 50, first))
        assert len(rest) == len(whole) - first
        for found, expected in zip(rest, whole[first:], strict=True):
            assert np.abs(found.astype(int) - expected).max() <= 1


def test_places_of_one_block_follow_each_other_and_none_is_lost() -> None:
    cells = np.argwhere(np.ones((40, 35), bool))
    sorted_cells = in_blocks(np.random.default_rng(0).permutation(cells))
    blocks = [tuple(block) for block in sorted_cells // BLOCK]
    changes = sum(one != other for one, other in itertools.pairwise(blocks))
    assert changes + 1 == len(set(blocks)) == 9
    assert set(map(tuple, sorted_cells)) == set(map(tuple, cells))


def test_the_overview_is_the_slide_made_small(tmp_path: Path) -> None:
    made = MadeSlide((2000, 1500), [Ellipse(1000, 750, 900, 600)], mpp=0.5)
    slide = open_slide(made.write(tmp_path / "a.tif", levels=2, compression="zlib"))
    overview = read_overview(slide, 16)
    assert overview.shape == (93, 125, 3)
    whole = Image.fromarray(slide.read(0, 0, 0, 2000, 1488)).resize((125, 93), Image.Resampling.BOX)
    difference = np.abs(overview.astype(float) - np.asarray(whole))
    assert np.median(difference) < 3
    slide.close()


def test_cells_lie_where_the_centres_of_the_tiles_are() -> None:
    grid = Grid(level=0, scale=2, pixel=2, mpp=1, tile=96, stride=32, columns=5, rows=5, overview=8)
    np.testing.assert_array_equal(grid.corner(np.array([0, 1])), [64, 128])  # full-resolution pixels
    assert grid.cell_mm2 == pytest.approx(0.032**2)
