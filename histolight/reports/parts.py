"""Parts that several pages have in common."""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from PIL import Image

from histolight.files import write_atomically
from histolight.reports.page import Cell, Picture, Table

NAMED = 3  # tiles named of each kind of finding


def interval_text(low: float | None, high: float | None, digits: int = 4) -> str:
    """Write an interval; its ends are None or NaN where none can be estimated from the tiles.

    >>> interval_text(0.5, 0.75), interval_text(None, None)
    ('[0.5000, 0.7500]', '[no interval]')
    """
    if low is None or high is None or math.isnan(low) or math.isnan(high):
        return "[no interval]"
    return f"[{low:.{digits}f}, {high:.{digits}f}]"


def score_texts(*scores: float) -> list[str]:
    """Write scores with three decimals, or with as many more as tell them apart, and from 0 and 1.

    >>> score_texts(0.25), score_texts(0.49121, 0.49134), score_texts(0.99997), score_texts(0.5, 0.5)
    (['0.250'], ['0.4912', '0.4913'], ['0.99997'], ['0.500', '0.500'])
    """
    different = {0.0, 1.0, *scores}
    for digits in range(3, 18):
        texts = [f"{score:.{digits}f}" for score in scores]
        if len({f"{score:.{digits}f}" for score in different}) == len(different):
            break
    return texts


def remarks(notes: Iterable[str]) -> list[str]:
    """Write notes as sentences, each once, and those that say the same of several figures together.

    >>> remarks(["sensitivity: few slides", "no interval: one tile", "accuracy: few slides"])
    ['Sensitivity, accuracy: few slides.', 'No interval: one tile.']
    """
    subjects: dict[str, dict[str, None]] = {}
    for note in notes:
        subject, colon, text = note.rpartition(": ")
        subjects.setdefault(colon + text, {})[subject] = None
    sentences = [f"{', '.join(names)}{text}." for text, names in subjects.items()]
    return [f"{sentence[0].upper()}{sentence[1:]}" for sentence in sentences]


def figure_remarks(columns: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> list[str]:
    """Say what a reader of a table of figures must hear of beside them, and of which columns where not of all.

    Args:
        columns: The figures of each column, as ``metrics.json`` has them, by its heading.

    >>> few, chance = {"value": 0.9, "note": "F1: few slides"}, {"value": 0.1, "note": "no interval: chance"}
    >>> figure_remarks({"test": {"f1": few, "ece": chance}, "validation": {"ece": chance}})
    ['F1: few slides (test).', 'No interval: chance.']
    """
    headings: dict[str, list[str]] = {}
    for heading, figures in columns.items():
        for note in {figure["note"]: None for figure in figures.values() if figure.get("note")}:
            headings.setdefault(note, []).append(heading)
    return remarks(note if len(of) == len(columns) else f"{note} ({', '.join(of)})" for note, of in headings.items())


def what_was_chosen(metrics: Mapping[str, Any]) -> str:
    """Name what a run chose by its validation AUROC; empty where it trained one epoch, which leaves no choice.

    >>> what_was_chosen({}), what_was_chosen({"probe": {"chosen": {"penalty": 0.1, "val_auroc": 0.9}}})
    ('the epoch', 'the penalty of the probe')
    >>> what_was_chosen({"epochs": 1})
    ''
    """
    if "probe" in metrics:
        name = next(iter(metrics["probe"]["chosen"]))
        return f"the {'number of neighbours' if name == 'neighbours' else name} of the probe"
    return "" if metrics.get("epochs") == 1 else "the epoch"


def known_tiles(seen: int, counts: Mapping[str, int] | None) -> str:
    """Say of tiles that a run knows how many they are and what they did.

    Args:
        seen: How many they are.
        counts: How many ``overlap`` tiles of the run; older evaluations recorded none.

    >>> known_tiles(400, {"trained": 300, "chose": 100, "overlap": 0})
    '400 trained or chose the run'
    """
    overlapping = counts is None or counts["overlap"]
    return f"{seen:,} trained or chose the run{', or overlap tiles that did' if overlapping else ''}"


def problem_table(problems: pd.DataFrame) -> Table:
    """Count the findings of each kind, and name the first ones.

    Args:
        problems: Columns id, problem and detail.
    """
    rows = []
    for kind, rows_of_kind in problems.groupby("problem", sort=False):
        first = rows_of_kind.head(NAMED).to_dict("records")
        names = ", ".join(f"{row['id']} ({row['detail']})" if row["detail"] else row["id"] for row in first)
        rows.append(
            [Cell(str(kind)), Cell(f"{names}{', …' * (len(rows_of_kind) > NAMED)}"), Cell(f"{len(rows_of_kind):,}")]
        )
    return Table(["what", "such as", "tiles"], rows, words=2)


def pairs(values: list[tuple[str, str]]) -> Table:
    """Lay out names with their values."""
    return Table(["", ""], [[Cell(name), Cell(text)] for name, text in values], words=2)


def saved_picture(figure: Figure, path: Path, caption: str, photographs: bool = False, wide: bool = False) -> Picture:
    """Save a figure as PNG, and embed it; photographs, which PNG makes ten times as large, as JPEG."""
    png = save_figure(figure, path)
    return Picture(as_jpeg(png) if photographs else png, caption, wide)


def save_figure(figure: Figure, path: Path, dpi: int = 120) -> bytes:
    """Save a figure as PNG, whole or not at all, and return the file's content."""
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # a box stands for what the font lacks
        if layout := figure.get_layout_engine():
            layout.execute(figure)  # savefig itself would draw everything once more to lay it out
            figure.set_layout_engine("none")
        figure.savefig(buffer, format="png", dpi=dpi)
    write_atomically(path, buffer.getbuffer())
    return buffer.getvalue()


def as_jpeg(png: bytes) -> bytes:
    """Encode a picture anew."""
    buffer = io.BytesIO()
    with Image.open(io.BytesIO(png)) as image:
        image.convert("RGB").save(buffer, "JPEG", quality=88, subsampling=0)
    return buffer.getvalue()
