"""Figures of a comparison of runs; each function returns a matplotlib figure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from sklearn.metrics import roc_curve

from histolight.ranking.ranking import Ranking
from histolight.ranking.rows import text_of
from histolight.reports.figures import ACCENT, INK, PALE, QUIET, figure_text

COLOURS = (ACCENT, "#1f6f8b", "#c77d1e", "#4b7f3a", INK)
STYLES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)))
SHOWN = 40  # rows in the figure of the ranks: more can't be read
NAMED = 8  # points that carry their name
TICK = 24  # characters of a value below an axis
EPOCHS = 25  # from which on a curve has no dots
CELLS = 12  # values on either side of a heatmap


def roc_figure(ranking: Ranking, names: Sequence[str]) -> Figure:
    """Draw the receiver operating characteristic of each run of the first rows, one colour a row.

    By hand: scikit-learn's ``RocCurveDisplay`` has one label and one style for all curves, or an AUC behind each.
    """
    figure, axes = _axes("1 - specificity", "sensitivity", height=5.6)
    axes.plot([0, 1], [0, 1], color=PALE, linewidth=1)
    for row, name, colour, style in reversed(list(zip(ranking.rows, names, COLOURS, STYLES, strict=False))):
        for number, run in enumerate(row.runs):
            curve = roc_curve(run.tiles.labels, run.scores)[:2]
            several = len(row.runs) > 1
            axes.plot(
                *curve,
                color=colour,
                linestyle=style,
                linewidth=0.9 if several else 1.8,
                alpha=0.6 if several else 1,
                label="" if number else f"{name}: {row.mean('auroc'):.4f}",
            )
    axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01))
    axes.set_box_aspect(1)
    axes.legend(loc="lower right", fontsize=8, frameon=False, reverse=True)
    return figure


def curves_figure(ranking: Ranking, names: Sequence[str], curves: dict[Path, pd.Series]) -> Figure:
    """Draw the validation AUROC after each epoch of every run in one picture, the first rows in colours.

    Args:
        ranking: The ranking.
        names: Of its rows.
        curves: The AUROCs of each run directory in their order; runs that are not ranked are dashed.
    """
    figure, axes = _axes("epoch", "validation AUROC")
    unranked = [path for one in ranking.unranked for path in one.directories]
    others = [run.directory for row in ranking.rows[len(COLOURS) :] for run in row.runs]
    for path in (path for path in (*unranked, *others) if path in curves):
        _draw_curve(
            axes, curves[path], color=QUIET, linewidth=0.8, alpha=0.5, linestyle="--" if path in unranked else "-"
        )
    for row, name, colour, style in reversed(list(zip(ranking.rows, names, COLOURS, STYLES, strict=False))):
        for number, path in enumerate(run.directory for run in row.runs if run.directory in curves):
            _draw_curve(axes, curves[path], color=colour, linestyle=style, label="" if number else name)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(loc="best", fontsize=8, frameon=False, reverse=True)
    return figure


def _draw_curve(axes: Axes, values: pd.Series, **style: Any) -> None:
    axes.plot(range(1, len(values) + 1), values, marker="o" if len(values) < EPOCHS else "", markersize=3, **style)


def rank_figure(ranking: Ranking, names: Sequence[str]) -> Figure:
    """Draw, for each of the first rows, the ranks that it can have; rows that may be the best are coloured.

    Names stand above the bars, so that the figure stays legible on a narrow screen.
    """
    assert ranking.verdict is not None
    shown = min(len(names), SHOWN)
    last = len(ranking.rows)
    figure = Figure(figsize=(4.6, 0.9 + 0.46 * shown), layout="constrained")
    axes = figure.add_subplot()
    axes.vlines(range(1, last + 1), -0.6, shown - 0.35, color=PALE, linewidth=0.5, zorder=0)
    across = axes.get_yaxis_transform()
    plain = {"facecolor": "white", "edgecolor": "none", "pad": 0.5}
    for place, name in enumerate(names[:shown]):
        first_rank, last_rank = ranking.verdict.ranks[place]
        colour = ACCENT if ranking.verdict.best[place] and not ranking.verdict.reason else QUIET
        ends = [first_rank - 0.22, last_rank + 0.22]
        axes.plot(ends, [place, place], color=colour, linewidth=6, solid_capstyle="round")
        axes.text(0, place - 0.26, name, transform=across, fontsize=9, color=INK, va="bottom", bbox=plain)
        auroc = f"{ranking.verdict.auroc[place]:.4f}"
        axes.text(
            1, place - 0.26, auroc, transform=across, fontsize=9, color=QUIET, va="bottom", ha="right", bbox=plain
        )
    axes.text(1, -0.85, "AUROC", transform=across, fontsize=8, color=QUIET, va="bottom", ha="right")
    axes.set(xlim=(0.5, last + 0.5), ylim=(shown - 0.35, -1))
    step = max(1, round(last / 10))
    axes.set_xticks([1, *range(1 + step, last + 1, step)])
    axes.set_yticks([])
    axes.tick_params(axis="x", length=0, labelsize=9, colors=INK)
    axes.set_xlabel("possible rank (1 = best)", fontsize=9, color=INK)
    axes.spines[:].set_visible(False)
    return figure


def axis_figure(ranking: Ranking, key: str, label: str) -> Figure:
    """Draw the AUROC of every row against one swept key, and the mean of each value: a line, or dashes for names."""
    values = [row.config[key] for row in ranking.rows]
    aurocs = np.array([row.mean("auroc") for row in ranking.rows])
    places, ticks = _places(values)
    figure, axes = _axes(label, "AUROC")
    middles = {place: float(aurocs[np.equal(places, place)].mean()) for place in sorted(set(places))}
    if ticks is None:
        axes.plot(list(middles), list(middles.values()), color=INK, linewidth=1.2, zorder=1)
    else:
        axes.plot(list(middles), list(middles.values()), "_", color=INK, markersize=28, zorder=1)
    axes.plot(places, aurocs, "o", color=INK, alpha=0.55, markersize=5, markeredgewidth=0)
    best = _best(ranking)
    axes.plot(np.array(places)[best], aurocs[best], "o", color=ACCENT, markersize=8)
    if ticks is None:
        _scale(axes, np.array(places))
    else:
        slant = 25 if max(map(len, ticks)) > NAMED else 0
        axes.set_xticks(range(len(ticks)), ticks, fontsize=8, rotation=slant, ha="right" if slant else "center")
        axes.set_xlim(-0.5, len(ticks) - 0.5)
    return figure


def heatmap_pairs(ranking: Ranking, keys: Sequence[str]) -> list[tuple[str, str]]:
    """List pairs of swept keys whose values were crossed: at least half of their combinations exist."""
    pairs = []
    for first, second in combinations(keys, 2):
        seen = {(row.config[first], row.config[second]) for row in ranking.rows}
        width, height = (len({pair[side] for pair in seen}) for side in (0, 1))
        if min(width, height) >= 2 and max(width, height) <= CELLS and 2 * len(seen) >= width * height:
            pairs.append((first, second))
    return pairs


def heatmap_figure(ranking: Ranking, keys: tuple[str, str], labels: tuple[str, str]) -> Figure:
    """Draw the AUROC for each combination of two swept keys, the mean over all rows that have it."""
    cells: dict[tuple[Any, Any], list[float]] = defaultdict(list)
    for row in ranking.rows:
        cells[row.config[keys[0]], row.config[keys[1]]].append(row.mean("auroc"))
    across, down = (_ordered([pair[side] for pair in cells]) for side in (0, 1))
    grid = np.array([[np.mean(cells.get((x, y), [np.nan])) for x in across] for y in down])
    figure, axes = _axes(*labels)
    image = axes.imshow(grid, cmap="PuRd", aspect="auto", alpha=0.85)
    middle = (np.nanmin(grid) + np.nanmax(grid)) / 2
    for (line, column), value in np.ndenumerate(grid):
        text, dark = ("-" if np.isnan(value) else f"{value:.3f}"), value > middle
        colour, size = "white" if dark else INK, 9 if len(across) <= NAMED else 6
        axes.text(column, line, text, ha="center", va="center", fontsize=size, color=colour)
    axes.set_xticks(range(len(across)), [_tick(value) for value in across], fontsize=8)
    axes.set_yticks(range(len(down)), [_tick(value) for value in down], fontsize=8)
    if max(len(_tick(value)) for value in across) > NAMED:
        axes.tick_params(axis="x", rotation=25)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    figure.colorbar(image, ax=axes, label="AUROC").outline.set_visible(False)
    return figure


def cost_figure(ranking: Ranking, cost: str, label: str) -> Figure:
    """Draw the AUROC of every row against what it costs; few rows are marked with their place in the table."""
    costs = np.array([row.mean(cost) for row in ranking.rows]) / (1e6 if cost == "parameters" else 1)
    aurocs = np.array([row.mean("auroc") for row in ranking.rows])
    figure, axes = _axes(label, "AUROC")
    axes.plot(costs, aurocs, "o", color=INK, alpha=0.7, markersize=6, markeredgewidth=0)
    best = _best(ranking)
    axes.plot(costs[best], aurocs[best], "o", color=ACCENT, markersize=8)
    known = costs[np.isfinite(costs)]
    _scale(axes, known, ticks=False)
    if len(ranking.rows) <= NAMED:
        for rank, (x, y) in enumerate(zip(costs, aurocs, strict=True), start=1):
            side = "right" if x > np.sqrt(known.min() * known.max()) else "left"
            axes.annotate(
                f"#{rank}",
                (x, y),
                (-7 if side == "right" else 7, 5),
                textcoords="offset points",
                fontsize=8,
                color=INK,
                ha=side,
            )
    axes.margins(0.12)
    return figure


def worth_an_axis(ranking: Ranking, key: str) -> bool:
    """Say whether a figure against this key shows more than the ranking does: numbers, or names that recur."""
    values = [row.config[key] for row in ranking.rows]
    return len(set(values)) > 1 and (_numeric(values) or len(set(values)) < len(values))


def _best(ranking: Ranking) -> npt.NDArray[np.bool_]:
    """Say which rows to emphasise: the set of the best, or none where it holds every row."""
    assert ranking.verdict is not None
    return ranking.verdict.best & ~ranking.verdict.best.all()


def _ordered(values: Sequence[Any]) -> list[Any]:
    """Put the different values in order: numbers by size, all else by name."""
    different = list(dict.fromkeys(values))
    return sorted(different) if _numeric(values) else sorted(different, key=text_of)


def _numeric(values: Sequence[Any]) -> bool:
    return all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)


def _places(values: Sequence[Any]) -> tuple[list[float], list[str] | None]:
    """Place values on an axis: numbers where they belong, all else side by side under their names."""
    if _numeric(values):
        return [float(value) for value in values], None
    order = _ordered(values)
    return [float(order.index(value)) for value in values], [_tick(value) for value in order]


def _tick(value: Any) -> str:
    return figure_text(text_of(value), TICK)


def _scale(axes: Axes, values: np.ndarray, ticks: bool = True) -> None:
    """Make the horizontal axis logarithmic where the values span decades; a zero keeps its place left of them."""
    positive = values[values > 0]
    if len(positive) and positive.max() / positive.min() >= 10:
        if values.min() == 0:
            axes.set_xscale("symlog", linthresh=positive.min())
        elif values.min() > 0:
            axes.set_xscale("log")
    different = np.unique(values)
    if ticks and len(different) <= NAMED:
        axes.set_xticks(different, [f"{value:g}" for value in different])
        axes.minorticks_off()


def _axes(x_label: str, y_label: str, height: float = 4.2) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(5.6, height), layout="constrained")
    axes = figure.add_subplot()
    axes.set_xlabel(figure_text(x_label))
    axes.set_ylabel(figure_text(y_label))
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes
