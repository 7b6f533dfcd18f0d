"""PatchCamelyon: six HDF5 files under their official names, read in place, with their official split.

For each part, ``camelyonpatch_level_2_split_<part>_x.h5`` holds ``x`` (N, 96, 96, 3) uint8 and ``_y.h5``
holds ``y`` (N, 1, 1, 1); ``_meta.csv``, where present, names the slide of each tile in its column ``wsi``.
"""

from __future__ import annotations

import errno
import gzip
import sys
import zlib
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
from tqdm import tqdm

from histolight import files
from histolight.config.schema import DataConfig
from histolight.data.checks import describe, problem_frame
from histolight.data.sources import Kind, data_root
from histolight.data.table import Source, fingerprint, read_csv
from histolight.errors import DataError, HistolightError, RequestError, cannot_write, system_reason
from histolight.files import cache_folder
from histolight.locks import Lock

_PREFIX = "camelyonpatch_level_2_split_"
# In the order of the split's names, which start the ids: so the rows are those of the table sorted by id.
_PARTS = {"test": "test", "train": "train", "val": "valid"}


def check(config: DataConfig) -> dict[tuple[str, str], Path]:
    """Find the six files: the path of each (part, x or y).

    Raises:
        RequestError: Files are missing; all of them are named.
    """
    return _find(data_root(config), [(part, kind) for part in _PARTS.values() for kind in "xy"])


def load(config: DataConfig) -> Source:
    """List the tiles of the three parts; an id is the split and the row in its file, such as ``train_0000012``.

    Raises:
        RequestError: Files are missing (all of them are named), or not what they should be.
        DataError: Labels other than 0 and 1.
        HistolightError: A ``.gz`` can't be unpacked into the cache.
    """
    root = data_root(config)
    paths = check(config)
    tables, arrays = [], []
    for split, part in _PARTS.items():
        array = _open_tiles(_plain(paths[part, "x"], config), config.image_size)
        table = _read_labels(_plain(paths[part, "y"], config), split, len(array))
        table["group"] = _read_slides(root / f"{_PREFIX}{part}_meta.csv", len(array))
        tables.append(table)
        arrays.append(array)
    table = pd.concat(tables, ignore_index=True)
    return _source(table, [paths[part, "x"] for part in _PARTS.values()], arrays, config)


def load_unlabelled(config: DataConfig) -> Source:
    """List the test tiles; of the six files only theirs, without the labels, needs to be there.

    Raises:
        RequestError: The file is missing, or not what it should be.
        HistolightError: A ``.gz`` can't be unpacked into the cache.
    """
    path = _find(data_root(config), [("test", "x")])["test", "x"]
    array = _open_tiles(_plain(path, config), config.image_size)
    table = pd.DataFrame({"id": pd.Series(_ids("test", len(array)), dtype=object), "split": "test", "group": None})
    return _source(table, [path], [array], config)


def _find(root: Path, files: list[tuple[str, str]]) -> dict[tuple[str, str], Path]:
    """Find the file of each (part, x or y), plain or gzipped."""
    names = {(part, kind): f"{_PREFIX}{part}_{kind}.h5" for part, kind in files}
    missing = [name for name in names.values() if not (root / name).exists() and not (root / f"{name}.gz").exists()]
    if missing:
        raise RequestError(f"data.root={root} lacks {', '.join(missing)} (each as .h5 or .h5.gz)")
    return {key: root / name if (root / name).exists() else root / f"{name}.gz" for key, name in names.items()}


def _source(table: pd.DataFrame, paths: list[Path], arrays: list[Any], config: DataConfig) -> Source:
    stats = [(path.name, path.stat()) for path in paths]
    identity = fingerprint("pcam", config.image_size, ((name, stat.st_size, stat.st_mtime_ns) for name, stat in stats))
    return Source(table.assign(row=np.arange(len(table), dtype=np.int64)), "pcam", identity, None, tuple(arrays))


def _ids(split: str, count: int) -> list[str]:
    return [f"{split}_{row:07d}" for row in range(count)]


def _plain(path: Path, config: DataConfig) -> Path:
    """Return the file itself, or what is in it where it is gzipped: unpacked once, into the cache."""
    if path.suffix != ".gz":
        return path
    with files.reading(path):
        stat = path.stat()
    identity = fingerprint("gzip", 0, [(str(path), stat.st_size, stat.st_mtime_ns)])
    plain = cache_folder(config.cache) / "pcam" / f"{path.stem.removesuffix('.h5')}-{identity}.h5"
    if plain.exists():
        return plain
    try:
        plain.parent.mkdir(parents=True, exist_ok=True)
        with Lock(plain.with_name(f"{plain.name}.lock")):
            if not plain.exists():
                _unpack(path, plain)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise RequestError(f"{path} is damaged ({error}): download it again") from error
    except OSError as error:
        otherwise = "choose another folder with data.cache=FOLDER"
        raise HistolightError(f"{path.name} is not unpacked: {cannot_write(plain.parent, error, otherwise)}") from error
    return plain


