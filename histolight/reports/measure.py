"""From logits to predictions, figures with intervals and pictures: what a training and an evaluation both write."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from scipy.special import expit

from histolight.data.pack import Tiles
from histolight.reports import figures
from histolight.reports.parts import interval_text, save_figure, score_texts
from histolight.statistics.decisions import Band, abstention, predictive_values
from histolight.statistics.figures import FIGURES, LabelledScores, metric_intervals, names_of
from histolight.statistics.intervals import Interval
from histolight.statistics.slides import domain_figures

WORST = 32  # tiles in the figure of the worst calls


def predictions_table(part: pd.DataFrame, rows: np.ndarray, logits: np.ndarray) -> pd.DataFrame:
    """Put logits beside the tiles that they were given for.

    Args:
        part: Tiles with ``id``, ``label``, ``group``, ``cluster`` and ``row``.
        rows: ``(N,)`` int64, the tiles of the logits, in any order.
        logits: ``(N,)`` float32.

    Returns:
        One row a tile, in the order of ``part``: id, label, group, cluster (missing where no two tiles have the same),
        logit, score (its sigmoid, float32).
    """
    logit = pd.Series(logits, index=rows).loc[part["row"]].to_numpy()
    columns = ["id", "label", "group", "cluster"] + ["domain"] * ("domain" in part)
    table = part[columns].assign(logit=logit, score=expit(logit))
    return table.assign(cluster=None) if table["cluster"].is_unique else table


def intervals(table: pd.DataFrame, threshold: float) -> dict[str, Interval]:
    """Measure a table of predictions at a threshold, each figure with its interval."""
    logits, labels, clusters = (table[name].to_numpy() for name in ("logit", "label", "cluster"))
    return metric_intervals(logits, labels, threshold, clusters)


def labelled_scores(table: pd.DataFrame, threshold: float) -> LabelledScores:
    """Take from a table of predictions what figures are computed from."""
    positive = (table["label"] == 1).to_numpy()
    return LabelledScores(table["logit"].to_numpy(), positive, threshold, table["cluster"].to_numpy(), 0.95)


def measure_part(
    part: str, table: pd.DataFrame, threshold: float, band: Band | None = None, prevalence: float | None = None
) -> dict[str, Any]:
    """Measure one part as ``metrics.json`` has it.

    Args:
        part: Its name.
        table: Its predictions.
        threshold: The one that was chosen on validation.
        band: The scores that are called neither way, likewise; None calls every tile.
        prevalence: Share of tumour tiles at which to say what a call at the threshold means; None says nothing.

    Returns:
        ``<part>``: all figures, with calls at 0.5; ``<part>_at_threshold``: those that depend on the threshold, at it;
        ``<part>_abstaining``: coverage and error with the band; ``<part>_at_prevalence``: predictive values;
        where tiles have a ``domain``, ``<part>_by_domain``: those of each domain, the worst first.
    """
    at_threshold = intervals(table, threshold)
    measured: dict[str, Any] = {
        part: intervals(table, 0.5),
        f"{part}_at_threshold": {name: at_threshold[name] for name in names_of("calls")},
    }
    if band is not None:
        measured[f"{part}_abstaining"] = abstention(labelled_scores(table, threshold), band)
    if prevalence is not None:
        measured[f"{part}_at_prevalence"] = predictive_values(labelled_scores(table, threshold), prevalence)
    if "domain" in table:
        measured[f"{part}_by_domain"] = domain_figures(table, threshold)
    return measured


def draw_part(
    part: str,
    table: pd.DataFrame,
    rows: np.ndarray,
    tiles: Tiles,
    measured: dict[str, Any],
    kind: str,
    stamp: str = "",
) -> dict[str, Figure]:
    """Draw ROC, precision-recall, reliability, confusion and the worst calls of one part.

    Args:
        part: Its name.
        table: Its predictions.
        rows: ``(N,)`` int64, where the tiles of the table lie.
        tiles: The tile store.
        measured: From :func:`measure_part`, and ``threshold``.
        kind: What tiles they are, for the titles: such as ``slide split`` or ``other tiles``.
        stamp: What else must stand in every title.
    """
    scores, labels = table["score"].to_numpy(), table["label"].to_numpy()
    where = f"{part}, {kind}{f', {stamp}' if stamp else ''}"
    wrong = figures.worst_calls(scores, labels, measured["threshold"])
    shown = wrong[:WORST]
    captions = [f"{'tumour' if labels[i] else 'benign'}, score {scores[i]:.2f}" for i in shown]
    calls = f"threshold {score_texts(measured['threshold'])[0]} calls {len(wrong):,} of {len(labels):,} tiles wrong"
    if len(shown) < len(wrong):
        calls += f"; the {len(shown)} worst"
    return {
        "roc": figures.roc_figure(scores, labels, f"{where}\n{_figure_text('auroc', measured[part])}"),
        "precision_recall": figures.precision_recall_figure(
            scores, labels, f"{where}\n{_figure_text('average_precision', measured[part])}"
        ),
        "reliability": figures.reliability_figure(scores, labels, f"{where}\n{_figure_text('ece', measured[part])}"),
        "confusion": figures.confusion_figure(scores, labels, measured["threshold"], where),
        "worst_calls": figures.tile_grid_figure(tiles.gather(rows[shown]), captions, f"{where}: {calls}"),
    }


def _figure_text(name: str, measured: dict[str, Interval]) -> str:
    return (
        f"{FIGURES[name].heading} {measured[name].value:.4f} {interval_text(measured[name].low, measured[name].high)}"
    )


def save_figures(drawn: dict[str, Figure], part: str, directory: Path) -> dict[str, bytes]:
    """Save figures as ``figures/<part>_<name>.png``; return the content of each file by name."""
    return {name: save_figure(figure, directory / "figures" / f"{part}_{name}.png") for name, figure in drawn.items()}
