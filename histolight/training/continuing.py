"""Whether an interrupted run can go on: its tiles are the same, and its checkpoints are whole."""

from __future__ import annotations

import pickle
from pathlib import Path

import torch

from histolight import files, runs
from histolight.data.prepare import PreparedData
from histolight.errors import RequestError, unreadable_reason


def check_continuable(data: PreparedData, directory: Path) -> None:
    """Raise :class:`RequestError` for a run that can't be continued: other tiles, or a damaged checkpoint."""
    _check_same_tiles(data, directory)
    for name in ("best.ckpt", "last.ckpt"):
        _check_checkpoint(directory / "checkpoints" / name)


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


def _check_checkpoint(path: Path) -> None:
    """Refuse a checkpoint that Lightning could not continue from, before it tries."""
    again = "delete the folder checkpoints to train this run from its first epoch"
    if not path.is_file():
        return
    try:
        with files.reading(path):
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise RequestError(f"{path} can't be read as a checkpoint ({unreadable_reason(error)}): {again}") from error
    needed = {"state_dict", "hyper_parameters", "optimizer_states", "lr_schedulers", "loops", "callbacks", "epoch"}
    if not isinstance(checkpoint, dict) or not needed <= set(checkpoint):
        raise RequestError(f"{path} is not a checkpoint of histolight: {again}")
