"""Class folders: ``ROOT/0`` and ``ROOT/1``, or two folders with names."""

from __future__ import annotations

import contextlib
import logging
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from histolight.config.schema import DataConfig
from histolight.data.checks import describe, problem_frame
from histolight.data.images import SUFFIXES, file_source, list_images
from histolight.data.labels import class_of
from histolight.data.sources import Kind, data_root
from histolight.data.table import Source, part_of
from histolight.errors import DataError, RequestError

MOST = 100  # folders of each level that are looked into for the tiles that data.root lacks

log = logging.getLogger("histolight")

_SLIDE = re.compile(r"(case|patient|slide|specimen|subject|tcga|wsi)s?([\s_.-]*\w.*)?", re.IGNORECASE)


def load(config: DataConfig) -> Source:
    """List the tiles of both class folders; an id is the path below its class folder, without the suffix.

    Folders named train, val (valid, validation) and test, each with the class folders in it, are a given split; an id
    then begins with the name of its part's folder. Folders that hold nothing but class folders are slides or patients;
    so are folders in the class folders whose names say so (:func:`slide_of`), where each tile lies in one.
    Where two tiles have one name, as folders that are numbered afresh give them, their ids are their whole paths.

    Raises:
        RequestError: There are no two class folders, or one of them has no images.
        DataError: Two tiles share an id, or an id can't be written into a table.
    """
    root = data_root(config)
    folders = _tile_folders(root, config.classes)
    _warn_of_others(root, [Path(folder.path).parts[0] for folder in folders])
    tables = []
    for folder in folders:
        files = _images(root / folder.path)
        files["path"] = f"{folder.path}/" + files["path"]
        files["id"] = (f"{folder.part_folder}/" if folder.part_folder else "") + files["id"]
        tables.append(files.assign(label=np.int8(folder.label), split=folder.part, group=folder.slide))
    table = pd.concat(tables, ignore_index=True).astype({"split": object, "group": object})
    if table["label"].nunique() < 2:
        raise RequestError(f"data.root={root} has tiles of class {table['label'].iloc[0]} only: give both classes")
    if config.groups is None and table["group"].isna().all():
        table["group"] = _slides_below(table["id"], root)
    twice = table["id"].duplicated(keep=False)
    if twice.any():  # numbered afresh in each folder
        table.loc[twice, "id"] = table.loc[twice, "path"].str.replace(r"\.[^.]*$", "", regex=True)
        example = table.loc[twice, "id"].iloc[0]
        log.warning("%d tiles have the name of another: their ids are their paths, such as %s", twice.sum(), example)
    _check_ids(table, root)
    return file_source(table, root, "folder", config.image_size)


@dataclass(frozen=True)
class _TileFolder:
    """A folder of tiles of one class: ``path`` below the root, and what its place says of them."""

    path: str
    label: int
    part_folder: str = ""
    part: str | None = None
    slide: str | None = None


def _tile_folders(root: Path, classes: list[str] | None) -> list[_TileFolder]:
    """List the class folders: in the root, in the folders of its parts, or in these in a folder for each slide."""
    found = []
    parts: dict[str, str | None] = {**part_folders(root)} or {"": None}
    for name, part in parts.items():
        folder, below = root / name, f"{name}/" if name else ""
        slides = slide_folders(folder, classes)
        if slides:
            shown = ", ".join(slides[:3]) + (", …" if len(slides) > 3 else "")
            log.warning("%d folders of %s are taken for slides (or patients): %s", len(slides), folder, shown)
        for slide in slides:
            for inner in _visible(folder / slide):
                found.append(_TileFolder(f"{below}{slide}/{inner}", _label(inner, classes), name, part, slide))
        if not slides:
            for label, inner in enumerate(class_folders(folder, classes)):
                found.append(_TileFolder(f"{below}{inner}", label, name, part))
    return found


def slide_folders(root: Path, classes: list[str] | None) -> list[str]:
    """List the folders of slides or patients: two or more, each with class folders and nothing else; else none.

    Raises:
        RequestError: They are two that are named as the classes themselves.
    """
    folders = [name for name in _visible(root) if (root / name).is_dir()]

    def is_class(name: str) -> bool:
        return name in classes if classes else class_of(name) is not None

    def holds_classes(folder: Path) -> bool:
        inner = _visible(folder)
        return bool(inner) and all(is_class(name) and (folder / name).is_dir() for name in inner)

    if len(folders) < 2 or any(map(part_of, folders)) or not all(holds_classes(root / name) for name in folders):
        return []
    if len(folders) > 2 or not all(map(is_class, folders)):
        return folders
    inner = sorted(
        {name for folder in folders for name in _visible(root / folder)}, key=lambda name: class_of(name) or 0
    )
    if classes is None and not set(inner) <= set(folders):
        own = sorted(folders, key=lambda name: class_of(name) or 0)
        raise RequestError(
            f"data.root={root}: {' and '.join(folders)} are named as classes and hold class folders: data.classes="
            f"[{','.join(own)}] takes them for classes, data.classes=[{','.join(inner)}] for slides"
        )
    return []


