"""The table: one row a tile. Everything that names a tile uses its ``id``."""

from __future__ import annotations

import codecs
import hashlib
import logging
import re
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from histolight.data.unpacked import find_csv, open_unpacked
from histolight.errors import DataError, RequestError, system_reason

log = logging.getLogger("histolight")

# Part of every fingerprint: raise it when the pack's files or the way tiles are decoded change, and packs are rebuilt.
PACK_FORMAT = 3

PARTS = {"val": "validation", "test": "test"}  # the parts of a split that are measured
# What each kind of split does and doesn't protect from: said wherever a figure stands; before the colon, its name.
SPLITS = {
    "slide": "split by slide: no slide lies on two sides",
    "overlap": (
        "split by overlap, slides unknown: no tiles that share pixels on the 16 px grid lie on two sides, but tiles of "
        "one slide may; other slides will be harder"
    ),
    "random": "random split: tiles that overlap or are of one slide may lie on two sides; other slides will be harder",
    "domain": "split by domain: no tile of the domain that is measured trains; others still may be harder",
    "given": "given split: made elsewhere, taken as it is; copies and overlaps across its sides are counted",
    "other": "other tiles: none of the parts that the run was trained and validated on",
}
UNUSED = "unused"  # the part of tiles that a list of parts does not name
_PART_NAMES = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val"}
_PART_NAMES |= {"test": "test", "testing": "test"}

# Usual names of columns.
SLIDES = {"slide", "slide_id", "wsi", "wsi_id", "group", "case", "case_id", "patient", "patient_id"}
SYNONYMS = {
    "id": {"file", "file_name", "filename", "image", "image_id", "image_name", "tile", "tile_id"},
    "label": {"class", "target"},
}
CENTRES = {"center", "centre", "center_id", "centre_id", "hospital", "site", "scanner", "domain"}

MEANT = {"data.groups": "slide", "data.domain": "centre"}
_LONGEST_HEADER = 2**16  # bytes; each column of a longer one would take far more memory than its name
MISSING = ["", "NA", "N/A", "NaN", "nan", "null", "None"]


def describe_split(
    kind: str, without_slide: Mapping[str, int], leaking: Mapping[str, int], torn_slides: int = 0
) -> str:
    """Say what a split protects from, as far as it is true of these tiles.

    Args:
        kind: A key of :data:`SPLITS`.
        without_slide: Number of tiles of unknown slide in each part, where some slides are known; else empty.
        leaking: Number of tiles of ``val`` and of ``test`` that share pixels with tiles that train or choose.
        torn_slides: Number of known slides with tiles in several parts.

    >>> describe_split("slide", {"train": 1200, "val": 3}, {"val": 0, "test": 0})
    'split by slide: no known slide lies on two sides; 1,203 tiles are of unknown slide (1,200 train, 3 val)'
    """
    sentence = SPLITS[kind]
    if sum(without_slide.values()):
        each = ", ".join(f"{count:,} {part}" for part, count in without_slide.items() if count)
        sentence = sentence.replace("no slide lies", "no known slide lies")
        sentence += f"; {sum(without_slide.values()):,} tiles are of unknown slide ({each})"
    if torn_slides and kind == "given":
        sentence += f"; {torn_slides:,} slides have tiles on several sides of it"
    sources = {"val": "training", "test": "training or validation"}
    for part, count in leaking.items():
        if count:
            sentence += f"; {count:,} {PARTS[part]} tiles share pixels with {sources[part]} tiles (leaks.csv)"
    return sentence


def split_note(metrics: Mapping[str, Any]) -> str:
    """Say what the split of a run protects from; older runs recorded no sentence of their own."""
    return str(metrics.get("split_note", SPLITS[metrics["split"]]))


class TileError(Exception):
    """One tile can't be decoded: ``problem`` names the kind of fault, ``detail`` what was found."""

    def __init__(self, problem: str, detail: str) -> None:
        super().__init__(f"{problem}: {detail}")
        self.problem = problem
        self.detail = detail


