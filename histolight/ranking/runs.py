"""The runs that a ranking is made of: found below folders, read, and each that can't be compared with its reason."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
from tqdm import tqdm

from histolight.config.schema import Config
from histolight.data.table import PARTS
from histolight.errors import HistolightError, RequestError
from histolight.runs import read_config, read_metrics, read_predictions

DEPTH = 3  # a folder of sweeps, a sweep, a run


class Unranked(NamedTuple):
    """A run, or a row of runs, that is listed but not ranked.

    Attributes:
        name: The row's name, or the folder of a run that has no row.
        directories: The run directories.
        status: As in ``metrics.json``, or ``missing``, ``incomplete``, ``not comparable``, ``chosen``, ``not chosen``.
        reason: One line.
    """

    name: str
    directories: list[Path]
    status: str
    reason: str


@dataclass(frozen=True)
class ScoredTiles:
    """The tiles of one part of one split, ordered by id.

    Attributes:
        key: Digest of ids, labels and slides.
        ids: (N,) str.
        labels: (N,) 0 or 1.
        slides: (N,) str, NaN where unknown; None when no slide is known.
        clusters: (N,) str, what belongs together: a slide, or tiles that overlap or copy each other; NaN for a tile by
            itself; None where every tile is by itself.
    """

    key: str
    ids: npt.NDArray[np.object_]
    labels: npt.NDArray[np.int8]
    slides: npt.NDArray[np.object_] | None
    clusters: npt.NDArray[np.object_] | None


@dataclass
class ScoredRun:
    """A completed run.

    Attributes:
        directory: The run directory.
        config: The configuration, flat: dotted key to value.
        metrics: What ``metrics.json`` holds.
        tiles: The tiles that it is compared on.
        scores: (N,) float32, in the order of ``tiles``.
    """

    directory: Path
    config: dict[str, Any]
    metrics: dict[str, Any]
    tiles: ScoredTiles = field(init=False)
    scores: npt.NDArray[np.float32] = field(init=False)

    @property
    def pair(self) -> tuple[int | None, int]:
        """Which repetition of its row it is: fold (None for a hold-out split) and seed."""
        return self.config["data.fold"], self.config["seed"]


def read_runs(folders: Sequence[Path]) -> tuple[list[ScoredRun], str, list[Unranked]]:
    """Read the runs below some folders.

    Args:
        folders: Run directories, sweeps, or folders of these.

    Returns:
        The runs that can be compared; the part that all of them have, ``test`` or else ``val``; and the other runs.

    Raises:
        RequestError: A folder doesn't exist or holds no run.
    """
    directories = list(dict.fromkeys(path for folder in folders for path in find_runs(folder)))
    unranked: list[Unranked] = []
    runs = _collect(directories, unranked, "read", _read_run)
    part = "test" if runs and all("test" in run.metrics for run in runs) else "val"
    known: dict[str, ScoredTiles] = {}

    def with_predictions(run: ScoredRun) -> ScoredRun:
        run.tiles, run.scores = _read_predictions(run, part, known)
        return run

    comparable = _collect(runs, unranked, "predictions", with_predictions)
    sweeps = dict.fromkeys(path.parent for path in directories if path not in folders)
    unranked += [
        Unranked(path.name, [path], "missing", "it has not begun: the sweep's own command goes on with it")
        for sweep in sweeps
        for path in _not_begun(sweep)
    ]
    return comparable, part, unranked


def find_runs(folder: Path) -> list[Path]:
    """List the run directories in a folder, in natural order of their names, or the folder itself if it is one.

    Raises:
        RequestError: The folder doesn't exist or holds no run.
    """
    if not folder.is_dir():
        raise RequestError(f"{folder} is not a folder: give a sweep, a folder of runs, or a list, runs=[DIR,DIR]")
    if _is_evaluation(folder):
        raise RequestError(f"{folder} is an evaluation of a run, not a run: give the run's own folder")
    if _holds(folder, "metrics.json"):
        return [folder]
    folders = list(_runs_below(folder, DEPTH))
    if not folders:
        raise RequestError(f"{folder} holds no run: give a folder with run directories (metrics.json) in it")
    return folders


def _runs_below(folder: Path, depth: int) -> Iterator[Path]:
    children = [child for child in folder.iterdir() if child.is_dir() and not child.name.startswith(".")]
    for child in sorted(children, key=_natural):
        if _holds(child, "metrics.json") or _holds(child, "config.yaml"):
            if not _is_evaluation(child):
                yield child
        elif depth > 1:
            yield from _runs_below(child, depth - 1)


def _not_begun(sweep: Path) -> list[Path]:
    """List the points of a sweep that have no folder; without a ``sweep.json`` that can be read, none."""
    try:
        points = json.loads((sweep / "sweep.json").read_bytes())["points"].values()
        return [sweep / point for point in points if not (sweep / point).exists()]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return []


def _holds(folder: Path, name: str) -> bool:
    """Say whether a file is there; a folder that can't be looked into may be a run, and is listed with the reason."""
    try:
        return (folder / name).is_file()
    except OSError:
        return True


