"""Parquet files of encoded images, as the Hugging Face hub lays tiles out: ROOT/**/train-00000-of-00002.parquet.

Images are a column of bytes (TIFF, PNG, JPEG, BMP or WebP), or of structs of ``bytes`` and ``path``; labels are of two
values.
Slide, centre and part are columns too where there are any; ``data.columns`` names them where they are not called as
usual. Without a column the part of a file is in its name, or in that of a folder that it lies in.
"""

from __future__ import annotations

import bisect
import json
import logging
import os
import re
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from histolight.config.schema import ColumnsConfig, DataConfig
from histolight.data.checks import describe, problem_frame
from histolight.data.images import decode, decode_luma, list_images
from histolight.data.labels import find_labels
from histolight.data.sources import Kind, data_root
from histolight.data.table import CENTRES, MISSING, SLIDES, Source, TileError, fingerprint, part_of
from histolight.errors import DataError, RequestError

log = logging.getLogger("histolight")

_USUAL = {"slide": SLIDES, "centre": CENTRES, "split": {"split"}, "label": {"label"}, "id": {"id"}}
_BATCH = 256  # rows read together
_KEPT = 66 * _BATCH  # rows kept: packing has up to two blocks ahead for each of 32 threads


def load(config: DataConfig) -> Source:
    """List the labelled tiles of all files.

    An id is that of the column ``id``, else the ``path`` in the structs without its suffix where that is unique, else
    the file and the row in it, such as ``train-00000-of-00002_0000012``.

    Raises:
        RequestError: There are no such files, one is damaged, or they don't have the same, known columns.
        DataError: Labels that are missing or none of two, or ids that can't be written into a table.
    """
    files = _files(config)
    columns = {name: files[0].column(name, config.columns) for name in _USUAL}
    if columns["label"] is None:
        raise RequestError(
            f"{files[0].path} has no column label, and data.columns.label=NAME names none; its columns: "
            f"{', '.join(files[0].names)}"
        )
    return _source(files, columns, config)


def load_unlabelled(config: DataConfig) -> Source:
    """List the tiles of all files; labels are not read."""
    files = _files(config)
    return _source(files, {name: files[0].column(name, config.columns) for name in _USUAL if name != "label"}, config)


@dataclass(frozen=True)
class _File:
    """One file: its path, and below ``data.root``; its columns, the name of that of images, and its row groups."""

    path: Path
    below: str
    size: int
    mtime_ns: int
    names: list[str]
    image: str
    has_paths: bool
    row_groups: list[int]
    classes: dict[str, list[str]]

    def column(self, meaning: str, columns: ColumnsConfig) -> str | None:
        """Say which column has a meaning: the one that ``data.columns`` names, else the one of a usual name.

        Raises:
            RequestError: There is no column of the given name, or several of usual ones.
        """
        given = getattr(columns, meaning)
        if given is not None:
            if given not in self.names:
                raise RequestError(
                    f"data.columns.{meaning}={given} is not a column of {self.path}: {', '.join(self.names)}"
                )
            return str(given)
        usual = [name for name in self.names if name.lower() in _USUAL[meaning] and name != self.image]
        if len(usual) > 1:
            raise RequestError(
                f"{self.path} has several columns that may be the {meaning}: choose one of {', '.join(usual)} with "
                f"data.columns.{meaning}=NAME"
            )
        return usual[0] if usual else None


def _files(config: DataConfig) -> list[_File]:
    _needed()
    root = data_root(config)
    listed, _ = list_images(root, (".parquet",))
    if listed.empty:
        raise RequestError(f"data.root={root} has no .parquet files")
    rows = zip(*(listed[name].to_list() for name in ("path", "size", "mtime_ns")), strict=True)
    files = [_open(root, below, size, mtime_ns, config.columns) for below, size, mtime_ns in rows]
    for file in files[1:]:
        if set(file.names) != set(files[0].names):
            raise RequestError(
                f"{file.path} has the columns {', '.join(file.names)}, but {files[0].path.name} has "
                f"{', '.join(files[0].names)}: give the files of one data set"
            )
    return files


def _needed() -> None:
    try:
        import pyarrow.parquet  # noqa: F401
    except ImportError as error:
        raise RequestError(
            "data=parquet needs pyarrow: install histolight with its extra, histolight[parquet]"
        ) from error


