"""A ranking as a page, as Markdown, in the terminal and in files."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Iterator
from datetime import datetime
from importlib.metadata import version
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from histolight.data.table import PARTS
from histolight.files import file_name, write_atomically, write_csv
from histolight.ranking import figures
from histolight.ranking.answer import answer, context, gaps, headline, population, unit_text, where
from histolight.ranking.ranking import Ranking
from histolight.ranking.rows import short_key
from histolight.ranking.searched import search_figures
from histolight.ranking.tables import (
    comparison_csv,
    comparison_data,
    counts_text,
    domain_table,
    further_table,
    main_table,
    method,
    ranked_keys,
    unranked_table,
)
from histolight.reports.curves import read_curves
from histolight.reports.figures import figure_text
from histolight.reports.page import Picture, Section, as_markdown, as_text, escape_markdown, render_page
from histolight.reports.parts import save_figure

AXES = 8  # swept keys with a figure of their own
LABEL = 52  # characters of a row's name in a figure: a longer one is cut and led by its place in the table


def notes(ranking: Ranking) -> list[str]:
    """Say what a reader of the table must know."""
    paragraphs = [
        f"Each row is {unit_text(ranking)}; what is said of the rows holds {population(ranking)}. Measured on "
        f"{where(ranking)}.",
    ]
    if ranking.verdict is not None and len(ranking.rows) > 1:
        verdict = (
            ""
            if ranking.verdict.best.all()
            else " Verdict: how far below the highest row that is surely above it, with a simultaneous 95 % interval."
        )
        paragraphs.append(
            "Rank: every rank that the row can have, all rows together with 95 % certainty. AUROC: with "
            "the row's own 95 % interval; intervals of two rows can overlap although one is surely better, as all "
            f"were measured on the same tiles.{verdict}"
        )
    if ranking.uncounted:
        paragraphs.append(
            f"{ranking.uncounted} trainings of these rows are not counted: not every ranked row has one with the same "
            "fold and seed."
        )
    if halved := [run.directory.name for run in ranking.runs if run.metrics.get("out_of_memory")]:
        names = ", ".join(halved)
        paragraphs.append(f"Out of memory, so trained with half data.batch_size and twice trainer.accumulate: {names}.")
    paragraphs += [
        f"The backbone {card['url']}: licence {card['licence']}; cite {card['citation']}."
        for card in map(json.loads, sorted({run.config["model.card"] for run in ranking.runs}))
        if {"url", "licence", "citation"} <= card.keys()
    ]
    if len({str(run.metrics.get("machine")) for run in ranking.runs}) > 1:
        paragraphs.append(
            "The runs were made on different machines: their training seconds and tiles/s do not compare."
        )
    if len({run.metrics.get("git_commit") for run in ranking.runs}) > 1:
        paragraphs.append("The runs were made with different commits of histolight.")
    return paragraphs


def methods(ranking: Ranking) -> list[str]:
    """Say in plain words how everything was computed, and what it does not say."""
    text = [f"Method: {method(ranking)}."]
    if len(ranking.rows) > 1 and ranking.verdict is not None and not ranking.verdict.reason:
        text += [
            "The row with the highest AUROC was picked on the same tiles on which it is judged, and the highest of "
            "many is also the luckiest. So every row is compared with every other one, and a row is called worse only "
            "where this holds with 95 % certainty for all such claims of this page together. The intervals of "
            "differences hold together with 95 % certainty too.",
            "The set of the best holds every row that no row is surely above. It contains the truly best row with 95 % "
            "certainty; it does not say which of its rows that is, nor that they are equal.",
        ]
    if ranking.unit == "training":
        text.append(
            "A row here is a training as it came out, not its settings: another seed gives another network, and seeds "
            "alone have moved the AUROC on other slides by up to 0.036. Settings are compared with three seeds or more "
            "of one split; folds are no seeds, as they share training tiles (Bengio and Grandvalet 2004)."
        )
    else:
        text.append(
            f"A row is a configuration, measured by {len(ranking.pairs)} seeds; how seeds differ is part of every "
            "interval and test."
        )
    if ranking.rows and ranking.rows[0].pooled is not None:
        text.append(
            "Pooled AUROC: over the validation tiles of all folds together, the mean over seeds. It mixes the scores "
            "of several networks, whose scales may differ, and is therefore secondary to the mean."
        )
    part = "every compared run has one" if ranking.part == "test" else "not every compared run has a test part"
    several = any(len(row.runs) > 1 for row in ranking.rows)
    spread = "; ± is the standard deviation over a row's trainings" if several else ""
    text.append(
        f"Figures are those of the {PARTS[ranking.part]} part, as {part}. Accuracy, sensitivity, specificity and F1 "
        f"are at a threshold of 0.5{spread}. Seconds are those of the training, tiles/s those of its epochs. "
        "Beside this page lie comparison.csv and comparison.json."
    )
    return text


def ranking_figures(ranking: Ranking) -> Iterator[tuple[str, Figure, str]]:
    """Draw a ranking: name, figure, caption; the first figure is that of the ranks."""
    names = [
        figure_text(row.name if len(row.name) <= LABEL else f"{place}: {row.name}", LABEL)
        for place, row in enumerate(ranking.rows, start=1)
    ]
    count = len(names)
    if count > 1 and ranking.verdict is not None:
        shown = f"the first {figures.SHOWN} of {count} rows" if count > figures.SHOWN else f"these {count} rows"
        caption = f"Each bar spans the ranks that one of {shown} can have; rank 1 is the best. "
        if ranking.verdict.reason:
            caption += "Nothing can be ranked on these tiles: every row can have every rank."
        else:
            caption += (
                "Coloured: may be the best. All bars together hold with 95 % certainty "
                f"{population(ranking)}{' and with other seeds' * (ranking.unit == 'configuration')}."
            )
        yield "ranks", figures.rank_figure(ranking, names), caption
    shown = f"the first {len(figures.COLOURS)} of {count} rows" if count > len(figures.COLOURS) else "all rows"
    yield "roc", figures.roc_figure(ranking, names), f"ROC of {shown} on {where(ranking)}, a line for each run."
    if curves := _curves(ranking):
        shown = "those of the first rows coloured" if count > len(figures.COLOURS) else "a line for each run"
        caption = (
            f"Validation AUROC after each epoch: {shown}, grey dashes where one is not ranked (not completed, or cut)."
        )
        yield "curves", figures.curves_figure(ranking, names, curves), caption
    in_brackets = "" if len(ranking.best_set) == count else " (coloured: may be the best)"
    swept = ranked_keys(ranking)
    for key in [key for key in swept if figures.worth_an_axis(ranking, key)][:AXES]:
        label = short_key(key, swept)
        caption = f"AUROC against {label}: a dot for each row{in_brackets}, and the mean of each value."
        yield f"axis_{key}", figures.axis_figure(ranking, key, label), caption
    for vertical, horizontal in figures.heatmap_pairs(ranking, swept[:AXES])[:AXES]:
        labels = (short_key(vertical, swept), short_key(horizontal, swept))
        caption = f"Mean AUROC for each {labels[0]} and {labels[1]}."
        yield (
            f"heatmap_{vertical}_{horizontal}",
            figures.heatmap_figure(ranking, (vertical, horizontal), labels),
            caption,
        )
    for cost, label in (("seconds", "training seconds"), ("parameters", "parameters (millions)")):
        if len({row.mean(cost) for row in ranking.rows if not math.isnan(row.mean(cost))}) > 1:
            caption = f"AUROC against {label.partition(' (')[0]}{in_brackets}. Up and left is better."
            yield f"cost_{cost}", figures.cost_figure(ranking, cost, label), caption

    yield from search_figures([run.directory for run in ranking.runs])


def _curves(ranking: Ranking) -> dict[Path, pd.Series]:
    """Read the validation AUROC of every run, ranked or not, that has one of two epochs or more."""
    directories = [run.directory for row in ranking.rows for run in row.runs]
    curves = {path: _auroc_curve(path) for path in directories}
    for path in (path for one in ranking.unranked for path in one.directories):
        with contextlib.suppress(OSError):  # which may be why it is not ranked
            curves[path] = _auroc_curve(path)
    return {path: values for path, values in curves.items() if len(values) > 1}


def _auroc_curve(directory: Path) -> pd.Series:
    return read_curves(directory).get("val/auroc", pd.Series(dtype=float))


def write_report(ranking: Ranking, directory: Path, title: str) -> None:
    """Write ``comparison.json``, ``comparison.csv``, ``comparison.md``, ``figures/*.png`` and ``report.html``."""
    pictures = []
    if ranking.rows:
        for name, figure, caption in ranking_figures(ranking):
            png = save_figure(figure, directory / "figures" / f"{file_name(name)}.png", dpi=160)
            pictures.append(Picture(png, caption))
    footer = f"histolight {version('histolight')} compare, {datetime.now():%Y-%m-%d %H:%M}, {counts_text(ranking)}"
    write_csv(directory / "comparison.csv", comparison_csv(ranking))
    write_atomically(directory / "comparison.json", json.dumps(comparison_data(ranking), indent=2) + "\n")
    write_atomically(directory / "comparison.md", markdown_text(ranking, title, footer))
    write_atomically(
        directory / "report.html",
        render_page(title, [headline(ranking), *context(ranking)], _sections(ranking, pictures), footer),
    )


def _sections(ranking: Ranking, pictures: list[Picture]) -> list[Section]:
    sections = []
    if ranking.rows:
        first = 1 if len(ranking.rows) > 1 else 0
        if first:
            sections.append(Section("Possible ranks", pictures=pictures[:first]))
        sections.append(Section("Ranking", table=main_table(ranking), notes=notes(ranking)))
    if differences := [gap for gap in gaps(ranking) if gap != headline(ranking)]:
        sections.append(Section("By how much", differences))
    if ranking.unranked:
        sections.append(Section("Not ranked", table=unranked_table(ranking)))
    if ranking.rows:
        if (domains := domain_table(ranking)) is not None:
            sections.append(
                Section(
                    "AUROC by domain",
                    ["The worst domain first. Nothing is claimed here: the verdict is on all domains together."],
                    domains,
                )
            )
        sections.append(Section("Further figures", table=further_table(ranking), pictures=pictures[first:]))
    return [*sections, Section("How this was computed", methods(ranking))]


def markdown_text(ranking: Ranking, title: str, footer: str) -> str:
    """Say it in Markdown: the answer, the tables, the runs that have no place, the methods."""
    blocks = [f"# {escape_markdown(title)}", *map(escape_markdown, answer(ranking))]
    if ranking.rows:
        blocks += ["## Ranking", as_markdown(main_table(ranking)), *map(escape_markdown, notes(ranking))]
    if ranking.unranked:
        blocks += ["## Not ranked", as_markdown(unranked_table(ranking))]
    if ranking.rows:
        if (domains := domain_table(ranking)) is not None:
            blocks += ["## AUROC by domain", as_markdown(domains)]
        blocks += ["## Further figures", as_markdown(further_table(ranking))]
    return "\n\n".join([*blocks, "## How this was computed", *methods(ranking), footer]) + "\n"


def terminal_text(ranking: Ranking, width: int | None) -> str:
    """Say it in a terminal: the answer, the tables, the runs that have no place.

    Args:
        ranking: The ranking.
        width: Of the terminal, in characters; None where the output is no terminal.
    """
    blocks = ["\n".join(answer(ranking))]
    if ranking.rows:
        main, further = (as_text(table(ranking), width) for table in (main_table, further_table))
        spread = ", after ± the standard deviation over a row's trainings" if "±" in main + further else ""
        blocks += [main, f"{further}\nIn brackets 95 % intervals{spread}; calls at 0.5."]
        if (domains := domain_table(ranking)) is not None:
            blocks.append("AUROC by domain:\n" + as_text(domains, width))
    if ranking.unranked:
        blocks.append("Not ranked:\n" + as_text(unranked_table(ranking)))
    return "\n\n".join([*blocks, counts_text(ranking)])
