from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from scipy.stats import f_oneway

from histolight.config.schema import DataConfig
from histolight.data.checks import check_table
from histolight.data.sources import load_source, synthetic
from histolight.data.sources.synthetic import CENTRE, SLIDES, TILES_PER_SLIDE, draw_tiles, make_slide, transmit
from histolight.data.splits import make_split


@pytest.fixture(scope="module")
def source():
    return load_source(DataConfig())


def draw_tile(number: int, index: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    pixels, masks = draw_tiles(number, [index], size)
    return pixels[0], masks[0]


def centre(mask: np.ndarray) -> np.ndarray:
    start = (len(mask) - CENTRE) // 2
    return mask[start : start + CENTRE, start : start + CENTRE]


def test_the_table(source):
    table = source.table
    assert len(table) == SLIDES * TILES_PER_SLIDE
    assert table["id"].is_monotonic_increasing
    assert table["id"].is_unique
    assert table["id"].iloc[7 * TILES_PER_SLIDE + 42] == "slide_07_0042"
    assert (table["group"] == table["id"].str[:8]).all()
    assert table["split"].isna().all()
    assert table["row"].tolist() == list(range(len(table)))
    assert table["label"].dtype == np.int8
    check_table(table, DataConfig())


def test_both_classes_on_every_slide_in_different_parts(source):
    prevalence = source.table.groupby("group")["label"].mean()
    assert len(prevalence) == SLIDES
    assert 0.15 < prevalence.min() < 0.3
    assert 0.5 < prevalence.max() < 0.65
    assert 0.35 < prevalence.mean() < 0.45


def test_the_split_is_by_slide(source):
    table = source.table.assign(cluster=source.table["group"])
    parts, kind = make_split(table, DataConfig())
    assert kind == "slide"
    assert (source.table.assign(part=parts).groupby("group")["part"].nunique() == 1).all()


def test_rows_of_the_table_are_the_tiles_of_its_slides(source):
    row = 3 * TILES_PER_SLIDE + 5
    np.testing.assert_array_equal(source.read_tile(row), draw_tile(3, 5, 96)[0])


def test_a_tile_is_the_same_in_threads_and_whenever_it_is_called(source):
    rows = list(range(0, SLIDES * TILES_PER_SLIDE, 151))
    serial = [source.read_tile(row) for row in rows]
    make_slide.cache_clear()
    with ThreadPoolExecutor(4) as threads:
        threaded = list(threads.map(source.read_tile, reversed(rows)))
    np.testing.assert_array_equal(serial, threaded[::-1])
    assert len({tile.tobytes() for tile in serial}) == len(rows)


def test_a_tile_is_the_same_beside_others(source):
    rows = range(90, 205)  # of three slides
    np.testing.assert_array_equal(source.read_tiles(rows), [source.read_tile(row) for row in rows])


def test_the_seed_of_the_split_leaves_tiles_and_fingerprint_alone(source):
    other = load_source(DataConfig(seed=7))
    assert other.fingerprint == source.fingerprint
    np.testing.assert_array_equal(other.read_tile(11), source.read_tile(11))


def test_a_change_of_the_drawing_changes_the_fingerprint(source, monkeypatch):
    monkeypatch.setattr(synthetic, "transmit", lambda *arguments: 0.9 * transmit(*arguments))
    assert load_source(DataConfig()).fingerprint != source.fingerprint


@pytest.mark.parametrize("size", [32, 47, 96])
def test_any_tile_size(source, size):
    resized = load_source(DataConfig(image_size=size))
    tile = resized.read_tile(0)
    assert tile.shape == (size, size, 3)
    assert tile.dtype == np.uint8
    assert tile.std() > 5
    assert (resized.fingerprint == source.fingerprint) == (size == 96)
    assert resized.table.equals(source.table)


@pytest.mark.parametrize("size", [32, 47, 96])
def test_the_centre_alone_decides_the_label(size):
    for number in range(0, SLIDES, 3):
        for index in range(6):
            mask = draw_tile(number, index, size)[1]
            assert centre(mask).any() == make_slide(number).labels[index]


def test_half_of_the_benign_tiles_have_tumour_around_the_centre():
    keys = [(number, index) for number in range(SLIDES) for index in range(6)]
    benign = [key for key in keys if make_slide(key[0]).labels[key[1]] == 0]
    around = np.mean([draw_tile(*key, 96)[1].any() for key in benign])
    assert 0.35 < around < 0.7


def test_tumour_nuclei_are_haematoxylin_dark():
    tile, mask = next(
        (tile, mask) for index in range(TILES_PER_SLIDE) for tile, mask in [draw_tile(0, index, 96)] if mask.sum() > 500
    )
    assert tile[mask, 0].mean() < tile[~mask, 0].mean()


def test_slides_differ_in_colour_more_than_their_tiles():
    colours = [[draw_tile(number, index, 64)[0].mean(axis=(0, 1)) for index in range(12)] for number in range(SLIDES)]
    assert (f_oneway(*colours).pvalue < 1e-3).all()


def test_stains_are_mixed_in_optical_density():
    amounts = np.random.default_rng(0).uniform(0, 1.5, (2, 50))
    for slide in map(make_slide, range(SLIDES)):
        light = transmit(amounts, slide.stains, slide.glass)
        density = -np.log10(light / slide.glass[:, None])
        recovered = np.linalg.lstsq(slide.stains.T, density, rcond=None)[0]
        np.testing.assert_allclose(recovered, amounts, atol=1e-9)
        np.testing.assert_allclose(np.linalg.norm(slide.stains, axis=1), 1)


def test_smooth_noise_has_variance_one_and_the_asked_for_smoothness():
    random = np.random.default_rng(0)
    fields = np.stack([synthetic.smooth_noise(random, 32, 8) for _ in range(2000)])
    np.testing.assert_allclose(fields.std(axis=0), 1, atol=0.1)
    np.testing.assert_allclose(fields.mean(axis=0), 0, atol=0.15)
    # Bumps of width s overlap as exp(-d^2 / (4 s^2)): the correlation 8 pixels apart is exp(-1/4).
    assert (fields[:, 16, 10] * fields[:, 16, 18]).mean() == pytest.approx(np.exp(-0.25), abs=0.08)
