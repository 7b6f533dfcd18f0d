"""A command's own keys, which are not part of a training's configuration: ``runs=``, ``by=``, ``tta=`` …"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from histolight.errors import RequestError


def own_keys(overrides: Sequence[str], keys: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """Take a command's own keys out of its overrides.

    Args:
        overrides: As on the command line.
        keys: The command's own keys, the most important first.

    Returns:
        Their values as written, and the other overrides.

    Raises:
        RequestError: An override is not ``KEY=VALUE``, or one of the own keys is empty.

    >>> own_keys(["run=outputs/a", "data=kaggle"], ["run", "tta"])
    ({'run': 'outputs/a'}, ['data=kaggle'])
    """
    values: dict[str, str] = {}
    others: list[str] = []
    for override in overrides:
        key, separator, value = override.partition("=")
        if not separator:
            raise RequestError(f"{override} is not KEY=VALUE: write {keys[0]}=FOLDER")
        if key not in keys:
            others.append(override)
        elif not value:
            raise RequestError(f"{key}= is empty: give a value")
        else:
            values[key] = value
    return values, others


def read_path(value: str) -> Path:
    """Read a path, quoted or not, with ``~`` for the home folder."""
    quoted = len(value) > 1 and value[0] == value[-1] and value[0] in "'\""
    return Path(value[1:-1] if quoted else value).expanduser()


def read_paths(key: str, value: str) -> list[Path]:
    """Read one path as it is, or a list in brackets; commas inside a path of a list need quotes.

    >>> read_paths("runs", "[my runs/a (1),'b,c']")
    [PosixPath('my runs/a (1)'), PosixPath('b,c')]
    """
    if not (value.startswith("[") and value.endswith("]")):
        return [read_path(value)]
    words = shlex.shlex(value[1:-1], posix=True)
    words.whitespace, words.whitespace_split, words.commenters, words.escape = ",", True, "", ""
    try:
        paths = [read_path(word.strip()) for word in words if word.strip()]
    except ValueError as error:
        raise RequestError(
            f"{key}={value} can't be read: quote a path with a quote in it, {key}=[\"o'hara\",b]"
        ) from error
    if not paths:
        raise RequestError(f"{key}=[] is empty: give run directories, {key}=[DIR,DIR]")
    return paths
