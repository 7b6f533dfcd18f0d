"""A finished run looked at again: its tiles as they were, and a folder for what is made of it (explain, export)."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from histolight.errors import RequestError

if TYPE_CHECKING:
    import pandas as pd

    from histolight.config.schema import Config
    from histolight.data.pack import Tiles


@dataclass(frozen=True)
class FinishedPart:
    """One part of the tiles of a finished run, with what the run said of them.

    Attributes:
        config: The run's configuration, with the place of its tiles by now.
        metrics: Its ``metrics.json``.
        predictions: ``id``, ``label``, ``group``, ``logit``, ``score`` and ``row``, the tile's place in ``tiles``.
        tiles: The tile store.
    """

    config: Config
    metrics: dict[str, Any]
    predictions: pd.DataFrame
    tiles: Tiles


def read_part(run: Path, config: Config, part: str) -> FinishedPart:
    """Read a run's predictions for ``val`` or ``test`` and find their tiles again, where the configuration says.

    Raises:
        RequestError: The run is not completed or has no such part, or its tiles are not those of its training.
    """
    from histolight import runs
    from histolight.data.prepare import load_tiles
    from histolight.data.sources import load_source

    metrics = runs.completed_metrics(run)
    if part not in metrics:
        raise RequestError(f"{run} has no {part} part: train with data.test_fraction=0.2, or use part=val")
    own = config.data
    if own.split not in ("auto", "random"):  # the list may be gone
        own = dataclasses.replace(own, split=str((run / "splits.csv").absolute()))
    data = load_tiles(load_source(own), own)
    table = runs.read_predictions(run / "predictions" / f"{part}.csv")
    places = data.table.set_index("id")["row"].reindex(table["id"])
    if data.fingerprint != metrics.get("data_fingerprint") or places.isna().any():
        raise RequestError(
            f"the tiles, their labels, slides or split ({config.data.root or config.data.source}) are no longer those "
            f"that {run} was trained on: restore them"
        )
    return FinishedPart(config, metrics, table.assign(row=places.to_numpy(dtype="int64")), data.pack.tiles)
