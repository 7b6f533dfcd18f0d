"""From a command line to what is to be trained, and where."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from histolight import files, runs
from histolight.config.compose import compose_config, like_config, saved_config, typed
from histolight.config.keys import PLACES, key_of
from histolight.config.schema import Config
from histolight.errors import RequestError

BEGINNING = ("metrics.json",)  # all that a run killed before it had a configuration leaves: it begins anew
SHARED_DIRECTORY = "HISTOLIGHT_RUN_DIRECTORY"  # environment variable, for the processes of one DDP training


def requested_config(overrides: Sequence[str]) -> DictConfig:
    """Compose what the command line asks for; ``run=`` and ``like=`` start from a saved configuration.

    Raises:
        RequestError: As :func:`compose_config`, or the saved configuration is missing or damaged.
    """
    composed = compose_config(overrides)
    if composed.run is not None:
        places = [key for key in map(key_of, overrides) if key != "run"]
        if not set(places) <= set(PLACES):
            raise RequestError(
                "run=DIR continues a run as it is, and takes only where its tiles lie by now (data.root=FOLDER): to "
                "change something use like=DIR"
            )
        directory = Path(composed.run).expanduser()
        runs.read_metrics(directory)
        saved = saved_config(directory)
        for key in places:
            OmegaConf.update(saved, key, OmegaConf.select(composed, key))
        return saved
    if composed.like is not None:
        return like_config(saved_config(Path(composed.like).expanduser()), overrides)
    return composed


def training_request(overrides: Sequence[str]) -> tuple[Config, Path, bool]:
    """Say what to train, where, and whether it continues a run.

    Raises:
        RequestError: As :func:`requested_config`, or the run is completed, or the folder holds another one.
    """
    composed = requested_config(overrides)
    keys = [key_of(override) for override in overrides]
    for key in keys:
        if key.startswith("sweep."):
            raise RequestError(f"{key} is about a sweep: add -m")
    config = typed(composed)
    if "hydra" not in composed:  # it is a saved one
        directory = Path(compose_config(overrides).run).expanduser()
        if runs.read_metrics(directory)["status"] == "completed":
            raise RequestError(f"{directory} is completed: nothing to continue (like={directory} starts a new run)")
        return config, directory, True
    if not composed.hydra.run.dir:
        raise RequestError("hydra.run.dir is empty: give the folder for this run")
    directory = Path(composed.hydra.run.dir).expanduser()
    if any(key.startswith("hydra.sweep.") for key in keys):
        raise RequestError("hydra.sweep.dir is the folder of a sweep, with -m: that of a run is hydra.run.dir=FOLDER")
    named = "hydra.run.dir" in keys
    begun = all(os.path.exists(directory / name) for name in ("metrics.json", "config.yaml"))
    if named and begun and os.environ.get("SLURM_RESTART_COUNT", "0") != "0":
        return training_request([f"run={directory}"])  # a job that SLURM requeued gives its command again
    if not files.is_main_process():
        # Lightning starts the other processes of a DDP training with this same command: they share one folder.
        return config, Path(os.environ.get(SHARED_DIRECTORY, directory)), False
    if not named:
        directory = files.take_folder(directory, files.ANOTHER_RUN)
    elif begun:
        raise _taken_error(directory)
    else:
        files.check_unused(directory, BEGINNING, files.ANOTHER_RUN)
    os.environ[SHARED_DIRECTORY] = str(directory)
    return config, directory, False


def _taken_error(directory: Path) -> RequestError:
    """Say that a folder holds a run already, and what to do about it: a new configuration needs another folder."""
    if fault := runs.failure(runs.read_metrics(directory)):
        return RequestError(
            f"{directory} holds a run that failed{fault}: delete it, choose another hydra.run.dir, or, once that is "
            f"mended, continue it with run={directory}"
        )
    return RequestError(f"{directory} holds a run: continue it with run={directory}, or choose another hydra.run.dir")