@dataclass(frozen=True)
class Source:
    """The tiles of one data source, not yet decoded.

    Attributes:
        table: One row a tile, sorted by id: ``id`` (str), ``label`` (int8 0/1; absent for unlabelled tiles), ``group``
            (slide, or missing), ``split`` (train/val/test, or missing), ``row`` (int64: place in the tile store), and
            ``domain`` (centre or scanner) where the data bring one.
        kind: The source's name, such as ``kaggle``.
        fingerprint: Hex digest of what decides the pixels of the whole source.
        read_tile: Decodes the tile of one row to uint8 (S, S, 3), or raises :class:`TileError`; None when the tiles
            are read in place from ``arrays``.
        arrays: Array-likes (np.memmap or h5py.Dataset) of shape (n_i, S, S, 3), uint8, concatenated in row order.
        read_tiles: The tiles of consecutive rows, uint8 (n, S, S, 3), where that is faster than one by one.
        read_luma: Decodes the luma of the tile of one row to uint8 (S, S) where it is a JPEG; None for a lossless tile.
            Absent where no tile is a JPEG.
    """

    table: pd.DataFrame
    kind: str
    fingerprint: str
    read_tile: Callable[[int], np.ndarray] | None
    arrays: tuple[Any, ...] = ()
    read_tiles: Callable[[range], np.ndarray] | None = None
    read_luma: Callable[[int], np.ndarray | None] | None = None


def fingerprint(kind: str, image_size: int, parts: Iterable[tuple[object, ...]]) -> str:
    """Digest what decides a source's pixels: its kind, the tile size, and one tuple for each file.

    >>> fingerprint("folder", 96, [("a", "0/a.png", 10, 1)]) == fingerprint("folder", 96, [("a", "0/a.png", 10, 2)])
    False
    """
    digest = hashlib.blake2b(repr((PACK_FORMAT, kind, image_size)).encode(), digest_size=16)
    for part in parts:
        digest.update(repr(part).encode())
    return digest.hexdigest()


def sample(table: pd.DataFrame, limit: int | None, seed: int) -> pd.DataFrame:
    """Draw ``limit`` tiles, stratified by label and by split where the table has them.

    The draw uses ``random_state = seed + 1``, and the split ``seed``: with ``data.seed=0`` these are the notebook's own
    states, and the two draws stay independent.

    Args:
        table: The table; the order of its rows has no influence.
        limit: Number of tiles; null, or as many as there are, is everything.
        seed: ``data.seed``.

    Returns:
        The drawn rows sorted by id, with a fresh index.
    """
    ordered = table.sort_values("id", kind="stable", ignore_index=True)
    if limit is None or limit >= len(ordered):
        return ordered
    from sklearn.utils import resample  # here: every source imports this module, and scikit-learn takes a second

    strata = ordered.groupby([name for name in ("label", "split") if name in ordered], dropna=False).ngroup()
    drawn = resample(np.arange(len(ordered)), replace=False, n_samples=limit, stratify=strata, random_state=seed + 1)
    return ordered.iloc[np.sort(drawn)].reset_index(drop=True)


def larger_samples(table: pd.DataFrame, limit: int | None, seed: int) -> Iterator[tuple[str, pd.DataFrame]]:
    """Draw twice as many tiles as ``data.limit``, and so on up to all; each with the value of that key."""
    while limit is not None:
        limit = 2 * limit if 2 * limit < len(table) else None
        yield "null" if limit is None else str(limit), sample(table, limit, seed)


