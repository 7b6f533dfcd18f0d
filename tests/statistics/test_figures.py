from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import matthews_corrcoef
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from histolight import api
from histolight.commands.evaluate import figures_table
from histolight.ranking.ranking import compare_runs
from histolight.ranking.tables import comparison_csv, further_table
from histolight.statistics.figures import FIGURES, FigureOfMerit, LabelledScores, names_of
from histolight.statistics.intervals import Interval


def correlation(tiles: LabelledScores) -> Interval:
    value = matthews_corrcoef(tiles.positive, tiles.called)
    return Interval(float(value), float(value) - 0.25, float(value) + 0.25, "an invented method")


def test_a_figure_of_merit_is_one_entry(small: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figure = FigureOfMerit("matthews", "Matthews correlation", "calls", measure=correlation)
    monkeypatch.setitem(FIGURES, figure.name, figure)
    monkeypatch.setattr("histolight.reports.measure.draw_part", lambda *_: {})
    run = api.train([*small, "trainer.max_epochs=1", f"hydra.run.dir={tmp_path / 'run'}"])

    table, metrics = run.predictions("val"), json.loads((run.directory / "metrics.json").read_text())
    for part, threshold in (("val", 0.5), ("val_at_threshold", metrics["threshold"])):
        value = matthews_corrcoef(table["label"], table["score"] > np.float32(threshold))
        assert metrics[part]["matthews"]["value"] == pytest.approx(value)
    value = metrics["val"]["matthews"]["value"]

    events = EventAccumulator(str(run.directory / "tensorboard"))
    events.Reload()
    assert events.Scalars("val/matthews")[-1].value == pytest.approx(value)
    assert events.Scalars("final/val_matthews")[-1].value == pytest.approx(value)

    page = (run.directory / "report.html").read_text()
    assert "Matthews correlation" in page
    assert f"{value:.4f} <small>[{value - 0.25:.4f}, {value + 0.25:.4f}]</small>" in page
    assert "Matthews correlation: an invented method." in page
    assert "Matthews correlation" in [str(row[0]) for row in figures_table(metrics, "val").rows]

    ranking = compare_runs([run.directory])
    further = further_table(ranking)
    assert str(further.rows[0][list(further.columns).index("Matthews correlation")]) == f"{value:.3f}"
    assert comparison_csv(ranking)["matthews"].tolist() == pytest.approx([value])


def test_an_older_run_without_a_figure_is_read_as_it_is() -> None:
    assert names_of("order", "calls", "scores") == list(FIGURES)
    metrics = {
        "threshold": 0.3,
        "val": {"auroc": {"value": 0.9, "low": 0.8, "high": None}},
        "val_at_threshold": {},
    }
    assert [[str(cell) for cell in row] for row in figures_table(metrics, "val").rows] == [
        ["AUROC", "0.9000 [no interval]", ""]
    ]
