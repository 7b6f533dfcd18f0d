"""What chose the levels, and where they do not fit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.special import expit

from histolight import files, runs
from histolight.inference.levels import VALIDATION, Levels, levels_of_evaluation, notes_on_levels
from histolight.statistics.decisions import Band


def table(slides: list[str | None]) -> pd.DataFrame:
    label = np.arange(len(slides)) % 2
    logit = (np.linspace(-1, 1, len(slides)) + label - 0.5).astype(np.float32)
    ids = [f"t{row}" for row in range(len(slides))]
    columns = {"id": ids, "label": label, "group": slides, "cluster": slides, "logit": logit, "score": expit(logit)}
    return pd.DataFrame(columns)


def levels(chosen_on: str, temperature: float | None = None) -> Levels:
    return Levels(0.5, Band(0.4, 0.6), temperature, 0.0, table(["a", "a", "b", None]), chosen_on)


@pytest.mark.parametrize(("seen", "said"), [(0, ""), (1200, ", 1,200 of which trained or chose the run")])
def test_what_chose_the_levels_says_how_much_of_it_the_run_knew(tmp_path: Path, seen: int, said: str) -> None:
    run, evaluation = tmp_path / "run", tmp_path / "evaluation"
    evaluation.mkdir()
    files.write_csv(evaluation / "predictions" / "test.csv", table(["a", "b"] * 20))
    runs.update_metrics(evaluation, status="completed", run=str(run.resolve()), split="other", tta="none", seen=seen)
    found = levels_of_evaluation(evaluation, run, "none", "none", 0.05, calibrate="false")
    assert found.chosen_on.startswith(f"the 40 tiles of {evaluation}{said}")
    assert found.chosen_on.endswith("evaluation" if not seen else "overlap such")


def test_slides_that_hold_tiles_of_both_kinds_are_counted() -> None:
    chosen = levels("the 4 tiles of first")
    (note,) = notes_on_levels(chosen, table(["a", "b", "c", "c", None]), "flips", "batch_norm")
    assert note.startswith("2 of the 3 slides of these tiles, by their names, hold tiles that chose the threshold")
    assert notes_on_levels(chosen, table(["c", "d", None, None]), "none", "none") == []
    assert notes_on_levels(chosen, table([None, None]), "none", "none") == []


@pytest.mark.parametrize(
    ("tta", "adapt", "temperature", "note"),
    [
        ("none", "prior", None, None),
        ("none", "none", 2.0, None),
        ("flips", "none", 2.0, "threshold, band of no call, calibration: chosen on scores without tta=flips"),
        ("flips", "prior", None, "threshold, band of no call, calibration: chosen on scores without tta=flips"),
        ("dihedral", "batch_norm", None, "chosen on scores without tta=dihedral and adapt=batch_norm"),
    ],
)
def test_levels_of_validation_say_what_scores_they_were_chosen_on(tta, adapt, temperature, note) -> None:
    notes = notes_on_levels(levels(VALIDATION, temperature), table(["a", "b"]), tta, adapt)
    assert len(notes) == (note is not None)
    assert note is None or notes[0].endswith(note)
