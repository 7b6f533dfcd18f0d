"""Pictures of a slide: its tissue, and its scores over the overview."""

from __future__ import annotations

import math

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from PIL import Image

from histolight.heatmaps.maps import Region
from histolight.reports.figures import ACCENT, INK, QUIET
from histolight.slides.grid import Grid

HEAT, OUTLINE = "inferno", "#19d3c5"
WIDTH = 7.0  # inches


def tissue_figure(picture: np.ndarray, mask: np.ndarray | None, mpp: float) -> Figure:
    """Draw a slide with its tissue outlined.

    Args:
        picture: uint8 (H, W, 3).
        mask: bool, of any size: laid over the picture, made smaller where it has more pixels. None outlines nothing.
        mpp: Microns per pixel of the picture.
    """
    figure, axes = _axes(picture, mpp)
    if mask is not None and mask.any():
        height, width = picture.shape[:2]
        if mask.shape[0] > height:  # matplotlib takes tens of bytes for each pixel
            mask = np.asarray(Image.fromarray(mask).resize((width, height), Image.Resampling.NEAREST))
        extent = (-0.5, width - 0.5, height - 0.5, -0.5)
        axes.imshow(np.ma.masked_where(mask, ~mask), cmap=ListedColormap(["white"]), alpha=0.55, extent=extent)
        if not mask.all():
            x = (np.arange(mask.shape[1]) + 0.5) * width / mask.shape[1] - 0.5
            y = (np.arange(mask.shape[0]) + 0.5) * height / mask.shape[0] - 0.5
            axes.contour(x, y, mask, levels=[0.5], colors=ACCENT, linewidths=0.9)
    return figure


def heat_figure(picture: np.ndarray, scored: np.ndarray, regions: list[Region], grid: Grid, pixel: float) -> Figure:
    """Draw the scores over a slide in grey, with the regions outlined and a scale bar.

    Args:
        picture: uint8 (H, W, 3).
        scored: float32 (rows, columns), NaN where no tile was scored.
        regions: What is above the threshold.
        grid: Where the tiles lie.
        pixel: Pixels at full resolution per pixel of the picture.
    """
    grey = np.repeat(picture.mean(axis=2, keepdims=True).astype(np.uint8), 3, axis=2)
    figure, axes = _axes(grey, pixel * grid.mpp / grid.pixel)
    left, right = grid.corner(np.array([0, grid.columns])) / pixel - 0.5
    upper, lower = grid.corner(np.array([0, grid.rows])) / pixel - 0.5
    extent = (left, right, lower, upper)
    heat = axes.imshow(np.ma.masked_invalid(scored), cmap=HEAT, vmin=0, vmax=1, alpha=0.6, extent=extent)
    rings = [ring / pixel - 0.5 for region in regions for ring in region.rings]
    axes.add_collection(LineCollection(rings, colors=OUTLINE, linewidths=0.8))
    axes.set_xlim(-0.5, picture.shape[1] - 0.5)
    axes.set_ylim(picture.shape[0] - 0.5, -0.5)
    bar = figure.colorbar(heat, ax=axes, fraction=0.04, pad=0.02, aspect=30)
    bar.set_label("score", fontsize=8, color=QUIET)
    bar.ax.tick_params(labelsize=7, colors=QUIET)
    bar.outline.set_visible(False)
    return figure


def _axes(picture: np.ndarray, mpp: float) -> tuple[Figure, Axes]:
    height, width = picture.shape[:2]
    figure = Figure(figsize=(WIDTH, float(np.clip(WIDTH * height / width, 1.5, 10))), layout="constrained")
    axes = figure.subplots()
    axes.imshow(picture, interpolation="antialiased")
    axes.set_axis_off()
    _scale_bar(axes, width, height, mpp)
    return figure, axes


def _scale_bar(axes: Axes, width: int, height: int, mpp: float) -> None:
    """Draw a bar of a round number of microns, about a fifth of the width."""
    length = round_length(width * mpp / 5)
    left, y = 0.03 * width, height - 0.05 * height
    outlined = [withStroke(linewidth=3, foreground="white")]
    text = f"{length:g} µm" if length < 1000 else f"{length / 1000:g} mm ({length:,g} µm)"
    axes.plot([left, left + length / mpp], [y, y], color=INK, linewidth=3, solid_capstyle="butt",
              path_effects=[withStroke(linewidth=5, foreground="white")])  # fmt: skip
    axes.annotate(text, (left, y), xytext=(0, 4), textcoords="offset points", fontsize=8, color=INK,
                  path_effects=outlined)  # fmt: skip


def round_length(length: float) -> float:
    """Round down to 1, 2 or 5 times a power of ten.

    >>> round_length(340.0), round_length(99.0), round_length(5200.0)
    (200.0, 50.0, 5000.0)
    """
    power = 10.0 ** math.floor(math.log10(length))
    return max(step * power for step in (1, 2, 5) if step * power <= length)
