"""What people marked on a slide: outlines of QuPath (GeoJSON) or ASAP (XML), or a picture of the same extent.

A tile is tumour where any tumour lies in its centre, 32x32: of outlines, where the two share an area (not an edge
alone); of a picture, where any of its pixels that reaches into the centre is tumour.
"""

from __future__ import annotations

import json
import logging
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

import numpy as np
from PIL import Image

from histolight.config.schema import CENTRE
from histolight.slides.grid import Grid
from histolight.slides.reader import MASK, Slide, SlideError

if TYPE_CHECKING:
    from shapely.geometry.base import BaseGeometry

log = logging.getLogger("histolight")

OUTLINES = (".geojson", ".json", ".xml")
PICTURES = (".png", ".tif", ".tiff")
POSITIVE = ("tumor", "tumour", "metastasis", "metastases", "cancer", "carcinoma", "_0", "_1")  # _0, _1: CAMELYON16
UNCLASSIFIED = "unclassified"
MOST_PIXELS = 2**26  # of a picture; of a pyramid the finest level with no more is taken
LARGEST_FILE = 2**28  # bytes of outlines
INSIDE = 0.9  # of an outline of another class, from which on it lies inside a tumour and is taken out of it


@dataclass(frozen=True)
class Outline:
    """A closed outline in pixels at full resolution; ``area`` is a Polygon or MultiPolygon of shapely."""

    name: str
    area: BaseGeometry


@dataclass(frozen=True)
class Tumour:
    """Where a slide is tumour: either an area of shapely in pixels at full resolution, or a picture, bool (H, W)."""

    area: BaseGeometry | None = None
    picture: np.ndarray | None = None

    @property
    def none(self) -> bool:
        """Whether there is none at all."""
        return not self.picture.any() if self.picture is not None else self.area is None or self.area.is_empty


def find_annotation(folder: Path, name: str, beside: bool) -> Path | None:
    """Find the annotation of a slide.

    Args:
        folder: Where to look.
        name: Of the slide.
        beside: Whether the slides lie in this folder too: a picture then has ``_mask`` behind the name.

    Raises:
        SlideError: There are several.
    """
    pictures = [f"{name}{MASK}{suffix}" for suffix in PICTURES] + ([] if beside else [name + s for s in PICTURES])
    found = [folder / file for file in (*(name + s for s in OUTLINES), *pictures) if (folder / file).is_file()]
    if len(found) > 1:
        raise SlideError(f"{name} has several annotations ({', '.join(path.name for path in found)}): keep one of them")
    return found[0] if found else None


def read_tumour(path: Path, slide: Slide, positive: Sequence[str] | None, units: str) -> tuple[Tumour, dict[str, int]]:
    """Read an annotation.

    Args:
        path: GeoJSON, XML of ASAP, or a picture.
        slide: The slide that it is of.
        positive: Names of the classes that are tumour, and of pictures their values; without any the usual names, and
            of pictures whatever is not black.
        units: What outlines are measured in: ``px`` at full resolution, ``um``, or of a level so many times smaller.

    Returns:
        Where the tumour is, and how many outlines (or pixels) there are of each class.

    Raises:
        SlideError: The file is damaged, or an outline lies outside the slide.
    """
    if path.suffix.lower() in PICTURES:
        values = _read_picture(path)
        if abs(values.shape[1] / values.shape[0] / (slide.sizes[0][0] / slide.sizes[0][1]) - 1) > 0.05:
            raise SlideError(f"{path.name} has another shape than {slide.name}: {values.shape[1]}x{values.shape[0]}")
        present, pixels = np.unique(values, return_counts=True)
        values_given = [name for name in positive or () if name.isdecimal()]
        wanted = [value for value in present if (str(value) in values_given if values_given else value > 0)]
        return Tumour(picture=np.isin(values, wanted)), dict(zip(map(str, present), map(int, pixels), strict=True))
    outlines = _in_pixels(read_outlines(path), path, slide, units)
    return Tumour(area=tumour_area(outlines, positive)), Counter(outline.name for outline in outlines)


def tumour_area(outlines: Sequence[Outline], positive: Sequence[str] | None) -> BaseGeometry:
    """Join the outlines of the classes that are tumour, less those of other classes that lie inside.

    Classes whose name ends with ``*``, which QuPath ignores, and outlines without a class take nothing out.
    """
    import shapely

    def is_positive(name: str) -> bool:
        return name.lower() in POSITIVE if positive is None else name in positive

    area = shapely.union_all([outline.area for outline in outlines if is_positive(outline.name)])
    taken_out = [
        outline.area
        for outline in outlines
        if not is_positive(outline.name)
        and not outline.name.endswith("*")
        and outline.name != UNCLASSIFIED
        and outline.area.intersection(area).area > INSIDE * outline.area.area
    ]
    return _polygons(area.difference(shapely.union_all(taken_out))) if taken_out else area


