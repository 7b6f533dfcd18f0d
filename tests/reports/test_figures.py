from __future__ import annotations

import io

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import average_precision_score

from histolight.reports import figures, measure
from histolight.statistics.intervals import Interval


class Tiles:
    def gather(self, rows: np.ndarray) -> np.ndarray:
        return np.full((len(rows), 32, 32, 3), 128, np.uint8)


@pytest.fixture(scope="module")
def predictions() -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(3)
    labels = random.integers(0, 2, 60)
    scores = (0.25 * labels + 0.75 * random.random(60)).round(1)  # with ties
    return scores, labels


def draw(scores: np.ndarray, labels: np.ndarray, threshold: float = 0.5, low: float = 0.7) -> dict:
    table = pd.DataFrame({"score": scores, "label": labels})
    names = ("auroc", "average_precision", "ece")
    found = {"val": {name: Interval(0.8, low, 0.9, "delong") for name in names}, "threshold": threshold}
    return measure.draw_part("val", table, np.arange(len(labels)), Tiles(), found, "random split")  # type: ignore[arg-type]


def drawn_area(x: np.ndarray, y: np.ndarray, style: str) -> float:
    """Integrate steps as matplotlib draws them, from left to right in the order of the points."""
    height = {"steps-post": y[:-1], "steps-pre": y[1:]}[style]
    return float(abs(np.sum(np.diff(x) * height)))


def test_the_area_under_the_drawn_steps_is_the_average_precision(predictions: tuple[np.ndarray, np.ndarray]) -> None:
    scores, labels = predictions
    axes = figures.precision_recall_figure(scores, labels, "title").axes[0]
    (line,) = [line for line in axes.lines if len(line.get_xdata()) > 2]
    x, y = np.asarray(line.get_xdata()), np.asarray(line.get_ydata())
    area = drawn_area(x, y, line.get_drawstyle())
    assert area == pytest.approx(average_precision_score(labels, scores), abs=1e-12)
    assert drawn_area(x, y, "steps-pre") != pytest.approx(area, abs=1e-3)


def test_worst_calls_are_wrong_at_the_threshold_and_the_surest_come_first() -> None:
    scores = np.array([0.9, 0.55, 0.2, 0.45, 0.5, 0.99])
    labels = np.array([0, 0, 1, 1, 1, 1])
    assert figures.worst_calls(scores, labels, 0.5).tolist() == [0, 2, 1, 3, 4]
    assert figures.worst_calls(scores, labels, 0.15).tolist() == [0, 1]
    assert figures.worst_calls(labels.astype(float), labels, 0.5).tolist() == []


def test_titles_name_part_split_and_the_figure_that_is_drawn(predictions: tuple[np.ndarray, np.ndarray]) -> None:
    drawn = draw(*predictions)
    titles = {name: figure.axes[0].get_title() for name, figure in drawn.items()}
    titles["worst_calls"] = drawn["worst_calls"].get_suptitle()
    assert all(title.startswith("val, random split") for title in titles.values())
    for name, words in (("roc", "AUROC"), ("precision_recall", "average precision"), ("reliability", "ECE")):
        assert f"{words} 0.8000 [0.7000, 0.9000]" in titles[name]
    assert "threshold 0.500" in titles["confusion"]


def test_a_figure_without_an_interval_says_so(predictions: tuple[np.ndarray, np.ndarray]) -> None:
    title = draw(*predictions, low=np.nan)["roc"].axes[0].get_title()
    assert title.endswith("AUROC 0.8000 [no interval]")


def test_the_worst_calls_say_how_many_of_how_many() -> None:
    labels = np.arange(200) % 2
    scores = np.where(np.arange(200) < 50, 1 - labels, labels).astype(float)
    figure = draw(scores, labels)["worst_calls"]
    assert figure.get_suptitle().endswith("calls 50 of 200 tiles wrong; the 32 worst")
    assert [len(axes.images) for axes in figure.axes] == [32]
    none = draw(labels.astype(float), labels)["worst_calls"]
    assert none.get_suptitle().endswith("calls 0 of 200 tiles wrong")
    assert none.axes == []
    none.savefig(io.BytesIO())


def test_the_reliability_diagram_explains_its_bars_and_its_diagonal(
    predictions: tuple[np.ndarray, np.ndarray],
) -> None:
    figure = figures.reliability_figure(*predictions, "title")
    (legend,) = [axes.get_legend() for axes in figure.axes if axes.get_legend()]
    words = [text.get_text() for text in legend.get_texts()]
    assert words == ["perfectly calibrated", "this model", "tiles per bin (right axis)"]
    (bars,) = [axes for axes in figure.axes if axes.patches]
    assert sum(bar.get_height() for bar in bars.patches) == len(predictions[0])
