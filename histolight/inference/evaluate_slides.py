"""What an evaluation on annotated slides says of whole slides: does the score of a slide tell those with tumour?"""

from __future__ import annotations

import numpy as np
import pandas as pd

from histolight.config.schema import DataConfig
from histolight.heatmaps.score import top_score
from histolight.statistics.intervals import Interval, auroc_interval


def slide_scores(predictions: pd.DataFrame) -> pd.DataFrame:
    """Score each slide by the mean of its highest 1 % of tiles: ``slide``, ``label`` (any tumour tile), ``score``.

    >>> tiles = pd.DataFrame({"group": ["a", "a", "b"], "label": [0, 1, 0], "score": [0.5, 0.25, 0.125]})
    >>> slide_scores(tiles).to_dict("list")
    {'slide': ['a', 'b'], 'label': [1, 0], 'score': [0.5, 0.125]}
    """
    rows = []
    for slide, tiles in predictions.groupby("group"):
        score = top_score(tiles["score"].to_numpy())
        rows.append({"slide": slide, "label": int(tiles["label"].max()), "score": score})
    return pd.DataFrame(rows, columns=["slide", "label", "score"])


def slide_auroc(predictions: pd.DataFrame, config: DataConfig) -> tuple[Interval | None, str]:
    """Measure the AUROC over slides, slides being independent; or say why there is none.

    Args:
        predictions: ``label``, ``group`` and ``score`` of each tile of ``data=slides``.
        config: Where they come from.

    Returns:
        The figure, or None; and a sentence.
    """
    if config.slides.tiles_per_slide is not None or config.limit is not None:
        return None, "no AUROC over slides: the score of a slide is of all its tiles, and these were drawn"
    slides = slide_scores(predictions)
    with_tumour = int(slides["label"].sum())
    if with_tumour in (0, len(slides)):
        which = "no slide has" if with_tumour == 0 else "every slide has"
        return None, f"no AUROC over slides: {which} tumour; slides.labels=CSV names those without"
    interval = auroc_interval(slides["score"], slides["label"])
    ends = (
        f" [{interval.low:.4f}, {interval.high:.4f}] (95 % interval)"
        if np.isfinite(interval.low)
        else f" ({interval.note.replace('tile', 'slide')})"
    )
    return interval, (
        f"AUROC over {len(slides)} slides, {with_tumour} with tumour: {interval.value:.4f}{ends}; "
        "a slide's score is the mean of its highest 1 % of tiles"
    )
