"""Class folders: ``ROOT/0`` and ``ROOT/1``, or two folders with names."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pandas as pd

from histolight.config.schema import DataConfig
from histolight.data.checks import describe, problem_frame
from histolight.data.images import SUFFIXES, file_source, list_images
from histolight.data.sources import Kind, data_root
from histolight.data.table import NEGATIVE, POSITIVE, Source, part_of
from histolight.errors import DataError, RequestError

log = logging.getLogger("histolight")


def load(config: DataConfig) -> Source:
    """List the tiles of both class folders; an id is the path below its class folder, without the suffix.

    Folders named train, val (valid, validation) and test, each with the class folders in it, are a given split; an id
    then begins with the name of its part's folder.

    Raises:
        RequestError: There are no two class folders, or one of them has no images.
        DataError: Two tiles share an id, or an id can't be written into a table.
    """
    root = data_root(config)
    parts = part_folders(root)
    _warn_of_others(root, list(parts) or class_folders(root, config.classes))
    tables = []
    for folder, part in parts.items() or {"": None}.items():
        prefix = f"{folder}/" if folder else ""
        for label, name in enumerate(class_folders(root / folder, config.classes)):
            files = _images(root / folder / name)
            files["path"] = f"{prefix}{name}/" + files["path"]
            tables.append(files.assign(id=prefix + files["id"], label=np.int8(label), split=part))
    table = pd.concat(tables, ignore_index=True).astype({"split": object})
    _check_ids(table, root)
    return file_source(table, root, "folder", config.image_size)


def part_folders(root: Path) -> dict[str, str]:
    """Map the folders that are parts of a given split to train, val and test; empty unless train and another are there.

    Raises:
        RequestError: Two folders are the same part.
    """
    parts = {name: part for name in _visible(root) if (root / name).is_dir() and (part := part_of(name))}
    if "train" not in parts.values() or len(parts) < 2:
        return {}
    if len(set(parts.values())) < len(parts):
        raise RequestError(f"data.root={root} has two folders of one part: {', '.join(parts)}; keep one of them")
    return parts


def _warn_of_others(root: Path, used: list[str]) -> None:
    unused = [name for name in _visible(root) if name not in used]
    if unused:
        log.warning(
            "%d entries of %s are in no class folder and are left out: %s", len(unused), root, ", ".join(unused[:3])
        )


def load_unlabelled(config: DataConfig) -> Source:
    """List every image in or below the root; an id is its path without the suffix.

    Raises:
        RequestError: There are no images.
        DataError: Two tiles share an id, or an id can't be written into a table.
    """
    root = data_root(config)
    table = _images(root)
    _check_ids(table, root)
    return file_source(table, root, "folder", config.image_size)


def _visible(root: Path) -> list[str]:
    return sorted(entry.name for entry in root.iterdir() if not entry.name.startswith("."))


def list_files(config: DataConfig) -> pd.DataFrame:
    """List the files of the labelled tiles."""
    root = data_root(config)
    folders = [root / part for part in part_folders(root) or [""]]
    return pd.concat(
        [list_images(folder / name)[0] for folder in folders for name in class_folders(folder, config.classes)]
    )


def class_folders(root: Path, classes: list[str] | None) -> list[str]:
    """Name the folder of the negative and that of the positive class.

    Raises:
        RequestError: There are no such two folders.
    """
    entries = _visible(root)
    folders = [name for name in entries if (root / name).is_dir()]
    present = f"folders found: {', '.join(folders) or 'none'}"
    if classes is not None:
        if len(set(classes)) != 2 or not set(classes) <= set(folders):
            raise RequestError(
                f"data.classes=[{','.join(classes)}] does not name two folders in data.root={root}; {present}"
            )
        return list(classes)
    negative = [name for name in folders if name.lower() in NEGATIVE]
    positive = [name for name in folders if name.lower() in POSITIVE]
    if entries and not folders:
        raise RequestError(
            f"data.root={root} has files but no class folders such as 0 and 1: tiles without labels can only be "
            "predicted, with histolight predict"
        )
    if len(folders) != 2 or len(negative) != 1 or len(positive) != 1:
        raise RequestError(
            f"data.root={root} has no two class folders such as 0 and 1; {present}; "
            "name them with data.classes=[NEGATIVE,POSITIVE]"
        )
    return negative + positive


def _images(folder: Path) -> pd.DataFrame:
    files, others = list_images(folder)
    if others:
        log.warning("%d entries of %s are no images and are left out: %s", len(others), folder, ", ".join(others[:3]))
    if files.empty:
        raise RequestError(f"{folder} has no images ({', '.join(SUFFIXES)})")
    return files.assign(id=files["path"].str.replace(r"\.[^.]*$", "", regex=True))


def _check_ids(table: pd.DataFrame, root: Path) -> None:
    twice = table["id"].duplicated(keep=False)
    rows = [
        (ascii(name), "name cannot be an id", ascii(path)) if not name.isprintable() else (name, "id twice", path)
        for name, path, two in zip(table["id"], table["path"], twice, strict=True)
        if two or not name.isprintable()
    ]
    if rows:
        problems = problem_frame(rows)
        raise DataError(f"{len(problems)} problems with the names in {root}: {describe(problems)}", problems)


KIND = Kind(load, load_unlabelled, list_files=list_files, unlabelled_apart=True)
