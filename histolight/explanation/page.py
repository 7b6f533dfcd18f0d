"""What ``histolight explain`` writes: figures, tables, ``explain.json`` and a page."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from histolight.explanation.grad_cam import GROUPS, Explanation
from histolight.files import write_atomically, write_csv
from histolight.reports.figures import ACCENT, INK, figure_text, frame_centre
from histolight.reports.page import Cell, Picture, Section, Table, render_page
from histolight.reports.parts import interval_text, save_figure, score_texts
from histolight.statistics.intervals import Interval

NAMES = ("benign", "tumour")
CAPTIONS = {
    "surest right": "The surest right calls.",
    "surest wrong": "The surest wrong calls: where to look for a label error, or for what misleads the network.",
    "closest": "The calls nearest to the threshold.",
}
LEGEND = (
    "Left the tile, right the same in grey with what speaks for the call: bright is much. Above each its label and its "
    "score, and which part of the map lies inside the centre, which is framed."
)
MEANINGS = {
    "above": "More than its area: the network looks at the centre, where the label is decided.",
    "below": "Less than its area: the network draws on the surroundings of the centre, where the label is decided.",
    "unclear": "That does not settle whether the network prefers the centre, where the label is decided.",
}
CENTRE_CAPTION = (
    "Above: the mean map of the tiles drawn, each scaled to sum 1, the centre framed. Below: the share inside the "
    "centre, tile by tile; the dashed line is where an even map would be."
)
HEAT = "inferno"


def write_report(explanation: Explanation, directory: Path, run: str, part: str, split: str) -> None:
    """Write ``figures/*.png``, ``attributions.csv``, ``explain.json`` and ``report.html``.

    Args:
        explanation: What was found.
        directory: Where to.
        run: The run's name.
        part: ``val`` or ``test``.
        split: Its kind of split: random, slide or given.
    """
    figures = {
        name.replace(" ", "_"): tiles_figure(explanation, name) for name in GROUPS if _shown(explanation, name).any()
    }
    figures["centre"] = centre_figure(explanation)
    pictures = {
        name: save_figure(figure, directory / "figures" / f"{name}.png", dpi=160) for name, figure in figures.items()
    }
    write_csv(directory / "attributions.csv", explanation.table)
    write_atomically(directory / "explain.json", json.dumps(summary(explanation, run, part), indent=2) + "\n")
    sections = [
        Section(
            "The centre",
            table=shares_table(explanation),
            notes=notes(explanation),
            pictures=[Picture(pictures["centre"], CENTRE_CAPTION)],
        )
    ]
    shown = [
        Picture(pictures[name.replace(" ", "_")], CAPTIONS[name]) for name in GROUPS if _shown(explanation, name).any()
    ]
    sections.append(Section("The calls", [LEGEND], pictures=shown))
    sections.append(Section("How this was computed", methods(explanation, part, split)))
    footer = (
        f"histolight {version('histolight')} explain, {datetime.now():%Y-%m-%d %H:%M}. For research, not diagnosis."
    )
    page = render_page(f"What {run} looks at ({part})", answer(explanation), sections, footer)
    write_atomically(directory / "report.html", page)


def answer(explanation: Explanation) -> list[str]:
    """Say in sentences how much of what speaks for a call lies inside the centre, and what that means."""
    share, last, chance = explanation.shares["all"], explanation.last_share, explanation.chance
    if math.isnan(share.value):
        return ["Nothing speaks for any call: this network answers the same whatever it sees."]
    lines = [
        f"{_percent(share.value)} {_interval(share)} of what speaks for a call lies inside the centre, which is "
        f"{_percent(chance)} of the tile."
    ]
    cells = explanation.maps.shape[1]
    coarse = (
        f"A map has {cells}x{cells} cells, one a patch of the transformer."
        if explanation.patches
        else f"A coarse figure: a map has {cells}x{cells} cells, and each sees more of the tile than its own square."
    )
    if explanation.last_layer != explanation.layer:
        coarse += (
            f" By the network's last layer, {explanation.last_cells}x{explanation.last_cells} cells, it is "
            f"{_percent(last.value)} {_interval(last)}."
        )
    sides = {_side(share, chance), _side(last, chance)}
    return [*lines, f"{coarse} {MEANINGS[sides.pop() if len(sides) == 1 else 'unclear']}"]


def _side(share: Interval, chance: float) -> str:
    return "above" if share.low > chance else "below" if share.high < chance else "unclear"


def shares_table(explanation: Explanation) -> Table:
    """Tabulate the share inside the centre: over the tiles drawn at random, and of those chosen to be shown."""
    rows = []
    for name, share in explanation.shares.items():
        count = explanation.counts[name]
        name = "drawn at random" if name == "all" else f"of these {name}"
        measured = Cell("n/a") if math.isnan(share.value) else Cell(_percent(share.value), _interval(share))
        rows.append([Cell(name), measured, Cell(f"{count:,}")])
    for name in GROUPS:
        chosen = explanation.table["share"].to_numpy()[_shown(explanation, name)]
        if np.isfinite(chosen).any():
            rows.append([Cell(f"{name} calls"), Cell(_percent(np.nanmean(chosen))), Cell(f"{len(chosen):,}")])
    return Table(["tiles", "share inside the centre", "number"], rows, words=1, marked=1)


def notes(explanation: Explanation) -> list[str]:
    """Say what a reader of the table must hear of."""
    lines = [f"Evenly spread, it would be {_percent(explanation.chance)}: the centre's part of the area."]
    lines.append("Tiles that were chosen, not drawn, have no interval: they stand for themselves.")
    if note := explanation.shares["all"].note:
        lines.append(f"{note[0].upper()}{note[1:]}.")
    if empty := int(explanation.table["share"].isna().sum()):
        lines.append(f"{empty} tiles have no share: nothing in their map speaks for the call.")
    return lines


def methods(explanation: Explanation, part: str, split: str) -> list[str]:
    """Say how it was computed, and where it can mislead."""
    side = explanation.maps.shape[1]
    cell = explanation.tiles.shape[1] / side
    method = explanation.shares["all"].method
    how = (
        f"Integrated gradients (Sundararajan et al., 2017) of the layer {explanation.layer}, which embeds the patches: "
        f"{side}x{side} cells, one for each {cell:g}x{cell:g} pixels. They share out what the logit where the tile is "
        "called tumour, minus the logit where it is called benign, differs by from that of a tile whose every patch is "
        "the mean of its patches; what is positive speaks for the call."
        if explanation.patches
        else f"Grad-CAM (Selvaraju et al., 2017) of the layer {explanation.layer}: {side}x{side} cells, one for each "
        f"{cell:g}x{cell:g} pixels. Its channels are weighed by the mean gradient of the logit where the tile is "
        "called tumour, of minus the logit where it is called benign; what is positive speaks for the call."
    )
    limits = (
        "It shows which patches weigh in, not why, and what several patches say only together is shared among them in "
        "one of many ways."
        if explanation.patches
        else "Grad-CAM shows which places weigh in, not why; padding can light up the border of a map; and maps of "
        "another layer can differ, so that a conclusion is drawn only where both layers allow it."
    )
    return [
        how,
        "The share inside the centre spreads each cell evenly over its own square. The pictures smooth the same map "
        "and scale each to its own maximum: colours of two tiles can't be compared.",
        f"Mean over up to 256 tiles of {part} ({split} split) drawn at random; 95 % interval: {method}. "
        f"A tile is called tumour above {score_texts(explanation.threshold)[0]}, the threshold chosen on validation.",
        limits,
    ]


def summary(explanation: Explanation, run: str, part: str) -> dict[str, Any]:
    """Collect the figures for ``explain.json``; what is not known is null."""
    shares = {name: {**_plain(share), "tiles": explanation.counts[name]} for name, share in explanation.shares.items()}
    return {
        "run": run,
        "part": part,
        "method": "integrated gradients of patches" if explanation.patches else "Grad-CAM",
        "layer": explanation.layer,
        "cells": explanation.maps.shape[1],
        "last_layer": explanation.last_layer,
        "last_cells": explanation.last_cells,
        "threshold": explanation.threshold,
        "area_share": explanation.chance,
        "centre_share": shares,
        "centre_share_of_last_layer": _plain(explanation.last_share),
    }


def _plain(share: Interval) -> dict[str, Any]:
    return {name: None if value != value else value for name, value in asdict(share).items()}


def tiles_figure(explanation: Explanation, group: str) -> Figure:
    """Draw each tile of a group beside its map, with label, score, share and id, two pairs a line."""
    rows = np.flatnonzero(_shown(explanation, group))
    table = explanation.table.iloc[rows]
    order = np.argsort(-table["score"].to_numpy(), kind="stable")
    lines = -(-len(rows) // 2)
    figure = Figure(figsize=(6.8, 2.05 * lines + 0.35))
    figure.set_layout_engine("constrained", w_pad=0.02, h_pad=0.05, wspace=0.02, hspace=0.03)
    figure.suptitle(f"The {group} calls", fontsize=11, fontweight="bold", color=INK)
    parts = figure.subfigures(lines, 2, squeeze=False).flat
    for part, place in zip(parts, order, strict=False):
        tile, row = table.iloc[place], rows[place]
        share = "" if math.isnan(tile["share"]) else f", centre {_percent(tile['share'])}"
        left, right = part.subplots(1, 2)
        left.imshow(explanation.tiles[row])
        _overlay(right, explanation.tiles[row], explanation.maps[row])
        for axes in (left, right):
            axes.set_axis_off()
            frame_centre(axes, explanation.tiles.shape[1])
        part.suptitle(f"{NAMES[tile['label']]}, score {tile['score']:.3f}{share}", fontsize=9, color=INK)
        part.supxlabel(figure_text(str(tile["id"])), fontsize=6.5, color="#5b6672")
    return figure


def centre_figure(explanation: Explanation) -> Figure:
    """Draw the mean map of the tiles called tumour and of those called benign, and how the shares are distributed."""
    table = explanation.table
    called = table["score"].to_numpy() > np.float32(explanation.threshold)
    drawn = table["sampled"].to_numpy() & table["share"].notna().to_numpy()
    figure = Figure(figsize=(6.8, 5.6), layout="constrained")
    above, below = figure.subfigures(2, 1, height_ratios=(1.15, 1), squeeze=False).flat
    for axes, name, rows in zip(above.subplots(1, 2), ("tumour", "benign"), (called, ~called), strict=True):
        axes.set_title(f"called {name}, {(rows & drawn).sum():,} tiles", fontsize=9, color=INK)
        maps = explanation.maps[rows & drawn]
        if len(maps):
            mean = (maps / maps.sum(axis=(1, 2), keepdims=True)).mean(axis=0)
            size = explanation.tiles.shape[1]
            axes.imshow(mean, cmap=HEAT, vmin=0, extent=(-0.5, size - 0.5, size - 0.5, -0.5))
        axes.set_axis_off()
        frame_centre(axes, explanation.tiles.shape[1])
    axes = below.subplots()
    axes.hist(table["share"].to_numpy()[drawn], bins=40, range=(0, 1), color=ACCENT, alpha=0.85)
    axes.axvline(explanation.chance, color=INK, linewidth=1, linestyle="--", label="the centre's part of the area")
    axes.set_xlabel("share inside the centre")
    axes.set_ylabel("tiles")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)
    return figure


def _overlay(axes: Axes, tile: np.ndarray, heat: np.ndarray) -> None:
    """Lay a map, smoothed to the tile's size and scaled to its own maximum, over the tile in grey."""
    size = tile.shape[0]
    smooth = F.interpolate(torch.from_numpy(heat)[None, None], (size, size), mode="bilinear")[0, 0].numpy()
    axes.imshow(tile.mean(axis=2), cmap="gray", vmin=0, vmax=255)
    axes.imshow(smooth, cmap=HEAT, vmin=0, vmax=max(float(smooth.max()), 1e-12), alpha=0.55)


def _shown(explanation: Explanation, group: str) -> np.ndarray:
    return explanation.table["shown"].str.split(", ").apply(lambda names: group in names).to_numpy(dtype=bool)


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def _interval(share: Interval) -> str:
    return interval_text(100 * share.low, 100 * share.high, digits=1)
