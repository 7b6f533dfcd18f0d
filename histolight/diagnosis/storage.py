"""Folders: the caches with their sizes, and the room that is left."""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from histolight import files
from histolight.diagnosis.finding import Finding, size_text
from histolight.errors import system_reason

KAGGLE = 220_025 * 96 * 96 * 3  # bytes of the pack of all of Kaggle's training tiles


def examine_caches(cache: str | None = None) -> Iterator[Finding]:
    """Say what lies in the cache folders, how much it is, and how to be rid of it.

    Args:
        cache: ``data.cache``; None is the user's cache folder.
    """
    folder = files.cache_folder(cache)
    yield _cache("packs", folder / "packs", _sources, "they are packed again when needed", own=True)
    yield _cache("features", folder / "features", _features, "they are computed again", own=True)
    unpacked = _cache(
        "unpacked", folder / "pcam", lambda _: "PatchCamelyon's files", "they are unpacked again", own=True
    )
    if unpacked.remedy:
        yield unpacked
    of_torchvision = "they are downloaded again; other programs use them too"
    yield _cache("weights", weights_folder(), lambda _: "of torchvision", of_torchvision)
    if hub := hub_folder():
        yield _cache("models", hub, _models, "other programs use them too")


def _sources(names: list[str]) -> str:
    unfinished = sum(name.endswith(".partial") for name in names)
    more = f", {unfinished} of them unfinished: the next run goes on with it" if unfinished else ""
    return f"tiles of {len(names)} source{'' if len(names) == 1 else 's'}{more}"


def _features(names: list[str]) -> str:
    return f"{len(names)} of a backbone and a source"


def _models(names: list[str]) -> str:
    models = sorted(name.removeprefix("models--").replace("--", "/") for name in names if name.startswith("models--"))
    shown = f"{', '.join(models[:5])}{' …' if len(models) > 5 else ''}" if models else "none"
    return f"of the Hugging Face hub: {shown}"


def _cache(name: str, folder: Path, content: Callable[[list[str]], str], after: str, own: bool = False) -> Finding:
    """Say how large a folder is, what is in it (from the names of its folders), and what its deletion costs.

    One of ``data.cache`` that can't be read (``own``) is in the way of trainings.
    """
    try:
        names = [entry.name for entry in os.scandir(folder) if entry.is_dir()]
    except FileNotFoundError:
        return Finding("caches", f"{name:<9} {size_text(0):>8}  {folder}")
    except OSError as error:
        return _unreadable(name, folder, error, own)
    size, fault = folder_size(folder)
    if fault is not None:
        return _unreadable(name, folder, fault, own)
    text = f"{name:<9} {size_text(size):>8}  {folder}"
    if not size:
        return Finding("caches", text)
    return Finding("caches", f"{text} ({content(names)})", f"to make room delete this folder: {after}")


def _unreadable(name: str, folder: Path, error: OSError, own: bool) -> Finding:
    mended = "move that file away" if isinstance(error, NotADirectoryError) else "make it readable for you"
    remedy = mended + (", or choose another folder with data.cache=FOLDER" if own else "")
    text = f"{name:<9} {error.filename or folder} can't be read: {system_reason(error)}"
    return Finding("caches", text, remedy, serious=own)


def weights_folder() -> Path:
    """Return the folder of torchvision's downloaded weights, as :func:`torch.hub.get_dir` chooses it."""
    home = os.environ.get("TORCH_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "torch")
    return Path(home).expanduser() / "hub" / "checkpoints"


def hub_folder() -> Path | None:
    """Return the folder of the Hugging Face hub's downloads; None where its package is not installed."""
    if importlib.util.find_spec("huggingface_hub") is None:
        return None
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def folder_size(folder: Path) -> tuple[int, OSError | None]:
    """Add up the bytes of the files in a folder; links are not followed.

    Returns:
        The bytes, and why a part of the folder, the first such, can't be read.
    """
    total, errors = 0, list[OSError]()
    for place, _, names in os.walk(folder, onerror=errors.append):
        for name in names:
            path = Path(place, name)
            try:
                total += 0 if path.is_symlink() else path.stat().st_size
            except FileNotFoundError:  # deleted meanwhile
                continue
            except OSError as error:
                errors.append(error)
    return total, next((error for error in errors if not isinstance(error, FileNotFoundError)), None)


def examine_disk(cache: str | None = None) -> Iterator[Finding]:
    """Say how much room is left where runs and packs go, and whether they can be written there."""
    places = {"outputs": (Path("outputs"), "hydra.run.dir"), "cache": (files.cache_folder(cache), "data.cache")}
    for name, (folder, key) in places.items():
        place = next(path for path in (folder.absolute(), *folder.absolute().parents) if os.path.exists(path))
        another = f"choose another folder with {key}=FOLDER"
        try:
            free = shutil.disk_usage(place).free
        except OSError as error:
            text = f"{name:<9} {place} can't be looked at: {system_reason(error)}"
            yield Finding("disk", text, another, serious=True)
            continue
        text = f"{name:<9} {size_text(free):>8}  free in {place}"
        if not os.access(place, os.W_OK):
            yield Finding("disk", f"{text}, which can't be written", another, serious=True)
        elif not place.is_dir():
            yield Finding("disk", f"{text}, which is no folder", another, serious=True)
        elif free < 1e9:
            yield Finding("disk", text, f"make room, or {another}", serious=True)
        elif name == "cache" and free < KAGGLE:
            remedy = f"too little for the pack of all of Kaggle's tiles ({size_text(KAGGLE)}): data.cache=FOLDER"
            yield Finding("disk", text, remedy)
        else:
            yield Finding("disk", text)