def _open(root: Path, below: str, size: int, mtime_ns: int, columns: ColumnsConfig) -> _File:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = root / below
    try:
        with pq.ParquetFile(path) as file:
            schema, metadata = file.schema_arrow, file.metadata
            groups = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
    except (pa.ArrowException, OSError) as error:
        raise RequestError(f"{path} is not a whole Parquet file ({_line(error)}): download it again") from None
    images = [field.name for field in schema if _is_image(field.type)]
    image = columns.image or ("image" if "image" in images else images[0] if len(images) == 1 else None)
    if image is None or image not in images:
        raise RequestError(
            f"{path} has no column of images"
            + (f" {image}" if image else "")
            + ", bytes or structs of bytes and path: "
            f"name it with data.columns.image=NAME; its columns: {', '.join(schema.names)}"
        )
    kind = schema.field(image).type
    has_paths = pa.types.is_struct(kind) and kind.get_field_index("path") >= 0
    classes = _class_names((schema.metadata or {}).get(b"huggingface", b""))
    return _File(path, below, size, mtime_ns, schema.names, image, has_paths, groups, classes)


def _is_image(kind: Any) -> bool:
    import pyarrow as pa

    if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        kind = kind.field("bytes").type
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _class_names(metadata: bytes) -> dict[str, list[str]]:
    """Read the names of classes by column, which the hub writes beside the schema; labels are their places."""
    try:
        features = json.loads(metadata)["info"]["features"]
        found = {name: feature.get("names") for name, feature in features.items() if isinstance(feature, dict)}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}
    return {name: list(map(str, names)) for name, names in found.items() if isinstance(names, list)}


def _source(files: Sequence[_File], columns: dict[str, str | None], config: DataConfig) -> Source:
    table = pd.concat([_table(file, columns) for file in files], ignore_index=True)
    table["id"] = _ids(table, files)
    rows = [
        (ascii(name), "id twice" if name else "no id", "") for name in table.loc[table["id"].duplicated(), "id"]
    ] + [(ascii(name), "id cannot be written", "") for name in table["id"] if not name.isprintable() or not name]
    if "label" in table:
        labels, wrong = find_labels(table["label"], config.classes, f"column {columns['label']} of {files[0].path}")
        rows += [(table["id"][row], "no label", "") for row in wrong]
        table["label"] = labels
    if rows:
        problems = problem_frame(rows)
        raise DataError(f"{len(problems)} problems in the files of {config.root}: {describe(problems)}", problems)
    table["split"] = _parts(table, files, columns.get("split"))
    reader = _Reader(files)
    headers, modes = set[bytes](), set[str]()
    known = [name for name in ("id", "label", "group", "domain", "split") if name in table]
    table = table[known].assign(row=np.arange(len(table), dtype=np.int64)).sort_values("id", ignore_index=True)
    identity = fingerprint(
        "parquet", config.image_size, ((file.below, file.size, file.mtime_ns, file.image) for file in files)
    )
    return Source(
        table,
        "parquet",
        identity,
        lambda row: decode(reader.read(row), config.image_size, headers, modes),
        read_luma=lambda row: decode_luma(reader.read(row)),
    )