def _polygons(area: BaseGeometry) -> BaseGeometry:
    """Leave out the lines and points that an intersection or a difference may hold besides."""
    import shapely

    return shapely.union_all([part for part in shapely.get_parts(area) if part.area > 0])


def label_cells(tumour: Tumour, grid: Grid, cells: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Label tiles by their centres.

    Args:
        tumour: Where the tumour is.
        grid: The tiles of the slide.
        cells: (N, 2) row and column of each tile.
        size: (width, height) of the slide at full resolution.

    Returns:
        bool (N,).
    """
    import shapely

    side = min(CENTRE, grid.tile)
    start = (cells * grid.stride + (grid.tile - side) / 2) * grid.pixel
    end = start + side * grid.pixel
    if tumour.picture is None:
        area = tumour.area if tumour.area is not None else shapely.Polygon()
        boxes = shapely.box(start[:, 1], start[:, 0], end[:, 1], end[:, 0])
        shapely.prepare(area)
        labels: np.ndarray = shapely.intersects(area, boxes) & ~shapely.touches(area, boxes)
        return labels
    height, width = tumour.picture.shape
    scale = np.array([height / size[1], width / size[0]])
    low = np.floor(start * scale + 1e-6).astype(int)  # pixels that the centre reaches into, not those that it touches
    high = np.minimum(np.maximum(np.ceil(end * scale - 1e-6).astype(int), low + 1), tumour.picture.shape)
    return np.array([tumour.picture[a:c, b:d].any() for (a, b), (c, d) in zip(low, high, strict=True)], bool)


def read_outlines(path: Path) -> list[Outline]:
    """Read the closed outlines of a file, in its own units.

    Raises:
        SlideError: It can't be read, or an outline has no area.
    """
    try:
        if path.stat().st_size > LARGEST_FILE:
            raise SlideError(f"{path.name} has more than {LARGEST_FILE >> 20} MB")
        data = path.read_bytes()
        features = _asap(data) if path.suffix.lower() == ".xml" else _geojson(data)
    except SlideError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, ElementTree.ParseError) as error:
        reason = " ".join(str(error).split())[:150] or type(error).__name__
        raise SlideError(f"{path.name} can't be read as annotations ({reason}): export them again") from error
    outlines, open_ones = [], 0
    for number, (name, polygons) in enumerate(features, 1):
        if polygons is None:
            open_ones += 1
            continue
        try:
            outlines.append(Outline(name, _area(polygons)))
        except ValueError as error:
            raise SlideError(f"{path.name}: annotation {number} ({name}) {error}") from error
    if open_ones:
        log.warning("%s: %d points and lines have no area, and are left out", path.name, open_ones)
    return outlines


_Rings = list[np.ndarray]  # an outline and its holes, each (n, 2)
_Feature = tuple[str, "list[_Rings] | None"]  # its class and its polygons; None for points and lines


def _geojson(data: bytes) -> list[_Feature]:
    """Read QuPath's export: a FeatureCollection, a list of features, or one of them."""
    read = json.loads(data)
    features = read.get("features", [read]) if isinstance(read, dict) else read
    found: list[_Feature] = []
    for feature in features:
        properties = feature.get("properties") or {}
        if properties.get("objectType", properties.get("object_type", "annotation")) != "annotation":
            continue  # cells, tiles and cores
        geometry = feature["geometry"]
        if geometry is None:
            continue
        kind = geometry["type"]
        polygons = {"Polygon": lambda g: [g["coordinates"]], "MultiPolygon": lambda g: g["coordinates"]}.get(kind)
        rings = None if polygons is None else [[_points(ring) for ring in one] for one in polygons(geometry)]
        found.append((_class_name(properties.get("classification")), rings))
    return found


def _class_name(classification: Any) -> str:
    if isinstance(classification, dict):
        names = classification.get("names")
        classification = classification.get("name") or (": ".join(map(str, names)) if names else None)
    return str(classification) if classification else UNCLASSIFIED


def _asap(data: bytes) -> list[_Feature]:
    """Read the XML of ASAP, CAMELYON's: the group of an annotation is its class."""
    if b"<!DOCTYPE" in data or b"<!ENTITY" in data:
        raise ValueError("it declares entities")
    found: list[_Feature] = []
    root = ElementTree.fromstring(data)
    if root.tag != "ASAP_Annotations":
        raise ValueError(f"its root is {root.tag}, not ASAP_Annotations")
    for annotation in root.iter("Annotation"):
        corners = sorted(annotation.iter("Coordinate"), key=lambda corner: float(corner.get("Order", 0)))
        points = _points([[corner.attrib["X"], corner.attrib["Y"]] for corner in corners])
        name = annotation.get("PartOfGroup", "None")
        closed = annotation.get("Type", "Polygon") in ("Polygon", "Spline", "Rectangle")
        found.append((UNCLASSIFIED if name in ("None", "") else name, [[points]] if closed else None))
    return found


def _points(values: Any) -> np.ndarray:
    return np.array([[float(x), float(y)] for x, y, *_ in values]).reshape(-1, 2)


def _area(polygons: Sequence[_Rings]) -> BaseGeometry:
    """Make an area of polygons with holes; an outline that crosses itself holds all that it encloses.

    Raises:
        ValueError: There is no area, or a coordinate is no number.
    """
    import shapely

    parts = []
    for outline, *holes in polygons:
        part = _enclosed(outline)
        parts.append(part.difference(shapely.union_all([_enclosed(hole) for hole in holes])) if holes else part)
    area = shapely.union_all(parts)
    if area.area == 0:
        raise ValueError("has no area")
    return area


def _enclosed(ring: np.ndarray) -> BaseGeometry:
    import shapely

    if not np.isfinite(ring).all():
        raise ValueError("has coordinates that are no numbers")
    if len(np.unique(ring, axis=0)) < 3:
        raise ValueError(f"has {len(ring)} points: an outline needs three")
    polygon = shapely.Polygon(ring)
    if polygon.is_valid:
        return polygon
    lines = shapely.union_all(shapely.LineString(np.concatenate([ring, ring[:1]])))
    return shapely.union_all(list(shapely.get_parts(shapely.polygonize(list(shapely.get_parts(lines))))))


def _in_pixels(outlines: Sequence[Outline], path: Path, slide: Slide, units: str) -> list[Outline]:
    """Turn outlines into pixels at full resolution, and refuse those that lie outside the slide."""
    import shapely
    import shapely.affinity

    factor = {"px": 1.0, "um": 1 / slide.mpp}.get(units) or float(units)
    width, height = slide.sizes[0]
    frame = shapely.box(0, 0, width, height)
    scaled = []
    for number, outline in enumerate(outlines, 1):
        area = shapely.affinity.scale(outline.area, factor, factor, origin=(0, 0)) if factor != 1 else outline.area
        inside = _polygons(area.intersection(frame))
        if inside.area < area.area / 2:
            x, y = (math.ceil(value) for value in area.bounds[2:])
            raise SlideError(
                f"{path.name}: annotation {number} ({outline.name}) lies outside {slide.name}: it reaches to x={x:,}, "
                f"y={y:,}, the slide to {width:,}, {height:,}; slides.units=um, or how many times smaller its level is"
            )
        scaled.append(Outline(outline.name, inside))
    return scaled


def _read_picture(path: Path) -> np.ndarray:
    """Read a picture of one value a pixel, uint8 (H, W); of red, green and blue the largest."""
    import tifffile

    try:
        if path.suffix.lower() == ".png":
            with Image.open(path) as picture:
                if picture.width * picture.height > MOST_PIXELS:
                    raise SlideError(f"{path.name} has more than {MOST_PIXELS:,} pixels: save it as a pyramidal TIFF")
                values = np.asarray(picture if picture.mode in ("L", "P", "1") else picture.convert("RGB"))
        else:
            with tifffile.TiffFile(path) as file:
                levels = [level for level in file.series[0].levels if math.prod(level.shape) <= 4 * MOST_PIXELS]
                if not levels:
                    raise SlideError(f"{path.name} has more than {MOST_PIXELS:,} pixels and no smaller level: give one")
                values = levels[0].asarray()
    except SlideError:
        raise
    except Exception as error:  # whatever a reader meets in a damaged file
        reason = " ".join(str(error).split())[:150] or type(error).__name__
        raise SlideError(f"{path.name} can't be read as a picture of the tumour ({reason})") from error
    values = values.astype(np.uint8) if values.dtype == bool else values
    values = values.max(axis=2) if values.ndim == 3 else values
    if values.dtype != np.uint8 or values.ndim != 2:
        raise SlideError(f"{path.name} is not an 8-bit picture ({values.dtype}, {values.ndim} dimensions)")
    return values
