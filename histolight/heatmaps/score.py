"""Whole slides scored one after the other: what fails is named and the others go on; what is done is not done again."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image
from scipy.special import expit

from histolight import files
from histolight.errors import system_reason
from histolight.heatmaps import maps
from histolight.heatmaps.pictures import heat_figure, tissue_figure
from histolight.reports.parts import save_figure
from histolight.slides import grid as grids
from histolight.slides import tissue
from histolight.slides.reader import Slide, SlideError, open_slide, slide_name

log = logging.getLogger("histolight")

PARTIAL = "logits.partial"
OUTPUTS = ("slide.json", "scores.parquet", "heatmap.ome.tif", "regions.geojson", "tissue.png", "heatmap.png")
ENDS = 2**20  # bytes at each end of a file by which it is recognised
PICTURE = 1200  # pixels of the longer side of a picture, where the slide has them
TOP = 0.01  # part of the tiles whose mean score is reported

Batches = Callable[[int], Iterator[np.ndarray]]
"""From the first batch that is needed, batches of tiles, uint8 (n, S, S, 3)."""
Predict = Callable[[Path, bytes, int, Batches, str], np.ndarray]
"""From a file that keeps finished batches, a header that identifies the request, the number of tiles, their batches and
a name for the progress bar: logits, float32 (N,)."""


@dataclass(frozen=True)
class SlideSettings:
    """How slides are scored.

    Attributes:
        mpp: ``data.mpp``: microns per pixel of the slides at full resolution; None takes each file's own.
        mpp_tolerance: ``data.mpp_tolerance``.
        model_mpp: Microns per pixel that the network expects.
        tile: Pixels along each side of a tile.
        stride: Pixels from one tile to the next.
        tissue: ``otsu``, ``none`` (score everything), or a folder with a mask for each slide.
        threshold: A tile is called tumour when its score is above it.
        batch_size: Tiles per batch.
    """

    mpp: float | None
    mpp_tolerance: float
    model_mpp: float
    tile: int
    stride: int
    tissue: str
    threshold: float
    batch_size: int


def score_slides(
    slides: list[Path], settings: SlideSettings, directory: Path, predict: Predict, identity: dict[str, Any]
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Score slides into ``directory/slides/NAME/``; those that an earlier, interrupted call finished are left alone.

    Args:
        slides: The files.
        settings: How.
        directory: Where to; this process holds it.
        predict: The networks.
        identity: What else decides the scores: networks, precision.

    Returns:
        A row for each slide that was scored, and for each other file what went wrong.
    """
    rows, problems = [], {}
    for number, path in enumerate(slides, 1):
        place = directory / "slides" / slide_name(path)
        try:
            request = json.dumps(identity | asdict(settings) | _identity(path, settings)).encode() + b"\n"
            row = _finished(place / "slide.json", request)
            if row is None:
                _check_own(place, settings)
                files.clear_leftovers(place)
                row = _score_slide(path, settings, place, predict, request, f"{number}/{len(slides)} {place.name}")
                done = {"request": hashlib.blake2b(request, digest_size=16).hexdigest(), "row": row}
                files.write_atomically(place / "slide.json", json.dumps(done, indent=2) + "\n")
                (place / PARTIAL).unlink()
            rows.append(row)
        except SlideError as error:
            problems[path.name] = str(error)
            log.warning("%s", error)
    return rows, problems


def _check_own(place: Path, settings: SlideSettings) -> None:
    """Refuse to overwrite files in a slide's folder that nothing shows to be of an earlier call."""
    taken = [name for name in (PARTIAL, *OUTPUTS) if (place / name).exists()]
    own = _begun(place / PARTIAL, settings) if PARTIAL in taken else _finished(place / "slide.json") is not None
    if taken and not own:
        raise SlideError(f"{place} holds {taken[0]}, which histolight did not write: move it, or choose another folder")


def _begun(partial: Path, settings: SlideSettings) -> bool:
    """Whether a file is the beginning of a slide's logits, whatever was asked for."""
    try:
        with open(partial, "rb") as file:
            found = json.loads(file.readline(2**16))
    except (OSError, ValueError):
        return False
    return isinstance(found, dict) and asdict(settings).keys() <= found.keys()


