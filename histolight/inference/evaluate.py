"""One evaluation of a finished run: on the parts of its own tiles, or on tiles of another source."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from scipy.special import expit

from histolight import files, runs
from histolight.config.checks import absolute_paths
from histolight.config.compose import saved_config, to_yaml
from histolight.config.schema import RESAMPLED, Config, DataConfig
from histolight.data.overlaps import find_leaks, shows_something
from histolight.data.pack import Pack
from histolight.data.prepare import PackedTiles, find_warnings, load_tiles, with_hashes
from histolight.data.sources import load_source
from histolight.data.table import split_note
from histolight.errors import RequestError
from histolight.inference.adaptation import Adapted, adapt_prior, adapt_to_tiles, check_adaptable
from histolight.inference.evaluate_request import EvaluateConfig
from histolight.inference.evaluate_slides import slide_auroc
from histolight.inference.levels import (
    VALIDATION,
    Levels,
    check_apart,
    describe,
    levels_of_evaluation,
    levels_of_run,
    notes_on_levels,
)
from histolight.inference.networks import load_classifiers, predict_logits
from histolight.inference.recognition import Recognised, recognise, shared_slides
from histolight.models.classifier import Classifier
from histolight.reports import figures, measure
from histolight.reports.parts import known_tiles, score_texts
from histolight.reports.run_page import write_run_report
from histolight.reports.slide_maps import slides_figure
from histolight.statistics.decisions import Band
from histolight.statistics.figures import FIGURES, names_of
from histolight.statistics.intervals import Interval

FEW_TILES = 100  # that choose a calibration: so many make the NLL of right scores up to 6 % worse: docs/statistics.md


@dataclass(frozen=True)
class EvaluatedTiles:
    """The tiles to evaluate.

    Attributes:
        config: Where they come from.
        packed: The tiles.
        parts: The rows of each part: ``val`` and ``test`` of a run's own tiles, ``test`` of others.
        split: ``random``, ``slide`` or ``given``, as the run's own parts were made; ``other`` for other tiles.
        notes: What a reader of the figures must hear of.
        choice: For each part whether its tiles trained or chose the run, as its heading says it.
        recognised: What of other tiles is known to the run; None for the run's own.
    """

    config: DataConfig
    packed: PackedTiles
    parts: dict[str, pd.DataFrame]
    split: str
    notes: list[str]
    choice: dict[str, str]
    recognised: Recognised | None = None


def evaluate(request: EvaluateConfig) -> dict[str, Any]:
    """Measure a finished run and write ``metrics.json``, predictions, figures and ``report.html``.

    ``config.yaml`` says what was evaluated and how, ``training.yaml`` is the configuration of the run.

    Args:
        request: From :func:`histolight.inference.evaluate_request.evaluate_config`.

    Returns:
        What ``metrics.json`` holds.

    Raises:
        RequestError: The run is not completed, its tiles changed, or the given tiles can't be measured: of another
            size, without labels, of one class, or those that it was trained on.
        HistolightError: Out of memory, or logits that are not finite.
    """
    with files.claimed(request.directory):
        evaluation = prepare(request)
        tables = predict_parts(evaluation)
        if request.adapt == "prior":
            evaluation, tables = with_prior(evaluation, tables)
        measured = measure_parts(evaluation, tables)
        notes = notes_on(evaluation, tables, measured)
        pictures = draw_parts(evaluation, tables, measured)
        save(evaluation, tables, pictures)
        record(evaluation, tables, measured, notes)
        write_run_report(request.directory)
        return runs.read_metrics(request.directory)


@dataclass(frozen=True)
class Evaluation:
    """What is measured, with what.

    Attributes:
        run: The run directory.
        trained: Its ``metrics.json``.
        config: Its configuration, or one with other tiles, another batch size or another device.
        directory: Where the evaluation goes.
        tta: As in :func:`histolight.inference.networks.tile_views`.
        levels: What turns scores into calls.
        classifiers: The network, as an ensemble of one.
        tiles: The tiles and their parts.
        adapted: How it was fitted to the tiles without their labels.
    """

    run: Path
    trained: dict[str, Any]
    config: Config
    directory: Path
    tta: str
    levels: Levels
    classifiers: list[Classifier]
    tiles: EvaluatedTiles
    adapted: Adapted | None = None


def prepare(request: EvaluateConfig) -> Evaluation:
    """Load the network and find the tiles."""
    run, config = request.run, request.config
    classifiers = load_classifiers([run], config.data.image_size)
    trained = runs.completed_metrics(run)
    levels = find_levels(request, trained["threshold"])
    tiles = find_tiles(run, trained, config.data, request.requested)
    if tiles.split != "other" and (request.chosen_on or request.adapt != "none"):
        key = "chosen_on" if request.chosen_on else "adapt"
        raise RequestError(f"{key}= is for other tiles than the run's own, and these are its own: leave {key} out")
    if request.chosen_on is not None:
        check_apart(request.chosen_on, tiles.packed)
    check_adaptable(request.adapt, len(tiles.packed.table))
    config, adapted = dataclasses.replace(config, data=tiles.config), None
    if request.adapt == "batch_norm":
        own = runs.read_predictions(run / "predictions" / "val.csv")
        adapted = adapt_to_tiles(classifiers[0], tiles.packed, own, config.trainer, config.data.batch_size)
    return Evaluation(run, trained, config, request.directory, request.tta, levels, classifiers, tiles, adapted)


def find_levels(request: EvaluateConfig, threshold: float) -> Levels:
    """Choose threshold, band and temperature where the request says, else on the run's validation tiles."""
    abstain, calibrate = request.config.report.abstain, request.calibrate
    if request.chosen_on is None:
        return levels_of_run(request.run, threshold, abstain, calibrate)
    return levels_of_evaluation(request.chosen_on, request.run, request.tta, request.adapt, abstain, calibrate)