def _is_evaluation(folder: Path) -> bool:
    """Say whether ``histolight evaluate`` wrote this folder, whose files are named as a run's."""
    try:
        return "run" in read_metrics(folder)
    except RequestError:
        return False


def _natural(path: Path) -> tuple[int, str]:
    """Sort a sweep's points, ``<n>_<swept keys>``, by their number."""
    number = path.name.partition("_")[0]
    return (int(number) if number.isdecimal() else -1, path.name)


class _NotComparableError(HistolightError):
    """A single run has no place in the ranking; the message is the reason."""

    def __init__(self, reason: str, status: str = "not comparable") -> None:
        super().__init__(reason)
        self.status = status


def _collect(items: Iterable[Any], unranked: list[Unranked], what: str, work: Any) -> list[ScoredRun]:
    """Apply ``work`` to each item; runs that can't be compared go to ``unranked``."""
    runs = []
    for item in tqdm(items, desc=what, unit="run", leave=False, disable=None):
        try:
            runs.append(work(item))
        except _NotComparableError as error:
            directory = item.directory if isinstance(item, ScoredRun) else item
            unranked.append(Unranked(directory.name, [directory], error.status, str(error)))
    return runs


def _read_run(directory: Path) -> ScoredRun:
    try:
        metrics = read_metrics(directory)
    except RequestError as error:
        raise _NotComparableError(str(error)) from error
    if metrics["status"] != "completed":
        status = str(metrics["status"])
        unsaid = "it has no result yet" if status == "running" else "no reason recorded"
        raise _NotComparableError(metrics.get("reason") or unsaid, status)
    if not metrics.get("split"):
        raise _NotComparableError("its metrics.json does not say how the tiles were split")
    for part in PARTS:
        if part == "val" or part in metrics:
            auroc = (metrics.get(part) or {}).get("auroc") or {}
            if auroc.get("value") is None:
                raise _NotComparableError(f"its metrics.json has no AUROC of the {PARTS[part]} part")
    try:
        config = read_config(directory / "config.yaml")
    except RequestError as error:
        raise _NotComparableError(str(error)) from error
    asked = metrics.get("out_of_memory") or {}  # and trained with half the batch, twice as often
    return ScoredRun(directory, {**with_defaults(config), **asked}, metrics)


def with_defaults(config: dict[str, Any]) -> dict[str, Any]:
    """Flatten a configuration to dotted keys; keys that an older run does not have take today's default.

    >>> with_defaults({"model": {"name": "resnet18"}})["model.name"]
    'resnet18'
    """
    return {**_flatten(dataclasses.asdict(Config())), **_flatten(config)}


def _flatten(config: dict[str, Any]) -> dict[str, Any]:
    """Flatten sections; a list, or a value with keys of its own such as ``model.kwargs``, becomes JSON."""
    sections = {key: value if isinstance(value, dict) else {"": value} for key, value in config.items()}
    return {
        f"{section}.{key}".removesuffix("."): json.dumps(value) if isinstance(value, list | dict) else value
        for section, values in sections.items()
        for key, value in values.items()
    }


def _read_predictions(
    run: ScoredRun, part: str, known: dict[str, ScoredTiles]
) -> tuple[ScoredTiles, npt.NDArray[np.float32]]:
    """Read tiles and scores of a run; runs on the same tiles share one :class:`ScoredTiles` among ``known``."""
    name = f"predictions/{part}.csv"
    if not (run.directory / name).exists():
        raise _NotComparableError(f"it has no {name}")
    try:
        table = read_predictions(run.directory / name)
    except RequestError as error:
        raise _NotComparableError(str(error)) from error
    _check_predictions(table, name, run.metrics.get("tiles", {}).get(part))
    if not table["id"].is_monotonic_increasing:
        table = table.sort_values("id", ignore_index=True)
    ids, labels = table["id"].to_numpy(), table["label"].to_numpy()
    groups = [table["group"], table["cluster"] if "cluster" in table else table["group"]]
    if run.metrics["split"] == "overlap":
        groups[0] = pd.Series(np.nan, index=table.index)  # names of components are none of slides
    digest = hashlib.blake2b("\n".join(ids).encode(), digest_size=16)
    digest.update(labels.tobytes())
    for group in groups:
        codes, names = pd.factorize(group)
        digest.update(codes.astype(np.int32).tobytes())
        digest.update("\n".join(names).encode())
    key = digest.hexdigest()
    if key not in known:
        slides, clusters = (group.to_numpy() if group.notna().any() else None for group in groups)
        known[key] = ScoredTiles(key, ids, labels, slides, clusters)
    return known[key], table["score"].to_numpy()


def _check_predictions(table: pd.DataFrame, name: str, expected: dict[str, int] | None) -> None:
    if table["label"].nunique() < 2:
        raise _NotComparableError(f"{name} must have labels 0 and 1, and both of them")
    if expected is not None and len(table) != sum(expected.values()):
        raise _NotComparableError(f"{name} has {len(table)} of {sum(expected.values())} tiles: half-written")