def read_csv(path: Path, columns: Sequence[str] = ()) -> pd.DataFrame:
    """Read a CSV as stripped strings, so that an id such as 0012 stays what it is.

    A byte order mark, CRLF, quotes and more columns than needed are all right; so is the UTF-16 that spreadsheets
    write, and a table that is zipped or gzipped, under its own name or with ``.zip`` or ``.gz`` behind it.

    Raises:
        RequestError: The file is missing, empty, not UTF-8 or not a table, or lacks one of ``columns``.
    """
    path = find_csv(path)
    if path.exists() and not path.is_file():  # reading a pipe would wait for ever
        raise RequestError(f"{path} is not a file")
    try:
        with open_unpacked(path) as file, warnings.catch_warnings():
            first = file.read(_LONGEST_HEADER)
            file.seek(0)
            encoding = "utf-16" if first.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8-sig"
            separator = _separator(path, first)
            # Pandas only warns when rows are longer than the header, and drops the rest of them.
            warnings.simplefilter("error", pd.errors.ParserWarning)
            frame = pd.read_csv(
                file, sep=separator, dtype=str, keep_default_na=False, encoding=encoding, index_col=False
            )
    except FileNotFoundError:
        raise RequestError(f"{path} is missing") from None
    except OSError as error:
        raise RequestError(f"{path} cannot be read: {system_reason(error)}") from None
    except UnicodeDecodeError:
        raise RequestError(f"{path} is not UTF-8 text: save it as a CSV in UTF-8") from None
    except pd.errors.EmptyDataError:
        raise RequestError(f"{path} is empty") from None
    except (pd.errors.ParserError, pd.errors.ParserWarning) as error:
        raise RequestError(f"{path} is not a table: {' '.join(str(error).split())}") from None
    frame.columns = frame.columns.str.strip()
    frame = _named_as_usual(path, frame, columns)
    lacking = [name for name in columns if name not in frame]
    if lacking:
        present = ", ".join(list(map(str, frame.columns))[:20])
        raise RequestError(
            f"{path} has no column {', '.join(lacking)}; its columns: {present}; name them in its first line"
        )
    if frame.empty:
        raise RequestError(f"{path} has a header but no rows")
    return frame.fillna("").apply(lambda column: column.str.strip()).astype(object)


def _separator(path: Path, first: bytes) -> str:
    """Say what separates the columns: a comma, or what other programs write where the header has no comma."""
    if len(first) == _LONGEST_HEADER and b"\n" not in first and b"\r" not in first:
        raise RequestError(f"{path} is not a table: its first line is longer than {_LONGEST_HEADER:,} bytes")
    header = (first.splitlines() or [b""])[0]
    found = [separator for separator in (";", "\t") if separator.encode() in header]
    if b"," in header or len(found) != 1:
        return ","
    log.warning("%s: its columns are separated by %s, and read so", path, {";": "semicolons", "\t": "tabs"}[found[0]])
    return found[0]


def _named_as_usual(path: Path, frame: pd.DataFrame, columns: Sequence[str]) -> pd.DataFrame:
    """Take ``ID``, or a synonym such as ``filename``, for ``id`` where that is missing and only one can be meant."""
    meant = {}
    for name in [name for name in columns if name not in frame]:
        alike = [other for other in map(str, frame) if other.lower() == name]
        alike = alike or [other for other in map(str, frame) if other.lower() in SYNONYMS.get(name, ())]
        if len(alike) == 1:
            log.warning("%s: the column %s is read as %s", path, alike[0], name)
            meant[alike[0]] = name
    return frame.rename(columns=meant)


