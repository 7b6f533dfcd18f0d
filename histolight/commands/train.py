"""``histolight train``: compose, check, prepare, train, say where the result lies."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import TYPE_CHECKING, Any

from histolight import files, runs
from histolight.errors import command_line
from histolight.training.run import train_run

if TYPE_CHECKING:
    from histolight.sweeps.sweep import SweepResult


def main(overrides: list[str], multirun: bool = False) -> int:
    """Run the command; return the exit status. ``sweep=NAME`` means ``-m``, given or not."""
    if multirun or any(override.startswith("sweep=") for override in overrides):
        from histolight.sweeps.sweep import run_sweep

        result = run_sweep(overrides)
        print(sweep_summary(result))
        return 1 if any(point.status not in ("completed", "pruned") for point in result.points) else 0
    directory = train_run(overrides)
    if files.is_main_process():
        print(summary(runs.read_metrics(directory), directory))
    return 0


def summary(metrics: dict[str, Any], directory: Path) -> str:
    """Say in a few lines how good the model is, how sure that is, on which tiles, and where everything lies."""
    from histolight.data.table import PARTS, split_note  # imports pandas, which a wrong request need not wait for
    from histolight.reports.parts import interval_text, what_was_chosen

    lines = []
    clusters = "slides" if metrics["slides"] else "groups of overlapping tiles"
    for part in PARTS:
        if part in metrics:
            auroc, count = metrics[part]["auroc"], sum(metrics["tiles"][part].values())
            what = what_was_chosen(metrics) if part == metrics["selected_on"] else ""
            chosen = f", on which {what} was chosen" if what else ""
            note = f"; {auroc['note']}" if auroc["note"] else ""
            over = {"none": "", "obuchowski": f"95 % interval over {clusters}; "}
            lines.append(
                f"{part} AUROC {auroc['value']:.4f} {interval_text(auroc['low'], auroc['high'])} "
                f"({over.get(auroc['method'], '95 % interval; ')}{count:,} tiles{chosen}{note})"
            )
    slides = f" ({metrics['slides']} slides)" if metrics["split"] == "slide" else ""
    lines.append(split_note(metrics) + slides)
    lines.append(f"run          {directory}")
    if (directory / "report.html").is_file():
        lines.append(f"report       {directory / 'report.html'}")
    lines.append(_curves(directory))
    return "\n".join(lines)


def _curves(directory: Path) -> str:
    """Say where the curves of a run lie, by the logger that it had."""
    if (directory / "mlflow" / "mlflow.db").is_file():
        return f"MLflow       sqlite:///{directory.resolve()}/mlflow/mlflow.db"
    for name, label in (("wandb", "W&B"), ("csv", "CSV")):
        if (directory / name).is_dir():
            return f"{label:<12} {directory / name}"
    return f"TensorBoard  {command_line('tensorboard', '--logdir', str(directory / 'tensorboard'))}"


def sweep_summary(result: SweepResult) -> str:
    """Say how many points are completed, which failed and why, which is the best or their mean, and how to go on."""
    from histolight.reports.parts import interval_text

    completed = [point for point in result.points if point.status == "completed"]
    pruned = sum(point.status == "pruned" for point in result.points)
    failed = [point for point in result.points if point.status not in ("completed", "pruned")]
    counts = f"{len(completed)} completed{f', {pruned} pruned' if pruned else ''}, {len(failed)} failed"
    lines = [f"sweep        {result.directory}: {counts}"]
    reasons: dict[Any, list[str]] = {}
    for point in failed:
        reasons.setdefault(point.metrics.get("reason"), []).append(point.directory.name)
    for reason, names in reasons.items():
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        lines.append(f"failed       {names[0]}{more}: {reason}")
    if len(completed) > 1 and result.repeats:
        aurocs = [point.metrics["val"]["auroc"]["value"] for point in completed]
        lines.append(
            f"mean         val AUROC {statistics.mean(aurocs):.4f} of {len(aurocs)} trainings of one configuration "
            f"({min(aurocs):.4f} to {max(aurocs):.4f})"
        )
    elif completed:
        best = max(completed, key=lambda point: point.auroc or 0.0)
        auroc, count = best.metrics["val"]["auroc"], len(completed) + pruned
        chosen = f", the highest of {count}, and so an optimistic figure" if count > 1 else ""
        lines.append(
            f"best         {best.directory.name}: val AUROC {auroc['value']:.4f} "
            f"{interval_text(auroc['low'], auroc['high'])}{chosen}"
        )
    if failed:
        lines.append(f"again        the same command with name={result.name} tries the failed points again")
    if completed:
        lines.append(f"TensorBoard  {command_line('tensorboard', '--logdir', str(result.directory))}")
        lines.append(f"compare      {command_line('histolight', 'compare', f'runs={result.directory}')}")
    return "\n".join(lines)
