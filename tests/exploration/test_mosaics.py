from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from memory_packs import memory_pack

from histolight.exploration.mosaics import (
    across_sides,
    label_conflicts,
    largest_mosaics,
    mosaics_figure,
    shared_pixels,
)

SIZE = 48
CORNERS = [(0, 0), (16, 32), (64, 48), (32, 16)]  # of tiles cut from one piece of tissue; the last but one touches none


@pytest.fixture
def tissue() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (160, 160, 3), dtype=np.uint8)


@pytest.fixture
def pixels(tissue: np.ndarray) -> np.ndarray:
    """Four tiles of one tissue, a copy of the first, and two that share nothing with any."""
    apart = np.random.default_rng(1).integers(0, 256, (2, SIZE, SIZE, 3), dtype=np.uint8)
    cut = [tissue[y : y + SIZE, x : x + SIZE] for y, x in CORNERS]
    return np.stack([*cut, cut[0], *apart])


@pytest.fixture
def table() -> pd.DataFrame:
    labels = [1, 1, 0, 0, 0, 0, 1]
    return pd.DataFrame({"id": list("abcdefg"), "label": labels, "group": None, "row": np.arange(7)})


def test_a_component_is_stitched_as_its_tissue_was(
    tissue: np.ndarray, pixels: np.ndarray, table: pd.DataFrame, tmp_path: Path
) -> None:
    pack = memory_pack(pixels, tmp_path)
    shared = shared_pixels(table, pack)
    assert shared.sizes.tolist() == [5]
    (mosaic,) = largest_mosaics(shared, table, pack, count=3, largest=100)
    assert mosaic.places.tolist() == [0, 1, 2, 3, 4]
    assert mosaic.corners.tolist() == [list(corner) for corner in [*CORNERS, CORNERS[0]]]
    expected = np.full(mosaic.image.shape, 255, np.uint8)
    for y, x in CORNERS:
        expected[y : y + SIZE, x : x + SIZE] = tissue[y : y + SIZE, x : x + SIZE]
    assert (mosaic.image == expected).all()


def test_a_large_component_is_shown_in_part(pixels: np.ndarray, table: pd.DataFrame, tmp_path: Path) -> None:
    pack = memory_pack(pixels, tmp_path)
    (mosaic,) = largest_mosaics(shared_pixels(table, pack), table, pack, count=3, largest=2)
    assert len(mosaic.places) == 2
    assert mosaic.corners.min() == 0


def test_only_the_tiles_of_the_table_count(pixels: np.ndarray, table: pd.DataFrame, tmp_path: Path) -> None:
    pack = memory_pack(pixels, tmp_path)
    with_link = shared_pixels(table[table["id"].isin(list("bcdf"))].reset_index(drop=True), pack)
    assert with_link.pairs.tolist() == [[0, 2, 16, -16], [1, 2, -32, -32]]
    assert with_link.sizes.tolist() == [3]
    without = shared_pixels(table[table["id"].isin(list("bcf"))].reset_index(drop=True), pack)
    assert len(without.pairs) == len(without.sizes) == 0


def test_copies_with_different_labels_are_in_conflict(pixels: np.ndarray, table: pd.DataFrame, tmp_path: Path) -> None:
    shared = shared_pixels(table, memory_pack(pixels, tmp_path))
    assert label_conflicts(shared, table).to_dict("records") == [{"id_1": "a", "label_1": 1, "id_2": "e", "label_2": 0}]
    assert label_conflicts(shared, table.assign(label=1)).empty


def test_pairs_on_two_sides_are_counted(pixels: np.ndarray, table: pd.DataFrame, tmp_path: Path) -> None:
    shared = shared_pixels(table, memory_pack(pixels, tmp_path))
    one_side = np.array(["train"] * 7, dtype=object)
    assert not across_sides(shared, one_side).any()
    copy_apart = one_side.copy()
    copy_apart[4] = "val"
    assert across_sides(shared, copy_apart).sum() == (shared.pairs[:, :2] == 4).any(axis=1).sum() == 1
    copy_apart[4] = None  # a tile that the run doesn't have
    assert not across_sides(shared, copy_apart).any()


def test_every_tile_is_marked_in_the_colours_of_its_label_and_side(
    pixels: np.ndarray, table: pd.DataFrame, tmp_path: Path
) -> None:
    pack = memory_pack(pixels, tmp_path)
    mosaics = largest_mosaics(shared_pixels(table, pack), table, pack, count=3, largest=100)
    sides = np.array(["train"] * 4 + ["val"] * 3, dtype=object)
    figure = mosaics_figure(mosaics, table["label"].to_numpy(), SIZE, sides)
    patches = figure.axes[0].patches
    assert len(patches) == 2 * 5
    assert len({patch.get_edgecolor() for patch in patches[::2]}) == 2
    assert len({patch.get_facecolor() for patch in patches[1::2]}) == 2
    figure.savefig(tmp_path / "mosaics.png")