def read_groups(path: Path, key: str = "data.groups", usual: Collection[str] = SLIDES) -> pd.DataFrame:
    """Read which slide, or which centre, each tile comes from.

    Args:
        path: CSV with the column ``id`` and one other; among several others, the one with a usual name counts.
        key: That gave the path, for messages.
        usual: Names of such a column, such as :data:`SLIDES`.

    Returns:
        Columns ``id`` (str) and ``group`` (str, the whole name of the slide; missing where the field is empty).

    Raises:
        RequestError: No, or no single, column names the slide.
        DataError: An id stands there twice.
    """
    if not path.is_file():
        raise RequestError(f"{key}={path} is not a file: give a CSV id,<{MEANT[key]} column>")
    frame = read_csv(path, ["id"])
    others = [name for name in frame.columns if name != "id"]
    if len(others) > 1:
        others = [name for name in others if name.lower() in usual]
        if len(others) == 1:
            log.warning("%s: of its columns %s names the %s", path, others[0], MEANT[key])
    if len(others) != 1:
        raise RequestError(
            f"{key}={path} must have the column id and one column that names the {MEANT[key]} "
            f"({', '.join(sorted(name for name in usual if '_' not in name))}); its columns: {', '.join(frame.columns)}"
        )
    twice = frame.loc[frame["id"].duplicated(keep=False), ["id", others[0]]]
    if len(twice):
        problems = twice.set_axis(["id", "detail"], axis=1).assign(problem=f"id twice in the list of {MEANT[key]}s")
        raise DataError(
            f"{key}={path} names {twice['id'].nunique()} ids more than once, first {twice['id'].iloc[0]}",
            problems[["id", "problem", "detail"]].reset_index(drop=True),
        )
    groups = frame[["id", others[0]]].set_axis(["id", "group"], axis=1)
    return groups.assign(group=groups["group"].mask(groups["group"].isin(MISSING), None))


def part_of(name: str) -> str | None:
    """Say which part a usual name means: train, val (also valid, validation) or test; None for other names."""
    return _PART_NAMES.get(name.lower())


def read_parts(path: Path) -> pd.Series:
    """Read a split made elsewhere, such as the ``splits.csv`` of a run.

    Args:
        path: CSV with the columns ``id`` and ``split``: train, val (or valid, validation) or test.

    Returns:
        train, val or test by id.

    Raises:
        RequestError: No such file or columns, other names of parts, or an id that stands there twice.
    """
    if not path.is_file():
        raise RequestError(f"data.split={path} is not a file: give auto, random or a CSV id,split")
    frame = read_csv(path, ["id", "split"])
    parts = frame["split"].map(part_of)
    if parts.isna().any():
        wrong = frame[parts.isna()].iloc[0]
        raise RequestError(
            f"data.split={path} gives the part {wrong['split']!r} to {wrong['id']}: write train, val or test"
        )
    if frame["id"].duplicated().any():
        twice = frame.loc[frame["id"].duplicated(), "id"]
        raise RequestError(f"data.split={path} names {len(twice)} ids more than once, first {twice.iloc[0]}")
    return parts.set_axis(frame["id"])


def matching_ids(listed: pd.Series, known: Collection[str], where: object) -> pd.Series:
    """Take folders and the suffix of an image off the ids that are those of tiles only without them, and say so.

    Ids that differ in their folders alone stay as they are: which of them is meant can't be told.

    >>> matching_ids(pd.Series(["a.tif", "b", "c.tif", "train/d.tif"]), ["a", "b", "c.tif", "d"], "labels.csv").tolist()
    ['a', 'b', 'c.tif', 'd']
    """
    known = set(known)
    meant = listed
    without = listed.str.replace(r"\.(tiff?|png|jpe?g|bmp|webp)$", "", regex=True, flags=re.IGNORECASE)
    name = without.str.replace(r"^.*[/\\]", "", regex=True)
    for shorter, what in ((without, "suffix"), (name, "folder")):
        taken = ~meant.isin(known) & shorter.isin(known)
        changed = meant.where(~taken, shorter)
        if what == "folder":
            taken &= ~changed.duplicated(keep=False)
        if taken.any():
            example = listed[taken].iloc[0]
            log.warning("%d ids of %s are read without their %s, such as %s", taken.sum(), where, what, example)
        meant = meant.where(~taken, shorter)
    return meant


def with_groups(table: pd.DataFrame, groups: pd.DataFrame) -> pd.DataFrame:
    """Give each tile the slide that ``groups`` (columns id, group) names; other tiles have none.

    >>> groups = pd.DataFrame({"id": ["b"], "group": ["tumor_033"]})
    >>> with_groups(pd.DataFrame({"id": ["a", "b"]}), groups)["group"].tolist()
    [None, 'tumor_033']
    """
    slides = table["id"].map(groups.set_index("id")["group"]).astype(object)
    return table.assign(group=slides.where(slides.notna(), None))
