"""Figures of each slide, on a table that is small enough to be measured by hand."""

from __future__ import annotations

import numpy as np
import pandas as pd

from histolight.statistics.slides import slide_figures


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
