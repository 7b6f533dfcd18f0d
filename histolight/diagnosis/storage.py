"""Folders: the caches with their sizes, and the room that is left."""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from histolight import files
from histolight.diagnosis.finding import Finding, size_text

KAGGLE = 220_025 * 96 * 96 * 3  # bytes of the pack of all of Kaggle's training tiles


def examine_caches(cache: str | None = None) -> Iterator[Finding]:
    """Say what lies in the cache folders, how much it is, and how to be rid of it.

    Args:
        cache: ``data.cache``; None is the user's cache folder.
    """
    folder = files.cache_folder(cache)
    packs = [path for path in _entries(folder / "packs") if path.is_dir()]
    unfinished = [path for path in packs if path.suffix == ".partial"]
    more = f", {len(unfinished)} of them unfinished: the next run goes on with it" if unfinished else ""
    sources = f"{len(packs)} source{'' if len(packs) == 1 else 's'}"
    features = [path for path in _entries(folder / "features") if path.is_dir()]
    yield _cache("packs", folder / "packs", f"tiles of {sources}{more}", "they are packed again when needed")
    yield _cache(
        "features", folder / "features", f"{len(features)} of a backbone and a source", "they are computed again"
    )
    if (folder / "pcam").is_dir():
        yield _cache("unpacked", folder / "pcam", "PatchCamelyon's files", "they are unpacked again")
    yield _cache(
        "weights", weights_folder(), "of torchvision", "they are downloaded again; other programs use them too"
    )
    if hub := hub_folder():
        models = sorted(path.name.removeprefix("models--").replace("--", "/") for path in hub.glob("models--*"))
        names = f"{', '.join(models[:5])}{' …' if len(models) > 5 else ''}" if models else "none"
        yield _cache("models", hub, f"of the Hugging Face hub: {names}", "other programs use them too")


def _cache(name: str, folder: Path, content: str, after: str) -> Finding:
    size = folder_size(folder)
    if not size:
        return Finding("caches", f"{name:<9} {size_text(0):>8}  {folder}")
    text = f"{name:<9} {size_text(size):>8}  {folder} ({content})"
    return Finding("caches", text, f"to make room delete this folder: {after}")


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


def folder_size(folder: Path) -> int:
    """Add up the bytes of the files in a folder; links are not followed, and what can't be read counts as nothing."""
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            path = Path(place, name)
            try:
                total += 0 if path.is_symlink() else path.stat().st_size
            except OSError:
                continue
    return total


def examine_disk(cache: str | None = None) -> Iterator[Finding]:
    """Say how much room is left where runs and packs go, and whether they can be written there."""
    places = {"outputs": (Path("outputs"), "hydra.run.dir"), "cache": (files.cache_folder(cache), "data.cache")}
    for name, (folder, key) in places.items():
        place = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
        free = shutil.disk_usage(place).free
        text = f"{name:<9} {size_text(free):>8}  free in {place}"
        if not os.access(place, os.W_OK):
            yield Finding("disk", f"{text}, which can't be written", f"choose another folder with {key}=FOLDER", True)
        elif free < 1e9:
            yield Finding("disk", text, f"make room, or choose another folder with {key}=FOLDER", serious=True)
        elif name == "cache" and free < KAGGLE:
            remedy = f"too little for the pack of all of Kaggle's tiles ({size_text(KAGGLE)}): data.cache=FOLDER"
            yield Finding("disk", text, remedy)
        else:
            yield Finding("disk", text)


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError:
        return []