def slide_of(path: str) -> str | None:
    """Name the slide, or patient, of a tile by the folders between its class folder and itself.

    That is the last one that is called slide, patient or the like, or whose name, with a number in it, begins the
    tile's own. Others may be anything: kinds of tissue, magnifications, parts of a large set.

    >>> [slide_of(path) for path in ("patientA/x", "8863/8863_x1", "SOB/B_A_14-22/40X/B_A-14-22-40-001", "001/x")]
    ['patientA', '8863', 'B_A_14-22', None]
    """
    *folders, name = path.split("/")
    for folder in reversed(folders):
        begins = f"{_dashed(name)}-".startswith(f"{_dashed(folder)}-")
        numbered = re.search(r"\d", folder) and not re.fullmatch(r"\d+x", folder, re.IGNORECASE)
        if _SLIDE.fullmatch(folder) or (begins and numbered):
            return folder
    return None


def _dashed(name: str) -> str:
    return re.sub(r"[\s_.-]+", "-", name.lower())


def _slides_below(ids: pd.Series, root: Path) -> pd.Series:
    """Find the slides of all tiles in their paths below the class folders; say how these were read."""
    slides = ids.map(slide_of).astype(object)
    folders = sorted({name.rpartition("/")[0] for name in ids} - {""})
    if slides.notna().all() and slides.nunique() > 1:
        found = sorted(slides.unique())
        shown = ", ".join(found[:3]) + ", …" * (len(found) > 3)
        log.warning(
            "%d folders in the class folders of %s are taken for slides (or patients): %s", len(found), root, shown
        )
        return slides
    if len(folders) > 1:
        log.warning(
            "the %d folders in the class folders of %s, such as %s, are not taken for slides, as they may be anything; "
            "data.groups=FILE.csv names the slide of each tile",
            len(folders),
            root,
            folders[0],
        )
    return pd.Series([None] * len(ids), index=ids.index, dtype=object)


def _label(name: str, classes: list[str] | None) -> int:
    return classes.index(name) if classes else int(class_of(name) == 1)


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
    """List what lies in a folder but for hidden files, and what macOS puts beside it into a zip."""
    return sorted(entry.name for entry in root.iterdir() if not entry.name.startswith((".", "__MACOSX")))


def list_files(config: DataConfig) -> pd.DataFrame:
    """List the files of the labelled tiles."""
    root = data_root(config)
    return pd.concat([list_images(root / folder.path)[0] for folder in _tile_folders(root, config.classes)])


def class_folders(root: Path, classes: list[str] | None) -> list[str]:
    """Name the folder of the negative and that of the positive class.

    Raises:
        RequestError: There are no such two folders.
    """
    entries = _visible(root)
    folders = [name for name in entries if (root / name).is_dir()]
    more = f" and {len(folders) - 8} more" if len(folders) > 8 else ""
    present = f"folders found: {', '.join(folders[:8]) or 'none'}{more}"
    if classes is not None:
        if len(set(classes)) != 2 or not set(classes) <= set(folders):
            raise RequestError(
                f"data.classes=[{','.join(classes)}] does not name two folders in data.root={root}; {present}"
            )
        return list(classes)
    negative = [name for name in folders if class_of(name) == 0]
    positive = [name for name in folders if class_of(name) == 1]
    if entries and not folders:
        raise RequestError(
            f"data.root={root} has files but no class folders such as 0 and 1: tiles without labels can only be "
            "predicted, with histolight predict"
        )
    if len(folders) != 2 or len(negative) != 1 or len(positive) != 1:
        remedy = "name them with data.classes=[NEGATIVE,POSITIVE]"
        if below := _tiles_below(root):
            remedy = f"use data.root={below}"
        elif len(folders) < 2:
            remedy = "put the tiles of each class into a folder of its own"
        raise RequestError(f"data.root={root} has no two class folders such as 0 and 1; {present}; {remedy}")
    return negative + positive


def _tiles_below(root: Path) -> Path | None:
    """Find the one folder, at most three levels below, that holds both classes, parts of a split, or slides."""
    level = [root]
    for _ in range(3):
        level = [child for folder in level for child in _folders_in(folder)][:MOST]
        found = [folder for folder in level if _has_tiles(folder)]
        if found:
            return found[0] if len(found) == 1 else None
    return None


def _folders_in(folder: Path) -> list[Path]:
    """List the first folders in a folder; none where it can't be read."""
    with contextlib.suppress(OSError):
        return [folder / name for name in _visible(folder)[:MOST] if (folder / name).is_dir()]
    return []


def _has_tiles(folder: Path) -> bool:
    """Say whether a folder, or each of its parts, holds both classes or slides."""
    with contextlib.suppress(OSError, RequestError):
        parts = [folder / name for name in part_folders(folder)] or [folder]
        return all({0, 1} <= set(map(class_of, _visible(part))) or slide_folders(part, None) for part in parts)
    return False


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
