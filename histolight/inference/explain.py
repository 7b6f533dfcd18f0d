"""The explanation of a finished run: its network, its predictions and their tiles, found again and explained."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from histolight import files
from histolight.config.keys import choice, is_count
from histolight.config.schema import Config
from histolight.errors import RequestError
from histolight.explanation.grad_cam import Explanation, explain
from histolight.explanation.page import write_report
from histolight.inference.finished import read_part
from histolight.inference.networks import load_classifier

MOST = 64  # tiles of a group that a page can show


def check_explain(part: str, tiles: int) -> None:
    """Raise :class:`RequestError` for a part that isn't one, and for too few or too many tiles."""
    choice({"part": part}, "part", "val", "test")
    if not is_count(tiles, MOST):
        raise RequestError(f"tiles={tiles} is out of range: it is a whole number from 1 to {MOST}")


def explain_run(run: Path, config: Config, part: str, tiles: int, directory: Path) -> Explanation:
    """Explain tiles of a run and write ``attributions.csv``, ``explain.json`` and ``report.html``.

    Args:
        run: A completed run.
        config: Its configuration, or one that says where its tiles lie by now.
        part: ``val`` or ``test``.
        tiles: How many of the surest right calls, of the surest wrong ones and of the closest are shown, 1 to 64.
        directory: An unused folder.

    Raises:
        RequestError: The run is not completed, has no such part, or its tiles are no longer those of its training.
    """
    check_explain(part, tiles)
    classifier = load_classifier(run)
    finished = read_part(run, config, part)
    threshold, seed = finished.metrics["threshold"], finished.config.data.seed
    explanation = explain(classifier, finished.predictions, finished.tiles, threshold, tiles, seed)
    with files.claimed(directory):
        write_report(explanation, directory, run.resolve().name, part, finished.metrics["split"])
    return dataclasses.replace(explanation, directory=directory)
