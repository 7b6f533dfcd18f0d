from __future__ import annotations

import io
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from memory_packs import memory_pack
from PIL import Image
from scipy.ndimage import gaussian_filter
from sklearn.metrics import roc_auc_score

from histolight.config.schema import DataConfig
from histolight.exploration import measures as exploration

SIZE = 64


def natural(count: int, seed: int = 0) -> np.ndarray:
    """Draw smooth tiles, as unlike one another as photographs are: uint8 (count, SIZE, SIZE, 3)."""
    noise = np.random.default_rng(seed).normal(size=(count, SIZE, SIZE, 3))
    tiles = gaussian_filter(noise, (0, 2, 2, 0), mode="reflect")
    tiles = 128 + 40 * tiles / tiles.std(axis=(1, 2, 3), keepdims=True)
    return tiles.clip(0, 255).astype(np.uint8)


def near(pixels: np.ndarray, rows: np.ndarray | None = None) -> list[tuple[int, int]]:
    rows = np.arange(len(pixels)) if rows is None else rows
    pack = memory_pack(pixels)
    hashes = exploration.perceptual_hashes(pack.tiles.gather(rows))
    found = exploration.near_duplicates(pack, rows, hashes)
    return list(zip(found["place_1"], found["place_2"], strict=True))


def jpeg(tile: np.ndarray) -> np.ndarray:
    buffer = io.BytesIO()
    Image.fromarray(tile).save(buffer, "JPEG", quality=75)
    return np.asarray(Image.open(buffer))


def test_what_is_measured_in_blocks_is_what_is_there() -> None:
    pixels = natural(300)  # more than one block
    rows = np.random.default_rng(1).permutation(300)[:280]
    labels = np.random.default_rng(2).integers(0, 2, 280)
    found = exploration.measure_colours(memory_pack(pixels).tiles, rows, labels)
    own = pixels[rows]
    np.testing.assert_allclose(found.means, own.mean(axis=(1, 2)), rtol=1e-5)
    for label in (0, 1):
        np.testing.assert_allclose(found.mean_tiles[label], own[labels == label].mean(axis=0))
        for channel in range(3):
            expected = np.histogram(own[labels == label][:, ::2, ::2, channel], np.arange(257) - 0.5)[0]
            np.testing.assert_array_equal(found.levels[label, channel], expected)
    np.testing.assert_array_equal(found.hashes, exploration.perceptual_hashes(own))


def test_measures_of_both_classes() -> None:
    labels = np.array([0, 0, 1, 1, 1])
    measures = pd.DataFrame({"red": [1.0, 3.0, 2.0, 5.0, 8.0]})
    row = exploration.measure_summary(measures, labels).loc["red"]
    assert row["mean_0"] == 2.0
    assert row["sd_1"] == pytest.approx(np.std([2, 5, 8]))
    assert row["auroc"] == roc_auc_score(labels, measures["red"])
    assert exploration.measure_summary(-measures, labels).loc["red", "auroc"] == pytest.approx(row["auroc"])


def test_the_eight_hashes_are_those_of_the_eight_orientations() -> None:
    tiles = natural(5)
    views = [view for turned in (tiles, tiles.transpose(0, 2, 1, 3)) for view in (turned, np.rot90(turned, 2, (1, 2)))]
    views += [view for turned in views for view in (turned[:, ::-1], turned[:, :, ::-1])]
    hashes = exploration.perceptual_hashes(tiles)
    assert all(len(set(row)) == 8 for row in hashes)
    for view in views:
        for own, seen in zip(hashes, exploration.perceptual_hashes(view), strict=True):
            assert seen[0] in own


@pytest.mark.parametrize(
    "change",
    [
        lambda tile: np.rot90(tile),
        lambda tile: np.rot90(tile, 3)[::-1],
        jpeg,
        lambda tile: (tile * 0.9 + 12).astype(np.uint8),
        lambda tile: np.rot90(jpeg(tile), 2),
    ],
)
def test_a_changed_copy_is_found_and_nothing_else(change: Callable[[np.ndarray], np.ndarray]) -> None:
    pixels = natural(40)
    pixels[31] = change(pixels[7])
    assert near(pixels) == [(7, 31)]


