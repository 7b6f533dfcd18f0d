"""``histolight train``: compose, check, prepare, train, say where the result lies."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf

from histolight import runs
from histolight.compose import compose_config, like_config, to_yaml, typed
from histolight.config import Config
from histolight.errors import DataError, RequestError


def main(overrides: list[str], multirun: bool = False) -> int:
    """Run the command; return the exit status."""
    if multirun:
        raise RequestError("-m is not there yet: give one value for each key")
    config, directory, resume = _request(overrides)
    from histolight.training import check_request, train  # imports torch: only once the request is understood

    config = check_request(config)
    data = _prepare(config, directory)
    slides = data.slides or "no known"
    print(f"{len(data.table):,} tiles, {slides} slides, split: {data.split_kind}; writing {directory}", file=sys.stderr)
    metrics = train(config, data, directory, resume)
    print(summary(metrics, directory))
    return 0


def _request(overrides: list[str]) -> tuple[Config, Path, bool]:
    """Say what to train, where, and whether it continues a run."""
    composed = compose_config(overrides)
    if composed.run is not None:
        if len(overrides) > 1:
            raise RequestError(
                "run=DIR continues a run as it is, with no other override: to change something use like=DIR"
            )
        directory = Path(composed.run).expanduser()
        metrics = runs.read_metrics(directory)
        if metrics["status"] == "completed":
            raise RequestError(f"{directory} is completed: nothing to continue (like={directory} starts a new run)")
        return typed(_saved(directory)), directory, True
    if composed.like is not None:
        composed = like_config(_saved(Path(composed.like).expanduser()), overrides)
    config = typed(composed)
    directory = Path(composed.hydra.run.dir).expanduser()
    if (directory / "metrics.json").exists():
        raise RequestError(
            f"{directory} holds a run: continue it with run={directory}, or choose another hydra.run.dir"
        )
    return config, directory, False


def _saved(directory: Path) -> DictConfig:
    path = directory / "config.yaml"
    if not path.is_file():
        raise RequestError(f"{directory} is not a run directory: it has no config.yaml")
    try:
        return cast(DictConfig, OmegaConf.load(path))
    except Exception as error:
        raise RequestError(f"{path} is damaged: {' '.join(str(error).split())}") from error


def _prepare(config: Config, directory: Path) -> Any:
    from histolight.data.prepare import prepare

    try:
        return prepare(config.data)
    except DataError as error:
        with runs.recorded(directory):
            runs.write_atomically(directory / "config.yaml", to_yaml(config))
            path = directory / "data_problems.csv"
            runs.write_csv(path, error.problems)
            raise DataError(f"{error}; all of them: {path}", error.problems) from error


def summary(metrics: dict[str, Any], directory: Path) -> str:
    """Say in a few lines how good the model is, how sure that is, on which tiles, and where everything lies."""
    lines = []
    for part in ("val", "test"):
        if part in metrics:
            auroc, count = metrics[part]["auroc"], sum(metrics["tiles"][part].values())
            chosen = ", on which the epoch was chosen" if part == metrics["selected_on"] else ""
            lines.append(
                f"{part} AUROC {auroc['value']:.4f} [{auroc['low']:.4f}, {auroc['high']:.4f}] "
                f"({auroc['method']}; {count:,} tiles{chosen})"
            )
    split = {
        "random": "random split, slides unknown: tiles of one slide may sit on both sides, other slides will be harder",
        "slide": f"split by slide ({metrics['slides']} slides)",
        "given": "the source's own split",
    }
    lines.append(split[metrics["split"]])
    lines.append(f"run          {directory}")
    lines.append(f"TensorBoard  tensorboard --logdir {directory / 'tensorboard'}")
    return "\n".join(lines)
