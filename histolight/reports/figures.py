"""Figures of one model on one part of the tiles; each function returns a matplotlib figure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from sklearn.calibration import CalibrationDisplay
from sklearn.metrics import ConfusionMatrixDisplay, PrecisionRecallDisplay, RocCurveDisplay

from histolight.config.schema import CENTRE
from histolight.errors import one_line
from histolight.reports.parts import score_texts
from histolight.statistics.figures import ECE_BINS

INK, ACCENT, PALE, QUIET = "#1f2933", "#8a2b6e", "#c9ced6", "#5b6672"
CURVE: dict[str, Any] = {"color": ACCENT, "linewidth": 2}
CHANCE: dict[str, Any] = {"color": PALE, "linewidth": 1, "linestyle": "-", "zorder": 1}
LEGEND: dict[str, Any] = {"fontsize": 8, "frameon": False}
LEFT = 0.16  # part of a figure's width for the words left of its axes
WIDTH, HEIGHT, GAP = 1.35, 1.6, 0.05  # inches: a tile of a grid with its caption, and the space around the tile


def figure_text(text: str, longest: int = 44) -> str:
    r"""Write any name into a figure: in one line, cut in its middle, and no dollar sign begins a formula.

    >>> print(figure_text("a $\\frac$ b"))
    a \$\frac\$ b
    """
    text = one_line(text)
    if len(text) > longest:
        text = f"{text[: longest // 2]}…{text[-(longest // 2 - 1) :]}"
    return text.replace("$", r"\$")


def roc_figure(scores: np.ndarray, labels: np.ndarray, title: str) -> Figure:
    """Draw the receiver operating characteristic.

    Args:
        scores: ``(N,)`` in [0, 1].
        labels: ``(N,)``, 0 or 1.
        title: What it shows: part, figure, kind of split.
    """
    figure, axes = _square()
    display = RocCurveDisplay.from_predictions(
        labels, scores, ax=axes, plot_chance_level=True, chance_level_kw=CHANCE | {"label": "chance"}
    )
    display.line_.set(**CURVE)
    axes.legend(handles=[display.chance_level_], loc="lower right", **LEGEND)
    _label(axes, title, "1 - specificity", "sensitivity")
    return figure


def precision_recall_figure(scores: np.ndarray, labels: np.ndarray, title: str) -> Figure:
    """Draw precision against recall, with the prevalence, which is what chance reaches.

    The area under the steps is the average precision.
    """
    figure, axes = _square()
    display = PrecisionRecallDisplay.from_predictions(
        labels,
        scores,
        ax=axes,
        plot_chance_level=True,
        chance_level_kw=CHANCE | {"label": "chance: the share of positive tiles"},
    )
    display.line_.set(**CURVE)
    axes.legend(handles=[display.chance_level_], loc="lower left", **LEGEND)
    _label(axes, title, "recall (sensitivity)", "precision")
    return figure


def reliability_figure(scores: np.ndarray, labels: np.ndarray, title: str) -> Figure:
    """Draw the share of positive tiles against the mean score, in 15 bins of equal width, and the tiles of each bin."""
    figure, axes = _square(right=0.16)
    counts = axes.twinx()
    counts.hist(scores, bins=ECE_BINS, range=(0, 1), color=INK, alpha=0.12, label="tiles per bin (right axis)")
    counts.set_ylabel("tiles per bin", color=QUIET)
    counts.tick_params(colors=QUIET, length=0)
    counts.spines[:].set_visible(False)
    counts.set_box_aspect(1)
    axes.set_zorder(counts.get_zorder() + 1)  # the curve in front of the bars
    axes.patch.set_visible(False)
    (diagonal,) = axes.plot([0, 1], [0, 1], color=QUIET, linewidth=1, linestyle="--", label="perfectly calibrated")
    display = CalibrationDisplay.from_predictions(
        labels, scores, n_bins=ECE_BINS, name="this model", ax=axes, ref_line=False, marker="o", markersize=5, **CURVE
    )
    axes.legend(handles=[diagonal, display.line_, *counts.get_legend_handles_labels()[0]], loc="upper left", **LEGEND)
    _label(axes, title, "mean score of the bin", "share of positive tiles")
    return figure


def confusion_figure(scores: np.ndarray, labels: np.ndarray, threshold: float, title: str) -> Figure:
    """Draw the confusion matrix at a threshold, in numbers of tiles."""
    figure, axes = _square(left=0.2)
    ConfusionMatrixDisplay.from_predictions(
        labels,
        (scores > threshold).astype(np.int64),
        labels=[0, 1],
        display_labels=["benign", "tumour"],
        ax=axes,
        cmap="PuRd",
        colorbar=False,
        values_format=",d",
    )
    axes.set(xlabel="called", ylabel="labelled")
    axes.set_title(f"{title}\nthreshold {score_texts(threshold)[0]}", fontsize=10, color=INK)
    return figure


def learning_rate_figure(rates: np.ndarray, losses: np.ndarray, suggested: float | None) -> Figure:
    """Draw the loss against the learning rate, on a logarithmic axis.

    Args:
        rates: ``(N,)``, rising.
        losses: ``(N,)``.
        suggested: One of the rates, to be marked.
    """
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.add_subplot()
    axes.plot(rates, losses, color=ACCENT, linewidth=2)
    axes.set(xscale="log", xlabel="learning rate", ylabel="training loss, running mean")
    if suggested is not None:
        axes.axvline(suggested, color=QUIET, linewidth=1, linestyle="--", label=f"steepest: {suggested:.1e}")
        axes.legend(loc="upper left", fontsize=8, frameon=False)
    axes.set_title("learning rate range test", fontsize=10, color=INK)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def worst_calls(scores: np.ndarray, labels: np.ndarray, threshold: float) -> np.ndarray:
    """Find the wrong calls, the surest one first.

    Args:
        scores: ``(N,)`` in [0, 1]; a tile is called positive when its score is above the threshold.
        labels: ``(N,)``, 0 or 1.
        threshold: In [0, 1].

    Returns:
        ``(wrong,)`` int64, places in ``scores``.

    >>> worst_calls(np.array([0.9, 0.6, 0.2, 0.45]), np.array([0, 1, 1, 1]), 0.5).tolist()
    [0, 2, 3]
    """
    wrong = np.flatnonzero((scores > threshold) != (labels == 1))
    return wrong[np.argsort(-np.abs(scores[wrong] - labels[wrong]), kind="stable")]


def tile_grid_figure(tiles: np.ndarray, captions: Sequence[str], title: str, columns: int = 8) -> Figure:
    """Draw tiles in a grid with the centre, which decides the label, framed; without tiles the title alone.

    Args:
        tiles: ``(N, S, S, 3)`` uint8.
        captions: One line per tile.
        title: What they are.
        columns: Tiles per line.
    """
    lines = -(-len(tiles) // columns)
    figure = Figure(figsize=(WIDTH * columns, HEIGHT * lines + 0.4))
    figure.suptitle(title, fontsize=11, color=INK)
    if not lines:
        return figure
    size = tiles.shape[1]
    inch = size / (WIDTH - 2 * GAP)  # in pixels of a tile, the unit of the axes: one pair of axes is drawn soon, not 24
    axes = figure.add_axes((0, 0, 1, HEIGHT * lines / (HEIGHT * lines + 0.4)))
    for number, tile in enumerate(tiles):
        line, column = divmod(number, columns)
        x, y = (WIDTH * column + GAP) * inch, (HEIGHT * (line + 1) - GAP) * inch - size
        axes.imshow(tile, extent=(x, x + size, y + size, y))
        frame_centre(axes, size, x, y)
        middle = (x + size / 2, y - 0.05 * inch)
        axes.text(*middle, captions[number], fontsize=7, color=INK, horizontalalignment="center", clip_on=False)
    axes.set(xlim=(0, WIDTH * columns * inch), ylim=(HEIGHT * lines * inch, 0))
    axes.set_axis_off()
    return figure


def frame_centre(axes: Axes, size: int, x: float = -0.5, y: float = -0.5) -> None:
    """Frame the centre of a tile, S pixels high and wide, that was drawn with its upper left corner at (x, y)."""
    corner = (x + (size - CENTRE) / 2, y + (size - CENTRE) / 2)
    for colour, width in ((INK, 1.8), ("white", 0.8)):  # to be seen on glass and on nuclei
        axes.add_patch(Rectangle(corner, CENTRE, CENTRE, fill=False, edgecolor=colour, linewidth=width))


def _square(left: float = LEFT, right: float = 0.04) -> tuple[Figure, Axes]:
    """Make a figure with square axes; ``left`` and ``right`` are the parts of its width that are free beside them.

    All such figures need the same room for their words: to have it measured would take as long as to draw them.
    """
    figure = Figure(figsize=(5, 5))
    side = 1 - left - right
    return figure, figure.add_axes((left, 0.5 - side / 2, side, side))


def _label(axes: Axes, title: str, x_label: str, y_label: str) -> None:
    """Give square axes from 0 to 1 their words, in place of scikit-learn's."""
    axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), xlabel=x_label, ylabel=y_label)
    axes.set_box_aspect(1)
    axes.set_title(title, fontsize=10, color=INK)
    axes.spines[["top", "right"]].set_visible(False)
