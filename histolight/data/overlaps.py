"""Tiles that share pixels: exact copies, and neighbours cut from one slide on a grid of 16 px.

A pack is searched once, while it is made, and keeps the pairs (:attr:`histolight.data.pack.Pack.overlaps`): int32
``(P, 4)``, each ``row_1, row_2, dy, dx`` with ``row_1 < row_2``. The top left corner of tile 2 lies ``dy`` px below and
``dx`` px to the right of that of tile 1; :func:`shared_parts` gives the slices of both that are equal. At 0, 0 lies an
exact copy: each copy is paired with the first tile of its set, and only the first with what the set overlaps.

* :func:`pair_table` gives the pairs with ids (``id_1, id_2, dy, dx``), for those tiles that a table holds.
* :func:`find_components` numbers what hangs together: ``find_components(len(pack.tiles), pack.overlaps)[table["row"]]``
  is the component of each tile of a table; a tile that shares pixels with no other has one of its own.

Candidates come from the 64-bit hashes of a tile's 16x16 blocks, by one sort: time and memory grow linearly with the
tiles. A block that repeats within a tile (empty glass, a periodic pattern), or lies in more tiles than can cover one
place, names no place. Each candidate is proven by comparing all pixels of the overlap that it implies, and an overlap
that is next to blank (:data:`histolight.data.checks.NEAR_BLANK_CONTRAST`) counts for nothing. JPEGs of one place agree
in luma only, as it is decoded, and are compared there; a single 16x16 block is then too little. What other strides
share is missed.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from PIL import Image
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from histolight.data.checks import NEAR_BLANK_CONTRAST

BLOCK = 16  # pixels: the grid of Kaggle's and PCam's tiles
QUALITY = 75  # of PCam's JPEGs on the Hugging Face hub

_CANDIDATES = 2**22  # candidates in memory before they are joined: 32 MB
_BATCH = 1024  # pairs whose pixels are compared together: at most 57 MB at 96x96
_WORKERS = 2  # threads that compare

Pairs = npt.NDArray[np.int32]


def block_hashes(tiles: np.ndarray) -> npt.NDArray[np.uint64]:
    """Hash the 16x16 blocks of tiles, row by row from the top left; what is left over at the other edges is not hashed.

    Args:
        tiles: uint8 ``(n, S, S, C)`` or ``(n, S, S)``.

    Returns:
        ``(n, (S // 16) ** 2)``: multilinear hashes with fixed odd multipliers, the same on every machine.
    """
    count, size = tiles.shape[:2]
    grid = size // BLOCK
    cut = tiles[:, : grid * BLOCK, : grid * BLOCK].reshape(count, grid, BLOCK, grid, -1).transpose(0, 1, 3, 2, 4)
    words = np.ascontiguousarray(cut).reshape(count, grid * grid, -1).view("<u8")
    words ^= words >> np.uint64(32)  # a product modulo 2**64 would not see high bytes in its low ones
    digest = hashlib.shake_128(b"histolight").digest(8 * words.shape[2])
    return np.einsum("nbk,k->nb", words, np.frombuffer(digest, "<u8") | np.uint64(1)).astype(np.uint64)


def tile_hashes(tiles: np.ndarray) -> npt.NDArray[np.uint64]:
    """Hash whole tiles: the first eight bytes of the SHA-256 of each, uint64 ``(n,)``."""
    return np.array([int.from_bytes(hashlib.sha256(tile).digest()[:8], "big") for tile in tiles], np.uint64)


def jpeg_luma(tiles: np.ndarray) -> npt.NDArray[np.uint8]:
    """Return the luma that lossless tiles would have after being stored as JPEGs of quality 75.

    A JPEG's 8x8 blocks are coded apart, and Pillow's conversion to grey is libjpeg's to luma: the result is, bit for
    bit, the luma that is decoded from such a file.

    Args:
        tiles: uint8 ``(n, S, S, 3)``.

    Returns:
        ``(n, S, S)``.
    """
    count, size = tiles.shape[:2]
    if size % 8:  # the last blocks of a tile would hold the first rows of the next
        return np.concatenate([_reencode(tile) for tile in tiles]).reshape(count, size, size)
    step = 2**15 // size  # a JPEG has at most 65,500 rows
    parts = [_reencode(tiles[first : first + step].reshape(-1, size, 3)) for first in range(0, count, step)]
    return np.concatenate(parts).reshape(count, size, size)


def _reencode(pixels: np.ndarray) -> np.ndarray:
    file = io.BytesIO()
    Image.fromarray(pixels).convert("L").save(file, "JPEG", quality=QUALITY)
    return np.asarray(Image.open(file))


def find_overlaps(
    hashes: np.ndarray,
    blocks: np.ndarray,
    read: Callable[[np.ndarray], np.ndarray],
    least: int = 1,
    across: int | None = None,
) -> Pairs:
    """Find the tiles that share pixels, each pair proven.

    Args:
        hashes: uint64 ``(N,)``: equal where two tiles are equal.
        blocks: uint64 ``(N, B)``, from :func:`block_hashes`.
        read: Gives the pixels of int64 ``(n,)`` rows, uint8 ``(n, S, S, C)`` or ``(n, S, S)``; called from threads.
        least: Blocks that two tiles must share: 1, or 2 for the luma of JPEGs, of which fewer values are possible.
        across: Only pairs of a row below this number with one from it on.

    Returns:
        int32 ``(P, 4)``: ``row_1, row_2, dy, dx`` as the module describes, in that order.
    """
    _, first, copy_of = np.unique(hashes, return_index=True, return_inverse=True)
    firsts = np.sort(first)
    rows = np.arange(len(hashes))
    original = first[copy_of]
    copied = rows != original
    copies = np.stack([original[copied], rows[copied], 0 * rows[copied], 0 * rows[copied]], axis=1).astype(np.int32)
    if across is None:
        pairs = _candidates(blocks[firsts], lambda one, two: slice(None))
    else:
        copies = copies[(copies[:, 0] < across) & (copies[:, 1] >= across)]
        border = np.searchsorted(firsts, across)
        pairs = _candidates(blocks[firsts], lambda one, two: (one < border) & (two >= border))
    pairs[:, :2] = firsts[pairs[:, :2]]
    pairs = pairs[_hashes_agree(blocks, pairs, least)]
    batches = (pairs[start : start + _BATCH] for start in range(0, len(pairs), _BATCH))
    with ThreadPoolExecutor(_WORKERS, thread_name_prefix="overlaps") as pool:
        proven = list(pool.map(lambda batch: _proven(batch, read), batches))
    pairs = np.concatenate([copies, *proven])
    return pairs[np.lexsort(pairs.T[::-1])]


def _candidates(blocks: np.ndarray, wanted: Callable[[np.ndarray, np.ndarray], Any]) -> Pairs:
    """Join the tiles, all different, that share a block which names a place: sorted, each pair and offset once."""
    count, per = blocks.shape
    grid = round(per**0.5)
    order = np.argsort(blocks, axis=None, kind="stable")
    values = blocks.ravel()[order]
    changes = np.flatnonzero(values[1:] != values[:-1]) + 1
    starts = np.concatenate([[0], changes])
    sizes = np.diff(np.append(starts, len(values)))
    tile = order // per
    twice = np.flatnonzero((values[1:] == values[:-1]) & (tile[1:] == tile[:-1]))
    names = (sizes > 1) & (sizes <= per)  # different tiles hold the same place in different blocks
    names[np.searchsorted(starts, twice, side="right") - 1] = False
    kept: list[np.ndarray] = []
    waiting, limit = 0, _CANDIDATES
    for size in np.unique(sizes[names]):
        group_starts = starts[names & (sizes == size)]
        one, two = np.triu_indices(size, 1)
        step = max(1, _CANDIDATES // len(one))
        for first in range(0, len(group_starts), step):
            places = order[group_starts[first : first + step, None] + np.arange(size)]
            a, b = places[:, one].ravel(), places[:, two].ravel()
            (row_1, place_1), (row_2, place_2) = np.divmod(a, per), np.divmod(b, per)
            dy = place_1 // grid - place_2 // grid
            dx = place_1 % grid - place_2 % grid
            key = ((row_1 * count + row_2) * (2 * grid) + (dy + grid)) * (2 * grid) + dx + grid
            kept.append(key[wanted(row_1, row_2)])
            waiting += len(key)
            if waiting > limit:
                kept = [np.unique(np.concatenate(kept))]
                waiting, limit = len(kept[0]), max(_CANDIDATES, 2 * len(kept[0]))
    keys = np.unique(np.concatenate([np.empty(0, np.int64), *kept]))
    keys, dx = np.divmod(keys, 2 * grid)
    keys, dy = np.divmod(keys, 2 * grid)
    row_1, row_2 = np.divmod(keys, count)
    return np.stack([row_1, row_2, (dy - grid) * BLOCK, (dx - grid) * BLOCK], axis=1).astype(np.int32)


def _by_offset(pairs: Pairs) -> Iterator[tuple[int, int, np.ndarray]]:
    """Yield each offset with the places of its pairs."""
    order = np.lexsort((pairs[:, 3], pairs[:, 2]))
    changes = np.flatnonzero((np.diff(pairs[order, 2:], axis=0) != 0).any(axis=1)) + 1
    for places in np.split(order, changes):
        if len(places):
            yield int(pairs[places[0], 2]), int(pairs[places[0], 3]), places


def shared_parts(dy: int, dx: int) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
    """Say which part of tile 1 and which of tile 2 are the same, as slices of rows and columns.

    >>> shared_parts(16, -32)
    ((slice(16, None, None), slice(0, -32, None)), (slice(0, -16, None), slice(32, None, None)))
    """

    def one(offset: int) -> slice:
        return slice(offset, None) if offset > 0 else slice(0, offset or None)

    return (one(dy), one(dx)), (one(-dy), one(-dx))


def _hashes_agree(blocks: np.ndarray, pairs: Pairs, least: int) -> npt.NDArray[np.bool_]:
    """Say of which candidates all whole blocks of the overlap agree, at least so many: most false ones end here."""
    grid = round(blocks.shape[1] ** 0.5)
    table = blocks.reshape(len(blocks), grid, grid)
    agree = np.zeros(len(pairs), dtype=bool)
    for dy, dx, places in _by_offset(pairs):
        if (grid - abs(dy) // BLOCK) * (grid - abs(dx) // BLOCK) < least:
            continue
        one, two = shared_parts(dy // BLOCK, dx // BLOCK)
        for part in np.array_split(places, len(places) // 2**14 + 1):
            same = table[(pairs[part, 0], *one)] == table[(pairs[part, 1], *two)]
            agree[part] = same.all(axis=(1, 2))
    return agree


def _proven(pairs: Pairs, read: Callable[[np.ndarray], np.ndarray]) -> Pairs:
    """Keep the pairs of which all shared pixels agree and show something."""
    rows, places = np.unique(pairs[:, :2], return_inverse=True)
    pixels = read(rows.astype(np.int64))
    places = places.reshape(-1, 2)
    keep = np.zeros(len(pairs), dtype=bool)
    for dy, dx, of in _by_offset(pairs):
        one, two = shared_parts(dy, dx)
        first = pixels[(places[of, 0], *one)]
        same = (first == pixels[(places[of, 1], *two)]).reshape(len(of), -1).all(axis=1)
        keep[of] = same & ~_near_blank(first)
    return pairs[keep]


def _near_blank(parts: np.ndarray) -> npt.NDArray[np.bool_]:
    """Say which parts, uint8 ``(n, h, w, C)`` or ``(n, h, w)``, have next to no contrast: the grey's deviation."""
    channels = parts.shape[3] if parts.ndim == 4 else 1
    flat = parts.reshape(len(parts), -1, channels)
    blank = np.ones(len(parts), dtype=bool)
    # A sum of squares about the mean only grows with more pixels: a sixteenth of them mostly tells.
    for step in (16, 1):
        left = np.flatnonzero(blank)
        grey = flat[left, ::step].sum(axis=2, dtype=np.int32).astype(np.float64) / channels
        squares = ((grey - grey.mean(axis=1, keepdims=True)) ** 2).sum(axis=1)
        blank[left] = squares < NEAR_BLANK_CONTRAST**2 * flat.shape[1]
    return blank


def find_components(count: int, pairs: Pairs) -> npt.NDArray[np.int64]:
    """Number the connected components of copies and overlaps.

    Args:
        count: N, the tiles.
        pairs: int32 ``(P, 4)`` or ``(P, 2)``: two rows each.

    Returns:
        ``(N,)``: the first row of each tile's component.

    >>> find_components(4, np.array([[0, 2, 16, 0]]))
    array([0, 1, 0, 3])
    """
    edges = coo_array((np.ones(len(pairs), np.int8), (pairs[:, 0], pairs[:, 1])), shape=(count, count))
    _, labels = connected_components(edges, directed=False)
    _, first, inverse = np.unique(labels, return_index=True, return_inverse=True)
    return first[inverse].astype(np.int64)


def pair_table(table: pd.DataFrame, pairs: Pairs) -> pd.DataFrame:
    """Name the pairs of which a table holds both tiles.

    Args:
        table: Tiles with ``id`` and ``row``.
        pairs: Of the whole pack.

    Returns:
        Columns ``id_1``, ``id_2`` (str), ``dy``, ``dx`` (int, px), in the order of the pairs.
    """
    ids = table.set_index("row")["id"]
    pairs = pairs[np.isin(pairs[:, :2], ids.index.to_numpy()).all(axis=1)]
    names = {f"id_{side}": ids.reindex(pairs[:, side - 1]).to_numpy() for side in (1, 2)}
    return pd.DataFrame({**names, "dy": pairs[:, 2], "dx": pairs[:, 3]})


def find_clusters(table: pd.DataFrame, pairs: Pairs, contrast: np.ndarray) -> pd.Series:
    """Name what each tile belongs to: its slide where that is known, else its component of copies and overlaps.

    Where slides are known in part, a component that touches a slide belongs to it. Pairs of two tiles with known slides
    join nothing, nor do copies of blank tiles join slides.

    Args:
        table: All tiles of the pack: ``id``, ``group`` and ``row``.
        pairs: Of the pack.
        contrast: float32 ``(N,)``, of the pack.

    Returns:
        The cluster (str) of each tile, with the table's index: the name of a slide (the first of several), or the id of
        the component's first tile.
    """
    if table["group"].notna().all():
        return table["group"].rename("cluster")
    count = len(contrast)
    rows = table["row"].to_numpy()
    slides, names = pd.factorize(table["group"])
    known = np.zeros(count, dtype=bool)
    known[rows[slides >= 0]] = True
    ends = known[pairs[:, :2]]
    pairs = pairs[~ends.all(axis=1) & (shows_something(pairs, contrast) | ~ends.any(axis=1))]
    of_slides = np.stack([rows[slides >= 0], count + slides[slides >= 0]], axis=1)
    components = find_components(count + len(names), np.concatenate([pairs[:, :2], of_slides]))
    slide = table["group"].groupby(components[rows]).transform("first")
    first = table.set_index("row")["id"].reindex(components[rows]).to_numpy()
    return slide.where(slide.notna(), first).astype(object).rename("cluster")


def shows_something(pairs: Pairs, contrast: np.ndarray) -> npt.NDArray[np.bool_]:
    """Say which pairs are more than copies of a tile that is next to blank."""
    return pairs[:, 2:].any(axis=1) | (contrast[pairs[:, 0]] >= NEAR_BLANK_CONTRAST)


def find_leaks(table: pd.DataFrame, pairs: Pairs, count: int) -> tuple[pd.DataFrame, dict[str, int]]:
    """Find the copies and overlaps that lie across the parts of a split.

    Args:
        table: The tiles: ``id``, ``row`` and ``split`` (train, val or test).
        pairs: Of the pack, which holds ``count`` tiles.
        count: N.

    Returns:
        Columns ``id_1, split_1, id_2, split_2, dy, dx``, one row for each two different contents and parts; of several
        copies in one part the first is named. And how many tiles of ``val`` share pixels with training tiles, and how
        many of ``test`` with training or validation tiles.
    """
    content = find_components(count, pairs[~pairs[:, 2:].any(axis=1)])
    tiles = table[["id", "split"]].assign(content=content[table["row"].to_numpy()])
    sides = tiles.drop_duplicates(["content", "split"])
    shifted = pairs[pairs[:, 2:].any(axis=1)]
    copies = np.unique(tiles["content"])
    joined = pd.DataFrame(
        {
            "content_1": np.concatenate([copies, content[shifted[:, 0]]]),
            "content_2": np.concatenate([copies, content[shifted[:, 1]]]),
            "dy": np.concatenate([0 * copies, shifted[:, 2]]),
            "dx": np.concatenate([0 * copies, shifted[:, 3]]),
        }
    )
    for side in (1, 2):
        joined = joined.merge(sides.add_suffix(f"_{side}"), on=f"content_{side}")
    order = {"train": 0, "val": 1, "test": 2}
    first, second = joined["split_1"].map(order), joined["split_2"].map(order)
    same = joined["content_1"] == joined["content_2"]
    joined = joined[(first != second) & ~(same & (first > second))]
    first, second = first[joined.index], second[joined.index]
    later = pd.concat(
        [
            joined.loc[first > second, ["content_1", "split_1"]].set_axis(["content", "split"], axis=1),
            joined.loc[second > first, ["content_2", "split_2"]].set_axis(["content", "split"], axis=1),
        ]
    ).drop_duplicates()
    leaking = tiles.merge(later, on=["content", "split"])["split"].value_counts()
    columns = ["id_1", "split_1", "id_2", "split_2", "dy", "dx"]
    return joined[columns].reset_index(drop=True), {part: int(leaking.get(part, 0)) for part in ("val", "test")}