def test_pairs_are_places_in_the_rows_that_were_asked_for() -> None:
    pixels = natural(40)
    pixels[31] = pixels[7][::-1]
    assert near(pixels, np.array([31, 2, 7, 3])) == [(0, 2)]
    assert near(pixels, np.array([31, 2, 3])) == []


def test_equal_and_near_blank_tiles_are_no_near_duplicates() -> None:
    pixels = natural(10)
    pixels[3] = pixels[1]
    pixels[4:] = 200
    pixels[4:, 0, 0] = np.arange(6)[:, None]
    assert near(pixels) == []


def test_alike_finds_exactly_what_comparing_all_with_all_finds() -> None:
    random = np.random.default_rng(4)
    hashes = random.integers(0, 2**63, (200, 8), dtype=np.uint64) & ~np.uint64(1)
    for bits in (0, 1, 2, 3, 4):
        flipped = random.choice(np.arange(1, 64), bits, replace=False).astype(np.uint64)
        hashes[100 + bits, 0] = hashes[bits, 5] ^ np.bitwise_or.reduce(np.uint64(1) << flipped, initial=np.uint64(0))
    expected = {
        (one, other)
        for one in range(200)
        for other in range(one + 1, 200)
        if np.bitwise_count(hashes[one] ^ hashes[other, 0]).min() <= exploration.MOST_BITS_APART
    }
    assert expected == {(0, 100), (1, 101), (2, 102), (3, 103)}
    assert set(map(tuple, exploration.alike(hashes).tolist())) == expected


def test_sets_join_exact_and_near_copies() -> None:
    table = pd.DataFrame(
        {"id": list("abcdefg"), "label": [0, 1, 0, 0, 1, 1, 0], "group": ["s", "s", "t", None, "u", "u", None]}
    )
    hashes = np.array([1, 2, 1, 3, 4, 4, 5], np.uint64)
    pairs = pd.DataFrame({"place_1": [0], "place_2": [1], "correlation": [0.95]})
    found = exploration.duplicate_sets(table, hashes, pairs).set_index("id")
    assert found["set"].to_dict() == {"a": 1, "b": 1, "c": 1, "e": 2, "f": 2}
    assert found["exact"].to_dict() == {"a": True, "b": False, "c": True, "e": True, "f": True}
    assert found.loc["a", ["labels", "slides"]].tolist() == [2, 2]
    assert found.loc["f", ["labels", "slides"]].tolist() == [1, 1]
    assert exploration.duplicate_sets(table.iloc[3:5], hashes[3:5], pairs.iloc[:0]).empty


def test_counts_of_classes_and_slides() -> None:
    table = pd.DataFrame({"label": [0, 1, 1, 0, 1], "group": ["b", "b", "a", None, "b"], "split": None})
    assert exploration.class_counts(table).loc["all"].tolist() == [2, 3]
    slides = exploration.slide_counts(table)
    assert slides["slide"].tolist() == ["b", "a"]
    assert slides.loc[0, ["tiles", "benign", "tumour"]].tolist() == [3, 1, 2]
    assert math.isclose(slides.loc[0, "tumour_share"], 2 / 3)
    counts = exploration.class_counts(table.assign(split=["train", "train", "val", "val", "val"]))
    assert counts.index.tolist() == ["train", "val", "all"]
    assert counts[1].tolist() == [1, 2, 3]


def test_files_are_described_by_kind(tile_folder: Path) -> None:
    facts = exploration.file_facts(DataConfig(source="folder", root=str(tile_folder)))
    sizes = [path.stat().st_size for path in tile_folder.glob("*/*.png")]
    assert facts.iloc[0].tolist() == [".png", 60, min(sizes), np.median(sizes), max(sizes)]
    assert exploration.file_facts(DataConfig()).empty


@pytest.mark.slow
def test_real_tiles_have_no_copies(real_tiles: Path) -> None:
    names = sorted((real_tiles / "train").glob("*.tif"))[:400]
    pixels = np.stack([np.asarray(Image.open(name)) for name in names])
    assert near(pixels) == []
    changed = np.stack([np.rot90(jpeg(tile)) for tile in pixels[:100]])
    found = near(np.concatenate([pixels, changed]))
    assert {(place, place + 400) for place in range(100)} >= set(found)
    assert len(found) >= 95
