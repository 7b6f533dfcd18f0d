from __future__ import annotations

import hashlib
import io
import itertools

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from tissue import SIZE, as_jpeg, canvas, cut

from histolight.config.schema import DataConfig
from histolight.data.images import decode_luma
from histolight.data.overlaps import (
    block_hashes,
    find_components,
    find_overlaps,
    jpeg_luma,
    pair_table,
    shared_parts,
    tile_hashes,
)
from histolight.data.pack import open_pack
from histolight.data.sources import load_source


def overlaps(tiles: np.ndarray, least: int = 1, across: int | None = None) -> list[tuple[int, ...]]:
    def read(rows: np.ndarray) -> np.ndarray:
        return tiles[rows]

    pairs = find_overlaps(tile_hashes(tiles), block_hashes(tiles), read, least, across)
    return [tuple(pair) for pair in pairs.tolist()]


@pytest.mark.parametrize("dy", [-80, -48, 0, 16, 32, 80])
@pytest.mark.parametrize("dx", [-64, 0, 16, 32, 48, 64, 80])
def test_a_tile_and_the_same_shifted_on_the_grid_overlap(dy, dx):
    slide = canvas(3 * SIZE, 3 * SIZE)
    tiles = cut(slide, [(SIZE, SIZE), (SIZE + dy, SIZE + dx)])
    assert overlaps(tiles) == [(0, 1, dy, dx)]
    one, two = shared_parts(dy, dx)
    np.testing.assert_array_equal(tiles[0][one], tiles[1][two])
    assert overlaps(tiles[::-1]) == [(0, 1, -dy, -dx)]  # an exact copy is its own reverse


def test_copies_are_paired_with_the_first_and_only_the_first_overlaps():
    slide = canvas(200, 200)
    tiles = cut(slide, [(0, 0), (16, 0), (0, 0), (0, 0), (16, 0)])
    assert overlaps(tiles) == [(0, 1, 16, 0), (0, 2, 0, 0), (0, 3, 0, 0), (1, 4, 0, 0)]


@pytest.mark.parametrize(
    "change",
    [
        lambda tile: tile[::-1],
        lambda tile: tile[:, ::-1],
        lambda tile: np.rot90(tile),
        lambda tile: np.minimum(tile.astype(int) + 1, 255).astype(np.uint8),
        lambda tile: tile[..., ::-1],
    ],
    ids=["upside down", "mirrored", "turned", "brightened", "other colours"],
)
def test_a_changed_tile_is_no_overlap(change):
    first, second = cut(canvas(200, 200), [(0, 0), (32, 16)])
    assert overlaps(np.stack([first, np.ascontiguousarray(change(second))])) == []


def test_one_other_pixel_anywhere_in_the_overlap_is_no_overlap():
    first, second = cut(canvas(200, 200), [(0, 0), (32, 48)])
    for y, x, channel in [(0, 0, 0), (63, 47, 2), (30, 20, 1)]:
        changed = second.copy()
        changed[y, x, channel] ^= 1
        assert overlaps(np.stack([first, changed])) == []
        assert overlaps(np.stack([first, second])) == [(0, 1, 32, 48)]
    changed = second.copy()
    changed[64:] = 0  # below the overlap
    assert overlaps(np.stack([first, changed])) == [(0, 1, 32, 48)]


def test_a_block_in_common_at_a_place_that_does_not_fit_is_no_overlap():
    tiles = np.stack([canvas(SIZE, SIZE, seed) for seed in range(2)])
    tiles[1, 16:32, 64:80] = tiles[0, 48:64, 32:48]
    assert overlaps(tiles) == []


def test_blank_neighbours_are_no_overlap():
    random = np.random.default_rng(0)
    slide = canvas(300, 300)
    slide[:, 80:160] = random.integers(242, 246, (300, 80, 3))  # glass, with the noise of a camera
    tiles = cut(slide, [(0, 0), (0, 80), (96, 0), (96, 80), (16, 80)])
    assert overlaps(tiles) == [(1, 4, 16, 0), (3, 4, -80, 0)]  # they share tissue as well
    white = np.full((4, SIZE, SIZE, 3), 255, np.uint8)
    white[:, 40, 40] = np.arange(4)[:, None]  # different tiles, whose overlaps are white
    assert overlaps(white) == []


@pytest.mark.parametrize(("deviation", "joined"), [(4, False), (6, True)])
def test_an_overlap_counts_from_a_deviation_of_five_on_wherever_in_it_that_lies(deviation, joined):
    slide = canvas(SIZE, SIZE + 48)
    slide[:, 48:SIZE] = 128
    slide[:, 49:SIZE:2] = np.random.default_rng(0).normal(128, deviation * 2**0.5, (SIZE, 24, 1)).round()
    assert overlaps(cut(slide, [(0, 0), (0, 48)])) == [(0, 1, 0, 48)] * joined


