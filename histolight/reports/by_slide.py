"""How a run does on each slide and in each domain: sections of its page."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from histolight.data.table import PARTS
from histolight.reports.page import Cell, Section, Table
from histolight.reports.parts import interval_text, score_texts
from histolight.statistics.slides import slide_figures, worst_by_chance

SLIDES_SHOWN = 15


def slides_section(predictions: pd.DataFrame, part: str, metrics: dict[str, Any]) -> Section | None:
    """Lay out the slides of one part, the one with the largest share of wrong calls first; None where none is known."""
    if predictions["group"].isna().all():
        return None
    threshold = metrics.get("threshold", 0.5)
    table = slide_figures(predictions, threshold)
    shown = table.head(SLIDES_SHOWN)

    counts, shares = ("tiles", "tumour"), ("auroc", "sensitivity", "specificity")
    rows = [
        [
            Cell(str(slide["slide"])),
            *(Cell(f"{slide[name]:,}") for name in counts),
            Cell(f"{slide['wrong']:.1%}"),
            *(Cell("-" if np.isnan(slide[name]) else f"{slide[name]:.3f}") for name in shares),
        ]
        for slide in shown.to_dict("records")
    ]
    columns = ["slide", "tiles", "tumour", "wrong calls", "AUROC", "sensitivity", "specificity"]
    first = f"the {SLIDES_SHOWN} of {len(table)} slides" if len(table) > len(shown) else f"all {len(table)} slides"
    notes = [
        f"Shown: {first}, those with the largest share of wrong calls first. Calls at {score_texts(threshold)[0]}."
    ]
    if len(table) > 1 and 0 < (wrong := float((table["wrong"] * table["tiles"]).sum() / table["tiles"].sum())) < 1:
        chance = worst_by_chance(table["tiles"].to_numpy(), wrong)
        notes.append(
            f"The first of {len(table)} slides is also the unluckiest: if every tile were called wrongly with the same "
            f"probability, {wrong:.1%}, it would have {chance:.1%} or more in half of such samples."
        )
    if lacking := int(predictions["group"].isna().sum()):
        notes.append(f"{lacking:,} tiles have no known slide.")
    return Section(f"Slide by slide: {PARTS[part]}", table=Table(columns, rows, words=1), notes=notes)


def domains_section(part: str, metrics: dict[str, Any]) -> Section | None:
    """Lay out the domains of one part, the one with the lowest AUROC first; None where there are none."""
    measured = metrics.get(f"{part}_by_domain")
    if not measured:
        return None
    rows = [
        [
            Cell(str(domain["domain"])),
            Cell(f"{domain['tiles']:,}"),
            Cell(f"{domain['tumour']:,}"),
            _cell(domain["auroc"]),
            *(
                Cell("n/a" if domain[name] is None else f"{domain[name]:.3f}")
                for name in ("sensitivity", "specificity")
            ),
        ]
        for domain in measured
    ]
    columns = ["domain", "tiles", "tumour", "AUROC", "sensitivity", "specificity"]
    notes = [
        "The lowest AUROC first, which is also the unluckiest; intervals are of each domain by itself. Calls at "
        f"{score_texts(metrics['threshold'])[0]}."
    ]
    return Section(f"Domain by domain: {PARTS[part]}", table=Table(columns, rows, words=1), notes=notes)


def _cell(auroc: dict[str, Any] | None) -> Cell:
    if auroc is None:
        return Cell("n/a")
    return Cell(f"{auroc['value']:.4f}", interval_text(auroc["low"], auroc["high"]))
