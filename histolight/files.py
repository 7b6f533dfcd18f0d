"""Files and folders that histolight writes: whole or not at all, held by one process, and never those of others.

What histolight itself leaves for a moment has a name that nobody else uses, ``.histolight-…``, and is recognised by it
alone.
"""

from __future__ import annotations

import contextlib
import csv
import errno
import itertools
import os
import re
import secrets
import shutil
import time
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import platformdirs

from histolight.errors import HistolightError, RequestError, cannot_write, system_reason
from histolight.locks import HeldError, Lock, is_of_lock

if TYPE_CHECKING:
    import pandas as pd  # half a second, which --help and --cfg need not pay

ANOTHER_RUN = "choose another folder with hydra.run.dir=FOLDER"
ANOTHER_FOLDER = "choose another folder with hydra.run.dir=FOLDER (directory=FOLDER in Python)"
ATTEMPTS = 40  # to replace a file that is read: two seconds
RANKS = ("RANK", "LOCAL_RANK", "SLURM_PROCID")  # environment variables


def cache_folder(cache: str | Path | None) -> Path:
    """Say where packs, features and unpacked downloads go: ``data.cache``, or the user's cache folder."""
    return Path(cache or platformdirs.user_cache_dir("histolight")).expanduser().absolute()


def is_main_process() -> bool:
    """Whether this process writes the run directory: of several that share one training, the first does.

    Launchers say which process this is: Lightning's own and torchrun by (LOCAL_)RANK, SLURM by SLURM_PROCID.
    """
    return all(os.environ.get(name) in (None, "0") for name in RANKS)


def write_atomically(path: Path, content: str | memoryview) -> None:
    """Write a file beside its place and rename it there, so that no reader ever sees half of it.

    Of several processes that share a training only the main one writes.
    """
    if not is_main_process():
        return
    beside = temporary_path(path.parent)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        beside.write_bytes(content.encode(errors="backslashreplace") if isinstance(content, str) else content)
        _replace(beside, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            beside.unlink(missing_ok=True)
        raise HistolightError(cannot_write(path, error)) from error


def link_atomically(path: Path, existing: Path) -> None:
    """Give a file that is only ever replaced a second name; copy it where the file system knows no such links.

    Of several processes that share a training only the main one does.
    """
    if not is_main_process():
        return
    beside = temporary_path(path.parent)
    try:
        try:
            os.link(existing, beside)
        except OSError:
            shutil.copyfile(existing, beside)
        _replace(beside, path)
    except OSError as error:
        raise HistolightError(cannot_write(path, error)) from error
    finally:
        with contextlib.suppress(OSError):
            beside.unlink(missing_ok=True)  # also left where both names were of one file already


def _replace(beside: Path, path: Path) -> None:
    """Rename a file over another one, which on Windows is refused for as long as anyone reads that."""
    for _ in range(ATTEMPTS if os.name == "nt" else 0):
        with contextlib.suppress(PermissionError):
            beside.replace(path)
            return
        time.sleep(0.05)
    beside.replace(path)


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """Say of a file, or a folder, why the operating system does not give it.

    An error without a number is a library's, of bytes that were read and are wrong: it passes.

    Raises:
        RequestError: The system's reason.
    """
    try:
        with named(path):
            yield
    except OSError as error:
        if error.errno is None:
            raise
        raise RequestError(f"{error.filename or path} can't be read: {system_reason(error)}") from error


@contextlib.contextmanager
def named(path: Path) -> Iterator[None]:
    """Give an error of the operating system the file that it is of, where Python does not: when that is written.

    An error without a number is a library's, whose own text the file's name would hide.
    A read that would block is an error of the system too, though Python takes it for the end of the file.
    """
    try:
        yield
    except OSError as error:
        if error.errno is not None:
            error.filename = error.filename or str(path)
        raise
    except (ValueError, TypeError, EOFError) as error:
        if _would_block(path):
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN), str(path)) from error
        raise


def unblocked(content: bytes | None, path: Path) -> bytes:
    """Return what was read of a file; where its reading would block that is None, which many take for its end.

    Raises:
        BlockingIOError: It would block.
    """
    if content is None:
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN), str(path))
    return content


def _would_block(path: Path) -> bool:
    try:
        with open(path, "rb", buffering=0) as file:
            return file.read(1) is None
    except OSError:
        return False


def write_csv(path: Path, table: pd.DataFrame) -> None:
    """Write a table atomically, without its index; float32 values are written so that they read back exactly."""
    text = table.to_csv(index=False, lineterminator="\n")
    if "\r" in text:  # which a reader would take for the end of a line
        text = table.to_csv(index=False, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC)
    write_atomically(path, text)


def file_name(text: str, also: str = "", longest: int = 120) -> str:
    """Make a name for a file or folder of any text: letters, digits, dots, dashes and underscores.

    Args:
        text: Such as the name of a run.
        also: Other characters that are kept.
        longest: In bytes; file systems allow 255.

    >>> file_name("a $x$/../b: 5 %")
    'a-x-..-b-5'
    """
    slug = re.sub(rf"[^\w.{re.escape(also)}-]+", "-", text)
    return slug.encode()[:longest].decode(errors="ignore").strip(".,-")


