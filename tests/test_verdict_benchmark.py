"""The published simulations of the verdict: complete, within their bars, and summarised rightly."""

import io

import numpy as np
import pandas as pd
from benchmark_scripts import BENCHMARKS, load_benchmark
from scipy import stats

from histolight.statistics.figures import FIGURES

verdict = load_benchmark("verdict")


def test_the_summary_is_that_of_the_results():
    text = verdict.summary(pd.read_csv(BENCHMARKS / "verdict.csv")).to_csv(index=False)
    published = pd.read_csv(BENCHMARKS / "verdict_summary.csv")
    pd.testing.assert_frame_equal(pd.read_csv(io.StringIO(text)), published)


def test_published_results_are_within_their_bars():
    cells = pd.read_csv(BENCHMARKS / "verdict.csv")
    assert (cells["studies"] >= 2000).all()
    # docs/statistics.md states this limit: three seeds, and one of two or three rows spreads four times as much.
    limit = (cells["spread"] == "one") & (cells["rows"] <= 3) & (cells["seeds"] == 3)
    assert cells.loc[limit, "false"].max() <= 0.08
    assert (cells.loc[~limit, "false_low"] <= 0.05).all()
    assert (cells.loc[~limit, ["coverage", "row_coverage"]].min() >= 0.93).all()
    # Where both classes lie in 22 slides or more, and the true variance would give a power of 0.8.
    likely = cells[(cells["known_power"] >= 0.8) & (cells["tumour"] == 0) & ~cells["slides"].isin([3, 8])]
    assert (likely["power"] >= 0.5).all()
    intervals = pd.read_csv(BENCHMARKS / "intervals.csv")
    assert (intervals["auroc_coverage"] >= 0.93).all()
    for name in (name for name in FIGURES if name != "ece"):
        given = (intervals[f"{name}_given"] * intervals["studies"]).round()
        held = (intervals[f"{name}_coverage"] * given).round()
        highest = stats.beta.ppf(0.999, held + 1, given - held)
        assert np.nanmin(highest) >= 0.93, name


def test_a_cell_simulates():
    cell = next(cell for cell in verdict.cells() if cell.seeds == 3 and cell.difference and cell.slides == 22)
    row = verdict.simulate(cell, 5)
    assert 0 <= row["power"] <= 1
    assert row["false_low"] <= row["false"] <= 1
