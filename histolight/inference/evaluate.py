"""One evaluation of a finished run: on the parts of its own tiles, or on tiles of another source."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import expit

from histolight import files, runs
from histolight.config.compose import saved_config, to_yaml
from histolight.config.schema import Config, DataConfig
from histolight.data.prepare import PackedTiles, find_warnings, load_tiles
from histolight.data.sources import load_source
from histolight.data.table import SPLITS
from histolight.errors import RequestError
from histolight.inference.networks import first_problem, load_classifiers, predict_logits
from histolight.reports import figures, measure
from histolight.reports.run_page import write_run_report
from histolight.statistics.calibration import fit_temperature
from histolight.statistics.figures import FIGURES, names_of


@dataclass(frozen=True)
class EvaluatedTiles:
    """The tiles to evaluate.

    Attributes:
        config: Where they come from.
        packed: The tiles.
        parts: The rows of each part: ``val`` and ``test`` of a run's own tiles, ``test`` of others.
        split: ``random``, ``slide`` or ``given``, as the run's own parts were made; ``other`` for other tiles.
        notes: What a reader of the figures must hear of.
        seen: How many of other tiles have the id of one that trained or chose the run.
    """

    config: DataConfig
    packed: PackedTiles
    parts: dict[str, pd.DataFrame]
    split: str
    notes: list[str]
    seen: int = 0


def evaluate(
    run: Path,
    config: Config,
    directory: Path,
    other: Collection[str] = (),
    tta: str = "none",
    calibrate: bool = False,
) -> dict[str, Any]:
    """Measure a finished run and write ``metrics.json``, predictions, figures and ``report.html``.

    ``config.yaml`` says what was evaluated and how, ``training.yaml`` is the configuration of the run.

    Args:
        run: The run directory.
        config: Its configuration, or one with other tiles, another batch size or another device.
        directory: An empty folder for the evaluation.
        other: Which keys of ``data`` ask for other tiles than the run's own.
        tta: As in :func:`histolight.inference.networks.tile_views`.
        calibrate: Measure the scores also as a temperature changes them, fitted on the run's validation predictions.

    Returns:
        What ``metrics.json`` holds.

    Raises:
        RequestError: The run is not completed, its tiles changed, or the given tiles can't be measured: of another
            size, without labels, of one class, or those that it was trained on.
        HistolightError: Out of memory, or logits that are not finite.
    """
    classifiers = load_classifiers([run], config.data.image_size)
    trained = runs.completed_metrics(run)
    temperature = run_temperature(run) if calibrate else None
    tiles = find_tiles(run, trained, config.data, other)
    config = dataclasses.replace(config, data=tiles.config)
    warnings = find_warnings(pd.concat(tiles.parts.values()), tiles.packed.pack)
    found: dict[str, Any] = {"threshold": trained["threshold"], "temperature": temperature}
    tables, drawn, notes = {}, {}, list(tiles.notes)
    for part, table in tiles.parts.items():
        rows = table["row"].to_numpy()
        batches = predict_logits(
            classifiers, tiles.packed.pack.tiles, rows, config.trainer, config.data.batch_size, tta
        )
        logits = np.fromiter((logit for batch in batches for logit in batch[:, 0]), np.float32, len(rows))
        tables[part] = measure.predictions_table(table, rows, logits)
        found |= measure.measure_part(part, tables[part], found["threshold"])
        drawn[part] = measure.draw_part(part, tables[part], rows, tiles.packed.pack.tiles, found, tiles.split)
        if temperature is not None:
            calibrated = calibrated_table(tables[part], temperature)
            all_figures = measure.intervals(calibrated, 0.5)
            found[f"{part}_calibrated"] = all_figures | {name: found[part][name] for name in names_of("order")}
            drawn[part]["reliability_calibrated"] = figures.reliability_figure(
                calibrated["score"].to_numpy(),
                calibrated["label"].to_numpy(),
                f"{part}, temperature {temperature:.3f}\nECE {all_figures['ece'].value:.4f}",
            )
        if tiles.split != "other":
            notes.append(_agreement(run, part, tables[part], tta, config))
    for part, table in tables.items():
        files.write_csv(directory / "predictions" / f"{part}.csv", table)
        measure.save_figures(drawn[part], part, directory)
    if len(warnings):
        files.write_csv(directory / "data_problems.csv", warnings)
    files.write_atomically(directory / "config.yaml", to_yaml(_absolute(config)))
    files.write_atomically(directory / "training.yaml", to_yaml(saved_config(run)))
    runs.update_metrics(
        directory,
        status="completed",
        reason=None,
        run=str(run.resolve()),
        devices=trained.get("devices"),
        tta=tta,
        split=tiles.split,
        slides=int(pd.concat(tiles.parts.values())["group"].nunique()),
        tiles={
            part: {str(label): int((table["label"] == label).sum()) for label in (0, 1)}
            for part, table in tables.items()
        },
        origin={part: _origin(part, tiles.split, config.data, tiles.seen) for part in tables},
        seen=tiles.seen,
        notes=notes + _calibration_notes(found, tables, run, tta),
        data_fingerprint=tiles.packed.fingerprint,
        selected_on="val",
        **found,
        **runs.provenance(),
    )
    write_run_report(directory)
    return runs.read_metrics(directory)


def find_tiles(run: Path, trained: dict[str, Any], config: DataConfig, other: Collection[str]) -> EvaluatedTiles:
    """Find the run's own parts, or, where the keys in ``other`` ask for other tiles, those.

    The tiles decide: a run's own, however they are named, are measured by its own parts.
    """
    with first_problem():
        source = load_source(config)
        packed = load_tiles(source, config)
    splits = runs.read_splits(run)
    if packed.fingerprint == trained["data_fingerprint"]:
        split = packed.table["id"].map(splits)
        if split.isna().any():
            raise RequestError(f"{run / 'splits.csv'} is damaged: it lacks {split.isna().sum()} of the run's tiles")
        parts = {part: packed.table[split == part] for part in ("val", "test") if (split == part).any()}
        return EvaluatedTiles(config, packed, parts, trained["split"], [])
    if not other:
        raise RequestError(
            f"the tiles, their labels or slides are no longer those that {run} was trained and validated on: restore "
            "them, or evaluate other tiles with data=SOURCE data.root=FOLDER"
        )
    if not {"data", "data.limit"} & set(other):
        config = dataclasses.replace(config, limit=None)  # the run's own limit says nothing about other tiles
    part = "test" if (source.table["split"] == "test").any() else None
    packed = load_tiles(source, config, part)
    labels = packed.table["label"].unique()
    if len(labels) < 2:
        raise RequestError(f"all {len(packed.table)} tiles have the label {labels[0]}: the figures need both classes")
    seen = int(packed.table["id"].isin(splits.index[splits != "test"]).sum())
    if seen and not {"data", "data.root"} & set(other):
        raise RequestError(
            f"{seen} of these {len(packed.table)} tiles trained or chose {run}: without {', '.join(sorted(other))} its "
            "own validation and test tiles are measured; or give other tiles with data=SOURCE data.root=FOLDER"
        )
    notes = []
    if packed.table["group"].isna().all():
        notes.append("slides unknown: the intervals take each tile for a sample of its own, and are likely too short")
    if seen:
        notes.append(f"{seen:,} of these tiles have the id of one that trained or chose the run: is it the same tile?")
    return EvaluatedTiles(config, packed, {"test": packed.table}, "other", notes, seen)


def run_temperature(run: Path) -> float:
    """Fit the temperature of a run on the predictions of its validation tiles.

    Raises:
        RequestError: They are missing, or no temperature is best.
    """
    table = runs.read_predictions(run / "predictions" / "val.csv")
    return fit_temperature(table["logit"], table["label"])


def calibrated_table(table: pd.DataFrame, temperature: float) -> pd.DataFrame:
    """Divide the logits of a table of predictions by a temperature."""
    logit = table["logit"] / np.float32(temperature)
    return table.assign(logit=logit, score=expit(logit))


def _agreement(run: Path, part: str, table: pd.DataFrame, tta: str, config: Config) -> str:
    """Say whether these are the figures of the training, and if not, why and how far apart the logits are."""
    if tta != "none":
        return f"{part}: not the training's own figures, which are without tta"
    path = run / "predictions" / f"{part}.csv"
    recorded = runs.read_predictions(path).set_index("id")["logit"].reindex(table["id"]).to_numpy()
    if np.isnan(recorded).any():
        raise RequestError(f"{path} is damaged: it lacks {np.isnan(recorded).sum()} of the run's tiles")
    apart = float(np.abs(recorded - table["logit"].to_numpy()).max())
    if apart == 0:
        return f"{part}: the same logits, bit for bit, as in the training"
    why = (
        "the training augmented these tiles (data.augment_val)"
        if config.data.augment_val and part == "val"
        else ("another device, precision or batch size")
    )
    return f"{part}: logits differ from the training's by up to {apart:.2g} ({why})"


def _origin(part: str, split: str, data: DataConfig, seen: int) -> str:
    if split == "other":
        choice = f"of which {seen:,} may have trained or chose the run" if seen else "which chose nothing"
        return f"data={data.source} data.root={data.root}, {choice}"
    chose = "on which the epoch and the threshold were chosen" if part == "val" else "which chose nothing"
    return f"the run's own {part} part, {chose}; {SPLITS[split]}"


def _calibration_notes(found: dict[str, Any], tables: dict[str, pd.DataFrame], run: Path, tta: str) -> list[str]:
    if found["temperature"] is None:
        return []
    notes = [f"temperature {found['temperature']:.4f}, fitted on the validation predictions of {run}"]
    for part in tables:
        before, after = found[part], found[f"{part}_calibrated"]
        moved = [
            f"{FIGURES[name].heading} {before[name].value:.4f} to {after[name].value:.4f}"
            for name in names_of("scores")
        ]
        notes.append(f"{part}: {', '.join(moved)}{', on the tiles that it was fitted on' if part == 'val' else ''}")
    if tta != "none":
        notes.append("the temperature was fitted to logits without tta")
    return notes


def _absolute(config: Config) -> Config:
    """Make the paths hold from any working directory."""
    data = config.data
    paths = {key: getattr(data, key) for key in ("root", "cache", "groups")}
    full = {key: os.path.abspath(os.path.expanduser(path)) for key, path in paths.items() if path}
    return dataclasses.replace(config, data=dataclasses.replace(data, **full))
