"""Files and folders that histolight writes: whole or not at all, and held by one process at a time."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout

from histolight.errors import HistolightError, RequestError

if TYPE_CHECKING:
    import pandas as pd  # half a second, which --help and --cfg need not pay


def is_main_process() -> bool:
    """Whether this process writes the run directory: of several that share one training, the first does.

    Launchers say which process this is: Lightning's own and torchrun by (LOCAL_)RANK, SLURM by SLURM_PROCID.
    """
    ranks = (os.environ.get(name) for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID"))
    return all(rank in (None, "0") for rank in ranks)


def write_atomically(path: Path, content: str | memoryview) -> None:
    """Write a file beside its place and rename it there, so that no reader ever sees half of it.

    Of several processes that share a training only the main one writes.
    """
    if not is_main_process():
        return
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        beside.write_bytes(content.encode() if isinstance(content, str) else content)
        beside.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            beside.unlink(missing_ok=True)
        raise HistolightError(
            f"{path} can't be written ({error.strerror}): make room, or choose another folder with hydra.run.dir=FOLDER"
        ) from error


def write_csv(path: Path, table: pd.DataFrame) -> None:
    """Write a table atomically, without its index; float32 values are written so that they read back exactly."""
    write_atomically(path, table.to_csv(index=False, lineterminator="\n"))


@contextlib.contextmanager
def claimed(directory: Path) -> Iterator[None]:
    """Make a folder and hold it: no other process can work in it meanwhile.

    Folders that were made here and are still empty at the end, because the request was refused, are removed again.

    Raises:
        RequestError: Another process holds the folder, or it can't be written.
    """
    made = [path for path in (directory, *directory.parents) if not path.exists()]
    try:
        directory.mkdir(parents=True, exist_ok=True)
        lock = FileLock(lock_file(directory), timeout=0)
        lock.acquire()
    except Timeout as error:
        raise RequestError(f"{directory} is in use by another process: wait for it, or use another folder") from error
    except OSError as error:
        raise RequestError(
            f"{directory} can't be written ({error.strerror}): choose another folder with hydra.run.dir=FOLDER"
        ) from error
    try:
        clear_leftovers(directory)
        yield
    finally:
        if list(directory.iterdir()) == [lock_file(directory)]:
            lock_file(directory).unlink()
        lock.release()
        with contextlib.suppress(OSError):  # not empty
            for path in made:
                path.rmdir()


def clear_leftovers(directory: Path) -> None:
    """Delete what a killed process left of :func:`write_atomically`; the caller holds the folder."""
    for folder in (".", "checkpoints", "predictions", "figures"):
        for path in directory.glob(f"{folder}/.*"):
            if re.fullmatch(r"\..+\.\d+", path.name):
                path.unlink()


def lock_file(directory: Path) -> Path:
    """Return the file that a process locks while it works in a folder."""
    return directory / ".lock"
