"""``report.html`` over all slides: what they scored, where, and what could not be scored."""

from __future__ import annotations

import io
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from PIL import Image

from histolight.files import write_atomically
from histolight.heatmaps.score import SlideSettings
from histolight.reports.page import Cell, Picture, Section, Table, render_page
from histolight.reports.parts import interval_text, score_texts

WIDTH = 900  # pixels of a picture on the page; the files beside it have more


@dataclass(frozen=True)
class SlideReport:
    """What the page shows.

    Attributes:
        runs: Names of the runs.
        tta: Views of each tile.
        settings: How the slides were scored.
        rows: A row for each slide.
        problems: What is wrong with each file that could not be scored, by its name.
        others: Names of the files that lie beside the slides.
        specificity: Of the run at this threshold, as its ``metrics.json`` has it, or None.
    """

    runs: list[str]
    tta: str
    settings: SlideSettings
    rows: list[dict[str, Any]]
    problems: dict[str, str]
    others: list[str]
    specificity: dict[str, Any] | None = None


def write_report(report: SlideReport, directory: Path) -> None:
    """Write ``report.html`` from the pictures in ``slides/NAME/``; it has no date, so that it repeats byte for byte."""
    sections = []
    if report.rows:
        sections.append(Section("The slides", table=slides_table(report), notes=notes(report)))
    if report.problems:
        rows = [[Cell(name), Cell(text)] for name, text in report.problems.items()]
        sections.append(Section("Not scored", table=Table(["file", "why"], rows, words=2)))
    for row in sorted(report.rows, key=lambda row: -row["highest_score"]):
        sections.append(_slide_section(row, report.settings, directory / "slides" / row["slide"]))
    sections.append(Section("How this was computed", methods(report)))
    footer = f"histolight {version('histolight')} predict. For research, not diagnosis."
    title = f"Slides scored by {' and '.join(report.runs)}"
    write_atomically(directory / "report.html", render_page(title, answer(report), sections, footer))


NOTES = (
    "Tumour: the area of the squares about the centres of the tiles whose score is above the threshold. Top 1 %: the "
    "mean score of the highest-scoring 1 % of the tiles.",
    "A slide has thousands of tiles: some score high by chance. The highest score alone is no diagnosis of a slide.",
)


def notes(report: SlideReport) -> list[str]:
    """Say what the columns are, and how much of them is likely false."""
    if (measured := report.specificity) is None:
        return list(NOTES)
    return [
        *NOTES,
        f"At this threshold the run has a specificity of {measured['value']:.3f} "
        f"{interval_text(measured['low'], measured['high'], 3)} on its own tiles, one view of each: about the rest of "
        "a slide's benign tissue is called tumour as well, and more of slides unlike those.",
    ]


def answer(report: SlideReport) -> list[str]:
    """Say in sentences how many slides were scored and where tumour was seen."""
    lines = []
    if not report.rows:
        lines.append(f"None of the {len(report.problems)} files could be scored.")
    else:
        with_tumour = [row for row in report.rows if row["tumour_mm2"] > 0]
        line = f"{len(with_tumour)} of {len(report.rows)} slides have tiles above the threshold"
        if with_tumour:
            most = max(with_tumour, key=lambda row: row["tumour_mm2"])
            where = f"{most['slide']}, {area(most['tumour_mm2'])} of {area(most['tissue_mm2'])} of tissue"
            line = f"Above the threshold: {where}" if len(report.rows) == 1 else f"{line}; most of them {where}"
        elif len(report.rows) == 1:
            line = f"No tile of {report.rows[0]['slide']} is above the threshold"
        lines.append(f"{line}.")
        if report.problems:
            lines.append(f"{len(report.problems)} files could not be scored.")
    if overruled := {row["slide"]: stated for row in report.rows if (stated := overruled_mpp(row, report.settings))}:
        names = names_of_files([f"{slide} ({stated:.4g} µm)" for slide, stated in overruled.items()])
        lines.append(
            f"data.mpp={report.settings.mpp:g} was taken for every slide, also where the file says another pixel size: "
            f"{names}. Every figure of these slides rests on it."
        )
    if report.others:
        lines.append(f"No slides, and left out: {names_of_files(report.others)}.")
    return lines


