"""Kaggle's Histopathologic Cancer Detection: ``train_labels.csv`` and ``train/<id>.tif``; ``test/`` to predict."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pandas as pd

from histolight.config.schema import DataConfig
from histolight.data.checks import describe, problem_frame
from histolight.data.images import file_source, list_images
from histolight.data.labels import read_label
from histolight.data.sources import Kind, data_root
from histolight.data.table import Source, matching_ids, read_csv
from histolight.data.unpacked import find_csv
from histolight.errors import DataError, RequestError

log = logging.getLogger("histolight")


def check(config: DataConfig) -> Path:
    """Return the folder, which holds labelled tiles as far as its names tell.

    Raises:
        RequestError: A file or the folder is missing.
    """
    root = data_root(config)
    labels = find_csv(root / "train_labels.csv").exists()
    if not labels and find_csv(root / "sample_submission.csv").exists() and not (root / "train").is_dir():
        raise RequestError(
            f"{root / 'train_labels.csv'} is missing: the test tiles beside it have no labels and can only be "
            "predicted, with histolight predict"
        )
    if not labels or not (root / "train").exists():
        missing = root / ("train" if labels else "train_labels.csv")
        zips = sorted(path.name for path in root.glob("*.zip"))
        remedy = f"unzip {zips[0]} there" if zips else _nested(root)
        needed = "data.root must hold train_labels.csv and the folder train with the tiles"
        raise RequestError(f"{missing} is missing: {needed}{f'; {remedy}' if remedy else ''}")
    return root


def _nested(root: Path) -> str:
    """Name the folder below that holds what belongs into data.root, as unpacking makes it; empty without any."""
    below = sorted(path.parent for path in root.glob("*/train_labels.csv*"))
    return f"use data.root={below[0]}" if below else ""


def load(config: DataConfig) -> Source:
    """List the labelled tiles.

    Raises:
        RequestError: A file or a folder is missing or not what it should be.
        DataError: Ids that are no file names or stand there twice, labels other than 0 and 1, ids without a tile, and
            tiles without an id: all of them.
    """
    root = check(config)
    labels = read_csv(root / "train_labels.csv", ("id", "label"))[["id", "label"]]
    files = _list_tiles(root, "train", "train_labels.csv")
    labels["id"] = matching_ids(labels["id"], files["id"], "train_labels.csv")
    values = labels["label"].map(read_label)
    rows = _id_problems(labels["id"])
    rows += [
        (name, "label is not 0 or 1", f"{label!r} in row {number} of train_labels.csv")
        for number, (name, label, value) in enumerate(zip(labels["id"], labels["label"], values, strict=True), 1)
        if value is None or value != value
    ]
    other = labels.loc[values.notna() & ~labels["label"].isin(["0", "1"]), "label"]
    if len(other):
        forms = ", ".join(other.drop_duplicates().head(4))
        log.warning("labels of train_labels.csv such as %s are read as 0 and 1", forms)
    table = _with_files(labels, files, root, "train", "train_labels.csv", rows)
    table["label"] = table["label"].map(read_label).astype(np.int8)
    return file_source(table, root, "kaggle", config.image_size)


def load_unlabelled(config: DataConfig) -> Source:
    """List the test tiles; ``order`` (int64) in the table is their place in ``sample_submission.csv``.

    Raises:
        RequestError: A file or a folder is missing or not what it should be.
        DataError: Ids that are no file names or stand there twice, ids without a tile, and tiles without an id.
    """
    root = data_root(config)
    submission = read_csv(root / "sample_submission.csv", ("id",))
    table = submission[["id"]].assign(order=np.arange(len(submission), dtype=np.int64), listed=submission["id"])
    files = _list_tiles(root, "test", "sample_submission.csv")
    table["id"] = matching_ids(table["id"], files["id"], "sample_submission.csv")
    table = _with_files(table, files, root, "test", "sample_submission.csv", _id_problems(table["id"]))
    table["id"] = table.pop("listed")  # as the submission has to name them
    return file_source(table, root, "kaggle", config.image_size)


def find_groups(config: DataConfig) -> Path | None:
    """Find the one ``patch_id_wsi*.csv``, under which name lists of the tiles' slides are passed around."""
    lists = sorted(data_root(config).glob("patch_id_wsi*.csv"))
    if len(lists) == 1:
        log.info("slides are read from %s", lists[0])
        return lists[0]
    if lists:
        log.warning("%d lists of slides in %s: choose one with data.groups=FILE", len(lists), lists[0].parent)
    return None


def list_files(config: DataConfig) -> pd.DataFrame:
    """List the files of the labelled tiles."""
    return _list_tiles(data_root(config), "train", "train_labels.csv")


def _id_problems(ids: pd.Series) -> list[tuple[str, str, str]]:
    problems = []
    for number, (name, twice) in enumerate(zip(ids, ids.duplicated(keep=False), strict=True), 1):
        if not name or name.startswith(".") or not name.isprintable() or any(mark in name for mark in "/\\"):
            problems.append((name, "id is not a file name", f"{name!r} in row {number}"))
        elif twice:
            problems.append((name, "id twice", f"row {number}"))
    return problems


def _list_tiles(root: Path, part: str, listed_in: str) -> pd.DataFrame:
    """List the files of a part with their ids; where the folder holds nothing but one of its own name, that one's."""
    folder = root / part
    if not folder.is_dir():
        raise RequestError(f"{folder} is missing: data.root must hold {listed_in} and the folder {part} with the tiles")
    files, others = list_images(folder, (".tif",), recursive=False)
    if files.empty and f"{part}/" in others:
        log.warning("tiles are read from %s", folder / part)
        part = f"{part}/{part}"
        files, others = list_images(root / part, (".tif",), recursive=False)
    if files.empty and others:
        files, others = list_images(root / part, recursive=False)
        if len(files):
            log.warning(
                "the tiles in %s are read though they are no .tif, such as %s", root / part, files["path"].iloc[0]
            )
    if others:
        log.warning(
            "%d files in %s are not .tif tiles and are left out: %s", len(others), root / part, ", ".join(others[:3])
        )
    files["id"] = files["path"].str.replace(r"\.[^.]*$", "", regex=True)
    files["path"] = f"{part}/" + files["path"]
    return files


def _with_files(
    table: pd.DataFrame,
    files: pd.DataFrame,
    root: Path,
    part: str,
    listed_in: str,
    problems: list[tuple[str, str, str]],
) -> pd.DataFrame:
    """Add path, size and mtime_ns; raise ``problems`` together with ids without a file and files without an id."""
    listed, there = set(table["id"]), set(files["id"])
    malformed = {name for name, problem, _ in problems if problem == "id is not a file name"}
    lacking = [name for name in table["id"].drop_duplicates() if name not in there and name not in malformed]
    problems = problems + [(name, "id without a tile", f"{part}/{name}.tif is missing") for name in lacking]
    problems += [(name, "tile without an id", f"not in {listed_in}") for name in files["id"] if name not in listed]
    twice = files[files["id"].duplicated(keep=False)]
    problems += [(name, "two files of one id", path) for name, path in zip(twice["id"], twice["path"], strict=True)]
    if problems:
        frame = problem_frame(problems)
        raise DataError(f"{len(frame)} problems with {root / listed_in} and {root / part}: {describe(frame)}", frame)
    return table.merge(files, on="id")


KIND = Kind(load, load_unlabelled, check, find_groups, list_files)