def _score_slide(
    path: Path, settings: SlideSettings, place: Path, predict: Predict, request: bytes, title: str
) -> dict[str, Any]:
    slide = open_slide(path, settings.mpp)
    partial = place / PARTIAL
    try:
        grid = grids.lay_grid(slide, settings.model_mpp, settings.mpp_tolerance, settings.tile, settings.stride)
        overview = grids.read_overview(slide, grid.overview_pixel)
        mask = tissue.tissue_mask(slide, grid, overview, settings.tissue)
        cells = tissue.tissue_cells(mask, grid)
        if not len(cells):
            raise SlideError(f"{path.name} shows no tissue: slides.tissue=none scores all of it")
        partial.parent.mkdir(parents=True, exist_ok=True)
        if partial.is_file() and not partial.read_bytes().startswith(request):  # the file has changed since
            partial.unlink()
        logits = predict(
            partial,
            request,
            len(cells),
            lambda first: grids.tile_batches(slide, grid, cells, settings.batch_size, first),
            title,
        )
        picture = _picture(slide, grid, overview)
    except SlideError:
        partial.unlink(missing_ok=True)
        raise
    finally:
        slide.close()
    scores = expit(logits)
    scored = maps.score_map(grid, cells, scores)
    regions = maps.find_regions(grid, scored, settings.threshold)
    maps.write_scores(place / "scores.parquet", grid, cells, logits, scores)
    maps.write_tiff(place / "heatmap.ome.tif", grid, scored)
    maps.write_geojson(place / "regions.geojson", grid, regions)
    shown = mask if settings.tissue != "none" else None
    save_figure(
        tissue_figure(picture, shown, slide.mpp * slide.sizes[0][0] / picture.shape[1]), place / "tissue.png", dpi=160
    )
    save_figure(
        heat_figure(picture, scored, regions, grid, slide.sizes[0][0] / picture.shape[1]),
        place / "heatmap.png",
        dpi=160,
    )
    return _row(path, slide, grid, mask, scores, regions)


def _picture(slide: Slide, grid: grids.Grid, overview: np.ndarray) -> np.ndarray:
    """Make the slide's picture: of a small slide a finer one than the overview, of a large one a smaller one."""
    pixel = max(grid.pixel, max(slide.sizes[0]) / PICTURE)
    if pixel < grid.overview_pixel / 2:
        return grids.read_overview(slide, pixel)
    picture = Image.fromarray(overview)
    picture.thumbnail((PICTURE, PICTURE))
    return np.asarray(picture)


def _row(
    path: Path, slide: Slide, grid: grids.Grid, mask: np.ndarray, scores: np.ndarray, regions: list[maps.Region]
) -> dict[str, Any]:
    return {
        "slide": slide.name,
        "file": path.name,
        "tiles": len(scores),
        "tissue_mm2": float(mask.mean()) * slide.sizes[0][0] * slide.sizes[0][1] * (slide.mpp / 1000) ** 2,
        "tumour_mm2": sum(region.tiles for region in regions) * grid.cell_mm2,
        "regions": len(regions),
        "highest_score": float(scores.max()),
        "mean_of_top_1_percent": top_score(scores),
        "mpp": slide.mpp,
        "stated_mpp": slide.stated_mpp,
        "tile_mpp": grid.mpp,
    }


def top_score(scores: np.ndarray) -> float:
    """Return the mean score of the highest-scoring 1 % of a slide's tiles, (N,), of one tile at least."""
    highest = np.sort(scores)[::-1][: max(1, round(TOP * len(scores)))]
    return float(highest.mean(dtype=np.float64))


def _identity(path: Path, settings: SlideSettings) -> dict[str, Any]:
    """Recognise a slide, and its mask, by size and ends: reading gigabytes would take as long as scoring."""
    try:
        with open(path, "rb") as file:
            size = file.seek(0, 2)
            file.seek(0)
            ends = file.read(ENDS)
            file.seek(max(0, size - ENDS))
            ends += file.read(ENDS)
        digest = hashlib.blake2b(ends, digest_size=16)
        if settings.tissue not in ("otsu", "none"):
            mask = Path(settings.tissue) / f"{slide_name(path)}.png"
            digest.update(mask.read_bytes() if mask.is_file() else b"")
    except OSError as error:
        raise SlideError(f"{path.name} can't be read ({system_reason(error)})") from error
    return {"file": path.name, "bytes": size, "ends": digest.hexdigest()}


def _finished(path: Path, request: bytes | None = None) -> dict[str, Any] | None:
    """Read the row of a slide that an earlier call finished, with the same request where one is given."""
    try:
        done = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    if not isinstance(done, dict) or not isinstance(done.get("row"), dict):
        return None
    if request is not None and done.get("request") != hashlib.blake2b(request, digest_size=16).hexdigest():
        return None
    row: dict[str, Any] = done["row"]
    return row


def slides_table(rows: list[dict[str, Any]], problems: dict[str, str]) -> pd.DataFrame:
    """Tabulate all slides, those that could not be scored below, with ``problem``."""
    failed = [{"slide": slide_name(Path(name)), "file": name, "problem": text} for name, text in problems.items()]
    columns = ["slide", "file", "tiles", "tissue_mm2", "tumour_mm2", "regions", "highest_score"]
    columns += ["mean_of_top_1_percent", "mpp", "stated_mpp", "tile_mpp", "problem"]
    table = pd.DataFrame([*rows, *failed], columns=columns)
    return table.astype({"tiles": "Int64", "regions": "Int64"})
