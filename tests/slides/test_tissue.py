from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from made_slides import Ellipse, MadeSlide
from PIL import Image
from skimage.filters import threshold_otsu

from histolight.slides.reader import SlideError, open_slide
from histolight.slides.tissue import cells_with_tissue, find_tissue, otsu_threshold, read_mask

MADE = MadeSlide((300, 200), [Ellipse(150, 100, 110, 70)], [Ellipse(120, 90, 40, 30)], mpp=8)
OVERVIEW = MADE.whole()
TRUTH = MADE.tissue[0].contains(np.arange(300)[None] + 0.5, np.arange(200)[:, None] + 0.5)
PENS = {
    "blue": (40, 60, 170),
    "dark blue": (20, 30, 120),
    "green": (30, 120, 60),
    "red": (220, 30, 40),
    "orange": (230, 110, 30),
    "black": (20, 20, 22),
}


def overlap(mask: np.ndarray, truth: np.ndarray) -> float:
    return float((mask & truth).sum() / (mask | truth).sum())


def test_the_tissue_is_found_where_it_is() -> None:
    assert overlap(find_tissue(OVERVIEW, 8), TRUTH) > 0.97


@pytest.mark.parametrize("ink", PENS)
def test_pen_marks_are_no_tissue(ink: str) -> None:
    marked = OVERVIEW.copy()
    marked[5:25, 20:280] = PENS[ink]  # beside the tissue
    marked[60:75, 0:45] = PENS[ink]
    mask = find_tissue(marked, 8)
    assert not mask[5:25].any()
    assert overlap(mask, TRUTH) > 0.95


def test_black_borders_and_shadows_are_no_tissue() -> None:
    random = np.random.default_rng(0)
    bordered = np.pad(OVERVIEW, ((20, 20), (30, 30), (0, 0)))
    bordered += np.where(bordered == 0, random.integers(0, 8, bordered.shape), 0).astype(np.uint8)  # as JPEG leaves it
    bordered[:, -45:-30] = 140
    mask = find_tissue(bordered, 8)
    assert overlap(mask, np.pad(TRUTH, ((20, 20), (30, 30)))) > 0.95


@pytest.mark.parametrize("glass", [255, 242, 225, 210, (205, 195, 210), (240, 235, 220)])
def test_a_blank_scan_has_no_tissue(glass) -> None:
    noise = np.random.default_rng(0).normal(glass, 3, (150, 200, 3)).clip(0, 255).astype(np.uint8)
    assert not find_tissue(noise, 8).any()


def test_a_slide_that_is_all_tissue_is_all_tissue() -> None:
    everywhere = MadeSlide((256, 200), [Ellipse(128, 100, 900, 900)], [Ellipse(100, 90, 60, 60)], mpp=8)
    assert find_tissue(everywhere.pixels(0, 0, 256, 200), 8).mean() > 0.99


def test_specks_and_small_holes_are_evened_out() -> None:
    spotted = OVERVIEW.copy()
    spotted[3:6, 3:6] = OVERVIEW[100, 150]
    spotted[100:103, 150:153] = 240
    assert overlap(find_tissue(spotted, 8), TRUTH) > 0.97
    assert not find_tissue(spotted, 8)[:10, :10].any()


def test_otsus_threshold_is_that_of_scikit_image() -> None:
    random = np.random.default_rng(2)
    for centre in (0.3, 1.0, 3.0):
        values = np.concatenate([random.normal(0, 0.2, 4000), random.normal(centre, 0.3, 1500)])
        assert otsu_threshold(values) == pytest.approx(threshold_otsu(values), abs=1e-9)
    assert otsu_threshold(np.full((5, 5), 0.25)) == 0.25


def test_real_tissue_is_found(real_slides: Path) -> None:
    from histolight.slides.grid import lay_grid, read_overview

    slide = open_slide(real_slides / "CMU-1-Small-Region.svs")
    mask = find_tissue(read_overview(slide, lay_grid(slide, 0.972, 0.1, 96, 32).overview_pixel), 7.776)
    assert 0.3 < mask.mean() < 0.45  # a strip of skin in the middle of a white field
    assert not mask[:40, :30].any()
    mosaic = np.asarray(Image.open(real_slides / "mosaics" / "mosaic_00.png").convert("RGB"))
    covered = ~(mosaic == 255).all(axis=2)[4::8, 4::8]
    small = np.asarray(Image.fromarray(mosaic).reduce(8))
    mask = find_tissue(small, 7.776)[: covered.shape[0], : covered.shape[1]]
    assert overlap(mask, covered[: mask.shape[0], : mask.shape[1]]) > 0.9


@pytest.mark.parametrize("mode", ["1", "L", "RGB"])
def test_a_mask_of_ones_own_is_stretched_over_the_slide(tmp_path: Path, mode: str) -> None:
    mask = np.zeros((4, 6), bool)
    mask[1:3, 2:4] = True
    Image.fromarray(mask.astype(np.uint8) * 3).point(lambda value: 255 if value else 0).convert(mode).save(
        tmp_path / "a.png"
    )
    np.testing.assert_array_equal(read_mask(tmp_path / "a.png", (40, 60)), mask.repeat(10, 0).repeat(10, 1))


def test_a_missing_or_damaged_mask_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(SlideError, match="can't be read as a mask"):
        read_mask(tmp_path / "a.png", (4, 4))
    (tmp_path / "a.png").write_bytes(b"no picture")
    with pytest.raises(SlideError, match="can't be read as a mask"):
        read_mask(tmp_path / "a.png", (4, 4))


@pytest.mark.parametrize(("stride", "offset", "side"), [(4, 4, 4), (2.5, 4, 4), (0.25, 0.5, 0.4)])
def test_tiles_with_tissue_in_their_centre_are_chosen(stride: float, offset: float, side: float) -> None:
    mask = np.random.default_rng(0).random((50, 60)) < 0.15
    shape = (int((50 - offset - side) / stride), int((60 - offset - side) / stride))
    expected = []
    for row in range(shape[0]):
        for column in range(shape[1]):
            top, left = (round(index * stride + offset) for index in (row, column))
            bottom, right = (round(index * stride + offset + side) for index in (row, column))
            centre = mask[top : max(bottom, top + 1), left : max(right, left + 1)]
            if centre.sum() >= max(1, 0.1 * centre.size):
                expected.append((row, column))
    np.testing.assert_array_equal(cells_with_tissue(mask, shape, stride, offset, side), expected)