def _table(file: _File, columns: dict[str, str | None]) -> pd.DataFrame:
    """Read all but the images of one file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    wanted = [name for name in columns.values() if name is not None]
    try:
        with pq.ParquetFile(file.path) as opened:
            found = opened.read([*wanted, *([f"{file.image}.path"] if file.has_paths else [])])
    except (pa.ArrowException, OSError) as error:
        raise RequestError(f"{file.path} is damaged ({_line(error)}): download it again") from None
    if found.num_rows != sum(file.row_groups):
        raise RequestError(f"{file.path} is damaged: its row groups differ in length; download it again")
    table = pd.DataFrame({"file": [file.below] * found.num_rows, "place": np.arange(found.num_rows)})
    for meaning, name in (
        ("group", "slide"),
        ("domain", "centre"),
        ("part", "split"),
        ("key", "id"),
        ("label", "label"),
    ):
        column = columns.get(name)
        values = [None] * found.num_rows if column is None else found[column].to_pylist()
        if name == "label" and column is not None:
            table["label"] = pd.Series(_named(values, file.classes.get(column)), dtype=object)
        elif name != "label":
            table[meaning] = pd.Series([_text(value) for value in values], dtype=object)
    paths = found[file.image].combine_chunks().flatten()[0].to_pylist() if file.has_paths else [None] * found.num_rows
    return table.assign(path=pd.Series(paths, dtype=object))


def _text(value: object) -> str | None:
    """Write a value of a column; what is empty or not a number is missing."""
    if value is None or value != value or str(value).strip() in MISSING:
        return None
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _named(values: list[Any], names: list[str] | None) -> list[Any]:
    """Put names in the place of the numbers of classes."""
    if names is None or [name.lower() for name in names] == ["0", "1"]:
        return values
    return [names[value] if isinstance(value, int) and 0 <= value < len(names) else value for value in values]


def _ids(table: pd.DataFrame, files: Sequence[_File]) -> pd.Series:
    if table["key"].notna().any():
        return table["key"].fillna("")
    paths = table["path"].fillna("").str.replace(r"\.[^./]*$", "", regex=True)
    if (paths != "").all() and paths.is_unique:
        return paths
    stems = {file.below: file.below.removesuffix(".parquet") for file in files}
    return table["file"].map(stems) + "_" + table["place"].map("{:07d}".format)


def _parts(table: pd.DataFrame, files: Sequence[_File], column: str | None) -> pd.Series:
    """Give each tile its part, by the column or by the names of files; no part where all tiles are of one."""
    if column is not None:
        parts = table["part"].map(lambda value: part_of(str(value)))
        if parts.isna().any():
            raise RequestError(
                f"the column {column} has the part {table['part'][parts.isna()].iloc[0]!r}: train, val (valid, "
                "validation) and test are known; data.columns.split=NAME names another column"
            )
    else:
        by_file = {file.below: _part_of_file(file.below) for file in files}
        unnamed = [name for name, part in by_file.items() if part is None]
        if unnamed and len(unnamed) < len(files):
            named = next(name for name, part in by_file.items() if part)
            raise RequestError(
                f"the name of {unnamed[0]} says no part, that of {named} does: begin it with train, validation or test"
            )
        parts = table["file"].map(by_file)
    parts = parts.astype(object)
    return parts if parts.nunique() > 1 else pd.Series([None] * len(parts), dtype=object)


def _part_of_file(below: str) -> str | None:
    """Say of which part a file is.

    >>> [_part_of_file(name) for name in ("data/validation-00000-of-00001.parquet", "test/0000.parquet", "0.parquet")]
    ['val', 'test', None]
    """
    *folders, name = below.split("/")
    found = [part_of(re.split(r"[-_.]", word)[0]) for word in (name, *reversed(folders))]
    return next((part for part in found if part), None)


class _Reader:
    """The encoded images of files, by row, read once and in order while the rows that are asked for go up.

    Row groups can be larger than memory, so they are streamed, and only the last :data:`_KEPT` rows are kept: threads
    that each decode a block of tiles stay within them. Any other order works, but reads row groups again.
    """

    def __init__(self, files: Sequence[_File]) -> None:
        self._files = files
        self._groups = [(file, group) for file in files for group in range(len(file.row_groups))]
        self._starts = [0, *np.cumsum([file.row_groups[group] for file, group in self._groups]).tolist()]
        self._kept: OrderedDict[int, bytes | TileError] = OrderedDict()
        self._lock = threading.Lock()
        self._stream: Iterator[Sequence[tuple[int, bytes | TileError]]] = iter(())
        self._next = self._starts[-1]  # the row that comes next from the stream, which has ended

    def read(self, row: int) -> bytes:
        """Return one encoded image.

        Raises:
            TileError: There is none, or its row group is damaged.
        """
        with self._lock:
            if row not in self._kept:
                if not self._next <= row < self._next + _KEPT:
                    group = bisect.bisect_right(self._starts, row) - 1
                    self._stream, self._next = self._batches(group), self._starts[group]
                while self._next <= row:
                    batch = next(self._stream)
                    self._kept.update(batch)
                    self._next = batch[-1][0] + 1
                    while len(self._kept) > _KEPT + _BATCH:
                        self._kept.popitem(last=False)
            found = self._kept[row]
        if isinstance(found, TileError):
            raise found
        return found

    def _batches(self, first: int) -> Iterator[Sequence[tuple[int, bytes | TileError]]]:
        """Stream the images from the beginning of a row group on, with their rows; of a damaged one, errors."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        for place in range(first, len(self._groups)):
            file, group = self._groups[place]
            row, end = self._starts[place], self._starts[place + 1]
            try:
                with open(file.path, "rb") as opened, pq.ParquetFile(opened, buffer_size=2**20) as parquet:
                    stat = os.fstat(opened.fileno())
                    if (stat.st_size, stat.st_mtime_ns) != (file.size, file.mtime_ns):
                        raise ValueError("it changed since its tiles were listed")
                    for batch in parquet.iter_batches(_BATCH, [group], [file.image], use_threads=False):
                        column = batch.column(0)
                        if pa.types.is_struct(column.type):
                            column = column.flatten()[column.type.get_field_index("bytes")]
                        images = [
                            image or TileError("no image", "its bytes are missing") for image in column.to_pylist()
                        ]
                        yield list(enumerate(images[: end - row], row))
                        row += len(images)
            except (pa.ArrowException, OSError, ValueError) as error:
                damaged = TileError("damaged row group", f"{file.path}, row group {group}: {_line(error)}")
            else:
                damaged = TileError("damaged row group", f"{file.path}, row group {group} ends early")
            for start in range(row, end, _BATCH):
                yield [(other, damaged) for other in range(start, min(start + _BATCH, end))]


def _line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


KIND = Kind(load, load_unlabelled, unlabelled_apart=True)
