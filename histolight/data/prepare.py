"""Source, table, checks, pack and split in one go: from a data configuration to tiles that can be trained on."""

from __future__ import annotations

import contextlib
import hashlib
import logging
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from histolight.config.schema import DataConfig
from histolight.data import checks
from histolight.data.overlaps import find_clusters, find_leaks, shows_something
from histolight.data.pack import Pack, Tiles, open_pack
from histolight.data.sources import load_source
from histolight.data.splits import NoSplitError, make_split
from histolight.data.table import UNUSED, Source, larger_samples, sample
from histolight.errors import RequestError

log = logging.getLogger("histolight")


@dataclass(frozen=True)
class PackedTiles:
    """Tiles that can be read, not split.

    Attributes:
        table: One row a tile, sorted by id: ``id``, ``label`` (unless unlabelled), ``group``, ``cluster`` (str, as
            :func:`histolight.data.overlaps.find_clusters` names it), ``split`` (the source's own, or missing), ``row``.
        pack: The pack that ``row`` points into.
        fingerprint: Hex digest of which tiles these are: ids, labels, slides, pixels. The same on every machine.
    """

    table: pd.DataFrame
    pack: Pack
    fingerprint: str


@dataclass(frozen=True)
class PreparedData:
    """Tiles with their labels and their parts.

    Attributes:
        table: One row a tile, sorted by id: ``id``, ``label``, ``group``, ``cluster``, ``split`` (train/val/test),
            ``row`` and ``pixels`` and ``luma``, the hashes (uint64) by which a tile is recognised; and ``domain``
            (str) with ``data.domain``.
        tiles: The tile store that ``row`` points into.
        split_kind: One of :data:`histolight.data.table.SPLITS`: how the parts were made, and so what a figure means.
        fingerprint: As in :class:`PackedTiles`.
        warnings: Findings that don't stop a training: columns id, problem, detail.
        leaks: Copies and overlaps across the parts, as :func:`histolight.data.overlaps.find_leaks` lists them.
        leaking: Tiles of ``val`` and of ``test`` that share pixels with tiles that train or choose.
        resident: Tiles that a training keeps in its device's memory, for the next one on the same data.
    """

    table: pd.DataFrame
    tiles: Tiles
    split_kind: str
    fingerprint: str
    warnings: pd.DataFrame
    leaks: pd.DataFrame
    leaking: dict[str, int]
    resident: dict[Any, Any] = field(default_factory=dict)

    def part(self, name: str) -> pd.DataFrame:
        """Return the rows of ``train``, ``val`` or ``test``."""
        return self.table[self.table["split"] == name]

    @property
    def slides(self) -> int:
        """Number of known slides; 0 when none is known."""
        return int(self.table["group"].nunique())

    @property
    def torn_slides(self) -> int:
        """Number of slides with tiles in several parts."""
        return int((self.table.groupby("group")["split"].nunique() > 1).sum())

    @property
    def without_slide(self) -> dict[str, int]:
        """Number of tiles of unknown slide in each part, where some slides are known; else empty."""
        unknown = self.table["group"].isna()
        if unknown.all() or not unknown.any():
            return {}
        return {str(part): int(count) for part, count in unknown.groupby(self.table["split"]).sum().items()}


def load_tiles(source: Source, config: DataConfig, part: str | None = None) -> PackedTiles:
    """Pack the tiles of a source, labelled or not, and sample them.

    Args:
        source: The source.
        config: The data part of a configuration.
        part: Keep only this part of the source's own split.

    Raises:
        DataError: Tiles can't be decoded; it lists all of them.
        HistolightError: The pack can't be written.
    """
    pack = open_pack(source, Path(config.cache).expanduser() if config.cache else None, config.image_size)
    table = sample(_clustered(source, pack, part), config.limit, config.seed)
    return PackedTiles(table, pack, _fingerprint(table, pack.hashes[table["row"].to_numpy()]))


def _clustered(source: Source, pack: Pack, part: str | None = None) -> pd.DataFrame:
    table = source.table.assign(cluster=find_clusters(source.table, pack.overlaps, pack.contrast))
    return table[table["split"] != UNUSED] if part is None else table[table["split"] == part]


