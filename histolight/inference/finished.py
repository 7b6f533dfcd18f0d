"""A finished run looked at again: its tiles as they were, and a folder for what is made of it (explain, export)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from histolight.config.keys import new_folder, own_keys, read_path
from histolight.errors import RequestError, nearest

if TYPE_CHECKING:
    import pandas as pd

    from histolight.config.schema import Config
    from histolight.data.pack import Tiles


@dataclass(frozen=True)
class FinishedPart:
    """One part of the tiles of a finished run, with what the run said of them.

    Attributes:
        config: The run's configuration.
        metrics: Its ``metrics.json``.
        predictions: ``id``, ``label``, ``group``, ``logit``, ``score`` and ``row``, the tile's place in ``tiles``.
        tiles: The tile store.
    """

    config: Config
    metrics: dict[str, Any]
    predictions: pd.DataFrame
    tiles: Tiles


def read_part(run: Path, part: str) -> FinishedPart:
    """Read a run's predictions for ``val`` or ``test`` and find their tiles again.

    Raises:
        RequestError: The run is not completed or has no such part, or its tiles are not those of its training.
    """
    from histolight import runs
    from histolight.config.compose import saved_config, typed
    from histolight.data.prepare import prepare
    from histolight.inference.networks import first_problem

    metrics = runs.completed_metrics(run)
    if part not in metrics:
        raise RequestError(f"{run} has no {part} part: train with data.test_fraction=0.2, or use part=val")
    config = typed(saved_config(run))
    with first_problem():
        data = prepare(config.data)
    table = runs.read_predictions(run / "predictions" / f"{part}.csv")
    places = data.part(part).set_index("id")["row"].reindex(table["id"])
    if data.fingerprint != metrics.get("data_fingerprint") or places.isna().any():
        raise RequestError(
            f"the tiles, their labels, slides or split ({config.data.root or config.data.source}) are no longer those "
            f"that {run} was trained on: restore them"
        )
    return FinishedPart(config, metrics, table.assign(row=places.to_numpy(dtype="int64")), data.tiles)


def read_run_and_folder(
    command: str, overrides: Sequence[str], keys: Sequence[str], multirun: bool
) -> tuple[Path, Path, dict[str, str]]:
    """Read ``run=…`` and ``hydra.run.dir=…``.

    Args:
        command: The command's name.
        overrides: As on the command line.
        keys: All the command's keys.
        multirun: Whether ``-m`` was given.

    Returns:
        The run, an unused folder (``outputs/COMMAND/RUN-TIME`` unless given), and the values of all keys.

    Raises:
        RequestError: A key is unknown, ``run`` is missing, or the folder holds something already.

    >>> read_run_and_folder("export", ["run=a b", "hydra.run.dir=out"], ["run", "hydra.run.dir"], False)[:2]
    (PosixPath('a b'), PosixPath('out'))
    """
    if multirun:
        raise RequestError(f"-m sweeps over trainings: use it with histolight train, and {command} what it made")
    values, others = own_keys(overrides, keys)
    if others:
        key = others[0].partition("=")[0]
        raise RequestError(f"{key} is not a key of histolight {command}: {nearest(key, keys)}")
    if "run" not in values:
        raise RequestError(f"run= is missing: histolight {command} run=FOLDER, with a run directory")
    run = read_path(values["run"])
    return run, new_folder(values.get("hydra.run.dir"), command, run.resolve().name), values
