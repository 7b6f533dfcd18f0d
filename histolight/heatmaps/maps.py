"""The scores of a slide's tiles as files: a table, a TIFF that lies on the slide, and outlines for QuPath."""

from __future__ import annotations

import hashlib
import io
import json
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import ndimage

from histolight.files import write_atomically
from histolight.slides.grid import Grid

COLOUR = (200, 0, 0)  # of QuPath's class Tumor
TIFF_TILE = 256


@dataclass(frozen=True)
class Region:
    """A connected region (by sides, not corners) of tiles above the threshold.

    Attributes:
        rings: Its outline and its holes: (n, 2) x and y in pixels at full resolution, the last point being the first.
        tiles: Number of tiles.
        highest: Highest score.
        mean: Mean score.
    """

    rings: list[np.ndarray]
    tiles: int
    highest: float
    mean: float


def score_map(grid: Grid, cells: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Lay scores out as float32 (rows, columns), NaN where no tile was scored."""
    scored = np.full((grid.rows, grid.columns), np.nan, np.float32)
    scored[cells[:, 0], cells[:, 1]] = scores
    return scored


def write_scores(path: Path, grid: Grid, cells: np.ndarray, logits: np.ndarray, scores: np.ndarray) -> None:
    """Write ``x``, ``y`` (a tile's centre in pixels at full resolution), ``score`` and ``logit``, row by row."""
    order = np.lexsort((cells[:, 1], cells[:, 0]))
    y, x = ((cells[order, axis] * grid.stride + grid.tile / 2) * grid.pixel for axis in (0, 1))
    table = pd.DataFrame({"x": x, "y": y, "score": scores[order], "logit": logits[order]})
    buffer = io.BytesIO()
    table.to_parquet(buffer, index=False)
    write_atomically(path, buffer.getbuffer())


def find_regions(grid: Grid, scored: np.ndarray, threshold: float) -> list[Region]:
    """Outline what is above the threshold, the square of ``stride`` pixels about each tile's centre being its own."""
    import shapely

    labels, _ = ndimage.label(scored > np.float32(threshold))  # NaN is not
    regions = []
    for label, (rows, columns) in enumerate(ndimage.find_objects(labels), 1):
        inside = labels[rows, columns] == label
        starts = np.argwhere(np.diff(np.pad(inside.astype(np.int8), ((0, 0), (1, 1))), axis=1) == 1)
        ends = np.argwhere(np.diff(np.pad(inside.astype(np.int8), ((0, 0), (1, 1))), axis=1) == -1)
        boxes = shapely.box(starts[:, 1], starts[:, 0], ends[:, 1], starts[:, 0] + 1)
        outline = shapely.orient_polygons(shapely.union_all(boxes).simplify(0))
        rings = [
            grid.corner(shapely.get_coordinates(ring) + np.array([columns.start, rows.start]))
            for ring in (outline.exterior, *outline.interiors)
        ]
        values = scored[rows, columns][inside]
        regions.append(Region(rings, len(values), float(values.max()), float(values.mean(dtype=np.float64))))
    return sorted(regions, key=lambda region: -region.tiles)


def write_geojson(path: Path, grid: Grid, regions: list[Region]) -> None:
    """Write the regions as annotations of the class Tumor, as QuPath (0.4 or later) imports them."""
    features = [
        {
            "type": "Feature",
            "geometry": {"type": "Polygon", "coordinates": [ring.round(2).tolist() for ring in region.rings]},
            "properties": {
                "objectType": "annotation",
                "name": f"region {number}",
                "classification": {"name": "Tumor", "color": COLOUR},
                "measurements": {
                    "Area mm^2": region.tiles * grid.cell_mm2,
                    "Tiles": region.tiles,
                    "Highest score": region.highest,
                    "Mean score": region.mean,
                },
            },
        }
        for number, region in enumerate(regions, 1)
    ]
    write_atomically(path, json.dumps({"type": "FeatureCollection", "features": features}) + "\n")


def write_tiff(path: Path, grid: Grid, scored: np.ndarray) -> None:
    """Write the map as a pyramidal OME-TIFF of float32, NaN where nothing was scored.

    Its pixel size is that of OME, in microns; GeoTIFF's tags say where it lies in pixels of the slide at full
    resolution, y downwards as there.
    """
    import tifffile

    levels = [scored]
    while max(levels[-1].shape) > TIFF_TILE:
        levels.append(_halved(levels[-1]))
    cell = grid.stride * grid.pixel
    corner = float(grid.corner(np.array(0)))
    size = grid.stride * grid.mpp
    metadata = {"axes": "YX", "PhysicalSizeX": size, "PhysicalSizeXUnit": "µm", "PhysicalSizeY": size}
    digest = hashlib.blake2b(scored.tobytes()).hexdigest()
    metadata |= {"PhysicalSizeYUnit": "µm", "Name": "score"}
    metadata["UUID"] = str(uuid.uuid5(uuid.NAMESPACE_OID, digest))  # else drawn anew: no two files would be alike
    geo = [
        (33550, "d", 3, (cell, -cell, 0.0), True),  # ModelPixelScale: GeoTIFF's y points up, a slide's down
        (33922, "d", 6, (0.0, 0.0, 0.0, corner, corner, 0.0), True),  # ModelTiepoint
        (42113, "s", 0, "nan", True),  # GDAL's NODATA
    ]
    options: dict[str, Any] = {"tile": (TIFF_TILE, TIFF_TILE), "compression": "zlib", "photometric": "minisblack"}
    buffer = io.BytesIO()
    with tifffile.TiffWriter(buffer, ome=True) as writer:
        writer.write(levels[0], subifds=len(levels) - 1, metadata=metadata, extratags=geo, **options)
        for level in levels[1:]:
            writer.write(level, subfiletype=1, **options)
    write_atomically(path, buffer.getbuffer())


def _halved(scored: np.ndarray) -> np.ndarray:
    """Average what was scored of each 2 x 2 pixels."""
    rows, columns = (-(-side // 2) for side in scored.shape)
    padded = np.full((2 * rows, 2 * columns), np.nan, np.float32)
    padded[: scored.shape[0], : scored.shape[1]] = scored
    quads = padded.reshape(rows, 2, columns, 2)
    known = np.isfinite(quads)
    count = known.sum(axis=(1, 3))
    sums = np.where(known, quads, 0).sum(axis=(1, 3))
    return np.where(count > 0, sums / np.maximum(count, 1), np.nan).astype(np.float32)
