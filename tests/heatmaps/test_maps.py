from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import shapely
import tifffile

from histolight.heatmaps.maps import find_regions, score_map, write_geojson, write_scores, write_tiff
from histolight.slides.grid import Grid

GRID = Grid(level=0, scale=2, pixel=2.5, mpp=0.972, tile=96, stride=32, columns=40, rows=30, overview=8)


def scored_disc() -> np.ndarray:
    """A disc with a hole, and a single tile touching its own corner neighbour, on scores that are otherwise low."""
    y, x = np.mgrid[:30, :40]
    radius = np.hypot(y - 15, x - 15)
    scored = np.where((radius < 10) & (radius > 3), 0.9, 0.1).astype(np.float32)
    scored[2, 35] = scored[3, 36] = 0.7
    scored[25:, 30:] = np.nan
    return scored


def test_the_map_has_each_score_at_its_place_and_nan_elsewhere() -> None:
    cells = np.array([[0, 0], [29, 39], [3, 7]])
    scored = score_map(GRID, cells, np.array([0.1, 0.2, 0.3]))
    assert scored.shape == (30, 40)
    assert np.isfinite(scored).sum() == 3
    assert scored[3, 7] == np.float32(0.3)


def test_regions_have_the_tiles_holes_and_areas_of_the_map() -> None:
    scored = scored_disc()
    regions = find_regions(GRID, scored, 0.5)
    above = scored >= 0.5
    assert sum(region.tiles for region in regions) == above.sum()
    assert [region.tiles for region in regions[1:]] == [1, 1]  # they touch at a corner only
    assert len(regions[0].rings) == 2
    for region in regions:
        outline = shapely.Polygon(region.rings[0], region.rings[1:])
        assert outline.is_valid
        assert outline.area == pytest.approx(region.tiles * (32 * 2.5) ** 2)
    assert (regions[0].highest, regions[0].mean) == pytest.approx((0.9, 0.9))


def test_a_region_covers_the_centres_of_its_tiles_and_no_others() -> None:
    scored = scored_disc()
    polygons = [shapely.Polygon(region.rings[0], region.rings[1:]) for region in find_regions(GRID, scored, 0.5)]
    rows, columns = np.mgrid[:30, :40]
    x, y = ((index * 32 + 48) * 2.5 for index in (columns, rows))
    inside = np.any([shapely.contains_xy(polygon, x, y) for polygon in polygons], axis=0)
    np.testing.assert_array_equal(inside, scored > 0.5)


def test_the_threshold_itself_is_no_tumour_as_wherever_calls_are_measured() -> None:
    scored = np.full((30, 40), 0.25, np.float32)
    assert len(find_regions(GRID, scored, 0.24)) == 1
    assert find_regions(GRID, scored, 0.25) == []


def test_geojson_is_what_qupath_reads(tmp_path: Path) -> None:
    regions = find_regions(GRID, scored_disc(), 0.5)
    write_geojson(tmp_path / "a.geojson", GRID, regions)
    collection = json.loads((tmp_path / "a.geojson").read_text())
    assert collection["type"] == "FeatureCollection"
    assert len(collection["features"]) == 3
    for feature, region in zip(collection["features"], regions, strict=True):
        assert feature["type"] == "Feature"
        properties = feature["properties"]
        assert properties["objectType"] == "annotation"
        assert properties["classification"] == {"name": "Tumor", "color": [200, 0, 0]}
        assert properties["measurements"]["Area mm^2"] == pytest.approx(region.tiles * (32 * 0.972e-3) ** 2)
        assert all(isinstance(value, float | int) for value in properties["measurements"].values())
        polygon = shapely.from_geojson(json.dumps(feature["geometry"]))
        assert polygon.is_valid
        assert polygon.exterior.is_ccw  # RFC 7946
        for ring in feature["geometry"]["coordinates"]:
            assert ring[0] == ring[-1]


def test_the_table_has_the_centres_of_the_tiles_at_full_resolution(tmp_path: Path) -> None:
    cells = np.array([[5, 2], [0, 1]])
    logits = np.array([1.5, -2.0], np.float32)
    write_scores(tmp_path / "a.parquet", GRID, cells, logits, logits / 10)
    table = pd.read_parquet(tmp_path / "a.parquet")
    assert list(table) == ["x", "y", "score", "logit"]
    assert table["x"].tolist() == [(32 + 48) * 2.5, (64 + 48) * 2.5]
    assert table["y"].tolist() == [48 * 2.5, (160 + 48) * 2.5]
    assert table["logit"].tolist() == [-2.0, 1.5]
    assert table["logit"].dtype == np.float32


def test_the_tiff_lies_on_the_slide(tmp_path: Path) -> None:
    scored = np.random.default_rng(0).random((700, 520), dtype=np.float32)
    scored[100:200, 100:201] = np.nan
    grid = Grid(level=0, scale=2, pixel=2.5, mpp=0.972, tile=96, stride=32, columns=520, rows=700, overview=8)
    write_tiff(tmp_path / "a.ome.tif", grid, scored)
    with tifffile.TiffFile(tmp_path / "a.ome.tif") as file:
        assert file.is_ome
        levels = file.series[0].levels
        assert [level.shape for level in levels] == [(700, 520), (350, 260), (175, 130)]
        np.testing.assert_array_equal(levels[0].asarray(), scored)
        tags = file.pages[0].tags
        assert tags[33550].value == (80, -80, 0)
        assert tags[33922].value == (0, 0, 0, 80, 80, 0)  # the first centre begins at pixel 32 of the tile
        pixels = tifffile.xml2dict(file.ome_metadata)["OME"]["Image"]["Pixels"]
        assert (pixels["PhysicalSizeX"], pixels["PhysicalSizeXUnit"]) == (pytest.approx(31.104), "µm")
        half = levels[1].asarray()
    blocks = scored.reshape(350, 2, 260, 2)
    assert np.isnan(half[50:100, 50:100]).all()
    np.testing.assert_allclose(half[:50], blocks.mean(axis=(1, 3))[:50], rtol=1e-6)
    np.testing.assert_allclose(half[60, 100], np.nanmean(blocks[60, :, 100]), rtol=1e-6)  # half of it was scored


def test_the_same_map_makes_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_tiff(tmp_path / name, GRID, scored_disc())
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
