"""``histolight train``: compose, check, prepare, train, say where the result lies."""

from __future__ import annotations

import contextlib
import itertools
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from omegaconf import DictConfig, OmegaConf

from histolight import runs
from histolight.compose import compose_config, like_config, typed
from histolight.config import Config
from histolight.errors import RequestError, command_line

if TYPE_CHECKING:
    from histolight.sweeps import SweepResult

SHARED_DIRECTORY = "HISTOLIGHT_RUN_DIRECTORY"  # environment variable, for the processes of one DDP training


def main(overrides: list[str], multirun: bool = False) -> int:
    """Run the command; return the exit status. ``sweep=NAME`` means ``-m``, given or not."""
    if multirun or any(override.startswith("sweep=") for override in overrides):
        from histolight.sweeps import run_sweep

        result = run_sweep(overrides)
        print(sweep_summary(result))
        return 1 if any(point.status != "completed" for point in result.points) else 0
    config, directory, resume = _request(overrides)
    from histolight.training import check_request, prepare_data, train  # imports torch: not before it must

    config = check_request(config)
    with runs.claimed(directory) if runs.is_main_process() else contextlib.nullcontext():
        data = prepare_data(config, directory)
        slides = data.slides or "no known"
        split = f"split: {data.split_kind}"
        print(f"{len(data.table):,} tiles, {slides} slides, {split}; writing {directory}", file=sys.stderr)
        metrics = train(config, data, directory, resume)
    if metrics:
        print(summary(metrics, directory))
    return 0


def requested_config(overrides: Sequence[str]) -> DictConfig:
    """Compose what the command line asks for; ``run=`` and ``like=`` start from a saved configuration.

    Raises:
        RequestError: As :func:`compose_config`, or the saved configuration is missing or damaged.
    """
    composed = compose_config(overrides)
    if composed.run is not None:
        if len(overrides) > 1:
            raise RequestError(
                "run=DIR continues a run as it is, with no other override: to change something use like=DIR"
            )
        directory = Path(composed.run).expanduser()
        runs.read_metrics(directory)
        return saved_config(directory)
    if composed.like is not None:
        return like_config(saved_config(Path(composed.like).expanduser()), overrides)
    return composed


def _request(overrides: list[str]) -> tuple[Config, Path, bool]:
    """Say what to train, where, and whether it continues a run."""
    composed = requested_config(overrides)
    config = typed(composed)
    if overrides and overrides[0].startswith("run="):
        directory = Path(compose_config(overrides).run).expanduser()
        if runs.read_metrics(directory)["status"] == "completed":
            raise RequestError(f"{directory} is completed: nothing to continue (like={directory} starts a new run)")
        return config, directory, True
    if not composed.hydra.run.dir:
        raise RequestError("hydra.run.dir is empty: give the folder for this run")
    directory = Path(composed.hydra.run.dir).expanduser()
    if not runs.is_main_process():
        # Lightning starts the other processes of a DDP training with this same command: they share one folder.
        return config, Path(os.environ.get(SHARED_DIRECTORY, directory)), False
    if not any(override.lstrip("+").startswith("hydra.run.dir=") for override in overrides):
        directory = _unused(directory)
    elif (directory / "metrics.json").exists():
        raise RequestError(
            f"{directory} holds a run: continue it with run={directory}, or choose another hydra.run.dir"
        )
    os.environ[SHARED_DIRECTORY] = str(directory)
    return config, directory, False


def _unused(directory: Path) -> Path:
    """Number a folder named by name and second when another run has just taken it."""
    names = itertools.chain([directory.name], (f"{directory.name}-{number}" for number in itertools.count(2)))
    return next(path for path in map(directory.with_name, names) if not path.exists())


def saved_config(directory: Path) -> DictConfig:
    """Read ``config.yaml`` of a run directory.

    Raises:
        RequestError: It is missing or damaged.
    """
    path = directory / "config.yaml"
    if not path.is_file():
        raise RequestError(f"{directory} is not a run directory: it has no config.yaml")
    try:
        saved = OmegaConf.load(path)
        if not isinstance(saved, DictConfig) or "data" not in saved:
            raise RequestError("it is not a configuration")
        return cast(DictConfig, OmegaConf.merge(OmegaConf.structured(Config), saved))
    except Exception as error:
        raise RequestError(f"{path} is damaged: {' '.join(str(error).split())}") from error


def interval_text(figure: dict[str, Any]) -> str:
    """Write an interval of ``metrics.json``; there is none where the tiles do not tell how sure the figure is."""
    if figure["low"] is None or figure["high"] is None:
        return "[no interval]"
    return f"[{figure['low']:.4f}, {figure['high']:.4f}]"


def summary(metrics: dict[str, Any], directory: Path) -> str:
    """Say in a few lines how good the model is, how sure that is, on which tiles, and where everything lies."""
    lines = []
    for part in ("val", "test"):
        if part in metrics:
            auroc, count = metrics[part]["auroc"], sum(metrics["tiles"][part].values())
            chosen = ", on which the epoch was chosen" if part == metrics["selected_on"] else ""
            note = f"; {auroc['note']}" if auroc["note"] else ""
            lines.append(
                f"{part} AUROC {auroc['value']:.4f} {interval_text(auroc)} "
                f"({auroc['method']}; {count:,} tiles{chosen}{note})"
            )
    split = {
        "random": "random split, slides unknown: tiles of one slide may sit on both sides, other slides will be harder",
        "slide": f"split by slide ({metrics['slides']} slides)",
        "given": "the source's own split",
    }
    lines.append(split[metrics["split"]])
    lines.append(f"run          {directory}")
    lines.append(f"TensorBoard  {command_line('tensorboard', '--logdir', str(directory / 'tensorboard'))}")
    return "\n".join(lines)


def sweep_summary(result: SweepResult) -> str:
    """Say how many points are completed, which failed and why, which is the best, and how to go on."""
    completed = [point for point in result.points if point.status == "completed"]
    failed = [point for point in result.points if point.status != "completed"]
    lines = [f"sweep        {result.directory}: {len(completed)} completed, {len(failed)} failed"]
    lines += [f"failed       {point.directory.name}: {point.metrics.get('reason')}" for point in failed]
    if completed:
        best = max(completed, key=lambda point: point.auroc or 0.0)
        auroc = best.metrics["val"]["auroc"]
        lines.append(
            f"best         {best.directory.name}: val AUROC {auroc['value']:.4f} {interval_text(auroc)}, "
            f"chosen from {len(completed)}"
        )
    if failed:
        lines.append(f"again        the same command with name={result.name} tries the failed points again")
    lines.append(f"TensorBoard  {command_line('tensorboard', '--logdir', str(result.directory))}")
    lines.append(f"compare      {command_line('histolight', 'compare', f'runs={result.directory}')}")
    return "\n".join(lines)
