"""What a run's calls are worth where it may abstain, and where tumour is rare: the section of a page, and lines."""

from __future__ import annotations

from typing import Any

from histolight.data.table import PARTS
from histolight.reports.page import Cell, Section, Table
from histolight.reports.parts import interval_text, remarks, score_texts
from histolight.statistics.decisions import expected_outside

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
        notes.append(_about_band(band, report.get("abstain", 0.05), metrics, where, optimistic))
    if report.get("prevalence") is not None:
        notes.append(
            f"PPV and NPV: calls at {score_texts(metrics['threshold'])[0]}, chosen on {where}{optimistic}, where "
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
        unseen = metrics.get("slides") and metrics.get("split") != "random" and not metrics.get("torn_slides")
        others = f"other {'slides' if unseen else 'tiles'} like these"
        notes.append(f"With 95 % intervals for this training on {others}: {'; '.join(methods)}.")
    return notes + remarks(one["note"] for one in figures if one.get("note"))


def _about_band(band: dict[str, float], limit: float, metrics: dict[str, Any], where: str, optimistic: str) -> str:
    """Say which scores are no calls, what chose them, and what is to be expected of other tiles."""
    low, high = score_texts(band["low"], band["high"])
    chosen = (
        f"On {where} no more than {100 * limit:.3g}% of the tumour tiles lie below, and of the benign tiles above"
        f"{optimistic}."
    )
    as_here = "The share of wrong calls is that where as many tiles are tumour as among these."
    if low == high:
        region = f"one threshold, {low}, keeps both limits: only what scores exactly that is no call"
        return f"Abstaining: {region}. {chosen} {as_here}"
    if counts := metrics.get("choosing") or metrics.get("tiles", {}).get("val"):
        tumour, benign = (f"{100 * expected_outside(counts[label], limit):.2g}%" for label in ("1", "0"))
        chosen += (
            f" They are {counts['1']:,} and {counts['0']:,} tiles: of others like them at most about {tumour} and "
            f"{benign} are expected there, of other slides often more."
        )
    return f"Abstaining: no call from a score of {low} to one of {high}. {chosen} {as_here}"


def _cell(figure: dict[str, Any] | None) -> Cell:
    if figure is None:
        return Cell("")
    if figure["value"] is None:
        return Cell("n/a", figure.get("note", ""))
    return Cell(f"{figure['value']:.4f}", interval_text(figure["low"], figure["high"]))
