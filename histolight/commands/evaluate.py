"""``histolight evaluate``: what a trained run is worth on its own tiles, or on others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from histolight import files
from histolight.config.keys import choice, new_folder, own_keys, read_path, run_config
from histolight.config.schema import Config
from histolight.errors import RequestError
from histolight.reports.page import Cell, Table, as_text
from histolight.reports.parts import interval_text
from histolight.statistics.figures import FIGURES, names_of

KEYS = ("run", "calibrate", "tta", "hydra.run.dir")
OTHER_TILES = ("data", "data.root", "data.groups", "data.classes", "data.limit", "data.seed")
TAKEN = (
    *OTHER_TILES,
    "data.image_size",
    "data.mpp",
    "data.mpp_tolerance",
    "data.batch_size",
    "data.cache",
    "trainer",
    "trainer.accelerator",
    "trainer.precision",
)
USAGE = """\
keys (KEY=VALUE):
  run=DIR            the run; without data= it is measured on its own validation and test tiles
  data=SOURCE data.root=DIR data.groups=FILE data.classes=[NEGATIVE,POSITIVE] data.limit=N
                     other labelled tiles: all of them, or the test part of a source that has its own split
  calibrate=true     scale the scores by a temperature, fitted on the run's validation predictions alone
  tta=none           flips and dihedral average the logits of 4 and 8 views of each tile
  data.batch_size=N data.cache=DIR trainer.accelerator=cpu trainer.precision=32-true
  hydra.run.dir=DIR  where the evaluation goes; outputs/evaluations/NAME-TIME unless given
"""


@dataclass(frozen=True)
class EvaluateConfig:
    """What to evaluate.

    Attributes:
        run: The run directory.
        config: Its configuration, with the overrides laid over it.
        other: Those of the given keys that ask for other tiles than the run's own.
        calibrate: Whether to fit a temperature.
        tta: ``none``, ``flips`` or ``dihedral``.
        directory: Where the evaluation goes.
    """

    run: Path
    config: Config
    other: frozenset[str]
    calibrate: bool
    tta: str
    directory: Path


def main(overrides: list[str], multirun: bool = False) -> int:
    """Run the command; return the exit status."""
    if multirun:
        raise RequestError("-m sweeps over trainings: use it with histolight train, and evaluate what it made")
    request = parse_request(overrides)
    from histolight.inference.evaluate import evaluate  # imports torch

    with files.claimed(request.directory):
        metrics = evaluate(
            request.run, request.config, request.directory, request.other, request.tta, request.calibrate
        )
    print(summary(metrics, request.directory))
    return 0


def parse_request(overrides: Sequence[str]) -> EvaluateConfig:
    """Read the command line.

    Raises:
        RequestError: A key is unknown or missing, the run doesn't exist, or the folder is taken.
    """
    values, others = own_keys(overrides, KEYS)
    if "run" not in values:
        raise RequestError(
            "run= is missing: histolight evaluate run=DIR, with a run directory such as outputs/runs/NAME"
        )
    run = read_path(values["run"])
    calibrate, tta = choice(values, "calibrate", "false", "true"), choice(values, "tta", "none", "flips", "dihedral")
    config = run_config(run, others, KEYS, TAKEN, "evaluate")
    directory = new_folder(values.get("hydra.run.dir"), "evaluations", run.resolve().name)
    given = {override.partition("=")[0] for override in others}
    return EvaluateConfig(run, config, frozenset(given & set(OTHER_TILES)), calibrate == "true", tta, directory)


def summary(metrics: dict[str, Any], directory: Path) -> str:
    """Say every figure with its interval, on which tiles, what chose them, and where everything lies."""
    lines = []
    for part in metrics["tiles"]:
        counts = metrics["tiles"][part]
        lines += [f"{part}: {counts['0']:,} benign and {counts['1']:,} tumour tiles, {metrics['origin'][part]}"]
        lines += [as_text(figures_table(metrics, part)), *filter(None, [metrics[part]["auroc"]["note"]]), ""]
    lines += metrics["notes"]
    lines += [f"evaluation   {directory}", f"report       {directory / 'report.html'}"]
    return "\n".join(lines)


def figures_table(metrics: dict[str, Any], part: str) -> Table:
    """Lay out the figures of one part: at 0.5, at the threshold chosen on validation, and what calibration changes."""
    columns = {"at 0.5": metrics[part], f"at {metrics['threshold']:.3f}": metrics[f"{part}_at_threshold"]}
    if f"{part}_calibrated" in metrics:
        columns["calibrated"] = {name: metrics[f"{part}_calibrated"][name] for name in names_of("scores")}
    rows = [
        [Cell(figure.heading), *(_cell(figures.get(name)) for figures in columns.values())]
        for name, figure in FIGURES.items()
        if name in metrics[part]
    ]
    return Table(["", *columns], rows, words=1)


def _cell(figure: dict[str, Any] | None) -> Cell:
    return Cell("") if figure is None else Cell(f"{figure['value']:.4f}", interval_text(figure["low"], figure["high"]))