def with_hashes(packed: PackedTiles) -> pd.DataFrame:
    """Put beside each tile the hashes by which it is known: ``pixels`` and ``luma``, uint64."""
    rows = packed.table["row"].to_numpy()
    return packed.table.assign(pixels=packed.pack.hashes[rows], luma=packed.pack.lumas[rows])


def prepare(config: DataConfig) -> PreparedData:
    """Find the tiles, check them, pack them, sample them and split them.

    Raises:
        DataError: Tiles or labels are not fit to train on; it lists all of them.
        RequestError: The configuration asks for something that these data can't give.
        HistolightError: The pack can't be written.
    """
    source = load_source(config)
    checks.check_table(source.table, config)
    packed = load_tiles(source, config)
    try:
        split, kind = make_split(packed.table, config)
    except NoSplitError as error:
        raise RequestError(f"{error}{_limit_that_works(_clustered(source, packed.pack), config)}") from None
    pack, table = packed.pack, with_hashes(packed).assign(split=split)
    columns = ["id", "label", "group", "cluster", "split", "row", "pixels", "luma"]
    table = table[columns + ["domain"] * ("domain" in table)]
    pairs = pack.overlaps[shows_something(pack.overlaps, pack.contrast)]
    leaks, leaking = find_leaks(table, pairs, len(pack.tiles))
    warnings = find_warnings(table, pack)
    return PreparedData(table, pack.tiles, kind, packed.fingerprint, warnings, leaks, leaking)


def _limit_that_works(table: pd.DataFrame, config: DataConfig) -> str:
    """Name a larger ``data.limit`` of which the split works, by trying it."""
    for limit, sampled in larger_samples(table, config.limit, config.seed):
        with contextlib.suppress(RequestError):
            make_split(sampled, config)
            return f", or use data.limit={limit}"
    return ""


def few_shots(data: PreparedData, shots: int | None, seed: int) -> PreparedData:
    """Keep so many training tiles of each class, drawn by the run's ``seed``; the other parts stay whole.

    Raises:
        RequestError: A class has fewer.
    """
    if shots is None:
        return data
    train = data.part("train")
    random = np.random.default_rng([seed, shots])
    drawn = []
    for label in (0, 1):
        rows = train.index[train["label"] == label].to_numpy()
        if len(rows) < shots:
            raise RequestError(
                f"data.shots={shots} needs as many training tiles of each class, and there are {len(rows)} with the "
                f"label {label}"
            )
        drawn.append(random.choice(rows, shots, replace=False))
    kept = (data.table["split"] != "train") | data.table.index.isin(np.concatenate(drawn))
    table = data.table[kept]
    leaks = data.leaks[data.leaks["id_1"].isin(table["id"]) & data.leaks["id_2"].isin(table["id"])]
    return replace(data, table=table, leaks=leaks.reset_index(drop=True), leaking=_leaking(leaks))


def _leaking(leaks: pd.DataFrame) -> dict[str, int]:
    """Count the tiles of ``val`` and ``test`` in a list of leaks that share pixels with an earlier part."""
    sides = [
        leaks[[f"id_{own}", f"split_{own}", f"split_{other}"]].set_axis(["id", "split", "with"], axis=1)
        for own, other in ((1, 2), (2, 1))
    ]
    tiles = pd.concat(sides)
    earlier = {"val": ["train"], "test": ["train", "val"]}
    return {
        part: int(tiles.loc[(tiles["split"] == part) & tiles["with"].isin(before), "id"].nunique())
        for part, before in earlier.items()
    }


def find_warnings(table: pd.DataFrame, pack: Pack) -> pd.DataFrame:
    """Log and list the findings on labelled tiles that stop nothing: columns id, problem, detail."""
    results = [checks.find_duplicates(table, pack.hashes), checks.find_near_blank(table, pack.contrast)]
    for _, message in results:
        if message:
            log.warning("%s", message)
    return pd.concat([problems for problems, _ in results], ignore_index=True)


def _fingerprint(table: pd.DataFrame, hashes: np.ndarray) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for column in (name for name in ("id", "label", "group") if name in table):
        digest.update("\n".join(table[column].fillna("").astype(str)).encode())
    digest.update(hashes.astype("<u8").tobytes())
    return digest.hexdigest()