def overruled_mpp(row: dict[str, Any], settings: SlideSettings) -> float | None:
    """Return the pixel size that a slide's file states, where ``data.mpp`` took the place of another one."""
    stated: float | None = row.get("stated_mpp")  # absent from a slide that an earlier version finished
    return stated if stated and abs(stated / row["mpp"] - 1) > settings.mpp_tolerance else None


def names_of_files(names: list[str]) -> str:
    """Name the first files of a list.

    >>> names_of_files(["a.csv", "b.txt"])
    'a.csv, b.txt'
    """
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def slides_table(report: SlideReport) -> Table:
    """Tabulate the slides, the highest score first."""
    columns = ["slide", "highest score", "top 1 %", "tumour", "regions", "tissue", "tiles", "pixel size"]
    rows = [
        [
            Cell(row["slide"]),
            Cell(f"{row['highest_score']:.3f}"),
            Cell(f"{row['mean_of_top_1_percent']:.3f}"),
            Cell(area(row["tumour_mm2"])),
            Cell(f"{row['regions']:,}"),
            Cell(area(row["tissue_mm2"])),
            Cell(f"{row['tiles']:,}"),
            Cell(f"{row['mpp']:.4g} µm", pixel_size_note(row, report.settings)),
        ]
        for row in sorted(report.rows, key=lambda row: -row["highest_score"])
    ]
    return Table(columns, rows, words=1, marked=True)


def pixel_size_note(row: dict[str, Any], settings: SlideSettings) -> str:
    """Say at which pixel size the tiles were cut, and what the file states where that was not taken."""
    stated = overruled_mpp(row, settings)
    return f"tiles at {row['tile_mpp']:.4g} µm" + (f"; the file says {stated:.4g} µm" if stated else "")


def _slide_section(row: dict[str, Any], settings: SlideSettings, place: Path) -> Section:
    tissue = "Scored everywhere." if settings.tissue == "none" else "The tissue that was scored; the rest is pale."
    heat = f"Scores over the slide; outlined where they are above {score_texts(settings.threshold)[0]}."
    return Section(
        row["slide"],
        [f"slides/{row['slide']}: scores.parquet, heatmap.png, heatmap.ome.tif, regions.geojson"],
        pictures=[Picture(_small(place / "heatmap.png"), heat), Picture(_small(place / "tissue.png"), tissue)],
    )


def _small(path: Path) -> bytes:
    buffer = io.BytesIO()
    with Image.open(path) as picture:
        picture.thumbnail((WIDTH, 2 * WIDTH))
        picture.convert("RGB").save(buffer, "JPEG", quality=85)
    return buffer.getvalue()


def methods(report: SlideReport) -> list[str]:
    """Say how it was computed, and where it can mislead."""
    settings = report.settings
    tissue = {
        "otsu": "Tissue: optical density in green above Otsu's threshold (limited to 0.15 to 0.3), less what has the "
        "colour of ink or is black or grey.",
        "none": "Everything was scored, tissue or not.",
    }.get(settings.tissue, f"Tissue: masks from {settings.tissue}.")
    views = {"none": "one view", "flips": "the mean logit of 4 views", "dihedral": "the mean logit of 8 views"}
    return [
        f"A tile of {settings.tile}x{settings.tile} pixels at {settings.model_mpp:g} µm every {settings.stride} pixels "
        f"wherever its centre 32x32 holds tissue and the whole tile lies inside the slide; {views[report.tta]} of "
        f"{len(report.runs)} network{'s' * (len(report.runs) > 1)}. A level of the file within "
        f"{settings.mpp_tolerance:.0%} of that pixel size is taken as it is, else a finer one is resampled.",
        f"{tissue} A score says whether the centre of a tile holds any tumour; each colours the square of "
        f"{settings.stride}x{settings.stride} pixels about it. Threshold: {settings.threshold:.4f}.",
        "Other scanners, stains and organs than those of the training can be scored wrongly everywhere: look at the "
        "pictures before using the figures.",
    ]


def area(mm2: float) -> str:
    """Write an area.

    >>> area(1234.5), area(12.345), area(0.0123), area(0.0)
    ('1,234 mm²', '12.3 mm²', '0.0123 mm²', '0 mm²')
    """
    return f"{mm2:,.0f} mm²" if mm2 >= 100 else f"{mm2:.3g} mm²"
