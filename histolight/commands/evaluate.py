"""``histolight evaluate``: what a trained run is worth on its own tiles, or on others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from histolight.config.keys import choice, key_of, own_keys, read_path
from histolight.errors import RequestError
from histolight.inference.evaluate_request import KEYS, EvaluateConfig, evaluate_config
from histolight.progress import waiting
from histolight.reports.calls import calls_notes, calls_rows
from histolight.reports.page import Cell, Table, as_text
from histolight.reports.parts import figure_remarks, interval_text, score_texts
from histolight.statistics.figures import FIGURES, names_of

USAGE = """\
keys (KEY=VALUE):
  run=DIR            the run; without data= it is measured on its own validation and test tiles
  data=SOURCE data.root=DIR data.groups=FILE data.classes=[NEGATIVE,POSITIVE] data.limit=N
                     other labelled tiles: all of them, or the test part of a source that has its own split
  data=slides data.root=DIR slides.labels=FILE slides.annotations=DIR slides.positive=[CLASS] slides.units=px
                     annotated slides (docs/slides.md): also an AUROC over slides, and the scores beside the annotation
  chosen_on=DIR      choose the threshold and the temperature on the tiles of an earlier evaluation of this run, such as
                     those of other slides; unless given, on the run's own validation tiles
  calibrate=true     scale the scores by a temperature; calibrate=line also shifts them, which is for chosen_on
  adapt=none         without looking at labels, fit the scores to the share of tumour among other tiles (prior), or the
                     network's batch-norm statistics to them (batch_norm)
  report.prevalence=P
                     say what a call means where this share of the tiles is tumour
  report.abstain=0.05
                     share of wrong calls of either class that validation leaves where the network may abstain
  tta=none           flips and dihedral average the logits of 4 and 8 views of each tile
  data.batch_size=N data.cache=DIR trainer.accelerator=cpu trainer.precision=32-true
  hydra.run.dir=DIR  where the evaluation goes; outputs/evaluations/NAME-TIME unless given
"""


def main(overrides: list[str]) -> int:
    """Run the command; return the exit status."""
    request = parse_request(overrides)
    with waiting("starting PyTorch"):
        from histolight.inference.evaluate import evaluate

    metrics = evaluate(request)
    print(summary(metrics, asdict(request.config), request.directory))
    return 0


def parse_request(overrides: Sequence[str]) -> EvaluateConfig:
    """Read the command line.

    Raises:
        RequestError: A key is unknown or missing, the run doesn't exist, or the folder is taken.
    """
    values, others = own_keys(overrides, KEYS)
    if "run" not in values and "runs" in map(key_of, others):
        raise RequestError("runs= can be predicted, not evaluated: give one of them, run=DIR")
    if "run" not in values:
        raise RequestError(
            "run= is missing: histolight evaluate run=DIR, with a run directory such as outputs/runs/NAME"
        )
    run = read_path(values["run"])
    calibrate, tta = values.get("calibrate", "false"), choice(values, "tta", "none", "flips", "dihedral")
    adapt = values.get("adapt", "none")
    chosen_on = read_path(values["chosen_on"]) if "chosen_on" in values else None
    return evaluate_config(run, others, tta, calibrate, values.get("hydra.run.dir"), chosen_on, adapt)


def summary(metrics: dict[str, Any], config: dict[str, Any], directory: Path) -> str:
    """Say every figure with its interval, on which tiles, what chose them, and where everything lies."""
    lines = []
    for part in metrics["tiles"]:
        counts = metrics["tiles"][part]
        lines += [f"{part}: {counts['0']:,} benign and {counts['1']:,} tumour tiles, {metrics['origin'][part]}"]
        lines += [as_text(figures_table(metrics, part)), *_remarks(metrics, part), ""]
        rows = [[Cell(name), *cells] for name, cells in calls_rows(metrics, [part])]
        lines += [as_text(Table(["", part], rows, words=1)), ""] if rows else []
    lines += [*metrics["notes"], *calls_notes(metrics, config)]
    lines += [f"evaluation   {directory}", f"report       {directory / 'report.html'}"]
    return "\n".join(lines)


def figures_table(metrics: dict[str, Any], part: str) -> Table:
    """Lay out the figures of one part: at 0.5, at the threshold chosen on validation, and what calibration changes."""
    columns = {"at 0.5": metrics[part], f"at {score_texts(metrics['threshold'])[0]}": metrics[f"{part}_at_threshold"]}
    if f"{part}_calibrated" in metrics:
        columns["calibrated"] = {name: metrics[f"{part}_calibrated"][name] for name in names_of("scores")}
    rows = [
        [Cell(figure.heading), *(_cell(figures.get(name)) for figures in columns.values())]
        for name, figure in FIGURES.items()
        if name in metrics[part]
    ]
    return Table(["", *columns], rows, words=1)


def _remarks(metrics: dict[str, Any], part: str) -> list[str]:
    """Say what a reader of the figures of one part must hear of."""
    kinds = {"at 0.5": part, "at the threshold": f"{part}_at_threshold", "calibrated": f"{part}_calibrated"}
    return figure_remarks({heading: metrics[kind] for heading, kind in kinds.items() if kind in metrics})


def _cell(figure: dict[str, Any] | None) -> Cell:
    return Cell("") if figure is None else Cell(f"{figure['value']:.4f}", interval_text(figure["low"], figure["high"]))
