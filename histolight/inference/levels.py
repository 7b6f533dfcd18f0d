"""What turns scores into calls: the threshold, the band of no call, the temperature; and what chose them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from histolight import runs
from histolight.data.prepare import PackedTiles
from histolight.errors import RequestError
from histolight.inference.recognition import recognise
from histolight.statistics.calibration import fit_line, fit_temperature
from histolight.statistics.decisions import Band, choose_band
from histolight.statistics.metrics import best_threshold

VALIDATION = "validation"


@dataclass(frozen=True)
class Levels:
    """The levels of one network's scores.

    Attributes:
        threshold: Of the highest balanced accuracy.
        band: The scores that are called neither way.
        temperature: Divides the logits of the calibrated figures; None where there are none.
        intercept: Is then added to them; 0 unless a line was fitted.
        tiles: The labelled predictions that they were chosen on.
        chosen_on: Names these, as ``metrics.json`` has it.
    """

    threshold: float
    band: Band
    temperature: float | None
    intercept: float
    tiles: pd.DataFrame
    chosen_on: str


def levels_of_run(run: Path, threshold: float, abstain: float, calibrate: str) -> Levels:
    """Choose the levels on a run's own validation tiles, but for the threshold, which its training chose there.

    Raises:
        RequestError: Their predictions are missing or damaged, or no temperature is best.
    """
    tiles = runs.read_predictions(run / "predictions" / "val.csv")
    return _levels(tiles, threshold, VALIDATION, abstain, calibrate)


def levels_of_evaluation(evaluation: Path, run: Path, tta: str, adapt: str, abstain: float, calibrate: str) -> Levels:
    """Choose the levels on the tiles of an earlier evaluation of the same run, such as those of other slides.

    Raises:
        RequestError: It is not an evaluation of other tiles by this very network and with the same views of each tile,
            or its predictions are damaged.
    """
    metrics = runs.read_metrics(evaluation)
    if metrics["status"] != "completed" or "run" not in metrics or metrics.get("split") != "other":
        raise RequestError(
            f"chosen_on={evaluation} is not an evaluation of other tiles: make one with histolight evaluate run={run} "
            "data=SOURCE data.root=FOLDER"
        )
    same = {
        "run": (str(run.resolve()), metrics["run"]),
        "tta": (tta, metrics.get("tta", "none")),
        "adapt": ("none" if adapt == "prior" else adapt, (metrics.get("adapted") or {}).get("how", "none")),
    }
    for key, (here, there) in same.items():
        if here != there:
            raise RequestError(
                f"chosen_on={evaluation} has {key}={there}, and this evaluation needs {key}={here}: its scores are not "
                "on the same scale"
            )
    tiles = runs.read_predictions(evaluation / "predictions" / "test.csv")
    scores, labels = (torch.tensor(tiles[name].to_numpy()) for name in ("score", "label"))
    seen = f", {metrics['seen']:,} of which trained or chose the run, or overlap such" if metrics.get("seen") else ""
    name = f"the {len(tiles):,} tiles of {evaluation}{seen}"
    return _levels(tiles, best_threshold(scores, labels), name, abstain, calibrate)


def _levels(tiles: pd.DataFrame, threshold: float, chosen_on: str, abstain: float, calibrate: str) -> Levels:
    band = choose_band(tiles["score"], tiles["label"], abstain, threshold)
    temperature, intercept = None, 0.0
    if calibrate == "true":
        temperature = fit_temperature(tiles["logit"], tiles["label"])
    elif calibrate == "line":
        slope, intercept = fit_line(tiles["logit"], tiles["label"])
        temperature = 1 / slope
    return Levels(threshold, band, temperature, intercept, tiles, chosen_on)


def check_apart(evaluation: Path, packed: PackedTiles) -> None:
    """Raise :class:`RequestError` where tiles chose the levels, as those of the evaluation, or overlap them."""
    known = recognise(evaluation, packed, ["test"]).table
    if len(known):
        raise RequestError(
            f"{len(known):,} of these {len(packed.table):,} tiles are among those of chosen_on={evaluation}, or "
            "overlap them: figures at a threshold that was chosen on the same tiles flatter; give others"
        )


def notes_on_levels(levels: Levels, tiles: pd.DataFrame, tta: str, adapt: str) -> list[str]:
    """Say where scores are on another scale than those that chose the levels, and where the slides are the same."""
    if levels.chosen_on == VALIDATION:
        unlike = [f"tta={tta}"] * (tta != "none") + [f"adapt={adapt}"] * (adapt == "batch_norm")
        chosen = ["threshold", "band of no call"]
        chosen += ["calibration"] * (levels.temperature is not None or adapt == "prior")
        return [f"{', '.join(chosen)}: chosen on scores without {' and '.join(unlike)}"] if unlike else []
    slides = tiles["group"].dropna().unique()
    shared = int(pd.Series(slides).isin(levels.tiles["group"]).sum())
    return [
        f"{shared:,} of the {len(slides):,} slides of these tiles, by their names, hold tiles that chose the threshold "
        "too: figures that depend on it are of other tiles of these slides, not of other slides"
    ] * (shared > 0)


def describe(levels: Levels) -> dict[str, Any]:
    """Return the levels as ``metrics.json`` has them."""
    return {
        "threshold": levels.threshold,
        "abstention": levels.band,
        "temperature": levels.temperature,
        "intercept": levels.intercept,
        "chosen_on": levels.chosen_on,
        "choosing": {str(label): int((levels.tiles["label"] == label).sum()) for label in (0, 1)},
    }
