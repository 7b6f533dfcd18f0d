"""What a run's calls are worth where it may abstain, and where tumour is rare: the section of a page, and lines."""

from __future__ import annotations

from typing import Any

from histolight.data.table import PARTS
from histolight.reports.page import Cell, Section, Table
from histolight.reports.parts import interval_text

METHODS = {
    "clopper-pearson": "shares take each tile for a sample of its own (Clopper-Pearson)",
    "korn-graubard": "shares take slides, or groups of overlapping tiles, for the samples (Korn and Graubard 1998)",
    "mover-ratio": "predictive values from the rates of right and wrong calls (Donner and Zou 2012)",
}
HEADINGS = {"ppv": "tumour among tiles called tumour (PPV)", "npv": "benign among tiles called benign (NPV)"}


def chosen_on(metrics: dict[str, Any]) -> str:
    """Name the tiles that the threshold was chosen on."""
    return str(metrics.get("chosen_on", "validation"))


def calls_section(metrics: dict[str, Any], config: dict[str, Any], parts: list[str]) -> Section | None:
    """Lay out coverage, error and predictive values, if the run has any.

    Args:
        metrics: Its ``metrics.json``.
        config: Its ``config.yaml``.
        parts: Those that were measured, the leading one first.
    """
    rows, notes = calls_rows(metrics, parts), calls_notes(metrics, config)
    if not rows:
        return None
    table = Table(["", *(PARTS[part] for part in parts)], [[Cell(name), *cells] for name, cells in rows], words=1)
    return Section("What its calls are worth", table=table, notes=notes)


def calls_rows(metrics: dict[str, Any], parts: list[str]) -> list[tuple[str, list[Cell]]]:
    """List the figures of a network that may abstain, and those at a stated prevalence, with a cell for each part."""
    kinds = {
        "abstaining": {"coverage": "tiles called, if it may abstain", "error": "wrong among those"},
        "at_prevalence": HEADINGS,
    }
    return [
        (heading, [_cell(metrics.get(f"{part}_{kind}", {}).get(name)) for part in parts])
        for kind, headings in kinds.items()
        for name, heading in headings.items()
        if any(f"{part}_{kind}" in metrics for part in parts)
    ]


def calls_notes(metrics: dict[str, Any], config: dict[str, Any]) -> list[str]:
    """Say what the figures of :func:`calls_rows` mean, and what their intervals rest on."""
    notes, report, where = [], config.get("report", {}), chosen_on(metrics)
    optimistic = ", whose own figures are therefore optimistic" if "val" in metrics else ""
    if band := metrics.get("abstention"):
        notes.append(
            f"Abstaining: no call from a score of {band['low']:.3f} to one of {band['high']:.3f}. On {where} no more "
            f"than {100 * report.get('abstain', 0.05):.3g}% of the tumour tiles lie below, and of the benign tiles "
            f"above{optimistic}. The share of wrong calls is that where as many tiles are tumour as among these."
        )
    if report.get("prevalence") is not None:
        notes.append(
            f"PPV and NPV: calls at {metrics['threshold']:.3f}, chosen on {where}{optimistic}, where "
            f"{report['prevalence']:.3g} of the tiles are tumour; sensitivity and specificity are those measured here."
        )
    figures = [
        figure
        for key, measured in metrics.items()
        if key.endswith(("_abstaining", "_at_prevalence"))
        for figure in measured.values()
    ]
    methods = dict.fromkeys(METHODS[one["method"]] for one in figures if one["method"] in METHODS)
    if methods:
        others = "slides" if metrics.get("slides") else "tiles"
        notes.append(f"With 95 % intervals for this training on other {others} like these: {'; '.join(methods)}.")
    remarks = dict.fromkeys(one.get("note") for one in figures)
    return notes + [f"{remark[0].upper()}{remark[1:]}." for remark in remarks if remark]


def _cell(figure: dict[str, Any] | None) -> Cell:
    if figure is None:
        return Cell("")
    if figure["value"] is None:
        return Cell("n/a", figure.get("note", ""))
    return Cell(f"{figure['value']:.4f}", interval_text(figure["low"], figure["high"]))
