"""Where the tiles of annotated slides lie: on the slide, in the colour of their label, and of their score beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from PIL import Image

from histolight.config.schema import CENTRE, DataConfig
from histolight.data.sources.slides import LabelledSlide, label_slides, places
from histolight.files import write_csv
from histolight.reports.figures import ACCENT, figure_text
from histolight.reports.page import Section
from histolight.reports.parts import saved_picture

MOST = 12  # slides that are shown
LARGEST = 900  # pixels of the longer side of a slide
LABELS = ("#1f6f8b", ACCENT)  # benign, tumour
HEAT, OPACITY = "inferno", 0.8
OUTLINE: dict[str, Any] = {"colors": "#f5c518", "linewidths": 1.2}  # yellow: over grey, purple and blue


def shown_slides(table: pd.DataFrame) -> list[str]:
    """Choose the slides to show: those with the most tumour tiles, then those with the most tiles."""
    counts = table.groupby("group")["label"].agg(["sum", "size"]).sort_values(["sum", "size"], ascending=False)
    return [str(name) for name in counts.index[:MOST]]


def places_section(table: pd.DataFrame, config: DataConfig, directory: Path) -> Section:
    """Show where tiles of ``data=slides`` lie, and write ``places.csv``."""
    columns = ["id", "group", "label"]
    placed = pd.concat([table[columns].rename(columns={"group": "slide"}), places(table["id"])], axis=1)
    write_csv(directory / "places.csv", placed)
    words = "places.csv has the centre of every tile in pixels at full resolution."
    caption = "The annotated tumour, outlined, and each tile's centre in the colour of its label: purple is tumour."
    path = directory / "figures" / "places.png"
    picture = saved_picture(slides_figure(table, config), path, caption, photographs=True, wide=True)
    return Section("Where the tiles lie", [words], pictures=[picture])


def slides_figure(table: pd.DataFrame, config: DataConfig) -> Figure:
    """Draw slides with the annotated tumour outlined and each tile's centre in the colour of its label.

    Args:
        table: Tiles of ``data=slides``: ``id``, ``label``, ``group``; with ``score`` (0 to 1) each slide is drawn a
            second time, its tiles in the colour of their score.
        config: Where they come from.
    """
    names = shown_slides(table)
    slides = sorted(label_slides(config, [], names), key=lambda slide: names.index(slide.name))
    columns = 2 if "score" in table else 3
    rows = len(slides) if "score" in table else -(-len(slides) // columns)
    figure = Figure(figsize=(9, 9 / columns * max(rows, 1)), layout="constrained")
    grid = figure.subplots(max(rows, 1), columns, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for number, slide in enumerate(slides):
        tiles = table[table["group"] == slide.name]
        colours = np.array([to_rgba(colour) for colour in LABELS])[tiles["label"].to_numpy(int)]
        first = grid[number, 0] if "score" in table else grid.flat[number]
        _draw(first, slide, tiles, colours)
        first.set_title(f"{figure_text(slide.name)}: {len(tiles):,} tiles, {tiles['label'].sum():,} tumour", fontsize=8)
        if "score" in table:
            _draw(grid[number, 1], slide, tiles, colormaps[HEAT](tiles["score"].to_numpy()))
            grid[number, 1].set_title("scores, 0 dark to 1 bright", fontsize=8)
    return figure


def _draw(axes: Axes, slide: LabelledSlide, tiles: pd.DataFrame, colours: np.ndarray) -> None:
    picture = Image.fromarray(slide.overview)
    picture.thumbnail((LARGEST, LARGEST))
    pixel = slide.grid.overview_pixel * slide.overview.shape[1] / picture.width  # at full resolution per pixel here
    grey = np.asarray(picture.convert("L"))
    axes.imshow(grey, cmap="gray", vmin=0, vmax=255)
    layer = np.zeros((*grey.shape, 4))
    side = CENTRE * slide.grid.pixel
    centres = places(tiles["id"])
    for x, y, colour in zip(centres["x"], centres["y"], colours, strict=True):
        left, upper = (int((place - side / 2) / pixel) for place in (x, y))
        step = max(2, round(side / pixel))
        layer[upper : upper + step, left : left + step] = (*colour[:3], OPACITY)
    axes.imshow(layer)
    _outline(axes, slide, pixel, grey.shape)


def _outline(axes: Axes, slide: LabelledSlide, pixel: float, shape: tuple[int, ...]) -> None:
    if slide.tumour.picture is not None:
        mask = Image.fromarray(slide.tumour.picture).resize((shape[1], shape[0]), Image.Resampling.NEAREST)
        if (inside := np.asarray(mask)).any() and not inside.all():
            axes.contour(inside, levels=[0.5], **OUTLINE)
    elif slide.tumour.area is not None:
        import shapely

        rings = [shapely.get_coordinates(ring) / pixel - 0.5 for ring in shapely.get_rings(slide.tumour.area)]
        axes.add_collection(LineCollection(rings, **OUTLINE))
