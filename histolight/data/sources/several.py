"""Tiles of several data sets in one training: ``data.root`` is a CSV with a row for each.

Its columns: ``source`` (a kind of data, such as ``kaggle``) and ``root`` (its folder; relative to the CSV). And, where
wanted, ``name`` (instead of the source's), ``groups`` (a list of its slides) and ``split`` (the part of its tiles, if
it brings no split of its own). An id begins with the name, which is also the ``domain`` of tiles that bring none.
Slides of one name are one slide, whichever data set they are in.
"""

from __future__ import annotations

import bisect
import dataclasses
from pathlib import Path

import numpy as np
import pandas as pd

from histolight.config.schema import RESAMPLED, DataConfig
from histolight.data.sources import Kind, find_kind, load_source
from histolight.data.table import Source, fingerprint, part_of, read_csv
from histolight.errors import RequestError


def load(config: DataConfig) -> Source:
    """List the labelled tiles of all data sets.

    Raises:
        RequestError: The CSV is no such table, names are not unique, a data set can't be listed, or some bring a split
            and others have none.
        DataError: As the kinds of data raise it.
    """
    path = Path(config.root or "").expanduser().absolute()
    rows = read_sources(path)
    sources = [_load_one(row, path, config) for row in rows]
    ends = np.cumsum([len(source.table) for source in sources]).tolist()
    tables = []
    for row, source, end in zip(rows, sources, ends, strict=True):
        table = source.table.assign(id=row["name"] + "/" + source.table["id"])
        table["row"] += end - len(table)
        domain = table["domain"] if "domain" in table else pd.Series(None, index=table.index, dtype=object)
        tables.append(table.assign(domain=domain.where(domain.notna(), row["name"])))
    known = ["id", "label", "group", "split", "row", "domain"]
    table = pd.concat([part[known].astype({"group": object, "split": object}) for part in tables], ignore_index=True)
    if config.split == "auto":
        _check_splits(
            {row["name"]: bool(source.table["split"].notna().any()) for row, source in zip(rows, sources, strict=True)}
        )

    def owner(row: int) -> tuple[Source, int]:
        number = bisect.bisect_right(ends, row)
        return sources[number], row - (ends[number] - len(sources[number].table))

    def read_tile(row: int) -> np.ndarray:
        source, own = owner(row)
        return _from_arrays(source, own) if source.read_tile is None else source.read_tile(own)

    def read_luma(row: int) -> np.ndarray | None:
        source, own = owner(row)
        return None if source.read_luma is None else source.read_luma(own)

    identity = fingerprint(
        "several",
        config.image_size,
        [(row["name"], source.fingerprint) for row, source in zip(rows, sources, strict=True)],
    )
    any_jpeg = any(source.read_luma is not None for source in sources)
    table = table.sort_values("id", kind="stable", ignore_index=True)
    return Source(table, "several", identity, read_tile, read_luma=read_luma if any_jpeg else None)


def read_sources(path: Path) -> list[dict[str, str]]:
    """Read the CSV: ``source``, ``root``, ``name``, ``groups`` and ``split`` of each data set, the last two or empty.

    Raises:
        RequestError: It is no such table, or two rows have one name.
    """
    if not path.is_file():
        raise RequestError(f"data.root={path} is not a file: data=several takes a CSV with the columns source and root")
    frame = read_csv(path, ["source", "root"])
    for column in ("name", "groups", "split"):
        if column not in frame:
            frame[column] = ""
    frame["name"] = frame["name"].where(frame["name"] != "", frame["source"])
    twice = frame.loc[frame["name"].duplicated(), "name"]
    if len(twice):
        raise RequestError(f"{path} names two rows {twice.iloc[0]}: give each another name in a column name")
    columns = ("source", "root", "name", "groups", "split")
    rows = [dict(zip(columns, values, strict=True)) for values in zip(*(frame[name] for name in columns), strict=True)]
    for row in rows:
        if find_kind(row["source"]) is KIND:
            raise RequestError(f"{path} names source={row['source']}: a list can't hold another one, give its rows")
        if row["split"] and part_of(row["split"]) is None:
            raise RequestError(f"{path} gives {row['name']} the part {row['split']!r}: write train, val or test")
    return rows


def _load_one(row: dict[str, str], path: Path, config: DataConfig) -> Source:
    own = dataclasses.replace(
        config,
        source=row["source"],
        root=str(path.parent / Path(row["root"]).expanduser()),
        groups=str(path.parent / Path(row["groups"]).expanduser()) if row["groups"] else None,
        split="auto",
        mpp=None if row["source"] in RESAMPLED else config.mpp,  # of slides it would be that of the file
    )
    cut = own.slides.model_mpp if own.source in RESAMPLED else None
    if cut and config.mpp and abs(config.mpp / cut - 1) > config.mpp_tolerance:
        raise RequestError(
            f"{row['name']} is cut at slides.model_mpp={cut:g}, and data.mpp={config.mpp:g}: make them equal"
        )
    source = load_source(dataclasses.replace(own, domain=None), keep_domains=True)
    if row["split"]:
        if source.table["split"].notna().any():
            raise RequestError(f"{row['name']} brings its own split: leave split empty in its row of {path}")
        table = source.table.assign(split=pd.Series(part_of(row["split"]), index=source.table.index, dtype=object))
        return dataclasses.replace(source, table=table)
    return source


def _check_splits(known: dict[str, bool]) -> None:
    """Refuse data sets of which only some have a split: it would be guessed where their tiles belong."""
    having, lacking = (next((name for name, has in known.items() if has == wanted), "") for wanted in (True, False))
    if having and lacking:
        raise RequestError(
            f"{having} brings its own split and {lacking} has none: say where its tiles belong in a column split "
            "(train, val or test)"
        )


def _from_arrays(source: Source, row: int) -> np.ndarray:
    """Read a tile of a source that is read in place."""
    for array in source.arrays:
        if row < len(array):
            return np.asarray(array[row])
        row -= len(array)
    raise IndexError(row)


KIND = Kind(load, root_is_file=True)
