"""Tissue put together again from tiles that share pixels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from scipy.sparse import coo_array
from scipy.sparse.csgraph import breadth_first_order

from histolight.config.schema import CENTRE
from histolight.data.overlaps import find_components
from histolight.data.pack import Pack
from histolight.exploration.figures import CLASSES, COLOURS
from histolight.reports.figures import INK

SIDES = {"train": INK, "val": "#d97706", "test": "#2563eb"}
UNKNOWN = "#9aa5b1"  # the outline of a tile that is on no side of a run
SHEET = 1600  # pixels: the least width of the sheet on which mosaics are laid out
LIGHT = 0.72  # how far towards white the tissue below the marks is


@dataclass(frozen=True)
class Mosaic:
    """The tiles of one component in their places.

    Attributes:
        places: int64 (n,): which tiles, as places in the table.
        corners: int64 (n, 2): top left corner of each tile in the image, y and x in pixels.
        image: uint8 (H, W, 3): the tissue; white where no tile lies.
    """

    places: npt.NDArray[np.int64]
    corners: npt.NDArray[np.int64]
    image: npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Shared:
    """Which tiles of a table share pixels.

    Attributes:
        pairs: int64 (P, 4): places of two tiles in the table, ``dy``, ``dx``; 0, 0 for exact copies.
        components: int64 (N,): number of the component of each tile.
        sizes: int64: tiles of each component that has several, the largest first.
    """

    pairs: npt.NDArray[np.int64]
    components: npt.NDArray[np.int64]
    sizes: npt.NDArray[np.int64]

    @property
    def copies(self) -> npt.NDArray[np.bool_]:
        """Which pairs are exact copies, (P,)."""
        return (self.pairs[:, 2:] == 0).all(axis=1)


def shared_pixels(table: pd.DataFrame, pack: Pack) -> Shared:
    """Find the pairs and components of the tiles of a table.

    Args:
        table: N tiles with ``row``.
        pack: Their pack.
    """
    place = np.full(len(pack.hashes), -1, dtype=np.int64)
    place[table["row"].to_numpy()] = np.arange(len(table))
    pairs = pack.overlaps.astype(np.int64)
    pairs[:, :2] = place[pairs[:, :2]]
    pairs = pairs[(pairs[:, :2] >= 0).all(axis=1)]
    components = find_components(len(table), pairs.astype(np.int32))
    sizes = np.unique(components, return_counts=True)[1]
    return Shared(pairs, components, np.sort(sizes[sizes > 1])[::-1])


def across_sides(shared: Shared, sides: np.ndarray) -> npt.NDArray[np.bool_]:
    """Say which pairs lie on two sides of a split, (P,); a tile without a side lies on none.

    Args:
        shared: From :func:`shared_pixels`.
        sides: (N,) train, val, test or missing.
    """
    known = ~pd.isna(sides)
    first, second = shared.pairs[:, 0], shared.pairs[:, 1]
    return known[first] & known[second] & (sides[first] != sides[second])


def label_conflicts(shared: Shared, table: pd.DataFrame) -> pd.DataFrame:
    """List the exact copies that have different labels.

    Returns:
        One row a pair: ``id_1``, ``label_1``, ``id_2``, ``label_2``.
    """
    ends = shared.pairs[shared.copies, :2]
    sides = [table.iloc[ends[:, side]][["id", "label"]].reset_index(drop=True) for side in (0, 1)]
    named = pd.concat([part.add_suffix(f"_{side}") for side, part in enumerate(sides, 1)], axis=1)
    return named[named["label_1"] != named["label_2"]].reset_index(drop=True)


def largest_mosaics(shared: Shared, table: pd.DataFrame, pack: Pack, count: int, largest: int) -> list[Mosaic]:
    """Stitch the largest components in which tiles lie beside one another.

    Args:
        shared: From :func:`shared_pixels`.
        table: The tiles.
        pack: Their pack.
        count: How many components at most.
        largest: Tiles of a component at most; of a larger one those are shown that are the fewest overlaps away from
            its first tile.
    """
    beside = shared.components[shared.pairs[~shared.copies, 0]]
    numbers, sizes = np.unique(shared.components, return_counts=True)
    ordered = numbers[np.argsort(-sizes, kind="stable")]
    return [
        stitch(np.flatnonzero(shared.components == number), shared.pairs, table, pack, largest)
        for number in ordered[np.isin(ordered, beside)][:count]
    ]


def stitch(
    places: npt.NDArray[np.int64], pairs: npt.NDArray[np.int64], table: pd.DataFrame, pack: Pack, largest: int = 200
) -> Mosaic:
    """Put the tiles of a component into their places.

    Args:
        places: (n,) ascending: the tiles of the component.
        pairs: (P, 4) of :class:`Shared`.
        table: The tiles.
        pack: Their pack.
        largest: Tiles at most.
    """
    own = pairs[np.isin(pairs[:, 0], places)]
    ends = np.searchsorted(places, own[:, :2])
    graph = coo_array((np.ones(len(own)), (ends[:, 0], ends[:, 1])), shape=(len(places), len(places)))
    order, before = breadth_first_order(graph.tocsr(), 0, directed=False)
    order = order[:largest]
    steps = {(a, b): step for (a, b), step in zip(ends.tolist(), own[:, 2:], strict=True)}
    corners = np.zeros((len(places), 2), dtype=np.int64)
    for tile in order[1:].tolist():
        first = int(before[tile])
        corners[tile] = corners[first] + (steps[first, tile] if (first, tile) in steps else -steps[tile, first])
    shown = np.sort(order)
    corners = corners[shown] - corners[shown].min(axis=0)
    size = pack.tiles.image_size
    height, width = corners.max(axis=0) + size
    image = np.full((height, width, 3), 255, np.uint8)
    for (y, x), pixels in zip(corners, pack.tiles.gather(table["row"].to_numpy()[places[shown]]), strict=True):
        image[y : y + size, x : x + size] = pixels
    return Mosaic(places[shown], corners, image)


def mosaics_figure(mosaics: Sequence[Mosaic], labels: np.ndarray, size: int, sides: np.ndarray | None = None) -> Figure:
    """Draw each mosaic twice at one scale: the tissue, and beside it its tiles, their centres in the label's colour.

    Args:
        mosaics: At least one.
        labels: (N,) 0 or 1 of each tile of the table.
        size: Height and width of a tile in pixels.
        sides: (N,) train, val, test or missing, which colour the outlines; None outlines them all alike.
    """
    corners, width, height, margin = _lay_out([mosaic.image.shape[:2] for mosaic in mosaics])
    sheet = np.full((height, width, 3), 255, np.uint8)
    figure = Figure(figsize=(15, 15 * height / width + 0.5), layout="constrained")
    axes = figure.add_subplot()
    axes.set_axis_off()
    for mosaic, (top, left) in zip(mosaics, corners, strict=True):
        tall, broad = mosaic.image.shape[:2]
        second = left + broad + margin // 2
        sheet[top : top + tall, left : left + broad] = mosaic.image
        sheet[top : top + tall, second : second + broad] = 255 - (1 - LIGHT) * (255.0 - mosaic.image)
        own = labels[mosaic.places]
        axes.text(left, top + tall + margin / 8, _mosaic_caption(own), fontsize=9, color=INK, va="top")
        for place, (y, x), label in zip(mosaic.places, mosaic.corners, own, strict=True):
            edge = INK if sides is None else SIDES.get(sides[place], UNKNOWN)
            corner = (second + x - 0.5, top + y - 0.5)
            axes.add_patch(Rectangle(corner, size, size, fill=False, edgecolor=edge, linewidth=1400 / width, alpha=0.9))
            inner = (size - CENTRE) / 2
            middle = (corner[0] + inner, corner[1] + inner)
            axes.add_patch(Rectangle(middle, CENTRE, CENTRE, color=COLOURS[label], alpha=0.65, linewidth=0))
    axes.imshow(sheet, interpolation="lanczos")
    handles = [Patch(color=colour, label=name) for name, colour in zip(CLASSES, COLOURS, strict=True)]
    if sides is not None:
        handles += [
            Patch(fill=False, edgecolor=colour, label=name) for name, colour in SIDES.items() if (sides == name).any()
        ]
    figure.legend(handles=handles, loc="outside upper left", ncols=5, fontsize=10, frameon=False)
    return figure


def _mosaic_caption(labels: np.ndarray) -> str:
    tumour = int(labels.sum())
    kinds = {0: "benign", len(labels): "tumour"}.get(tumour, f"{tumour} of them tumour")
    return f"{len(labels)} tiles, {kinds}"


def _lay_out(shapes: Sequence[tuple[int, int]]) -> tuple[list[tuple[int, int]], int, int, int]:
    """Place mosaics, each with its second drawing, on shelves: the tallest first, each on the first shelf with room.

    Returns:
        The top left corner of each, the width and height of the sheet, and the margin around each, in pixels.
    """
    area = sum(2 * height * width for height, width in shapes)
    sheet = int(max(SHEET, 1.4 * area**0.5, *(2.1 * width for _, width in shapes)))
    margin = sheet // 50
    shelves: list[list[int]] = []  # top, height, the pixels that are taken
    corners = [(0, 0)] * len(shapes)
    for number in sorted(range(len(shapes)), key=lambda number: -shapes[number][0]):
        height, width = shapes[number]
        wide = 2 * width + margin // 2
        shelf = next((shelf for shelf in shelves if shelf[2] + wide <= sheet), None)
        if shelf is None:
            shelf = [sum(each[1] + margin for each in shelves), height, 0]
            shelves.append(shelf)
        corners[number] = (shelf[0], shelf[2])
        shelf[2] += wide + margin
    return corners, sheet, sum(each[1] + margin for each in shelves), margin