def predict_parts(evaluation: Evaluation) -> dict[str, pd.DataFrame]:
    """Score the tiles of each part: columns as in ``predictions/*.csv``."""
    tables, config, store = {}, evaluation.config, evaluation.tiles.packed.pack.tiles
    for part, table in evaluation.tiles.parts.items():
        rows = table["row"].to_numpy()
        batches = predict_logits(
            evaluation.classifiers, store, rows, config.trainer, config.data.batch_size, evaluation.tta
        )
        logits = np.fromiter((logit for batch in batches for logit in batch[:, 0]), np.float32, len(rows))
        tables[part] = measure.predictions_table(table, rows, logits)
    return tables


def with_prior(evaluation: Evaluation, tables: dict[str, pd.DataFrame]) -> tuple[Evaluation, dict[str, pd.DataFrame]]:
    """Fit the scores to the share of tumour among the tiles; the calls at the threshold stay what they are."""
    levels, (part, table) = evaluation.levels, next(iter(tables.items()))
    adapted = adapt_prior(table, levels.tiles)
    band = Band(adapted.score(levels.band.low), adapted.score(levels.band.high))
    levels = dataclasses.replace(levels, threshold=adapted.score(levels.threshold), band=band)
    return dataclasses.replace(evaluation, levels=levels, adapted=adapted), {part: adapted.table(table)}


def measure_parts(evaluation: Evaluation, tables: dict[str, pd.DataFrame]) -> dict[str, Any]:
    """Measure each part at 0.5, at the threshold, with the band and, with a temperature, calibrated."""
    levels, prevalence = evaluation.levels, evaluation.config.report.prevalence
    measured, temperature = describe(levels), levels.temperature
    for part, table in tables.items():
        measured |= measure.measure_part(part, table, levels.threshold, levels.band, prevalence)
        if temperature is not None:
            calibrated = measure.intervals(calibrated_table(table, temperature, levels.intercept), 0.5)
            measured[f"{part}_calibrated"] = calibrated | {name: measured[part][name] for name in names_of("order")}
    return measured


def notes_on(evaluation: Evaluation, tables: dict[str, pd.DataFrame], measured: dict[str, Any]) -> list[str]:
    """Say what a reader of the figures must know."""
    run, tta, tiles = evaluation.run, evaluation.tta, evaluation.tiles
    agreements = [
        _agreement(run, part, table, tta, evaluation.config) for part, table in tables.items() if tiles.split != "other"
    ]
    slides = [f"{part}: {sentence}" for part, (_, sentence) in slide_aurocs(evaluation, tables).items()]
    return [*tiles.notes, *agreements, *slides, *_calibration_notes(evaluation, measured, tables)]


def slide_aurocs(evaluation: Evaluation, tables: dict[str, pd.DataFrame]) -> dict[str, tuple[Interval | None, str]]:
    """Measure each part over whole slides, where the tiles come from such."""
    data = evaluation.config.data
    return {part: slide_auroc(table, data) for part, table in tables.items()} if data.source in RESAMPLED else {}


