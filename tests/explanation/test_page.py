from __future__ import annotations

import math

import numpy as np
import pandas as pd

from histolight.explanation.grad_cam import Explanation
from histolight.explanation.page import shares_table
from histolight.statistics.intervals import Interval


def test_a_kind_of_call_that_no_tile_has_is_not_applicable() -> None:
    none = Interval(math.nan, math.nan, math.nan, "none", "no tile")
    explanation = Explanation(
        table=pd.DataFrame({"id": ["a"], "label": [1], "score": [0.9], "share": [0.25], "sampled": True, "shown": ""}),
        maps=np.ones((1, 2, 2), np.float32),
        tiles=np.zeros((1, 32, 32, 3), np.uint8),
        patches=False,
        layer="layer",
        last_layer="layer",
        last_cells=2,
        shares={"all": Interval(0.25, 0.2, 0.3, "bootstrap"), "benign, called tumour": none},
        last_share=none,
        counts={"all": 1, "benign, called tumour": 0},
        threshold=0.5,
    )
    assert [[str(cell) for cell in row] for row in shares_table(explanation).rows] == [
        ["drawn at random", "25.0 % [20.0, 30.0]", "1"],
        ["of these benign, called tumour", "n/a", "0"],
    ]
