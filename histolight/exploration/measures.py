"""What a set of tiles is made of, in numbers: classes, slides, colours, mean tiles, copies.

Pixels are read once, in blocks; what is kept of each tile is its mean colours and eight hashes, 90 bytes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.fft import dct
from sklearn.metrics import roc_auc_score
from tqdm import tqdm

from histolight.config.schema import DataConfig
from histolight.data.checks import NEAR_BLANK_CONTRAST
from histolight.data.overlaps import find_components
from histolight.data.pack import Pack, Tiles
from histolight.data.sources import find_kind

CHANNELS = ("red", "green", "blue")
MEASURES = ("brightness", "contrast", *CHANNELS)
HASH_BITS = 63  # the signs of 8 x 8 coefficients but the first, which is the brightness
MOST_BITS_APART = 3
LEAST_CORRELATION = 0.9

_BLOCK = 256  # tiles: 7 MB at 96x96
_SIDE = 8
_BANDS = 4  # hashes that differ in 3 bits at most agree in at least one of 4 bands


@dataclass(frozen=True)
class Colours:
    """What was measured on the pixels of N tiles.

    Attributes:
        means: float32 (N, 3): mean red, green and blue of each tile, 0 to 255.
        levels: int64 (2, 3, 256): how many pixels of each class have each level of red, green and blue; of every second
            row and column.
        mean_tiles: float64 (2, S, S, 3): the mean tile of each class, 0 to 255.
        hashes: uint64 (N, 8): :func:`perceptual_hashes` of each tile.
    """

    means: np.ndarray
    levels: np.ndarray
    mean_tiles: np.ndarray
    hashes: np.ndarray


def measure_colours(tiles: Tiles, rows: np.ndarray, labels: np.ndarray) -> Colours:
    """Read every tile once.

    Args:
        tiles: The tile store.
        rows: int64 (N,): where the tiles lie.
        labels: (N,) 0 or 1, both present.
    """
    size = tiles.image_size
    means = np.empty((len(rows), 3), np.float32)
    levels = np.zeros((2, 3, 256), np.int64)
    sums = np.zeros((2, size, size, 3), np.int64)
    hashes = np.empty((len(rows), 8), np.uint64)
    for start in tqdm(range(0, len(rows), _BLOCK), desc="looking", unit="block", disable=None):
        block = slice(start, start + _BLOCK)
        pixels = tiles.gather(rows[block])
        means[block] = pixels.sum(axis=1, dtype=np.uint32).mean(axis=1) / size  # one axis at a time: four times as fast
        hashes[block] = perceptual_hashes(pixels)
        for label in (0, 1):
            own = pixels[labels[block] == label]
            sums[label] += own.sum(axis=0, dtype=np.int64)
            for channel in range(3):
                levels[label, channel] += np.bincount(own[:, ::2, ::2, channel].ravel(), minlength=256)
    counts = np.bincount(labels, minlength=2)
    return Colours(means, levels, sums / counts[:, None, None, None], hashes)


def tile_measures(colours: Colours, contrast: np.ndarray) -> pd.DataFrame:
    """Put side by side what was measured on each tile, in levels of 255.

    Args:
        colours: Of N tiles.
        contrast: (N,) standard deviation of the grey of each tile.

    Returns:
        N rows; columns ``brightness`` (mean grey), ``contrast``, ``red``, ``green``, ``blue`` (means).
    """
    channels = {name: colours.means[:, place] for place, name in enumerate(CHANNELS)}
    return pd.DataFrame({"brightness": colours.means.mean(axis=1), "contrast": contrast, **channels})


def measure_summary(measures: pd.DataFrame, labels: np.ndarray) -> pd.DataFrame:
    """Say how each measure differs between the classes.

    Returns:
        One row a measure; ``mean_0``, ``sd_0``, ``mean_1``, ``sd_1``, and ``auroc``: how well this one number, read in
        the better direction, tells the classes apart, 0.5 to 1. What is far above 0.5 is a shortcut for any network.

    >>> measure_summary(pd.DataFrame({"red": [9.0, 7.0, 2.0, 4.0]}), np.array([0, 0, 1, 1])).loc["red"].tolist()
    [8.0, 1.0, 3.0, 1.0, 1.0]
    """
    rows = {}
    for name, values in measures.items():
        benign, tumour = values[labels == 0], values[labels == 1]
        auroc = float(roc_auc_score(labels, values))
        rows[name] = (benign.mean(), benign.std(ddof=0), tumour.mean(), tumour.std(ddof=0), max(auroc, 1 - auroc))
    return pd.DataFrame.from_dict(rows, orient="index", columns=["mean_0", "sd_0", "mean_1", "sd_1", "auroc"])


def class_counts(table: pd.DataFrame) -> pd.DataFrame:
    """Count the tiles of each part that the source fixes, and of all: columns 0 and 1, int."""
    parts = table["split"].fillna("no part") if table["split"].notna().any() else pd.Series("all", index=table.index)
    counts = pd.crosstab(parts, table["label"]).reindex(columns=[0, 1], fill_value=0)
    if len(counts) > 1:
        counts.loc["all"] = counts.sum()
    return counts


def slide_counts(table: pd.DataFrame) -> pd.DataFrame:
    """Count the tiles of each known slide, the largest slide first.

    Returns:
        One row a slide; ``slide``, ``tiles``, ``benign``, ``tumour`` (tiles), ``tumour_share``.
    """
    slides = table.groupby("group")["label"].agg(["size", "sum"])
    counts = pd.DataFrame({"slide": slides.index, "tiles": slides["size"], "benign": slides["size"] - slides["sum"]})
    counts = counts.assign(tumour=slides["sum"], tumour_share=slides["sum"] / slides["size"])
    return counts.sort_values(["tiles", "slide"], ascending=[False, True], ignore_index=True)


def perceptual_hashes(pixels: np.ndarray) -> np.ndarray:
    """Hash what tiles look like, under each of the eight symmetries of the square.

    A bit is the sign of one of the 8 x 8 lowest coefficients of the discrete cosine transform of the grey, the very
    first left out (pHash: C. Zauner, "Implementation and Benchmarking of Perceptual Image Hash Functions", 2010, with
    0 in place of the median). A mirror image changes the sign of every second coefficient, and a transposition
    exchanges rows and columns, so that one transform serves all eight.

    Args:
        pixels: uint8 (n, S, S, 3).

    Returns:
        uint64 (n, 8): the hash of the tile as it is first.

    >>> tile = np.random.default_rng(0).integers(0, 256, (1, 32, 32, 3), dtype=np.uint8)
    >>> set(perceptual_hashes(tile)[0]) == set(perceptual_hashes(np.rot90(tile, axes=(1, 2)))[0])
    True
    """
    basis = dct(np.eye(pixels.shape[1]), axis=0, norm="ortho")[:_SIDE].astype(np.float32)
    grey = pixels[..., 0].astype(np.float32) + pixels[..., 1] + pixels[..., 2]
    coefficients = basis @ grey @ basis.T
    mirror = (-1.0) ** np.arange(_SIDE)
    values = (np.uint64(1) << np.arange(_SIDE * _SIDE, dtype=np.uint64)).reshape(_SIDE, _SIDE)
    values[0, 0] = 0
    hashes = [
        ((turned * signs > 0) * values).sum(axis=(1, 2), dtype=np.uint64)
        for turned in (coefficients, coefficients.transpose(0, 2, 1))
        for signs in (1.0, mirror, mirror[:, None], mirror[:, None] * mirror)
    ]
    return np.stack(hashes, axis=1)


def near_duplicates(pack: Pack, rows: np.ndarray, hashes: np.ndarray) -> pd.DataFrame:
    """Find pairs of tiles that are copies of one another without being equal: turned, recompressed, brightened.

    Their hashes differ in at most :data:`MOST_BITS_APART` of :data:`HASH_BITS` bits in one of the eight orientations,
    which is searched without exception, and their greys correlate with at least :data:`LEAST_CORRELATION` in one of
    them. Near-blank tiles, which all look alike, take no part; of tiles with equal pixels the first does.

    Of 1,000 tiles of Kaggle's training set, it finds again as JPEG of quality 75 all but two, as JPEG of quality 30
    about half, brightened by 20 levels 98 %, turned by 90 degrees every one, shifted by a pixel none. Pairs of other
    tiles among 4,000 of them that pass the first test correlate with 0.72 at most: specks of tissue on empty glass.

    Args:
        pack: The pack.
        rows: int64 (N,): the tiles to look at.
        hashes: uint64 (N, 8), from :func:`perceptual_hashes`.

    Returns:
        One row a pair; ``place_1`` and ``place_2`` (in ``rows``), ``correlation``.
    """
    first = np.sort(np.unique(pack.hashes[rows], return_index=True)[1])
    places = first[pack.contrast[rows[first]] >= NEAR_BLANK_CONTRAST]
    pairs = places[alike(hashes[places])]
    correlations = [
        _correlation(pack.tiles.gather(rows[block[:, 0]]), pack.tiles.gather(rows[block[:, 1]]))
        for block in np.split(pairs, range(_BLOCK, len(pairs), _BLOCK))
    ]
    table = pd.DataFrame({"place_1": pairs[:, 0], "place_2": pairs[:, 1], "correlation": np.concatenate(correlations)})
    return table[table["correlation"] >= LEAST_CORRELATION].reset_index(drop=True)


def alike(hashes: np.ndarray) -> np.ndarray:
    """Find the pairs of hashes (n, 8) that are near enough, without repetition: int64 (pairs, 2)."""
    width = np.uint64(64 // _BANDS)
    pairs = [np.empty((0, 2), np.int64)]
    for band in range(_BANDS):
        keys = (hashes >> (np.uint64(band) * width)) & ((np.uint64(1) << width) - np.uint64(1))
        order = np.argsort(keys[:, 0], kind="stable")
        ordered = keys[order, 0]
        for turn in range(hashes.shape[1]):
            start, stop = (np.searchsorted(ordered, keys[:, turn], side=side) for side in ("left", "right"))
            counts = stop - start
            first = np.repeat(np.arange(len(hashes)), counts)
            second = order[np.arange(len(first)) + np.repeat(start - np.cumsum(counts) + counts, counts)]
            near = np.bitwise_count(hashes[first, turn] ^ hashes[second, 0]) <= MOST_BITS_APART
            pairs.append(np.column_stack([first, second])[near & (first < second)])
    return np.unique(np.concatenate(pairs), axis=0)


def _correlation(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Correlate the greys of pairs of tiles, uint8 (n, S, S, 3), in the best of the eight orientations: (n,)."""
    grey, turned = (_standardised(pixels) for pixels in (first, second))
    mirrors = (1, -1)
    extremes = [
        (grey * view[:, ::down, ::across]).mean(axis=(1, 2))
        for view in (turned, turned.transpose(0, 2, 1))
        for down in mirrors
        for across in mirrors
    ]
    return np.max(extremes, axis=0)


