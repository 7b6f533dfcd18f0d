from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from scipy.special import expit, logit
from scipy.stats import binomtest
from sklearn.metrics import matthews_corrcoef, roc_curve
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from histolight import api
from histolight.commands.evaluate import figures_table
from histolight.ranking.ranking import compare_runs
from histolight.ranking.tables import comparison_csv, further_table
from histolight.statistics.figures import (
    FIGURES,
    FigureOfMerit,
    LabelledScores,
    calibration_error,
    error_by_chance,
    names_of,
    sensitivity_at_specificity,
)
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
    assert [name for name, figure in FIGURES.items() if not figure.higher_is_better] == ["nll", "ece"]
    metrics = {
        "threshold": 0.3,
        "val": {"auroc": {"value": 0.9, "low": 0.8, "high": None}},
        "val_at_threshold": {},
    }
    assert [[str(cell) for cell in row] for row in figures_table(metrics, "val").rows] == [
        ["AUROC", "0.9000 [no interval]", ""]
    ]


def tiles_of(logits, labels, groups=None) -> LabelledScores:
    return LabelledScores(np.asarray(logits, np.float32), np.asarray(labels, bool), 0.5, groups, 0.95)


@pytest.mark.parametrize(("specificity", "sensitivity"), [(1.0, 0.5), (0.5, 0.5), (0.0, 1.0)])
def test_a_tumour_tile_below_all_others_counts(specificity: float, sensitivity: float) -> None:
    tiles = tiles_of(logit([0.9, 0.6, 0.4, 0.1]), [1, 0, 0, 1])
    assert sensitivity_at_specificity(tiles, specificity).value == sensitivity


def test_tiles_that_overlap_are_one_piece_of_evidence_where_slides_are_unknown() -> None:
    random = np.random.default_rng(3)
    labels = np.tile([0, 1], 100)
    pieces = random.normal(size=50).repeat(4)  # four tiles a piece, with nearly the same error
    logits = labels + pieces + random.normal(scale=0.05, size=200)
    alone = sensitivity_at_specificity(tiles_of(logits, labels), 0.8)
    together = sensitivity_at_specificity(tiles_of(logits, labels, [f"c{number // 4}" for number in range(200)]), 0.8)
    assert together.value == alone.value
    assert together.high - together.low > 1.3 * (alone.high - alone.low)


def test_the_interval_of_sensitivity_at_a_specificity_allows_for_the_threshold() -> None:
    random = np.random.default_rng(2)
    labels = np.arange(100) < 40
    logits = (labels + random.normal(size=100)).astype(np.float32)
    negatives, positives = np.sort(expit(logits[~labels])), expit(logits[labels])

    def exact(count: int, of: int) -> tuple[float, float]:  # each of the two at 97.5 %
        return binomtest(count, of).proportion_ci(0.975, method="exact")

    below, above = exact(57, 60)  # ceil(0.95 x 60) negatives lie at or below the threshold
    ends = []
    for share, side in ((above, 0), (below, 1)):
        threshold = negatives[math.ceil(share * 60) - 1]
        ends.append(exact(int((positives > threshold).sum()), 40)[side])
    measured = sensitivity_at_specificity(tiles_of(logits, labels))
    assert (measured.low, measured.high) == pytest.approx(ends)


@pytest.mark.parametrize(("negatives", "method"), [(58, "none"), (59, "woodruff")])
def test_there_is_no_interval_where_all_negative_tiles_may_lie_below_the_threshold_sought(negatives, method) -> None:
    logits = np.random.default_rng(4).normal(size=negatives + 30)
    measured = sensitivity_at_specificity(tiles_of(logits, np.arange(negatives + 30) < 30))  # 0.95^59 < 0.05 < 0.95^58
    assert measured.method == method
    assert ("58 negative tiles are too few to find the threshold of 95% specificity" in measured.note) == (
        method == "none"
    )


@pytest.mark.parametrize("ties", [1, 3])
def test_sensitivity_at_a_specificity_is_the_best_point_of_the_curve(ties: int) -> None:
    random = np.random.default_rng(1)
    labels = random.integers(0, 2, 400)
    logits = (labels + random.normal(size=400)).round(ties)
    false, true, _ = roc_curve(labels, logits, drop_intermediate=False)
    measured = sensitivity_at_specificity(tiles_of(logits, labels))
    assert measured.value == pytest.approx(true[false <= 0.05].max())
    assert measured.low < measured.value < measured.high
    assert measured.method == "woodruff"
    assert sensitivity_at_specificity(tiles_of(logits, labels, np.arange(400) % 40)).method == "woodruff"
    one = sensitivity_at_specificity(tiles_of(logits, labels, ["one"] * 400))
    assert np.isnan(one.low)
    assert (one.value, one.method) == (measured.value, "none")


@pytest.mark.parametrize("count", [60, 1000])
def test_the_ece_of_scores_that_are_right_is_what_chance_makes_of_it(count: int) -> None:
    random = np.random.default_rng(7)
    scores = random.beta(1, 2, count).astype(np.float32)
    drawn = [tiles_of(logit(scores), random.random(count) < scores) for _ in range(1000)]
    errors = [calibration_error(tiles).value for tiles in drawn]
    mean, spread = error_by_chance(drawn[0].scores)
    assert np.mean(errors) == pytest.approx(mean, rel=0.03)
    assert np.std(errors) == pytest.approx(spread, rel=0.08)
    assert f"scores that are right would have about {mean:.3f} here" in calibration_error(drawn[0]).note
