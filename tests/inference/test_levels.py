"""What chose the levels, and where they do not fit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.special import expit
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score

from histolight import files, runs
from histolight.errors import RequestError
from histolight.inference.levels import (
    VALIDATION,
    Levels,
    describe,
    levels_of_evaluation,
    levels_of_run,
    notes_on_levels,
)
from histolight.statistics.decisions import Band


def table(slides: list[str | None]) -> pd.DataFrame:
    label = np.arange(len(slides)) % 2
    logit = (np.linspace(-1, 1, len(slides)) + label - 0.5).astype(np.float32)
    ids = [f"t{row}" for row in range(len(slides))]
    columns = {"id": ids, "label": label, "group": slides, "cluster": slides, "logit": logit, "score": expit(logit)}
    return pd.DataFrame(columns)


def levels(chosen_on: str, temperature: float | None = None) -> Levels:
    return Levels(0.5, Band(0.4, 0.6), temperature, 0.0, table(["a", "a", "b", None]), chosen_on)


def evaluated(run: Path, /, **metrics: object) -> Path:
    """Write an evaluation of a run on 40 other tiles."""
    evaluation = run.with_name("evaluation")
    files.write_csv(evaluation / "predictions" / "test.csv", table(["a", "b"] * 20))
    recorded = {"status": "completed", "run": str(run.resolve()), "split": "other", "tta": "none"}
    runs.update_metrics(evaluation, **{**recorded, **metrics})
    return evaluation


@pytest.mark.parametrize(("seen", "said"), [(0, ""), (1200, ", 1,200 of which trained or chose the run")])
def test_what_chose_the_levels_says_how_much_of_it_the_run_knew(tmp_path: Path, seen: int, said: str) -> None:
    evaluation = evaluated(tmp_path / "run", seen=seen)
    found = levels_of_evaluation(evaluation, tmp_path / "run", "none", "none", 0.05, calibrate="false")
    assert found.chosen_on.startswith(f"the 40 tiles of {evaluation}{said}")
    assert found.chosen_on.endswith("evaluation" if not seen else "overlap such")
    assert describe(found)["choosing"] == {"0": 20, "1": 20}


@pytest.mark.parametrize("calibrate", ["false", "true", "line"])
def test_a_runs_own_validation_or_an_evaluation_chooses_what_was_asked_for(tmp_path: Path, calibrate: str) -> None:
    run = tmp_path / "run"
    evaluation, tiles = evaluated(run), table(["a", "b"] * 20)
    files.write_csv(run / "predictions" / "val.csv", tiles)
    own = levels_of_run(run, 0.31, 0.05, calibrate)
    other = levels_of_evaluation(evaluation, run, "none", "none", 0.05, calibrate)
    assert (own.threshold, own.chosen_on) == (0.31, VALIDATION)  # the training chose it
    reached = [
        balanced_accuracy_score(tiles["label"], tiles["score"] > at) for at in (other.threshold, *tiles["score"])
    ]
    assert reached[0] == max(reached) > 0.7
    for found in (own, other):
        if calibrate == "false":
            assert (found.temperature, found.intercept) == (None, 0.0)
            continue
        fitted = LogisticRegression(C=np.inf, fit_intercept=calibrate == "line", tol=1e-10)
        fitted.fit(tiles[["logit"]].to_numpy(np.float64), tiles["label"])
        expected = (1 / fitted.coef_[0, 0], np.ravel(fitted.intercept_)[0])
        assert (found.temperature, found.intercept) == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize(
    ("recorded", "tta", "adapt", "message"),
    [
        ({}, "none", "none", None),
        ({}, "none", "prior", None),  # which moves the levels with the scores
        ({"adapted": {"how": "batch_norm"}}, "none", "batch_norm", None),
        ({}, "none", "batch_norm", "has adapt=none, and this evaluation needs adapt=batch_norm"),
        ({"adapted": {"how": "prior"}}, "none", "prior", "has adapt=prior, and this evaluation needs adapt=none"),
        ({"tta": "flips"}, "none", "none", "has tta=flips, and this evaluation needs tta=none"),
        ({}, "dihedral", "none", "has tta=none, and this evaluation needs tta=dihedral"),
        (
            {"run": "/elsewhere"},
            "none",
            "none",
            "has run=/elsewhere, and this evaluation needs run=/.*/run: its scores",
        ),
        ({"split": "overlap"}, "none", "none", "is not an evaluation of other tiles"),
        ({"status": "failed"}, "none", "none", "is not an evaluation of other tiles"),
    ],
)
def test_levels_are_taken_of_scores_on_the_same_scale_alone(
    recorded: dict[str, object], tta: str, adapt: str, message: str | None, tmp_path: Path
) -> None:
    evaluation = evaluated(tmp_path / "run", **recorded)
    if message is None:
        assert levels_of_evaluation(evaluation, tmp_path / "run", tta, adapt, 0.05, "false").temperature is None
        return
    with pytest.raises(RequestError, match=message):
        levels_of_evaluation(evaluation, tmp_path / "run", tta, adapt, 0.05, "false")


def test_slides_that_hold_tiles_of_both_kinds_are_counted() -> None:
    chosen = levels("the 4 tiles of first")
    (note,) = notes_on_levels(chosen, table(["a", "b", "c", "c", None]), "flips", "batch_norm")
    assert note.startswith("2 of the 3 slides of these tiles, by their names, hold tiles that chose the threshold")
    (note,) = notes_on_levels(chosen, table(["b", "c"]), "none", "none")
    assert note.startswith("1 of the 2 slides")
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