def _standardised(pixels: np.ndarray) -> np.ndarray:
    grey = pixels.mean(axis=-1, dtype=np.float32)
    grey -= grey.mean(axis=(1, 2), keepdims=True)
    return grey / grey.std(axis=(1, 2), keepdims=True)


def duplicate_sets(table: pd.DataFrame, hashes: np.ndarray, near: pd.DataFrame) -> pd.DataFrame:
    """Gather copies, exact and near, into sets.

    Args:
        table: N tiles with ``id``, ``label`` and ``group``.
        hashes: uint64 (N,): equal where the pixels are.
        near: From :func:`near_duplicates`.

    Returns:
        One row a tile that has a copy: ``set`` (from 1), ``id``, ``label``, ``group``, ``exact`` (whether another tile
        has the very same pixels), ``labels`` and ``slides`` (how many different ones the set holds).
    """
    first = pd.Series(np.arange(len(table))).groupby(hashes).transform("first").to_numpy()
    edges = np.concatenate([np.column_stack([np.arange(len(table)), first]), near[["place_1", "place_2"]].to_numpy()])
    sets = find_components(len(table), edges)
    copies = table[["id", "label", "group"]].assign(
        set=sets, exact=pd.Series(hashes, table.index).duplicated(keep=False)
    )
    copies = copies[copies["set"].duplicated(keep=False)]
    grouped = copies.groupby("set")
    copies = copies.assign(labels=grouped["label"].transform("nunique"), slides=grouped["group"].transform("nunique"))
    copies["set"] = pd.factorize(copies["set"])[0] + 1
    columns = ["set", "id", "label", "group", "exact", "labels", "slides"]
    return copies.sort_values(["set", "id"], ignore_index=True)[columns]


def file_facts(config: DataConfig) -> pd.DataFrame:
    """Describe the files of the tiles by their kind; empty for sources that are not files.

    Returns:
        One row a suffix: ``suffix``, ``files``, ``least``, ``median``, ``most`` (bytes).
    """
    list_files = find_kind(config.source).list_files
    if list_files is None:
        return pd.DataFrame(columns=["suffix", "files", "least", "median", "most"])
    files = list_files(config)
    suffixes = files["path"].str.extract(r"(\.[^.]*)$")[0].str.lower().rename("suffix")
    sizes = files["size"].groupby(suffixes).agg(["size", "min", "median", "max"])
    return sizes.set_axis(["files", "least", "median", "most"], axis=1).reset_index()