def draw_parts(
    evaluation: Evaluation, tables: dict[str, pd.DataFrame], measured: dict[str, Any]
) -> dict[str, dict[str, Figure]]:
    """Draw the figures of each part."""
    pictures, tiles, temperature = {}, evaluation.tiles, evaluation.levels.temperature
    stamp = evaluation.adapted.sentence if evaluation.adapted else ""
    kind = f"{tiles.split} split" if tiles.recognised is None else tiles.recognised.kind
    for part, table in tables.items():
        rows = tiles.parts[part]["row"].to_numpy()
        pictures[part] = measure.draw_part(part, table, rows, tiles.packed.pack.tiles, measured, kind, stamp)
        if evaluation.config.data.source in RESAMPLED:
            pictures[part]["slides"] = slides_figure(table, evaluation.config.data)
        if temperature is not None:
            calibrated = calibrated_table(table, temperature, evaluation.levels.intercept)
            ece = measured[f"{part}_calibrated"]["ece"].value
            pictures[part]["reliability_calibrated"] = figures.reliability_figure(
                calibrated["score"].to_numpy(),
                calibrated["label"].to_numpy(),
                f"{part}, temperature {temperature:.3f}{f', {stamp}' if stamp else ''}\nECE {ece:.4f}",
            )
    return pictures


def save(evaluation: Evaluation, tables: dict[str, pd.DataFrame], pictures: dict[str, dict[str, Figure]]) -> None:
    """Write tables, figures, the findings on the tiles and both configurations."""
    directory, tiles = evaluation.directory, evaluation.tiles
    for part, table in tables.items():
        files.write_csv(directory / "predictions" / f"{part}.csv", table)
        measure.save_figures(pictures[part], part, directory)
    warnings = find_warnings(pd.concat(tiles.parts.values()), tiles.packed.pack)
    if len(warnings):
        files.write_csv(directory / "data_problems.csv", warnings)
    if tiles.recognised is not None:
        runs.write_splits(directory, with_hashes(tiles.packed).assign(split="test"))
        if len(tiles.recognised.table):
            files.write_csv(directory / "recognised.csv", tiles.recognised.table)
    own = dataclasses.replace(evaluation.config, data=absolute_paths(evaluation.config.data))
    files.write_atomically(directory / "config.yaml", to_yaml(own))
    files.write_atomically(directory / "training.yaml", to_yaml(saved_config(evaluation.run)))


def record(evaluation: Evaluation, tables: dict[str, pd.DataFrame], measured: dict[str, Any], notes: list[str]) -> None:
    """Write ``metrics.json``."""
    tiles, trained = evaluation.tiles, evaluation.trained
    counts = {part: table["label"].value_counts() for part, table in tables.items()}
    seen, known = (0, None) if (found := tiles.recognised) is None else (len(found.table), found.counts)
    runs.update_metrics(
        evaluation.directory,
        status="completed",
        reason=None,
        run=str(evaluation.run.resolve()),
        devices=trained.get("devices"),
        tta=evaluation.tta,
        adapted=evaluation.adapted and {**vars(evaluation.adapted), "sentence": evaluation.adapted.sentence},
        split=tiles.split,
        slides=int(pd.concat(tiles.parts.values())["group"].nunique()),
        tiles={part: {str(label): int(count.get(label, 0)) for label in (0, 1)} for part, count in counts.items()},
        origin={part: _origin(part, evaluation) for part in tables},
        seen=seen,
        recognised=known,
        **({"split_note": f"no split: of these tiles {known_tiles(seen, known)}"} if seen else {}),
        notes=notes,
        data_fingerprint=tiles.packed.fingerprint,
        selected_on="val",
        slides_auroc={part: interval for part, (interval, _) in slide_aurocs(evaluation, tables).items()},
        **measured,
        **runs.provenance(),
    )


