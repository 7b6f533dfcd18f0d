"""Which tiles were sampled together, and how many independent pieces that leaves."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from histolight.errors import RequestError

FEW_SLIDES = 20
FEWEST_CLUSTERS = 2.0  # effective ones, without which there is no interval


@dataclass(frozen=True)
class Clusters:
    """Which tiles were sampled together.

    Attributes:
        codes: (N,) int, the cluster of each tile, from 0 on without gaps.
        slides: Number of named slides, or 0 where every tile is its own cluster.
        missing: Number of tiles without a slide among tiles that have one; each is a cluster of its own.
    """

    codes: npt.NDArray[np.int64]
    slides: int
    missing: int

    @property
    def note(self) -> str:
        """What a reader of the interval must hear of, or empty."""
        return f"{self.missing} tiles without a slide count as slides of their own" if self.missing else ""


def find_clusters(groups: npt.ArrayLike | None, tiles: int) -> Clusters:
    """Number the slides; without any slide every tile is its own cluster.

    Args:
        groups: (N,) slide of each tile, None or NaN where unknown; None when no slide is known.
        tiles: N.

    >>> find_clusters(["a", None, "b", "a"], 4).codes.tolist()
    [0, 2, 1, 0]
    """
    if groups is None:
        return Clusters(np.arange(tiles), 0, 0)
    names = pd.Series(groups)
    if len(names) != tiles:
        raise RequestError(f"{len(names)} slides for {tiles} tiles: give one slide (or a missing value) for each tile")
    codes, slides = pd.factorize(names)
    unknown = codes < 0
    if unknown.all():
        return Clusters(np.arange(tiles), 0, 0)
    codes[unknown] = len(slides) + np.arange(unknown.sum())
    return Clusters(codes.astype(np.int64), len(slides), int(unknown.sum()))


def effective_clusters(codes: npt.NDArray[np.int64]) -> float:
    """Effective number of clusters of some tiles, (sum n)^2 / sum n^2, n being a cluster's number of these tiles.

    Clusters of equal size count as one each; one that holds nearly all the tiles leaves little more than one.

    Args:
        codes: (N,) cluster of each tile.

    >>> effective_clusters(np.array([0, 0, 1, 1])), effective_clusters(np.array([0, 0, 0, 1]))
    (2.0, 1.6)
    """
    sizes = np.bincount(codes).astype(np.float64)
    return float(sizes.sum() ** 2 / (sizes @ sizes))


def scarcer_clusters(positive: npt.NDArray[np.bool_], clusters: Clusters) -> float:
    """Effective number of clusters of the class that has fewer; it limits how precise a figure of both is."""
    return min(effective_clusters(clusters.codes[members]) for members in (positive, ~positive))


def lack_of_clusters(positive: npt.NDArray[np.bool_], clusters: Clusters) -> str:
    """Say why a figure of both classes has no interval on these tiles, or return an empty string."""
    for name, members in (("positive", positive), ("negative", ~positive)):
        if lack := lack_of(name, clusters.codes[members], clusters):
            return lack
    return ""


def lack_of(name: str, codes: npt.NDArray[np.int64], clusters: Clusters) -> str:
    """Say why a figure of the tiles of these codes has no interval, or return an empty string."""
    if len(np.unique(codes)) < 2:
        where = "one slide holds every {name} tile" if clusters.slides else "there is one {name} tile"
        return f"no interval: {where}".format(name=name).replace("  ", " ")
    n_eff = effective_clusters(codes)
    if n_eff < FEWEST_CLUSTERS:
        count = math.floor(100 * n_eff) / 100  # 1.996 rounded would be enough
        reason = f"no interval: the {name} tiles lie so unevenly that they count as {count} slides; 2 are needed"
        return reason.replace("  ", " ")
    return ""


def clustered_variance(influence: npt.NDArray[np.float64], codes: npt.NDArray[np.int64]) -> float:
    """Variance of a figure from what each tile adds to it, tiles of a cluster together.

    The sum of squares over clusters, times n_eff / (n_eff - 1): of unequal clusters a few make most of the variance,
    and G / (G - 1) is too small then.

    Args:
        influence: (N,) the figure's linear part in each tile, which add up to 0.
        codes: (N,) cluster of each tile, at least two.
    """
    sums = np.bincount(codes, weights=influence)
    n_eff = effective_clusters(codes)
    return float(n_eff / (n_eff - 1) * (sums @ sums))


def sums_by_cluster(values: npt.NDArray[np.float64], codes: npt.NDArray[np.int64], count: int) -> npt.NDArray:
    """Add up the columns of (K, N) that have one and the same code.

    Args:
        values: (K, N) float64.
        codes: (N,) cluster of each column.
        count: Number of clusters, G.

    Returns:
        (K, G) float64.
    """
    order = np.argsort(codes, kind="stable")
    present, starts = np.unique(codes[order], return_index=True)
    sums = np.zeros((len(values), count))
    sums[:, present] = np.add.reduceat(values[:, order], starts, axis=1)
    return sums