_taken: dict[Path, list[Path]] = {}  # folders that this process has named, each with those made for it


def take_folder(wanted: Path, otherwise: str = ANOTHER_FOLDER) -> Path:
    """Make a folder at once whose name the program chose, numbered where another process has just taken the name.

    :func:`claimed` holds it later; until then :func:`give_back_folders` removes it again.

    Raises:
        RequestError: It can't be made.
    """
    numbered = (wanted.with_name(f"{wanted.name}-{number}") for number in itertools.count(2))
    for folder in itertools.chain([wanted], numbered):
        made = [path for path in (folder, *folder.parents) if not path.exists()]
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            folder.mkdir()
        except FileExistsError:
            if folder.parent.is_dir():
                continue
            link = next((path for path in folder.parents if path.is_symlink() and not path.exists()), None)
            fault = f"{link} is a link that leads nowhere" if link else f"{folder.parent} is not a folder"
            raise RequestError(f"{fault}: {otherwise}") from None
        except OSError as error:
            raise RequestError(cannot_write(folder, error, otherwise)) from error
        _taken[folder.absolute()] = made
        return folder
    raise AssertionError("there is always another number")


def give_back_folders() -> None:
    """Remove the folders that were named and are still empty, because the request was refused."""
    while _taken:
        _remove_empty(_taken.popitem()[1])


def _remove_empty(folders: list[Path]) -> None:
    with contextlib.suppress(OSError):  # not empty
        for path in folders:
            path.rmdir()


@contextlib.contextmanager
def claimed(
    directory: Path, continued: bool = False, own: Collection[str] = (), otherwise: str = ANOTHER_FOLDER
) -> Iterator[None]:
    """Make a folder and hold it: no other process can work in it meanwhile.

    Folders that were made here and are still empty at the end, because the request was refused, are removed again.

    Args:
        directory: The folder.
        continued: Whether the work in it goes on: then files of others may lie in it, and none is touched.
        own: As in :func:`check_unused`.
        otherwise: What helps where the folder can't be used.

    Raises:
        RequestError: Another process holds the folder, it can't be written, or new work finds files in it.
    """
    made = [path for path in (directory, *directory.parents) if not path.exists()]
    made += _taken.pop(directory.absolute(), [])
    new_lock = not lock_file(directory).exists()
    if not continued and new_lock:
        check_unused(directory, own, otherwise)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        lock = Lock(lock_file(directory))
        lock.acquire()
    except HeldError as error:
        raise RequestError(
            f"{directory} is in use by another process: wait for it, or use another folder ({error})"
        ) from error
    except OSError as error:
        raise RequestError(cannot_write(directory, error, otherwise)) from error
    refused = True
    try:
        if not continued:
            check_unused(directory, own, otherwise)
        refused = False
        clear_leftovers(directory)
        yield
    finally:
        if all(is_of_lock(path, lock_file(directory)) for path in directory.iterdir()) or (refused and new_lock):
            with contextlib.suppress(PermissionError):  # on Windows the release deletes it
                lock_file(directory).unlink(missing_ok=True)
        lock.release()
        _remove_empty(made)


def check_unused(directory: Path, own: Collection[str] = (), otherwise: str = ANOTHER_FOLDER) -> None:
    """Refuse a folder for new work that holds anything, hidden or not, but what histolight leaves for a moment.

    Args:
        directory: The folder; it need not exist.
        own: Names that may be there: what earlier work that is begun anew has left.
        otherwise: What helps where the folder can't be used.

    Raises:
        RequestError: The folder holds files, or can't be read.
    """
    try:
        entries = sorted(
            path.name
            for path in directory.iterdir()
            if not is_of_lock(path, lock_file(directory)) and not _is_leftover(path)
        )
    except FileNotFoundError:
        if not directory.is_symlink():
            return
        raise RequestError(f"{directory} is a link that leads nowhere: {otherwise}") from None
    except OSError as error:
        raise RequestError(f"{directory} can't be used ({system_reason(error)}): {otherwise}") from error
    if foreign := [name for name in entries if name not in own]:
        more = f" and {len(foreign) - 1} more" if len(foreign) > 1 else ""
        raise RequestError(f"{directory} holds files already ({foreign[0]}{more}): {otherwise}")


def clear_leftovers(directory: Path) -> None:
    """Delete what a killed process left of its temporaries; the caller holds the folder."""
    for folder in (".", "checkpoints", "predictions", "figures"):
        for path in filter(_is_leftover, directory.glob(f"{folder}/.histolight-*")):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


def _is_leftover(path: Path) -> bool:
    """Say whether :func:`temporary_path` named this file or folder."""
    return re.fullmatch(r"\.histolight-\d+-[0-9a-f]{8}\.tmp", path.name) is not None and not path.is_symlink()


def temporary_path(folder: Path) -> Path:
    """Name a temporary file or folder as nobody else does."""
    return folder / f".histolight-{os.getpid()}-{secrets.token_hex(4)}.tmp"


@contextlib.contextmanager
def temporary_folder(parent: Path) -> Iterator[Path]:
    """Make a folder that is gone again at the end, whatever happens."""
    folder = temporary_path(parent)
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def lock_file(directory: Path) -> Path:
    """Return the file that a process locks while it works in a folder."""
    return directory / ".histolight.lock"