def _unpack(path: Path, plain: Path) -> None:
    partial = plain.with_suffix(".partial")
    with files.reading(path):
        packed = open(path, "rb")  # noqa: SIM115
    bar = tqdm(
        total=path.stat().st_size,
        desc=f"unpacking {path.name}",
        unit="B",
        unit_scale=True,
        mininterval=0.1 if sys.stderr.isatty() else 30,
    )
    try:
        with bar, packed, gzip.open(packed) as unpacked, open(partial, "wb") as out:
            while chunk := _read_some(unpacked, path):
                out.write(chunk)
                bar.update(packed.tell() - bar.n)
        partial.rename(plain)
    finally:
        partial.unlink(missing_ok=True)


def _read_some(unpacked: gzip.GzipFile, path: Path) -> bytes:
    with files.reading(path):
        return unpacked.read(2**20)


def _dataset(path: Path, name: str) -> Any:
    """Open a dataset that lies whole in its file: links and virtual datasets could name any file of this machine."""
    with files.reading(path):
        path.open("rb").close()
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        if error.errno is not None:
            raise RequestError(f"{path} can't be read: {_why_not_opened(error)}") from error
        raise RequestError(f"{path} is not a whole HDF5 file ({error}): download it again") from None
    if not isinstance(file.get(name, getlink=True), h5py.HardLink):
        raise RequestError(f"{path} has no dataset {name} of its own; it has: {', '.join(file) or 'nothing'}")
    dataset = file[name]
    if not isinstance(dataset, h5py.Dataset) or dataset.is_virtual or dataset.external:
        raise RequestError(f"{path}: {name} must be a plain dataset that lies in this file")
    return dataset


def _why_not_opened(error: OSError) -> str:
    """Say why HDF5 doesn't open a file that the system gives to read: most often a lock."""
    reason = system_reason(error)
    if "lock" not in str(error):
        return reason
    ignoring = "set the environment variable HDF5_USE_FILE_LOCKING=FALSE"
    if error.errno in (errno.EAGAIN, errno.EACCES):
        return (
            f"another program has it open for writing ({reason}): close it there, or, if nothing changes it, {ignoring}"
        )
    return f"its file system gives no locks ({reason}): {ignoring}"


def _open_tiles(path: Path, image_size: int) -> Any:
    tiles = _dataset(path, "x")
    if tiles.dtype != np.uint8 or tiles.ndim != 4 or tiles.shape[1:] != (image_size, image_size, 3) or not len(tiles):
        raise RequestError(
            f"{path}: x is {tiles.dtype} {tiles.shape}, but uint8 (N, {image_size}, {image_size}, 3) is needed "
            f"(data.image_size={image_size})"
        )
    offset = tiles.id.get_offset()
    if tiles.chunks is not None or offset is None:
        return tiles
    shape = tiles.shape
    tiles.file.close()
    return np.memmap(path, np.uint8, "r", offset, shape)


def _read_labels(path: Path, split: str, count: int) -> pd.DataFrame:
    dataset = _dataset(path, "y")
    labels = dataset[()].ravel() if dataset.size == count else None
    shape = dataset.shape
    dataset.file.close()
    if labels is None:
        raise RequestError(f"{path}: y is {shape}, but x has {count} tiles; both must come from the same download")
    ids = _ids(split, count)
    wrong = np.flatnonzero(~np.isin(labels, (0, 1)))
    if len(wrong):
        problems = problem_frame([(ids[row], "label is not 0 or 1", str(labels[row])) for row in wrong])
        raise DataError(f"{len(problems)} problems in {path}: {describe(problems)}", problems)
    return pd.DataFrame({"id": pd.Series(ids, dtype=object), "label": labels.astype(np.int8), "split": split})


def _read_slides(path: Path, count: int) -> pd.Series:
    if not path.exists():
        return pd.Series([None] * count, dtype=object)
    slides = read_csv(path, ["wsi"])["wsi"]
    if len(slides) != count:
        raise RequestError(
            f"{path} has {len(slides)} rows, but x has {count} tiles; both must come from the same download"
        )
    return slides.mask(slides == "", None)


KIND = Kind(load, load_unlabelled, check)
