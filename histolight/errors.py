"""What is said when something went wrong: errors, near misses, and how to go on. Any other exception is a bug."""

from __future__ import annotations

import difflib
import errno
import os
import re
import shlex
import subprocess
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd


class HistolightError(Exception):
    """It failed while working. The message is one line that says what is wrong, where, and what to change."""

    exit_status = 1

    def __init__(self, message: str) -> None:
        super().__init__(one_line(message))  # names and values that it quotes may hold line breaks


class RequestError(HistolightError):
    """The request was wrong: a key, a value, a path, or the data that it names."""

    exit_status = 2


class DataError(RequestError):
    """The data are not fit to train on.

    ``problems`` lists every finding (columns id, problem, detail); ``advice`` says what mends most, or is empty.
    """

    def __init__(self, message: str, problems: pd.DataFrame, advice: str = "") -> None:
        super().__init__(message)
        self.problems = problems
        self.advice = advice


class InterruptionError(HistolightError):
    """Ctrl-C or SIGTERM ended the work; the message says how to continue."""


class PrunedError(HistolightError):
    """A search stopped a training that would hardly become its best; ``epoch`` is its last one, counted from 1."""

    def __init__(self, message: str, epoch: int) -> None:
        super().__init__(message)
        self.epoch = epoch


def one_line(text: str) -> str:
    r"""Put a text that may hold any name into one line that every terminal and file can show.

    >>> one_line("a\nb\x1b[31m\udcff")
    'a b [31m '
    """
    return re.sub(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]+", " ", text)


def nearest(name: object, valid: Iterable[str]) -> str:
    """Name the valid names closest to ``name``, three at most, or all of them when none is close.

    >>> nearest("densnet121", ["densenet121", "densenet169", "vgg11"])
    'did you mean densenet121 or densenet169?'
    >>> nearest("xyz", ["adam", "sgd"])
    'valid: adam, sgd'
    """
    valid = sorted(valid)
    close = difflib.get_close_matches(str(name), valid)  # from Python it may be anything
    if close:
        return f"did you mean {' or '.join(close)}?"
    return f"valid: {', '.join(valid)}"


def unreadable_reason(error: Exception) -> str:
    """Say why a file of tensors could not be read; code that it asked for is named, and was not run.

    >>> unreadable_reason(ValueError("Unsupported global: GLOBAL posix.system was not an allowed global"))
    'it asks for posix.system, which tensors do not need: it may be meant to run code, and was not loaded'
    >>> unreadable_reason(ValueError("Weights only load failed. Re-running with `weights_only` set to `False` …"))
    'it is not a file of tensors'
    """
    if match := re.search(r"GLOBAL ([\w.]+)|trying to (?:call|load) ([\w.]+)", str(error)):
        name = match[1] or match[2]
        return f"it asks for {name}, which tensors do not need: it may be meant to run code, and was not loaded"
    if "weights_only" in str(error):  # PyTorch's own advice is to load it all the same
        return "it is not a file of tensors"
    return f"{error} ".splitlines()[0].strip() or type(error).__name__


NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def system_reason(error: OSError) -> str:
    """Say why the operating system refused, in its own words, whichever library asked it.

    >>> system_reason(PermissionError(13, "Permission denied", "config.yaml"))
    'Permission denied'
    >>> system_reason(OSError(524, "Unable to synchronously open file (errno = 524)"))
    'Unknown error 524'
    """
    if error.errno is None:
        return " ".join(str(error).split()) or type(error).__name__
    not_the_systems = isinstance(error, BlockingIOError) or "synchronously" in (error.strerror or "")  # but HDF5's
    return os.strerror(error.errno) if not_the_systems or not error.strerror else error.strerror


def cannot_write(path: object, error: OSError, otherwise: str = "make that place writable for you") -> str:
    """Say what couldn't be written, why, and what helps: room where room is missing, else what ``otherwise`` says.

    >>> cannot_write("out", OSError(28, "No space left on device"), "choose another folder with data.cache=FOLDER")
    "out can't be written (No space left on device): make room there, or choose another folder with data.cache=FOLDER"
    >>> cannot_write("out", OSError(30, "Read-only file system"))
    "out can't be written (Read-only file system): make that place writable for you"
    """
    remedy = otherwise
    if error.errno in NO_ROOM or error.errno is None:
        remedy = "make room there" + (f", or {otherwise}" if otherwise.startswith("choose") else "")
    return f"{path} can't be written ({system_reason(error)}): {remedy}"


def command_line(*words: str) -> str:
    """Write a command that can be pasted into the shell from which histolight was started.

    >>> command_line("tensorboard", "--logdir", "my runs").removeprefix("uv run ")
    "tensorboard --logdir 'my runs'"
    """
    started_by_uv = "UV_RUN_RECURSION_DEPTH" in os.environ  # then the environment's commands are not on the path
    words = ("uv", "run", *words) if started_by_uv else words
    return subprocess.list2cmdline(words) if os.name == "nt" else shlex.join(words)
