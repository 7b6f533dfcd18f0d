"""A command's own keys, which are not part of a training's configuration: ``runs=``, ``by=``, ``tta=`` …"""

from __future__ import annotations

import logging
import math
import os
import shlex
from collections.abc import Mapping, Sequence
from datetime import datetime
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING

from histolight import files, runs
from histolight.errors import RequestError, nearest

if TYPE_CHECKING:
    from histolight.config.schema import Config, DataConfig

log = logging.getLogger("histolight")

# Where the tiles of a run lie by now: they may have moved, and are known by what they hold.
PLACES = ("data.root", "data.groups", "data.domain", "data.cache")


def key_of(override: str) -> str:
    """Return the key of an override, without a plus sign.

    >>> key_of("++data.root=a=b")
    'data.root'
    """
    return override.lstrip("+").partition("=")[0]


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
        key, (_, separator, value) = key_of(override), override.partition("=")
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
    """Read one path as it is, or a list in brackets, where a comma is part of a path in quotes or of one that is there.

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
    return _joined(paths)


def _joined(paths: list[Path]) -> list[Path]:
    """Put together again what commas cut, as in a point of a sweep, ``0_lr=0.001,seed=0``."""
    for start, first in enumerate(paths):
        if os.path.exists(first):  # also of a name that is too long
            continue
        for end in range(start + 2, len(paths) + 1):
            whole = Path(",".join(map(str, paths[start:end])))
            if os.path.exists(whole):
                return [*paths[:start], whole, *_joined(paths[end:])]
    return paths


def run_config(run: Path, overrides: Sequence[str], own: Sequence[str], taken: Sequence[str], command: str) -> Config:
    """Lay overrides over a run's configuration; another ``data`` keeps its tile size and stain normalisation.

    Args:
        run: The run directory.
        overrides: The command line without the command's own keys.
        own: The command's own keys, for messages.
        taken: Groups and keys of a training's configuration that mean something to this command.
        command: Its name.

    Raises:
        RequestError: A key is not taken here, or the run's configuration is missing or damaged.
    """
    # Hydra: not for commands that compose nothing.
    from histolight.config.compose import config_groups, like_config, saved_config, typed
    from histolight.config.schema import RESAMPLED, tile_mpp, valid_keys

    given = set(map(key_of, overrides))
    for key in sorted(given - set(taken)):
        if key in own:  # of a command line own_keys has taken them
            raise argument_error(command, key)
        if key in (*valid_keys(), *config_groups()):
            raise RequestError(
                f"{key}= has no place in histolight {command}, which takes the run as it is; it takes "
                f"{', '.join((*own, *taken))}"
            )
        raise RequestError(f"{key} is not a key of histolight {command}: {nearest(key, (*own, *taken))}")
    runs.read_metrics(run)
    saved = saved_config(run)
    config = like_config(saved, overrides)
    if "data" in given:
        for key in {"image_size", "stain", "batch_size", "cache"} - {key.removeprefix("data.") for key in given}:
            config.data[key] = saved.data[key]
        if config.data.source in RESAMPLED and "slides.model_mpp" not in given:
            config.data.slides.model_mpp = tile_mpp(saved.data)
    result = typed(config)
    check_pixel_size(result.data, tile_mpp(saved.data), run)
    return result


def argument_error(command: str, key: str) -> RequestError:
    """Say that a key of the command line is an argument of the function in Python.

    >>> print(argument_error("predict", "tta"))
    tta= is no override from Python: use histolight.predict(…, tta=…)
    """
    arguments = {"run": "RUN, …", "runs": "RUNS, …", "hydra.run.dir": "…, directory=…"}
    call = f"histolight.{command}({arguments.get(key, f'…, {key}=…')})"
    return RequestError(f"{key}= is no override from Python: use {call}")


def check_pixel_size(data: DataConfig, trained: float | None, run: Path) -> None:
    """Compare the pixel size of tiles with that of a network: only whole slides are resampled to it.

    Raises:
        RequestError: The two differ by more than ``data.mpp_tolerance``. Where only the network's is known, a warning
            says so.
    """
    from histolight.config.schema import RESAMPLED

    if data.source in RESAMPLED or trained is None:
        return
    if data.mpp is None:
        log.warning(
            "the pixel size of these tiles is unknown, and taken for the %g µm that %s was trained at; "
            "data.mpp=MICRONS says it",
            trained,
            run,
        )
    elif abs(data.mpp / trained - 1) > data.mpp_tolerance:
        raise RequestError(
            f"these tiles have {data.mpp:g} µm a pixel and {run} was trained at {trained:g}: resample them first, or "
            f"correct data.mpp (data.mpp_tolerance={data.mpp_tolerance:g})"
        )


def new_folder(place: str | None, kind: str, name: str, partial: str = "") -> Path:
    """Choose where a command writes: ``hydra.run.dir``, or ``outputs/<kind>/<name>-<time>``.

    Args:
        place: ``hydra.run.dir``, or None.
        kind: Such as ``evaluations``.
        name: Of what the command works on; other characters than those of a file's name become dashes.
        partial: Name of the file with which the command continues what was interrupted.

    Raises:
        RequestError: The folder holds files, and nothing that was interrupted.
    """
    slug = files.file_name(name) or kind
    if not place:
        return files.take_folder(Path("outputs", kind, f"{slug}-{datetime.now():%F_%H-%M-%S}"))
    folder = read_path(place)
    if not partial or not (folder / partial).is_file():
        files.check_unused(folder)
    return folder


def choice(values: Mapping[str, str], key: str, *valid: str) -> str:
    """Read a key of a few words; the first one is the default.

    >>> choice({"tta": "flips"}, "tta", "none", "flips"), choice({}, "tta", "none", "flips")
    ('flips', 'none')
    """
    value = values.get(key, valid[0])
    if value not in valid:
        raise RequestError(f"{key}={value} is not known: {nearest(value, valid)}")
    return value


def is_count(value: object, most: float = math.inf) -> bool:
    """Whether a value, which from Python may be anything, is a whole number from 1 to ``most``.

    >>> is_count(8, 64), is_count(0), is_count("2"), is_count(2.5)
    (True, False, False, False)
    """
    return isinstance(value, Integral) and 1 <= int(value) <= most


def read_run_and_folder(
    command: str, overrides: Sequence[str], keys: Sequence[str]
) -> tuple[Path, Path, dict[str, str], list[str]]:
    """Read ``run=…`` and ``hydra.run.dir=…``.

    Args:
        command: The command's name.
        overrides: As on the command line.
        keys: All the command's keys.

    Returns:
        The run, an unused folder (``outputs/COMMAND/RUN-TIME`` unless given), the values of all keys, and the overrides
        with keys of :data:`PLACES`.

    Raises:
        RequestError: A key is unknown, ``run`` is missing, or the folder holds something already.

    >>> read_run_and_folder("export", ["run=a b", "hydra.run.dir=out"], ["run", "hydra.run.dir"])[:2]
    (PosixPath('a b'), PosixPath('out'))
    """
    values, others = own_keys(overrides, keys)
    for key in map(key_of, others):
        if key not in PLACES:
            raise RequestError(f"{key} is not a key of histolight {command}: {nearest(key, (*keys, *PLACES))}")
    if "run" not in values:
        raise RequestError(f"run= is missing: histolight {command} run=FOLDER, with a run directory")
    run = read_path(values["run"])
    return run, new_folder(values.get("hydra.run.dir"), command, run.resolve().name), values, others
