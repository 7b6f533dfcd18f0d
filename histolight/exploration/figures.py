"""Figures of a set of tiles; each function returns a matplotlib figure."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from histolight.exploration.measures import CHANNELS
from histolight.reports.figures import ACCENT, INK, PALE, figure_text, frame_centre

CLASSES = ("benign", "tumour")
COLOURS = ("#1f6f8b", ACCENT)
NAMED_SLIDES = 40  # slides whose names have room below their bars
LONGEST = 20  # characters of a name
BINS = 64
PAIRS = 4  # of copies a line


def plain(name: str) -> str:
    """Shorten a name for a figure."""
    return figure_text(name, LONGEST)


def slides_figure(slides: pd.DataFrame) -> Figure:
    """Draw the tiles of each slide, benign and tumour on top of each other, and below the share of tumour.

    Args:
        slides: From :func:`histolight.exploration.measures.slide_counts`.
    """
    figure = Figure(figsize=(11, 5), layout="constrained")
    counts, shares = figure.subplots(2, 1, sharex=True, height_ratios=(2, 1))
    places = np.arange(len(slides))
    below = np.zeros(len(slides))
    for name, colour in zip(CLASSES, COLOURS, strict=True):
        counts.bar(places, slides[name], 0.9, bottom=below, color=colour, label=name)
        below += slides[name].to_numpy()
    counts.set_ylabel("tiles")
    counts.legend(fontsize=8, frameon=False, ncols=2, loc="lower right", bbox_to_anchor=(1, 1))
    shares.bar(places, slides["tumour_share"], 0.9, color=COLOURS[1])
    shares.axhline(slides["tumour"].sum() / slides["tiles"].sum(), color=INK, linewidth=0.8, linestyle="--")
    shares.set(ylabel="tumour share", ylim=(0, 1), xlabel=f"the {len(slides)} slides, the largest first")
    if len(slides) <= NAMED_SLIDES:
        shares.set_xticks(places, [plain(name) for name in slides["slide"]], rotation=90, fontsize=7)
    else:
        shares.set_xticks([])
    for axes in (counts, shares):
        axes.spines[["top", "right"]].set_visible(False)
    counts.margins(x=0.01)
    return figure


def measure_figure(values: pd.Series, labels: np.ndarray, label: str) -> Figure:
    """Draw how one number of each tile is distributed in either class.

    Args:
        values: ``(N,)``.
        labels: ``(N,)``, 0 or 1.
        label: What the number is.
    """
    figure, axes = _axes(label, "share of the class's tiles")
    edges = np.linspace(values.min(), max(values.max(), values.min() + 1e-6), BINS + 1).tolist()
    for number, (name, colour) in enumerate(zip(CLASSES, COLOURS, strict=True)):
        own = values[labels == number]
        weights = np.full(len(own), 1 / len(own))
        axes.hist(own, edges, weights=weights, histtype="stepfilled", color=colour, alpha=0.18)
        axes.hist(own, edges, weights=weights, histtype="step", color=colour, linewidth=1.6, label=name)
    axes.legend(fontsize=8, frameon=False)
    return figure


def colours_figure(levels: np.ndarray) -> Figure:
    """Draw how often each level of red, green and blue occurs in either class.

    Args:
        levels: int64 ``(2, 3, 256)``.
    """
    figure, axes = _axes("level", "share of the class's pixels")
    for channel, colour in enumerate(("#c0392b", "#2e7d32", "#1f5fa8")):
        for label, style in enumerate((":", "-")):
            share = levels[label, channel] / levels[label, channel].sum()
            axes.plot(share, style, color=colour, linewidth=1.5, label=f"{CHANNELS[channel]}, {CLASSES[label]}")
    # Saturated pixels, all in one level, would flatten everything else.
    axes.set_ylim(0, 1.1 * max((levels[:, :, 1:-1] / levels.sum(axis=2, keepdims=True)).max(), 1e-6))
    axes.legend(fontsize=8, frameon=False, ncols=3, loc="upper left")
    return figure


def mean_tiles_figure(means: np.ndarray) -> Figure:
    """Draw the mean tile of each class, and tumour less benign in grey.

    Args:
        means: float ``(2, S, S, 3)``, 0 to 255.
    """
    figure = Figure(figsize=(11, 4), layout="constrained")
    benign, tumour, difference = figure.subplots(1, 3)
    for axes, mean, name in zip((benign, tumour), means, CLASSES, strict=True):
        axes.imshow(mean / 255)
        axes.set_title(f"mean {name} tile", fontsize=10, color=INK)
    grey = (means[1] - means[0]).mean(axis=-1)
    limit = max(float(np.abs(grey).max()), 1e-6)
    image = difference.imshow(grey, cmap="RdBu_r", vmin=-limit, vmax=limit)
    difference.set_title("tumour less benign", fontsize=10, color=INK)
    figure.colorbar(image, ax=difference, label="levels of grey", shrink=0.8).outline.set_visible(False)
    for axes in (benign, tumour, difference):
        axes.set_axis_off()
        frame_centre(axes, means.shape[1])
    return figure


def pairs_figure(tiles: np.ndarray, captions: Sequence[str]) -> Figure:
    """Draw tiles and their copies side by side.

    Args:
        tiles: uint8 ``(P, 2, S, S, 3)``, at least one pair.
        captions: One for each pair.
    """
    lines = -(-len(tiles) // PAIRS)
    figure = Figure(figsize=(2.7 * PAIRS, 1.65 * lines), layout="constrained")
    for number, axes in enumerate(figure.subplots(lines, PAIRS, squeeze=False).flat):
        axes.set_axis_off()
        if number < len(tiles):
            gap = np.full((tiles.shape[2], 4, 3), 255, np.uint8)
            axes.imshow(np.concatenate([tiles[number, 0], gap, tiles[number, 1]], axis=1))
            axes.set_title(captions[number], fontsize=7, color=INK)
    return figure


def _axes(x_label: str, y_label: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(5.6, 3.6), layout="constrained")
    axes = figure.add_subplot()
    axes.set(xlabel=x_label, ylabel=y_label)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color=PALE, linewidth=0.4)
    return figure, axes