def find_tiles(run: Path, trained: dict[str, Any], config: DataConfig, requested: Collection[str]) -> EvaluatedTiles:
    """Find the run's own parts, or, where the keys in ``requested`` ask for other tiles, those.

    The tiles decide: a run's own, however they are named, are measured by its own parts.
    """
    if config.split not in ("auto", "random"):  # the list may be gone, and says nothing about other tiles
        own = str((run / "splits.csv").absolute())
        config = dataclasses.replace(config, split="auto" if {"data", "data.root"} & set(requested) else own)
    source = load_source(config)
    packed = load_tiles(source, config)
    if packed.fingerprint == trained["data_fingerprint"]:
        split = packed.table["id"].map(runs.read_splits(run)["split"])
        if split.isna().any():
            raise RequestError(f"{run / 'splits.csv'} is damaged: it lacks {split.isna().sum()} of the run's tiles")
        parts = {part: packed.table[split == part] for part in ("val", "test") if (split == part).any()}
        own_choice = _own_choice(packed.table.assign(split=split), packed.pack)
        return EvaluatedTiles(config, packed, parts, trained["split"], [], own_choice)
    if not requested:
        raise RequestError(
            f"the tiles, their labels or slides are no longer those that {run} was trained and validated on: restore "
            "them, or evaluate other tiles with data=SOURCE data.root=FOLDER"
        )
    if not {"data", "data.limit"} & set(requested):
        config = dataclasses.replace(config, limit=None)  # the run's own limit says nothing about other tiles
    part = "test" if (source.table["split"] == "test").any() else None
    packed = load_tiles(source, config, part)
    labels = packed.table["label"].unique()
    if len(labels) < 2:
        raise RequestError(f"all {len(packed.table)} tiles have the label {labels[0]}: the figures need both classes")
    recognised = recognise(run, packed)
    seen = len(recognised.table)
    if seen and not {"data", "data.root"} & set(requested):
        raise RequestError(
            f"{seen} of these {len(packed.table)} tiles trained or chose {run}, or overlap tiles that did: without "
            f"{', '.join(sorted(requested))} its own validation and test tiles are measured; or give other tiles with "
            "data=SOURCE data.root=FOLDER"
        )
    notes = []
    if packed.table["group"].isna().all():
        notes.append(
            "slides unknown: the intervals take tiles that overlap for one sample, each other tile for a sample of its "
            "own, and are likely too short"
        )
    notes.append(recognised.sentence)
    notes += shared_slides(run, packed.table)
    if seen:
        choice = f"of which {known_tiles(seen, recognised.counts)}"
    else:
        choice = "which chose nothing" if recognised.by_pixels else "whose ids neither trained nor chose"
    return EvaluatedTiles(config, packed, {"test": packed.table}, "other", notes, {"test": choice}, recognised)


def _own_choice(table: pd.DataFrame, pack: Pack) -> dict[str, str]:
    """Say of the run's own parts what they chose, and how many of their tiles are known from other parts."""
    pairs = pack.overlaps[shows_something(pack.overlaps, pack.contrast)]
    _, leaking = find_leaks(table, pairs, len(pack.tiles))
    choice = {"val": "on which the epoch and the threshold were chosen", "test": "which chose nothing"}
    if leaking["val"]:
        choice["val"] += f"; {leaking['val']:,} of them share pixels with training tiles"
    if leaking["test"]:
        choice["test"] = f"of which {leaking['test']:,} share pixels with tiles that trained or chose the run"
    return choice


def calibrated_table(table: pd.DataFrame, temperature: float, intercept: float) -> pd.DataFrame:
    """Divide the logits of a table of predictions by the temperature, and add the intercept."""
    logit = (table["logit"].astype(np.float64) / temperature + intercept).astype(np.float32)
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
        else "another device, precision or batch size, or features that were kept"
    )
    return f"{part}: logits differ from the training's by up to {apart:.2g} ({why})"


def _origin(part: str, evaluation: Evaluation) -> str:
    tiles, data = evaluation.tiles, evaluation.config.data
    if tiles.split == "other":
        stamp = f"; {evaluation.adapted.sentence}" if evaluation.adapted else ""
        return f"data={data.source} data.root={data.root}, {tiles.choice[part]}{stamp}"
    return f"the run's own {part} part, {tiles.choice[part]}; {split_note(evaluation.trained)}"


def _calibration_notes(evaluation: Evaluation, measured: dict[str, Any], tables: dict[str, pd.DataFrame]) -> list[str]:
    levels, adapted = evaluation.levels, evaluation.adapted.how if evaluation.adapted else "none"
    notes = notes_on_levels(levels, pd.concat(tables.values()), evaluation.tta, adapted)
    own = levels.chosen_on == VALIDATION
    chosen_on = "the run's validation tiles" if own else levels.chosen_on
    notes.append(f"the threshold {score_texts(measured['threshold'])[0]} was chosen on {chosen_on}")
    if measured["temperature"] is None:
        return notes
    where = f"the validation predictions of {evaluation.run}" if own else evaluation.levels.chosen_on
    line = f" and intercept {evaluation.levels.intercept:.4f}" if evaluation.levels.intercept else ""
    count = len(levels.tiles)
    few = f": {count} tiles, of which so few can make scores worse" if count < FEW_TILES else ""
    notes.append(f"temperature {measured['temperature']:.4f}{line}, fitted on {where}{few}")
    for part in tables:
        before, after = measured[part], measured[f"{part}_calibrated"]
        moved = [
            f"{FIGURES[name].heading} {before[name].value:.4f} to {after[name].value:.4f}"
            for name in names_of("scores")
        ]
        notes.append(f"{part}: {', '.join(moved)}{', on the tiles that it was fitted on' if part == 'val' else ''}")
    return notes
