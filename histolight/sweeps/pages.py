"""Figures and pages of a sweep's points, drawn by a process of their own while further points train.

``python -m histolight.sweeps.pages SWEEP`` is that process. It reads the points' files alone, ends once its standard
input is closed and every completed point has its page, and leaves what failed to the sweep's next command.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import math
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from histolight import runs
from histolight.config.compose import saved_config, typed
from histolight.config.schema import DataConfig
from histolight.data.prepare import PackedTiles, load_tiles
from histolight.data.sources import load_source
from histolight.errors import HistolightError
from histolight.reports.measure import draw_part, save_figures
from histolight.reports.run_page import LEADING, write_run_report
from histolight.statistics.intervals import Interval
from histolight.sweeps.points import Sweep, point_folders

FEWEST = 5  # points to train, below which each draws its own page: starting the process would take longer
PAUSE = 0.5  # seconds between two looks at the points

log = logging.getLogger("histolight")


@contextlib.contextmanager
def pages_drawn(sweep: Sweep, count: int) -> Iterator[bool]:
    """Give every completed point its page by the end; yields whether the points leave theirs to another process.

    Args:
        sweep: The sweep.
        count: How many points are to be trained.
    """
    if count + len(without_page(point_folders(sweep.directory))) >= FEWEST:
        with _drawn_meanwhile(sweep):
            yield True
    else:
        yield False
        _draw_pages(without_page(point_folders(sweep.directory)))


@contextlib.contextmanager
def _drawn_meanwhile(sweep: Sweep) -> Iterator[None]:
    """Draw the pages of completed points while the sweep goes on; at its end wait for the last ones."""
    command = [sys.executable, "-P", "-m", "histolight.sweeps.pages", str(sweep.directory)]
    # A session of its own: Ctrl-C is for the sweep, which ends it.
    process = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)
    assert process.stdin is not None
    try:
        yield
        process.stdin.close()
        if process.wait():
            log.warning("the process that draws pages ended early: this one draws what is missing")
            _draw_pages(without_page(point_folders(sweep.directory)))
    finally:
        process.terminate()
        process.wait()


def without_page(folders: Sequence[Path]) -> list[Path]:
    """List the completed points that have no page."""
    return [path for path in folders if not (path / "report.html").is_file() and _status(path) == "completed"]


def _status(directory: Path) -> str:
    try:
        return str(runs.read_metrics(directory)["status"])
    except HistolightError:
        return "missing"


def _draw_pages(folders: Sequence[Path]) -> None:
    for path in folders:
        try:
            draw_page(path)
        except Exception as error:  # of one point, such as other tiles by now: the next ones go on
            log.warning("%s has no page: %s", path, " ".join(str(error).split()))


def draw_page(directory: Path) -> None:
    """Draw the figures of a completed run from its files, and write its page; the tiles are those that it names.

    Raises:
        HistolightError: A file is missing or damaged, or the tiles are no longer there.
    """
    metrics = runs.read_metrics(directory)
    config = typed(saved_config(directory))
    tiles = _tiles(config.data)
    places = tiles.table.set_index("id")["row"]
    for part in (part for part in LEADING if part in metrics):
        table = runs.read_predictions(directory / "predictions" / f"{part}.csv")
        measured = {part: {name: _interval(found) for name, found in metrics[part].items()}}
        rows = places.loc[table["id"]].to_numpy()
        measured["threshold"] = metrics["threshold"]
        figures = draw_part(part, table, rows, tiles.pack.tiles, measured, f"{metrics['split']} split")
        save_figures(figures, part, directory)
    write_run_report(directory)


def _interval(found: dict[str, Any]) -> Interval:
    """Read a figure of ``metrics.json``, which has null for NaN."""
    low, high = (math.nan if found[end] is None else found[end] for end in ("low", "high"))
    return Interval(found["value"], low, high, found["method"], found["note"])


_opened: dict[str, PackedTiles] = {}  # by the point before


def _tiles(config: DataConfig) -> PackedTiles:
    """Open the tiles of a point, which those of the one before mostly are."""
    key = repr(dataclasses.replace(config, batch_size=1, fold=None, shots=None, residency="auto", sampler="shuffle"))
    if key not in _opened:
        _opened.clear()
        _opened[key] = load_tiles(load_source(config), config)
    return _opened[key]


def main(directory: Path) -> None:
    """Draw pages until the process that started this one is done with its points."""
    with contextlib.suppress(AttributeError, OSError):
        os.nice(10)  # points come first
    ended = threading.Event()

    def wait() -> None:
        sys.stdin.read()
        ended.set()

    threading.Thread(target=wait, daemon=True).start()
    tried: set[Path] = set()
    while True:
        last = ended.is_set()
        todo = [path for path in without_page(point_folders(directory)) if path not in tried]
        _draw_pages(todo)
        tried |= set(todo)
        if last and not todo:
            return
        if not todo:
            time.sleep(PAUSE)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
