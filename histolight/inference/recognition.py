"""Tiles that trained or chose a run, recognised among others whatever they are called: by pixels, luma and overlap."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from histolight import runs
from histolight.config.compose import saved_config, typed
from histolight.config.schema import DataConfig
from histolight.data.checks import NEAR_BLANK_CONTRAST
from histolight.data.overlaps import find_overlaps
from histolight.data.pack import Pack, find_pack
from histolight.data.prepare import PackedTiles
from histolight.data.sources import load_source
from histolight.errors import HistolightError

log = logging.getLogger("histolight")

_VERBS = {"train": "trained", "val": "chose"}


@dataclass(frozen=True)
class Recognised:
    """What of some tiles is known to a run.

    Attributes:
        table: One row a tile that is known: ``id``; ``how``, which is ``same pixels``, ``same luma`` (the same tile as
            a JPEG of quality 75), ``overlap`` or, of runs without hashes, ``same id``; ``known_id``, its id in the run,
            or that of the tile that it overlaps; ``part``, whether that one trained (``train``) or chose (``val``).
        tiles: Number of tiles that were looked at.
        by_pixels: Whether the run has hashes: those of older versions don't, and only ids are compared.
        overlaps: Whether overlaps were looked for: that takes the run's own tiles, packed.
    """

    table: pd.DataFrame
    tiles: int
    by_pixels: bool
    overlaps: bool

    @property
    def counts(self) -> dict[str, int]:
        """Number of known tiles of each kind: ``trained``, ``chose`` and ``overlap``."""
        kinds = self.table["part"].map(_VERBS).mask(self.table["how"] == "overlap", "overlap").value_counts()
        return {kind: int(kinds.get(kind, 0)) for kind in (*_VERBS.values(), "overlap")}

    @property
    def kind(self) -> str:
        """Say what tiles they are, for the titles of figures."""
        seen = len(self.table)
        return f"{seen:,} of {self.tiles:,} tiles known to the run" if seen else "other tiles"

    @property
    def sentence(self) -> str:
        """Say in one line what is known of the tiles."""
        counts = self.counts
        if not self.by_pixels:
            seen = len(self.table)
            return f"{seen:,} of these tiles have the id of one that trained or chose the run" + (
                ": is it the same tile?" if seen else "; its version recorded no pixels to compare"
            )
        unchecked = "" if self.overlaps else "; overlaps were not looked for, as its own tiles are not packed here"
        if not any(counts.values()):
            also = ", and none overlaps one that did" if self.overlaps else ""
            return f"by their pixels none of these tiles trained or chose the run{also}{unchecked}"
        words = [f"{counts[kind]:,} {kind} the run" for kind in _VERBS.values() if counts[kind]]
        words += [f"{counts['overlap']:,} overlap a tile that trained or chose it"] if counts["overlap"] else []
        return f"by their pixels, of these {self.tiles:,} tiles {', '.join(words)}{unchecked}"


def recognise(run: Path, packed: PackedTiles, parts: Collection[str] = ("train", "val")) -> Recognised:
    """Look among tiles for those that trained or chose a run, or that overlap these.

    Args:
        run: The run, or an evaluation of one.
        packed: The tiles.
        parts: Which of the run's own tiles are meant.

    Raises:
        RequestError: The run's ``splits.csv`` is missing or damaged.
    """
    splits = runs.read_splits(run)
    used = splits[splits["split"].isin(parts)].sort_values("split", kind="stable")  # a tile of both parts trained
    ids = packed.table["id"].to_numpy(dtype=object)
    if not set(runs.HASHES) <= set(used):
        part = pd.Series(ids).map(used["split"])
        table = _rows(ids, "same id", pd.Series(ids), part)
        return Recognised(table, len(ids), by_pixels=False, overlaps=False)
    rows = packed.table["row"].to_numpy()
    shown = packed.pack.contrast[rows] >= NEAR_BLANK_CONTRAST
    tables = []
    for name, values, counted in (
        ("pixels", packed.pack.hashes[rows], np.ones(len(rows), dtype=bool)),
        ("luma", packed.pack.lumas[rows], shown),  # of blank tiles many have the same
    ):
        known = used.reset_index().drop_duplicates(name).set_index(name)
        digits = pd.Series([f"{value:016x}" for value in values]).where(counted)
        tables.append(_rows(ids, f"same {name}", digits.map(known["id"]), digits.map(known["split"])))
    overlaps = _overlaps(typed(saved_config(run)).data, used["split"], packed)
    tables += [] if overlaps is None else [overlaps]
    table = pd.concat(tables, ignore_index=True).drop_duplicates("id", ignore_index=True)
    return Recognised(table, len(ids), by_pixels=True, overlaps=overlaps is not None)


def shared_slides(run: Path, table: pd.DataFrame) -> list[str]:
    """Say, in one sentence or none, how many slides of a table have the name of one that trained or chose a run."""
    splits = runs.read_splits(run)
    used = splits.loc[splits["split"] != "test", "group"].dropna() if "group" in splits else ()
    slides = set(table["group"].dropna())
    shared = sorted(slides & set(used))
    if not shared:
        return []
    names = ", ".join(shared[:3]) + ", …" * (len(shared) > 3)
    return [
        f"{len(shared)} of these {len(slides)} slides have the name of one that trained or chose the run ({names}): "
        "where they are the same, the figures flatter"
    ]


def _rows(ids: np.ndarray, how: str, known_ids: pd.Series, parts: pd.Series) -> pd.DataFrame:
    table = pd.DataFrame({"id": ids, "how": how, "known_id": known_ids.to_numpy(), "part": parts.to_numpy()})
    return table[table["part"].notna()]


def _overlaps(config: DataConfig, used: pd.Series, packed: PackedTiles) -> pd.DataFrame | None:
    """Find the tiles that overlap those that a run used; None where its own tiles are not packed on this machine."""
    if config.split not in ("auto", "random"):
        config = dataclasses.replace(config, split="auto")
    try:
        source = load_source(config)
        own = find_pack(source, Path(config.cache).expanduser() if config.cache else None, config.image_size)
    except HistolightError as error:
        # Without the advice: data.root= names the tiles that are measured.
        log.warning("the run's own tiles can't be read: %s", str(error).partition(";")[0])
        return None
    own_table = source.table[source.table["id"].isin(used.index)]
    if own is None or own.tiles.image_size != packed.pack.tiles.image_size or own_table.empty:
        return None
    sides = [(own, own_table["row"].to_numpy()), (packed.pack, packed.table["row"].to_numpy())]
    border = len(own_table)
    hashes, blocks, lumas, luma_blocks = (
        np.concatenate([getattr(pack, name)[rows] for pack, rows in sides])
        for name in ("hashes", "blocks", "lumas", "luma_blocks")
    )
    pairs = [find_overlaps(hashes, blocks, _reader(sides, lambda pack, rows: pack.tiles.gather(rows)), 1, border)]
    if any(pack.stored_luma is not None for pack, _ in sides):
        pairs += [find_overlaps(lumas, luma_blocks, _reader(sides, Pack.luma), 2, border)]
    overlapping = np.concatenate(pairs)
    overlapping = overlapping[overlapping[:, 2:].any(axis=1)]  # copies are known by their hashes
    known = own_table["id"].to_numpy(dtype=object)[overlapping[:, 0]]
    table = pd.DataFrame({"known_id": known, "part": used.reindex(known).to_numpy()})
    table["id"] = packed.table["id"].to_numpy(dtype=object)[overlapping[:, 1] - border]
    table["how"] = "overlap"
    return table.sort_values("part", kind="stable")[["id", "how", "known_id", "part"]]


def _reader(
    sides: list[tuple[Pack, np.ndarray]], read: Callable[[Pack, np.ndarray], np.ndarray]
) -> Callable[[np.ndarray], np.ndarray]:
    """Read from two packs as from one, by sorted rows of which the first pack's come first."""
    border = len(sides[0][1])

    def read_both(rows: np.ndarray) -> np.ndarray:
        chosen = (rows[rows < border], rows[rows >= border] - border)
        return np.concatenate([read(pack, own[of]) for (pack, own), of in zip(sides, chosen, strict=True) if len(of)])

    return read_both
