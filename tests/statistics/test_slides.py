"""Figures of each slide, on a table that is small enough to be measured by hand."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from histolight.statistics.slides import sensitivity_at_specificity, slide_figures


def test_slides_are_listed_worst_first_and_by_name_where_they_are_alike() -> None:
    rows = [("b", 1, 0.5), ("b", 0, 0.1), ("a", 1, 0.5), ("a", 0, 0.2), ("c", 1, 0.4), ("c", 1, 0.3), ("d", 0, 0.1)]
    found = slide_figures(pd.DataFrame(rows, columns=["group", "label", "score"]), 0.5)  # 0.5 itself is not above 0.5
    expected = pd.DataFrame(
        {
            "slide": ["c", "a", "b", "d"],
            "tiles": [2, 2, 2, 1],
            "tumour": [2, 1, 1, 0],
            "wrong": [1.0, 0.5, 0.5, 0.0],
            "auroc": [np.nan, 1.0, 1.0, np.nan],
            "sensitivity": [0.0, 0.0, 0.0, np.nan],
            "specificity": [np.nan, 1.0, 1.0, 1.0],
        }
    )
    pd.testing.assert_frame_equal(found, expected)


@pytest.mark.parametrize(("specificity", "sensitivity"), [(1.0, 0.5), (0.5, 0.5), (0.0, 1.0)])
def test_a_tumour_tile_below_all_others_counts(specificity: float, sensitivity: float) -> None:
    tiles = pd.DataFrame({"label": [1, 0, 0, 1], "score": [0.9, 0.6, 0.4, 0.1], "cluster": None})
    assert sensitivity_at_specificity(tiles, specificity).value == sensitivity


def test_tiles_that_overlap_are_one_piece_of_evidence_where_slides_are_unknown() -> None:
    random = np.random.default_rng(3)
    labels = np.tile([0, 1], 100)
    pieces = random.normal(size=50).repeat(4)  # four tiles a piece, with nearly the same error
    scores = labels + pieces + random.normal(scale=0.05, size=200)
    tiles = pd.DataFrame({"label": labels, "score": scores, "group": None, "cluster": None})
    alone = sensitivity_at_specificity(tiles, 0.8)
    together = sensitivity_at_specificity(tiles.assign(cluster=[f"c{number // 4}" for number in range(200)]), 0.8)
    assert together.value == alone.value
    assert together.high - together.low > 1.3 * (alone.high - alone.low)
