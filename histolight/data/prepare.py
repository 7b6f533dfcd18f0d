"""Source, table, checks, pack and split in one go: from a data configuration to tiles that can be trained on."""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from histolight.config import DataConfig
from histolight.data import checks
from histolight.data.pack import Tiles, open_pack
from histolight.data.sources import load_source
from histolight.data.splits import make_split
from histolight.data.table import sample

log = logging.getLogger("histolight")


@dataclass(frozen=True)
class PreparedData:
    """Tiles with their labels and their parts.

    Attributes:
        table: One row a tile, sorted by id: ``id``, ``label``, ``group``, ``split`` (train/val/test), ``row``.
        tiles: The tile store that ``row`` points into.
        split_kind: ``random``, ``slide`` or ``given``: what the parts have in common, and so what a figure means.
        fingerprint: Hex digest of which tiles these are: ids, labels, slides, pixels. The same on every machine.
        warnings: Findings that don't stop a training: columns id, problem, detail.
    """

    table: pd.DataFrame
    tiles: Tiles
    split_kind: str
    fingerprint: str
    warnings: pd.DataFrame

    def part(self, name: str) -> pd.DataFrame:
        """Return the rows of ``train``, ``val`` or ``test``."""
        return self.table[self.table["split"] == name]

    @property
    def slides(self) -> int:
        """Number of known slides; 0 when none is known."""
        return int(self.table["group"].nunique())


def prepare(config: DataConfig) -> PreparedData:
    """Find the tiles, check them, pack them, sample them and split them.

    Raises:
        DataError: Tiles or labels are not fit to train on; it lists all of them.
        RequestError: The configuration asks for something that these data can't give.
        HistolightError: The pack can't be written.
    """
    source = load_source(config)
    checks.check_table(source.table, config)
    pack = open_pack(source, Path(config.cache).expanduser() if config.cache else None, config.image_size)
    table = sample(source.table, config.limit, config.seed)
    split, kind = make_split(table, config)
    table = table.assign(split=split)
    found = [checks.find_duplicates(table, pack.hashes), checks.find_near_blank(table, pack.contrast)]
    for _, message in found:
        if message:
            log.warning("%s", message)
    warnings = pd.concat([problems for problems, _ in found], ignore_index=True)
    fingerprint = _fingerprint(table, pack.hashes[table["row"].to_numpy()])
    return PreparedData(table, pack.tiles, kind, fingerprint, warnings)


def _fingerprint(table: pd.DataFrame, hashes: np.ndarray) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for column in ("id", "label", "group"):
        digest.update("\n".join(table[column].fillna("").astype(str)).encode())
    digest.update(hashes.astype("<u8").tobytes())
    return digest.hexdigest()