@pytest.mark.parametrize("period", [2, 4, 8, 16])
def test_a_periodic_pattern_is_not_joined(period):
    tiles = np.stack([canvas(SIZE, SIZE, seed) for seed in range(3)])
    pattern = np.tile(canvas(period, period, 9), (SIZE // period, SIZE // period, 1))
    tiles[:2, :, 32:] = pattern[:, 32:]
    tiles[2, :, :48] = pattern[:, :48]
    assert overlaps(tiles) == []


def test_a_pattern_that_many_tiles_share_is_not_joined():
    tiles = np.stack([canvas(SIZE, SIZE, seed) for seed in range(40)])
    tiles[:, 80:, 80:] = tiles[0, 80:, 80:]  # a mark in the corner of every tile, next to which all else differs
    tiles[:, 64:80, 64:80] = tiles[0, 80:, 80:][::-1]
    assert overlaps(tiles) == []


def test_tiles_of_another_size_may_leave_pixels_beyond_the_last_block():
    slide = canvas(300, 300)
    tiles = np.stack([slide[y : y + 100, x : x + 100] for y, x in [(0, 0), (16, 48)]])
    assert overlaps(tiles) == [(0, 1, 16, 48)]
    tiles[1, 83, 51] += 1  # in the last rows and columns, which no block covers
    assert overlaps(tiles) == []


def test_only_pairs_across_a_border_where_these_are_asked_for():
    slide = canvas(300, 300)
    places = [(0, 0), (16, 0), (0, 160), (32, 0), (0, 0), (144, 160)]
    assert overlaps(cut(slide, places), across=3) == [(0, 3, 32, 0), (0, 4, 0, 0), (1, 3, 16, 0)]
    copies = [(0, 0), (160, 160), (0, 0), (160, 160), (0, 160), (0, 160)]  # 2 and 5 lie on the side of their first
    assert overlaps(cut(slide, copies), across=3) == [(1, 3, 0, 0)]


@pytest.mark.parametrize("candidates", [2**22, 16])
def test_it_agrees_with_comparing_every_pair_at_every_offset(candidates, monkeypatch):
    monkeypatch.setattr("histolight.data.overlaps._CANDIDATES", candidates)  # in memory before they are joined
    monkeypatch.setattr("histolight.data.overlaps._BATCH", 7)
    random = np.random.default_rng(4)
    slide = canvas(400, 400, 3)
    places = [(16 * y, 16 * x) for y, x in random.integers(0, 19, (60, 2))]
    tiles = cut(slide, places)
    expected = {
        (a, b, places[b][0] - places[a][0], places[b][1] - places[a][1])
        for a, b in itertools.combinations(range(60), 2)
        if max(abs(places[a][0] - places[b][0]), abs(places[a][1] - places[b][1])) < SIZE
    }
    first = {place: places.index(place) for place in places}

    def listed(a: int, b: int, *offset: int) -> bool:
        return a == first[places[a]] and (offset == (0, 0) or b == first[places[b]])

    assert set(overlaps(tiles)) == {pair for pair in expected if listed(*pair)}


def test_jpegs_of_one_place_agree_in_luma_and_not_in_colour():
    slide = canvas(300, 300)
    tiles = cut(slide, [(0, 0), (32, 16), (80, 80)])
    files = [as_jpeg(tile) for tile in tiles]
    colours = np.stack([np.asarray(Image.open(io.BytesIO(file))) for file in files])
    luma = np.stack([decode_luma(file) for file in files])
    assert overlaps(colours) == []
    assert overlaps(luma, least=2) == [(0, 1, 32, 16), (1, 2, 48, 64)]
    assert overlaps(luma, least=1) == [(0, 1, 32, 16), (0, 2, 80, 80), (1, 2, 48, 64)]
    np.testing.assert_array_equal(luma, jpeg_luma(tiles))


@pytest.mark.parametrize("size", [96, 100, 224])
@pytest.mark.parametrize("subsampling", [0, 2])
def test_the_luma_of_a_lossless_tile_is_that_of_its_jpeg(size, subsampling):
    tiles = np.random.default_rng(size).integers(0, 256, (400, size, size, 3), dtype=np.uint8)[
        : 400 if size == 96 else 9
    ]
    decoded = np.stack([decode_luma(as_jpeg(tile, subsampling=subsampling)) for tile in tiles])
    np.testing.assert_array_equal(decoded, jpeg_luma(tiles))


def test_components_are_named_by_their_first_row():
    pairs = np.array([[1, 4, 16, 0], [2, 4, 0, 16], [0, 5, 0, 0]], np.int32)
    assert find_components(7, pairs).tolist() == [0, 1, 1, 3, 1, 0, 6]
    assert find_components(3, np.empty((0, 4), np.int32)).tolist() == [0, 1, 2]


def test_a_table_of_some_tiles_names_their_pairs_only():
    table = pd.DataFrame({"id": ["c", "b", "a"], "row": [4, 2, 9]})
    pairs = np.array([[1, 4, 16, 0], [2, 4, -32, 16], [4, 9, 0, 0]], np.int32)
    named = pair_table(table, pairs)
    assert named.to_dict("list") == {"id_1": ["b", "c"], "id_2": ["c", "a"], "dy": [-32, 0], "dx": [16, 0]}


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_a_pack_holds_the_pairs_and_hashes_by_which_a_tile_is_recognised(tmp_path, suffix):
    slide = canvas(300, 300)
    tiles = cut(slide, [(0, 0), (16, 32), (160, 160)])
    (tmp_path / "0").mkdir()
    (tmp_path / "1").mkdir()
    for number, tile in enumerate(tiles):
        path = tmp_path / str(number % 2) / f"{number}{suffix}"
        path.write_bytes(as_jpeg(tile)) if suffix == ".jpg" else Image.fromarray(tile).save(path)
    pack = open_pack(load_source(DataConfig(source="folder", root=str(tmp_path))), tmp_path / "cache", SIZE)
    assert pack.overlaps.tolist() == [[0, 1, 16, 32]]
    np.testing.assert_array_equal(pack.lumas, tile_hashes(jpeg_luma(tiles)))
    np.testing.assert_array_equal(pack.luma(np.array([2, 0])), jpeg_luma(tiles[[2, 0]]))
    assert (pack.stored_luma is not None) == (suffix == ".jpg")


def test_lossless_tiles_and_jpegs_in_one_folder_are_joined_in_luma(tmp_path):
    tiles = cut(canvas(300, 300), [(0, 0), (16, 32), (0, 0), (80, 80), (160, 160)])
    for label in "01":
        (tmp_path / label).mkdir()
    for number, tile in enumerate(tiles):
        path = tmp_path / str(number % 2) / str(number)
        if number in (1, 2):
            path.with_suffix(".jpg").write_bytes(as_jpeg(tile))
        else:
            Image.fromarray(tile).save(path.with_suffix(".tif"))
    pack = open_pack(load_source(DataConfig(source="folder", root=str(tmp_path))), tmp_path / "cache", SIZE)
    pairs = [tuple(pair) for pair in pack.overlaps.tolist()]
    assert pairs == [(0, 1, 16, 32), (0, 2, 0, 0), (0, 3, 80, 80), (1, 3, 64, 48), (3, 4, 80, 80)]


def exhaustive(tiles: np.ndarray, least: int) -> set[tuple[int, int, int, int]]:
    """Compare all tiles at all offsets on the grid, whole overlap by whole overlap, without blocks or candidates."""
    found = set()
    for dy, dx in itertools.product(range(0, SIZE, 16), range(16 - SIZE, SIZE, 16)):
        if (dy == 0 and dx <= 0) or (SIZE - dy) * (SIZE - abs(dx)) < least * 256:
            continue
        above = tiles[:, dy:, max(dx, 0) : SIZE + min(dx, 0)]
        below = tiles[:, : SIZE - dy, max(-dx, 0) : SIZE - max(dx, 0)]
        places: dict[bytes, list[int]] = {}
        for row, part in enumerate(below):
            places.setdefault(hashlib.blake2b(part.tobytes(), digest_size=16).digest(), []).append(row)
        for row, part in enumerate(above):
            for other in places.get(hashlib.blake2b(part.tobytes(), digest_size=16).digest(), []):
                grey = part.astype(float).mean(axis=-1) if part.ndim == 3 else part.astype(float)
                if grey.std() >= 5:
                    found.add((row, other, dy, dx) if row < other else (other, row, -dy, -dx))
    return found


@pytest.mark.slow
def test_on_real_tiles_all_pairs_and_no_others(real_tiles, tmp_path):
    source = load_source(DataConfig(source="kaggle", root=str(real_tiles)))
    pack = open_pack(source, tmp_path, SIZE)
    tiles = pack.tiles.gather(np.arange(len(source.table)))
    pairs = {tuple(pair) for pair in pack.overlaps.tolist()}
    assert len(pairs) == 283
    assert pairs == exhaustive(tiles, 1)
    luma = jpeg_luma(tiles)
    again = overlaps(luma, least=2)
    assert set(again) == {pair for pair in pairs if (SIZE - abs(pair[2])) * (SIZE - abs(pair[3])) >= 512}


@pytest.mark.slow
def test_on_real_jpegs_all_pairs_of_two_blocks_and_no_others(real_tiles, tmp_path):
    root = real_tiles.parent / "pcam-valid"
    pack = open_pack(load_source(DataConfig(source="folder", root=str(root))), tmp_path, SIZE)
    luma = pack.luma(np.arange(len(pack.tiles)))
    pairs = {tuple(pair) for pair in pack.overlaps.tolist()}
    assert len(pairs) == 3802
    assert pairs == exhaustive(luma, 2)
    _, sizes = np.unique(find_components(len(luma), pack.overlaps), return_counts=True)
    assert sizes[sizes > 1].sum() == 965
