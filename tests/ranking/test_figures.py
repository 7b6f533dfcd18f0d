"""What the figures of a ranking show: points, bars, names and scales, on rankings that are made in memory."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from made_rankings import HOLD_OUT, ranking_of
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from sklearn.metrics import roc_curve

from histolight.ranking import figures
from histolight.ranking.ranking import Ranking
from histolight.ranking.runs import Unranked
from histolight.reports.figures import ACCENT, INK, QUIET
from histolight.statistics.verdict import verdict_of_trainings


def axes_of(figure: Figure) -> Axes:
    return figure.axes[0]


def points(axes: Axes, line: int) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in axes.lines[line].get_xydata()]


def texts(axes: Axes) -> list[str]:
    return [text.get_text() for text in axes.texts]


def swept(values: list[object], aurocs: list[float], key: str = "optimizer.lr") -> Ranking:
    ranking = ranking_of(aurocs, 1e-4)
    for row, value in zip(ranking.rows, values, strict=True):
        row.config[key] = value
    return ranking


def test_a_curve_for_each_run_of_the_first_rows_and_a_name_for_each_row() -> None:
    ranking = ranking_of([0.9, 0.85, 0.8, 0.75, 0.7, 0.6], 1e-4, [(None, 0), (None, 1)])
    axes = axes_of(figures.roc_figure(ranking, list("abcdef")))
    assert points(axes, 0) == [(0, 0), (1, 1)]
    assert len(axes.lines) == 1 + 5 * 2
    drawn = [line for line in axes.lines if line.get_label() == "a: 0.9000"]
    assert len(drawn) == 1
    labels, scores = ranking.rows[0].runs[0].tiles.labels, ranking.rows[0].runs[0].scores
    np.testing.assert_allclose(drawn[0].get_xydata().T, roc_curve(labels, scores)[:2])
    named = [text.get_text() for text in axes.get_legend().get_texts()]
    assert named == ["a: 0.9000", "b: 0.8500", "c: 0.8000", "d: 0.7500", "e: 0.7000"]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("1 - specificity", "sensitivity")
    assert axes.get_xlim() == axes.get_ylim() == (-0.01, 1.01)
    assert len({(line.get_color(), str(line.get_linestyle())) for line in axes.lines[1:]}) == 5
    alone = axes_of(figures.roc_figure(ranking_of([0.9], 1e-4), ["a"])).lines[1]
    assert alone.get_linewidth() > drawn[0].get_linewidth()
    assert (alone.get_alpha() or 1) > drawn[0].get_alpha()


def test_curves_over_epochs_are_named_once_and_dashed_where_a_run_is_not_ranked() -> None:
    gone = [Unranked("x", [Path("x")], "failed", "why")]
    ranking = ranking_of([0.9, 0.8, 0.7, 0.6, 0.5, 0.4], 1e-4, [(None, 0), (None, 1)], unranked=gone)
    runs = {run.directory: pd.Series([0.5, 0.6, 0.7]) for row in ranking.rows for run in row.runs}
    long = ranking.rows[0].runs[0].directory
    runs |= {Path("x"): pd.Series([0.1, 0.2]), long: pd.Series(np.linspace(0.5, 0.9, 25))}
    axes = axes_of(figures.curves_figure(ranking, list("abcdef"), runs))
    assert len(axes.lines) == 13
    assert [line.get_linestyle() for line in axes.lines[:3]] == ["--", "-", "-"]
    assert {line.get_color() for line in axes.lines[:3]} == {QUIET}
    assert points(axes, 0) == [(1, 0.1), (2, 0.2)]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == list("abcde")
    dots = {len(line.get_xdata()): line.get_marker() for line in axes.lines}
    assert dots == {2: "o", 3: "o", 25: ""}
    runs[long] = pd.Series(np.linspace(0.5, 0.9, 24))
    again = axes_of(figures.curves_figure(ranking, list("abcdef"), runs))
    assert {line.get_marker() for line in again.lines} == {"o"}
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("epoch", "validation AUROC")
    short = axes_of(figures.curves_figure(ranking_of([0.9], 1e-4), ["a"], {Path("aNone0"): pd.Series([0.1, 0.2, 0.3])}))
    assert (short.get_xticks() % 1 == 0).all()


def test_bars_span_the_ranks_and_are_coloured_where_a_row_may_be_the_best() -> None:
    ranking = ranking_of([0.9, 0.89, 0.5], 1e-4)
    axes = axes_of(figures.rank_figure(ranking, list("abc")))
    bars = [(line.get_xdata()[0], line.get_xdata()[1], line.get_ydata()[0], line.get_color()) for line in axes.lines]
    assert bars == [(0.78, 2.22, 0, ACCENT), (0.78, 2.22, 1, ACCENT), (2.78, 3.22, 2, QUIET)]
    assert texts(axes) == ["a", "0.9000", "b", "0.8900", "c", "0.5000", "AUROC"]
    assert axes.get_xticks().tolist() == [1, 2, 3]
    assert axes.get_xlim() == (0.5, 3.5)
    low, high = axes.get_ylim()
    assert low > 2.2 > -0.5 > high  # the first row is on top
    unsaid = axes_of(figures.rank_figure(ranking_of([0.9, 0.9], 0.0), list("ab")))
    assert {line.get_color() for line in unsaid.lines} == {QUIET}


@pytest.mark.parametrize(("count", "bars"), [(32, 32), (40, 40), (47, 40)])
def test_many_rows_are_cut_and_have_a_tick_for_each_tenth(count: int, bars: int) -> None:
    rows = ranking_of([0.9], 1e-4).rows * count
    verdict = verdict_of_trainings(np.full(count, 0.9), np.eye(count) * 1e-4, 50)
    axes = axes_of(figures.rank_figure(Ranking(rows, verdict, None, "val", [], []), ["a"] * count))
    assert len(axes.lines) == bars
    step = round(count / 10)
    assert axes.get_xticks().tolist() == [1, *range(1 + step, count + 1, step)]
    assert axes.get_ylim() == (bars - 0.35, -1)


def test_an_axis_of_numbers_has_a_point_a_row_a_mean_a_value_and_a_scale_of_its_own() -> None:
    ranking = swept([1e-4, 1e-3, 1e-4, 1e-3], [0.9, 0.8, 0.7, 0.6])
    axes = axes_of(figures.axis_figure(ranking, "optimizer.lr", "lr"))
    assert sorted(points(axes, 0)) == [(1e-4, pytest.approx(0.8)), (1e-3, pytest.approx(0.7))]
    assert points(axes, 1) == [(1e-4, 0.9), (1e-3, 0.8), (1e-4, 0.7), (1e-3, 0.6)]
    assert points(axes, 2) == [(1e-4, 0.9)]
    assert axes.lines[2].get_color() == ACCENT
    assert axes.get_xscale() == "log"
    assert (axes.lines[0].get_linestyle(), axes.lines[0].get_marker()) == ("-", "None")
    assert [text.get_text() for text in axes.get_xticklabels()] == ["0.0001", "0.001"]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("lr", "AUROC")
    none = axes_of(figures.axis_figure(swept([1.0, 2.0], [0.9, 0.9]), "optimizer.lr", "lr"))
    assert none.get_xscale() == "linear"
    assert points(none, 2) == []  # no row stands out


@pytest.mark.parametrize(
    ("values", "scale"),
    [([1.0, 10.0], "log"), ([1.0, 9.9], "linear"), ([0.0, 1.0, 10.0], "symlog"), ([-1.0, 1.0, 10.0], "linear")],
)
def test_values_that_span_decades_have_a_logarithmic_axis(values: list[object], scale: str) -> None:
    ranking = swept(values, [0.9, 0.8, 0.7][: len(values)])
    axes = axes_of(figures.axis_figure(ranking, "optimizer.lr", "lr"))
    assert axes.get_xscale() == scale
    if scale == "symlog":
        assert axes.xaxis.get_transform().linthresh == 1


@pytest.mark.parametrize("count", [8, 9])
def test_up_to_eight_numbers_have_ticks_of_their_own(count: int) -> None:
    [row] = ranking_of([0.9], 1e-4).rows
    rows = [replace(row, config=row.config | {"optimizer.lr": 1.0 + 0.07 * number}) for number in range(count)]
    verdict = verdict_of_trainings(np.full(count, 0.9), np.eye(count) * 1e-4, 50)
    axes = axes_of(figures.axis_figure(Ranking(rows, verdict, None, "val", [], []), "optimizer.lr", "lr"))
    own = [f"{1 + 0.07 * number:g}" for number in range(count)]
    assert ([text.get_text() for text in axes.get_xticklabels()] == own) is (count == 8)


def test_an_axis_of_names_is_in_their_order() -> None:
    ranking = swept(["vgg", "alex", "vgg"], [0.9, 0.8, 0.7], "model.name")
    axes = axes_of(figures.axis_figure(ranking, "model.name", "model"))
    assert [text.get_text() for text in axes.get_xticklabels()] == ["alex", "vgg"]
    assert axes.get_xticks().tolist() == [0, 1]
    assert axes.get_xlim() == (-0.5, 1.5)
    assert (axes.lines[0].get_linestyle(), axes.lines[0].get_marker()) == ("None", "_")
    some = axes_of(figures.axis_figure(swept([None, 0.5], [0.9, 0.8]), "optimizer.lr", "lr"))
    assert [text.get_text() for text in some.get_xticklabels()] == ["0.5", "null"]
    assert points(axes, 0) == [(0, pytest.approx(0.8)), (1, pytest.approx(0.8))]
    assert points(axes, 1) == [(1, 0.9), (0, 0.8), (1, 0.7)]
    assert {text.get_rotation() for text in axes.get_xticklabels()} == {0}
    named = ["a" * 24, "b" * 25]
    cut = axes_of(figures.axis_figure(swept(named, [0.9, 0.8], "model.name"), "model.name", "model"))
    assert [len(text.get_text()) for text in cut.get_xticklabels()] == [24, 24]
    assert cut.get_xticklabels()[0].get_text() == named[0]
    long = axes_of(figures.axis_figure(swept(["a" * 9, "b"], [0.9, 0.8], "model.name"), "model.name", "model"))
    assert {text.get_rotation() for text in long.get_xticklabels()} == {25}
    assert {text.get_ha() for text in long.get_xticklabels()} == {"right"}


def test_figures_are_drawn_of_keys_whose_values_recur_or_are_numbers() -> None:
    for values, worth in (([1, 2], True), ([1, 1], False), (["a", "b"], False), (["a", "b", "a"], True)):
        ranking = swept(values, [0.9, 0.8, 0.7][: len(values)], "model.name")
        assert figures.worth_an_axis(ranking, "model.name") is worth
    assert not figures.worth_an_axis(swept([True, False], [0.9, 0.8], "model.name"), "model.name")


def crossed(pairs: list[tuple[object, object]], aurocs: list[float]) -> Ranking:
    ranking = swept([first for first, _ in pairs], aurocs)
    for row, (_, second) in zip(ranking.rows, pairs, strict=True):
        row.config["seed"] = second
    return ranking


@pytest.mark.parametrize(
    ("pairs", "drawn"),
    [
        ([(1, 1), (1, 2), (2, 1), (2, 2)], True),
        ([(1, 1), (2, 2)], True),  # half of four
        ([(1, 1), (2, 2), (3, 3)], False),  # a third of nine
        ([(1, 1), (1, 2)], False),  # one value of the first
    ],
)
def test_a_map_is_drawn_where_values_were_crossed(pairs, drawn: bool) -> None:
    ranking = crossed(pairs, [0.9] * len(pairs))
    expected = [("optimizer.lr", "seed")] if drawn else []
    assert figures.heatmap_pairs(ranking, ["optimizer.lr", "seed"]) == expected


def test_a_map_has_too_many_values_from_thirteen_on() -> None:
    [row] = ranking_of([0.9], 1e-4).rows
    for count in (12, 13):
        pairs = [{"optimizer.lr": first, "seed": second} for first in range(2) for second in range(count)]
        rows = [replace(row, config=row.config | pair) for pair in pairs]
        for keys in (["optimizer.lr", "seed"], ["seed", "optimizer.lr"]):
            found = figures.heatmap_pairs(Ranking(rows, None, None, "val", [], []), keys)
            assert found == ([tuple(keys)] if count == 12 else [])


def test_a_map_has_the_mean_of_each_combination() -> None:
    ranking = crossed([(2, "b"), (10, "b"), (2, "b"), (10, "a")], [0.9, 0.8, 0.7, 0.5])
    figure = figures.heatmap_figure(ranking, ("optimizer.lr", "seed"), ("lr", "seed"))
    axes = axes_of(figure)
    grid = axes.images[0].get_array()
    assert np.ma.filled(grid, -1).tolist() == [[-1, 0.5], [pytest.approx(0.8), 0.8]]
    assert [text.get_text() for text in axes.get_xticklabels()] == ["2", "10"]
    assert [text.get_text() for text in axes.get_yticklabels()] == ["a", "b"]
    assert texts(axes) == ["-", "0.500", "0.800", "0.800"]
    assert [text.get_position() for text in axes.texts] == [(0, 0), (1, 0), (0, 1), (1, 1)]
    assert [text.get_color() for text in axes.texts] == [INK, INK, "white", "white"]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("lr", "seed")
    for letters in (8, 9):
        wide = crossed([("x" * letters, 1), ("y", 2)], [0.9, 0.8])
        axes = axes_of(figures.heatmap_figure(wide, ("optimizer.lr", "seed"), ("lr", "seed")))
        assert {text.get_rotation() for text in axes.get_xticklabels()} == {0 if letters == 8 else 25}


def test_costs_stand_against_the_auroc_with_the_place_of_each_row() -> None:
    ranking = ranking_of([0.9, 0.8, 0.7], 1e-4)
    for row, count in zip(ranking.rows, (1e6, 4e6, 2e7), strict=True):
        row.runs[0].metrics["parameters"] = count
    axes = axes_of(figures.cost_figure(ranking, "parameters", "parameters (millions)"))
    assert points(axes, 0) == [(1, 0.9), (4, 0.8), (20, 0.7)]
    assert points(axes, 1) == [(1, 0.9)]
    assert texts(axes) == ["#1", "#2", "#3"]
    # Left of the middle of a logarithmic axis, sqrt(1 x 20) = 4.5, the name stands on the right.
    assert [text.get_ha() for text in axes.texts] == ["left", "left", "right"]
    assert "1" not in [text.get_text() for text in axes.get_xticklabels()]  # the ticks are matplotlib's own
    assert axes.get_xscale() == "log"
    seconds = axes_of(figures.cost_figure(ranking_of([0.9] * 8, 1e-4, HOLD_OUT), "seconds", "training seconds"))
    assert points(seconds, 0) == [(90, 0.9)] * 8
    assert len(seconds.texts) == 8
    nine = Ranking(
        ranking_of([0.9], 1e-4).rows * 9,
        verdict_of_trainings(np.full(9, 0.9), np.eye(9) * 1e-4, 50),
        None,
        "val",
        [],
        [],
    )
    assert not axes_of(figures.cost_figure(nine, "seconds", "training seconds")).texts
