"""Whether an interrupted run can go on: its tiles are the same, and its checkpoints are whole."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch

from histolight import files, runs
from histolight.config.schema import Config
from histolight.data.prepare import PreparedData
from histolight.errors import RequestError, unreadable_reason


def check_continuable(config: Config, data: PreparedData, directory: Path) -> None:
    """Raise :class:`RequestError` for a run that can't be continued: other tiles or epochs, or a damaged checkpoint."""
    _check_same_tiles(data, directory)
    _read_checkpoint(directory / "checkpoints" / "best.ckpt")
    last = _read_checkpoint(directory / "checkpoints" / "last.ckpt")
    if last is not None:
        _check_same_length(last, config, directory)


def _check_same_tiles(data: PreparedData, directory: Path) -> None:
    """Refuse to continue on other tiles: what was trained on could then validate."""
    known = runs.read_metrics(directory).get("data_fingerprint")
    splits = directory / "splits.csv"
    other = known not in (None, data.fingerprint)
    if splits.is_file():
        other |= not runs.read_splits(directory)["split"].equals(data.table.set_index("id")["split"])
    if other:
        raise RequestError(
            f"the tiles, their labels, slides or split are no longer those that {directory} began with: restore them, "
            f"or start a new run with like={directory}"
        )


def _check_same_length(checkpoint: dict[str, Any], config: Config, directory: Path) -> None:
    """Refuse a schedule of another length, as of a configuration that was edited: PyTorch's can't be stretched."""
    state: dict[str, Any] = next(iter(checkpoint["lr_schedulers"]), {})
    steps, epochs = checkpoint["global_step"], checkpoint["epoch"] + 1
    total = state.get("total_steps", state.get("T_max"))  # of one_cycle, of cosine
    if total is None or not steps:
        return
    begun, asked = round(total * epochs / steps), config.scheduler.total_epochs or config.trainer.max_epochs
    if asked != begun:
        raise RequestError(
            f"{directory} was begun with a schedule of {begun} epochs, and its config.yaml asks for {asked}: write "
            f"{begun} there again, or start a new run with like={directory} trainer.max_epochs={asked}"
        )


def _read_checkpoint(path: Path) -> dict[str, Any] | None:
    """Read a checkpoint, if it is there; refuse one that Lightning could not continue from, before it tries."""
    again = "delete the folder checkpoints to train this run from its first epoch"
    if not path.is_file():
        return None
    try:
        with files.reading(path):
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise RequestError(f"{path} can't be read as a checkpoint ({unreadable_reason(error)}): {again}") from error
    needed = {"state_dict", "hyper_parameters", "optimizer_states", "lr_schedulers", "loops", "callbacks", "epoch"}
    if not isinstance(checkpoint, dict) or not needed <= set(checkpoint):
        raise RequestError(f"{path} is not a checkpoint of histolight: {again}")
    return checkpoint
