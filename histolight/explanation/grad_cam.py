"""Where in a tile lies what speaks for a call, and how much of it inside the centre.

Of a network with a last feature map it is Grad-CAM, of a transformer it is
:mod:`histolight.explanation.patches`.

Selvaraju et al., "Grad-CAM: Visual Explanations from Deep Networks via Gradient-based Localization", ICCV 2017.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from captum.attr import LayerGradCam
from scipy import special
from torch import nn

from histolight.config.schema import CENTRE
from histolight.data.datamodule import to_floats
from histolight.data.pack import Tiles
from histolight.errors import RequestError
from histolight.explanation.patches import patch_attributions
from histolight.models.classifier import Classifier
from histolight.statistics.intervals import Interval, mean_interval

SAMPLE = 256  # tiles drawn for the figure of the centre
CELLS = 6  # a finer map is preferred below so many cells a side
BATCH = 32  # tiles whose activations are kept at once
GROUPS = ("surest right", "surest wrong", "closest")


@dataclass(frozen=True)
class Explanation:
    """Maps of some tiles of one part.

    Attributes:
        table: One row a tile: ``id``, ``label``, ``score``, ``share`` (of the map inside the centre; NaN where nothing
            speaks for the call), ``sampled`` (drawn for ``shares``), ``shown`` (one of ``GROUPS``, or empty).
        maps: ``(N, h, w)`` float32, at least 0: what speaks for the call, in the order of ``table``.
        tiles: ``(N, S, S, 3)`` uint8.
        patches: Whether the maps are a transformer's, not Grad-CAM.
        layer: The layer whose output the maps weigh.
        last_layer: The last layer that could be explained, which may be the same; its maps are coarser.
        last_cells: Cells a side of the latter's maps.
        shares: Mean share inside the centre over the tiles drawn: all, and by call and label.
        last_share: That of all, by ``last_layer``.
        counts: Number of tiles behind each of ``shares``.
        threshold: A score above it calls a tile tumour.
        directory: Where they and their page were written, None before.
    """

    table: pd.DataFrame
    maps: npt.NDArray[np.float32]
    tiles: npt.NDArray[np.uint8]
    patches: bool
    layer: str
    last_layer: str
    last_cells: int
    shares: dict[str, Interval]
    last_share: Interval
    counts: dict[str, int]
    threshold: float
    directory: Path | None = None

    @property
    def chance(self) -> float:
        """The centre's part of a tile's area: the share of a map that is the same everywhere."""
        return min(1.0, CENTRE / self.tiles.shape[1]) ** 2


def explain(
    classifier: Classifier, predictions: pd.DataFrame, tiles: Tiles, threshold: float, count: int, seed: int
) -> Explanation:
    """Explain the surest right calls, the surest wrong ones, those nearest the threshold, and a random sample.

    Args:
        classifier: In evaluation mode.
        predictions: ``id``, ``label``, ``group``, ``logit``, ``score`` and ``row``, the tile's place in ``tiles``.
        tiles: The tile store.
        threshold: A score above it calls a tile tumour.
        count: Tiles of each group that are shown.
        seed: Decides the sample.

    Raises:
        RequestError: The network has neither a feature map nor patches to explain.
    """
    layer, last_layer, patches = feature_layers(classifier.backbone, classifier.input_size)
    shown = pick_tiles(predictions, threshold, count)
    size = min(SAMPLE, len(predictions))
    sample = np.random.default_rng(seed).choice(len(predictions), size, replace=False)
    places = np.unique(np.concatenate([sample, *shown.values()]))
    table = predictions.iloc[places]
    pixels = tiles.gather(table["row"].to_numpy())
    called = table["score"].to_numpy() > np.float32(threshold)
    if patches:
        maps = patch_attributions(classifier, layer, pixels, called).clip(min=0)
    else:
        maps = grad_cam(classifier, layer, pixels, called)
    last_maps = maps if last_layer == layer else grad_cam(classifier, last_layer, pixels, called)
    names = pd.Series("", index=places)
    for name, group in shown.items():
        names[group] = names[group].where(names[group] == "", names[group] + ", ") + name
    scored = table[["id", "label", "score"]].assign(
        share=centre_share(maps, tiles.image_size), sampled=np.isin(places, sample), shown=names.to_numpy()
    )
    tumour = scored["label"].to_numpy() == 1
    kinds = {
        "all": np.ones(len(scored), dtype=bool),
        "tumour, called tumour": tumour & called,
        "benign, called benign": ~tumour & ~called,
        "benign, called tumour": ~tumour & called,
        "tumour, called benign": tumour & ~called,
    }
    members = {name: kind & scored["sampled"].to_numpy() for name, kind in kinds.items()}
    shares = {
        name: mean_share(scored["share"].to_numpy()[rows], table["cluster"].to_numpy()[rows])
        for name, rows in members.items()
    }
    counts = {name: int(rows.sum()) for name, rows in members.items()}
    last = centre_share(last_maps, tiles.image_size)[members["all"]]
    return Explanation(
        table=scored.reset_index(drop=True),
        maps=maps,
        tiles=pixels,
        patches=patches,
        layer=layer,
        last_layer=last_layer,
        last_cells=last_maps.shape[1],
        shares=shares,
        last_share=mean_share(last, table["cluster"].to_numpy()[members["all"]]),
        counts=counts,
        threshold=threshold,
    )


class FeatureLayers(NamedTuple):
    """Which layers of a network can be explained.

    Attributes:
        shown: Whose maps are shown.
        last: The last one that could be.
        patches: Whether both are the one that embeds the patches of a transformer.
    """

    shown: str
    last: str
    patches: bool


def feature_layers(network: nn.Module, image_size: int) -> FeatureLayers:
    """Name the layer whose maps are shown, and the last one that could be.

    The latter is the last layer with a square map of more than one cell. Where that has fewer than ``CELLS`` cells a
    side (3x3 in most networks on 96x96 tiles), the former is the last layer before the last halving. On a MobileNetV2
    trained on 2,800 of Kaggle's tiles, Grad-CAM of the finer map agreed better with hiding one of nine squares of a
    tile at a time: a mean correlation of 0.39 over 200 tiles, against 0.27. Where tokens follow the last map, as in
    vision transformers, that map is of the patches.

    Args:
        network: Maps ``(N, 3, S, S)`` to ``(N, 1)``.
        image_size: S.

    Raises:
        RequestError: It has no such map.
    """
    shapes: list[tuple[str, tuple[int, ...]]] = []

    def record(name: str, output: object) -> None:
        if isinstance(output, torch.Tensor):
            shapes.append((name, tuple(output.shape)))

    hooks = [
        module.register_forward_hook(lambda _module, _inputs, output, name=name: record(name, output))
        for name, module in network.named_modules()
        if name and not isinstance(module, nn.Softmax | nn.Dropout)  # of attention: queries by keys, no map of a tile
    ]
    try:
        with torch.inference_mode():
            network(torch.zeros(1, 3, image_size, image_size))
    finally:
        for hook in hooks:
            hook.remove()
    maps: list[int] = []
    enlarged: list[int] = []  # by the adaptive pooling of VGG and AlexNet on small tiles: cells that repeat others
    for place, (_, shape) in enumerate(shapes):
        if len(shape) == 4 and shape[2] == shape[3] > 1:
            (enlarged if maps and shape[2] > shapes[maps[-1]][1][2] else maps).append(place)
    # Tokens (N, T, C), or maps (N, H, W, C) as in some transformers.
    tokens = [
        place
        for place, (_, shape) in enumerate(shapes)
        if len(shape) > 2 and max(shape[1:-1]) > 1 and place not in enlarged
    ]
    if not maps:
        raise RequestError("this network has neither a feature map nor patches: choose a run of another network")
    if any(place > maps[-1] and shapes[place][1][2:] != (1, 1) for place in tokens):
        return FeatureLayers(shapes[maps[-1]][0], shapes[maps[-1]][0], True)
    side = shapes[maps[-1]][1][2]
    finer = [place for place in maps if side < CELLS and shapes[place][1][2] == 2 * side]
    return FeatureLayers(shapes[finer[-1] if finer else maps[-1]][0], shapes[maps[-1]][0], False)


def grad_cam(
    classifier: Classifier, layer: str, tiles: npt.NDArray[np.uint8], called: npt.NDArray[np.bool_]
) -> npt.NDArray[np.float32]:
    """Weigh the channels of a layer by the mean gradient of what was called, add them up, and keep what is positive.

    Args:
        classifier: In evaluation mode.
        layer: Dotted name inside its backbone.
        tiles: ``(N, S, S, 3)`` uint8.
        called: ``(N,)``: the gradient is the logit's where a tile is called tumour, else that of minus the logit.

    Returns:
        ``(N, h, w)`` float32, h and w being the layer's.
    """
    signs = torch.from_numpy(np.where(called, np.float32(1), np.float32(-1)))
    method = LayerGradCam(lambda batch, sign: classifier(batch) * sign, classifier.backbone.get_submodule(layer))
    maps = []
    for start in range(0, len(tiles), BATCH):
        batch = to_floats(torch.from_numpy(tiles[start : start + BATCH]), classifier.stain).requires_grad_()
        sign = signs[start : start + BATCH]
        maps.append(method.attribute(batch, additional_forward_args=(sign,), relu_attributions=True).detach()[:, 0])
    return torch.cat(maps).numpy()


def centre_share(maps: npt.NDArray[np.floating], image_size: int) -> npt.NDArray[np.float64]:
    """Say which part of each map lies inside the centre 32x32, every cell being spread evenly over its own square.

    Args:
        maps: ``(N, h, w)``, at least 0.
        image_size: Height and width of the tiles in pixels.

    Returns:
        ``(N,)`` in [0, 1]; NaN where a map is zero everywhere.

    >>> centre_share(np.ones((1, 3, 3)), 96).round(4), centre_share(np.zeros((1, 3, 3)), 96)
    (array([0.1111]), array([nan]))
    """
    low, high = (image_size - CENTRE) / 2, (image_size + CENTRE) / 2

    def inside(cells: int) -> npt.NDArray[np.float64]:
        edges = np.linspace(0, image_size, cells + 1)
        return np.diff(edges.clip(low, high)) / np.diff(edges)

    total = maps.sum(axis=(1, 2), dtype=np.float64)
    centre = np.einsum("nhw,h,w->n", maps.astype(np.float64), inside(maps.shape[1]), inside(maps.shape[2]))
    return np.divide(centre, total, out=np.full(len(maps), np.nan), where=total > 0)


def mean_share(shares: npt.NDArray[np.float64], groups: npt.ArrayLike) -> Interval:
    """Mean share inside the centre, with its interval over slides (over tiles where none is known).

    Args:
        shares: ``(N,)``; NaN is left out.
        groups: ``(N,)``: slide of each tile, or missing.
    """
    known = np.isfinite(shares)
    if not known.any():
        return Interval(np.nan, np.nan, np.nan, "none", "no tile")
    return mean_interval(shares[known], np.asarray(groups, dtype=object)[known])


def pick_tiles(predictions: pd.DataFrame, threshold: float, count: int) -> dict[str, npt.NDArray[np.int64]]:
    """Choose the tiles to show: the surest right calls, the surest wrong ones, those nearest the threshold.

    Of right and of wrong calls, those of tumour and of benign alternate, so that one kind does not crowd out the other.

    Args:
        predictions: ``label``, ``logit`` and ``score``.
        threshold: A score above it calls a tile tumour.
        count: Tiles of each group, fewer where there are not so many.

    Returns:
        For each of ``GROUPS`` the places in ``predictions``, the surest (or the closest) first.
    """
    table = predictions.reset_index(drop=True)
    distance = (table["logit"] - special.logit(threshold)).abs()
    called = table["score"] > np.float32(threshold)
    right = called == (table["label"] == 1)
    rank = distance.groupby([right, called]).rank(method="first", ascending=False)
    order = pd.DataFrame({"rank": rank, "distance": -distance}).sort_values(["rank", "distance"]).index
    surest_right, surest_wrong = order[right[order]][:count], order[~right[order]][:count]
    closest = distance.sort_values(kind="stable").index[:count]
    return {name: index.to_numpy() for name, index in zip(GROUPS, (surest_right, surest_wrong, closest), strict=True)}
