"""A ranking in words, tables, figures and files."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from histolight.data.table import PARTS, SPLITS
from histolight.files import write_atomically, write_csv
from histolight.ranking import figures
from histolight.ranking.figures import text_of
from histolight.ranking.ranking import ALPHA, COSTS, METRICS, Group, Ranking, Row
from histolight.reports.page import Cell, Picture, Section, Table, as_markdown, as_text, render_page, select
from histolight.reports.parts import save_figure

HEADINGS = {
    "accuracy": "accuracy",
    "sensitivity": "sensitivity",
    "specificity": "specificity",
    "parameters": "parameters",
    "seconds": "training s",
    "tiles_per_second": "tiles/s",
    "average_precision": "average precision",
    "balanced_accuracy": "balanced accuracy",
    "f1": "F1",
    "nll": "NLL",
    "ece": "ECE",
}
AXES = 8  # swept keys with a figure of their own
FURTHER = 5  # last columns of the table, which make a second one on the page
LABEL = 44  # characters of a row's name in a figure: a longer one is cut and led by its rank
NAMED = 3  # rows named in one sentence


def row_name(row: Row, swept: Sequence[str]) -> str:
    """Name a row by what sets it apart, ``resnet18, lr 0.001``, or, where nothing does, by model and folder."""
    if not swept:
        return f"{row.config['model.name']} ({row.runs[0].directory.name})"
    parts = []
    for key in swept:
        value = text_of(row.config[key])
        parts.append(value if key == "model.name" else f"{short_key(key, swept)} {value}")
    return ", ".join(parts)


def group_names(group: Group, ranking: Ranking) -> list[str]:
    """Name each row of a group by the swept keys that differ within it."""
    return [row_name(row, group_keys(group, ranking)) for row in group.rows]


def group_keys(group: Group, ranking: Ranking) -> list[str]:
    """List the swept keys that differ within a group."""
    return [key for key in ranking.swept if len({row.config[key] for row in group.rows}) > 1]


def short_key(key: str, keys: Sequence[str]) -> str:
    """Shorten a dotted key where no other one ends alike: ``optimizer.lr`` to ``lr``, ``model.name`` to ``model``."""
    head, _, tail = key.rpartition(".")
    if tail == "name" and head:
        return head
    if key == "data.seed":  # not to be taken for the seed of the training
        return key
    return tail if sum(other.rpartition(".")[2] == tail for other in keys) == 1 else key


def answer(ranking: Ranking) -> list[str]:
    """Say what was found, the verdict on the first group first, then what to beware of."""
    first = ranking.groups[0]
    sentences = [*verdict(first, ranking)]
    if len(ranking.groups) > 1:
        sentences.append(
            f"Not all runs were measured on the same tiles: they make {len(ranking.groups)} groups, each ranked by "
            "itself. Figures of different groups can't be compared; what is said above holds for group 1."
        )
    if ranking.by is not None:
        sentences.append(
            f"Each {short_key(ranking.by, [ranking.by])} stands at its own best point, chosen by validation AUROC"
            + (
                ", the figure shown: that flatters it, the more the more points there were to choose from."
                if ranking.part == "val"
                else "; the test figures shown had no part in the choice."
            )
        )
    if ranking.part == "val":
        sentences.append(
            "Measured on validation tiles, on which each run's epoch was chosen too: these figures are optimistic."
        )
    if any(group.split == "random" for group in ranking.groups):
        sentences.append(
            "The split is random and the slides are unknown: tiles of one slide may sit on both sides, "
            "and on other slides every figure will be lower."
        )
    return sentences


def verdict(group: Group, ranking: Ranking) -> list[str]:
    """Say what the tests of one group allow one to say."""
    best, *others = group.rows
    where = f"these {_tiles(group, ranking)}"
    named = dict(zip(map(id, group.rows), group_names(group, ranking), strict=True))
    name = named[id(best)]
    if not others:
        return [f"{name} has an AUROC of {_auroc(best)} on {where}; there is no other to rank it with."]
    alike = [row for row in others if row.test and row.test.p >= ALPHA]
    worse = [row for row in others if row.test and row.test.p < ALPHA]
    untested = len(others) - len(alike) - len(worse)
    sentences = []
    if len(worse) == len(others):
        beaten = named[id(worse[0])] if len(worse) == 1 else f"each of the {len(worse)} others"
        sentences.append(f"{name} is best: AUROC {_auroc(best)} on {where}, better than {beaten}.")
    elif alike:
        count = {1: "two", 2: "three", 3: "four"}.get(len(alike), "")
        if len(alike) == len(others) and not count:
            ending = f"it can't be told apart from any of the {len(alike)} others on {where}"
        elif count:
            ending = (
                f"it and {_listed([named[id(row)] for row in alike])} ({count} in all) can't be told apart on {where}"
            )
        else:
            ending = f"it can't be told apart from {len(alike)} of the {len(others)} others on {where}"
        sentences.append(f"{name} has the highest AUROC, {_auroc(best)}, but {ending}.")
        sentences.append("Not told apart does not mean equal: more tiles, folds or seeds may yet tell them apart.")
    else:
        sentences.append(f"{name} has the highest AUROC, {_auroc(best)}, on {where}.")
    for row in worse[:NAMED]:
        sentences.append(f"It is better than {named[id(row)]}: {_gain(row)}.")
    if len(worse) > NAMED:
        smallest = min(row.test.difference.difference for row in worse[NAMED:] if row.test)
        sentences.append(f"It is better than {len(worse) - NAMED} more, by {smallest:.4f} or more.")
    if untested:
        sentences.append(f"{untested} of the others could not be tested against it; the table says why.")
    return sentences


def _listed(names: Sequence[str]) -> str:
    *most, last = names
    return f"{'; '.join(most)} and {last}" if most else last


def _auroc(row: Row) -> str:
    if len(row.runs) > 1:
        return f"{row.mean('auroc'):.4f} ± {row.sd('auroc'):.4f} (mean ± sd of {len(row.runs)} runs)"
    low, high = row.interval("auroc")
    return f"{row.mean('auroc'):.4f}" + ("" if math.isnan(low) else f" [{low:.4f}, {high:.4f}]")


def _gain(row: Row) -> str:
    assert row.test is not None
    difference, p = row.test.difference, _p(row.test.p)
    value = f"{difference.difference:+z.4f} [{difference.low:.4f}, {difference.high:.4f}]"
    return f"{value}, p {p if p.startswith('<') else f'= {p}'} after Holm"


def _p(value: float) -> str:
    if math.isnan(value):
        return "n/a"
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def _tiles(group: Group, ranking: Ranking) -> str:
    folds = f" in {group.folds} folds" if group.folds > 1 and ranking.part == "val" else ""
    return (
        f"{group.tiles:,} {PARTS[ranking.part]} tiles{folds} ({SPLITS.get(group.split, group.split).partition(',')[0]})"
    )


def group_table(group: Group, ranking: Ranking) -> Table:
    """Lay out a group: rank, what differs, where it was measured, AUROC, tests, the other figures, costs."""
    repeated = any(len(row.runs) > 1 for row in ranking.rows)
    pooled = any(row.pooled is not None for row in ranking.rows)
    keys = group_keys(group, ranking)
    words = ["#", *(short_key(key, keys) for key in keys)] if keys else ["#", "run"]
    words += ["measured on"] + ["runs"] * repeated + ["best of"] * (ranking.by is not None)
    columns = [*words, "AUROC", "against the best", "p (Holm)", *["pooled AUROC"] * pooled, *HEADINGS.values()]
    rows = []
    for rank, row in enumerate(group.rows, start=1):
        told = [text_of(row.config[key]) for key in keys] or [row_name(row, [])]
        cells = [Cell(str(rank)), *map(Cell, told)]
        cells.append(Cell(f"{ranking.part}, {group.split}"))
        if repeated:
            cells.append(Cell(str(len(row.runs)), _repetitions(row)))
        if ranking.by is not None:
            cells.append(Cell(_count(row.chosen_from, "point")))
        cells += [_auroc_cell(row), *_test_cells(row)]
        if pooled:
            cells.append(Cell("" if row.pooled is None else f"{row.pooled:.4f}"))
        cells += [_figure_cell(row, name) for name in HEADINGS]
        rows.append(cells)
    return Table(columns, rows, words=len(words), marked=len(rows) > 1)


def _repetitions(row: Row) -> str:
    folds, seeds = ({run.pair[side] for run in row.runs} - {None} for side in (0, 1))
    return ", ".join(_count(len(found), name) for found, name in ((folds, "fold"), (seeds, "seed")) if found)


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'s' * (number != 1)}"


def _auroc_cell(row: Row) -> Cell:
    low, high = row.interval("auroc")
    spread = f"± {row.sd('auroc'):.4f}" if len(row.runs) > 1 else f"[{low:.4f}, {high:.4f}]"
    return Cell(f"{row.mean('auroc'):.4f}", "no interval" if len(row.runs) == 1 and math.isnan(low) else spread)


def _test_cells(row: Row) -> tuple[Cell, Cell]:
    if row.test is None:
        return Cell("best"), Cell("")
    gap = row.test.difference
    if math.isnan(gap.p):
        reason = row.test.method if row.test.method.startswith("no test") else "no test: too few tiles or slides"
        return Cell(f"{-gap.difference:+z.4f}", reason), Cell("n/a")
    return Cell(f"{-gap.difference:+z.4f}", f"[{-gap.high:+z.4f}, {-gap.low:+z.4f}]"), Cell(_p(row.test.p))


def _figure_cell(row: Row, name: str) -> Cell:
    value, spread = row.mean(name), row.sd(name)
    if math.isnan(value):
        return Cell("n/a")
    if name == "parameters":
        return Cell(f"{value / 1e6:.2f} M")
    if name in COSTS:
        return Cell(f"{value:,.0f}" if value >= 10 else f"{value:.1f}")
    return Cell(f"{value:.3f}", "" if math.isnan(spread) else f"± {spread:.3f}")


def comparison_csv(ranking: Ranking) -> pd.DataFrame:
    """Put everything that is known of each row into a table of numbers."""
    return pd.DataFrame(
        [
            _record(number, rank, row, group, ranking)
            for number, group in enumerate(ranking.groups, start=1)
            for rank, row in enumerate(group.rows, start=1)
        ]
    )


def _record(number: int, rank: int, row: Row, group: Group, ranking: Ranking) -> dict[str, Any]:
    folds, seeds = (sorted({run.pair[side] for run in row.runs} - {None}) for side in (0, 1))  # type: ignore[type-var]
    record: dict[str, Any] = {"group": number, "rank": rank, **{key: row.config[key] for key in ranking.swept}}
    record |= {"part": ranking.part, "split": group.split, "tiles": group.tiles, "runs": len(row.runs)}
    record |= {"folds": " ".join(map(str, folds)), "seeds": " ".join(map(str, seeds)), "chosen_from": row.chosen_from}
    for name in ("auroc", *METRICS):
        low, high = row.interval(name)
        record |= {name: row.mean(name), f"{name}_low": low, f"{name}_high": high, f"{name}_sd": row.sd(name)}
    record["auroc_pooled"] = row.pooled
    if row.test is not None:
        gap = row.test.difference
        record |= {"below_best": gap.difference, "below_best_low": gap.low, "below_best_high": gap.high}
        record |= {"p": gap.p, "p_holm": row.test.p, "test": row.test.method, "pairs": row.test.pairs}
    record |= {name: row.mean(name) for name in COSTS}
    return record | {"directories": ";".join(str(run.directory) for run in row.runs)}


def notes(group: Group, ranking: Ranking) -> list[str]:
    """Say what a reader of a group's table must hear of."""
    found = [f"Measured on {_tiles(group, ranking)}. Accuracy, F1, sensitivity and specificity at a threshold of 0.5."]
    pairs = {run.pair for row in group.rows for run in row.runs}
    names = group_names(group, ranking)
    found += [
        f"{name} has {len(row.runs)} of the group's {len(pairs)} (fold, seed) pairs: its mean is not over the same "
        "runs as the others'; the test uses only pairs that both rows have."
        for row, name in zip(group.rows, names, strict=True)
        if len(row.runs) < len(pairs)
    ]
    single = [row.runs[0] for row in group.rows if len(row.runs) == 1]
    remarks = [run.metrics[ranking.part]["auroc"].get("note") for run in single]
    found += [f"AUROC: {remark}." for remark in dict.fromkeys(remarks) if remark]
    runs = [run for row in group.rows for run in row.runs]
    if len({str(run.metrics.get("machine")) for run in runs}) > 1:
        found.append("The runs were made on different machines: their training seconds and tiles/s do not compare.")
    if len({run.metrics.get("git_commit") for run in runs}) > 1:
        found.append("The runs were made with different commits of histolight.")
    return found


def methods(ranking: Ranking) -> list[str]:
    """Say in plain words how everything was computed, and what it does not tell."""
    single = any(len(row.runs) == 1 for row in ranking.rows)
    several = any(len(row.runs) > 1 for row in ranking.rows)
    used = {row.test.method for row in ranking.rows if row.test}
    text = []
    if single:
        text.append(
            "AUROC with a 95 % interval, as each run recorded it: from DeLong's variance on the logit scale, or, where "
            "slides are known, from the variance over slides (Obuchowski 1997), as tiles of one slide resemble each "
            "other. The interval tells how the figure would vary on other tiles (slides), not with another seed."
        )
    if several:
        text.append(
            "Runs that differ only in seed or fold are one row: the mean of their AUROCs ± the standard deviation "
            "(n - 1) over the runs. The standard deviation is no confidence interval: folds share training tiles, and "
            "seeds share the validation tiles."
        )
    if any(row.pooled is not None for row in ranking.rows):
        text.append(
            "Pooled AUROC: over the validation tiles of all folds together, the mean over seeds. It mixes the "
            "scores of several networks, whose scales may differ, and is therefore secondary to the mean."
        )
    if used & {"DeLong", "DeLong over slides"}:
        text.append(
            "One run against one: the paired test of DeLong, DeLong and Clarke-Pearson (1988) on the same tiles, with "
            "the covariance over slides where these are known."
        )
    if used & {"bootstrap", "slide bootstrap"}:
        text.append(
            "Rows of several runs: paired bootstrap of the mean difference over the (fold, seed) pairs that both have, "
            "drawing slides where they are known, else tiles. It tells how the difference between these trainings "
            "would vary on other tiles, not with other seeds."
        )
    if used:
        text.append(
            f"Only the best row of each group is tested against its others. p is corrected by Holm's method over all "
            f"{sum(row.test is not None for row in ranking.rows)} tests of this page; below {ALPHA} the rows are "
            "called different. The intervals of the differences are not corrected. The best row was itself picked by "
            "the figure shown: of many rows, the highest is also the luckiest."
        )
    part = "every compared run has one" if ranking.part == "test" else "not every compared run has a test part"
    text.append(
        f"Figures are those of the {PARTS[ranking.part]} part, as {part}. Seconds are those of the training, tiles/s "
        "those of its epochs. comparison.csv, beside this page, has every figure with its interval and the run "
        "directories of each row."
    )
    return text


def group_heading(number: int, group: Group, ranking: Ranking) -> str:
    """Name a group by its tiles."""
    if len(ranking.groups) == 1:
        return "Ranking"
    return f"Group {number}: {_tiles(group, ranking)}"


def group_words(group: Group, ranking: Ranking) -> list[str]:
    """Say why a group is ranked apart, and what was found in it."""
    return [f"Ranked apart from group 1: {group.reason}.", *verdict(group, ranking)] if group.reason else []


def unranked_table(ranking: Ranking) -> Table:
    """List the runs without a place, with status and reason."""
    rows = [[Cell(str(one.directory)), Cell(one.status), Cell(one.reason)] for one in ranking.unranked]
    return Table(["run", "status", "reason"], rows, words=3)


def group_figures(group: Group, ranking: Ranking) -> Iterator[tuple[str, Figure, str]]:
    """Draw a group: name, figure, caption."""
    names = [
        name if len(name) <= LABEL else f"#{rank} {textwrap.shorten(name, LABEL, placeholder=' …')}"
        for rank, name in enumerate(group_names(group, ranking), start=1)
    ]
    where = _tiles(group, ranking)
    shown = min(len(names), figures.DOTS)
    first = f"the first {shown} of {len(names)} rows" if shown < len(names) else "all rows"
    spread = "mean ± sd, each run a dot" if any(len(row.runs) > 1 for row in group.rows) else "with its 95 % interval"
    yield "auroc", figures.auroc_figure(group, names), f"AUROC of {first}, {spread}, on {where}."
    shown = min(len(names), len(figures.COLOURS))
    first = f"the first {shown} of {len(names)} rows" if shown < len(names) else "all rows"
    yield "roc", figures.roc_figure(group, names), f"ROC of {first} on {where}, a line for each run."
    swept = group_keys(group, ranking)
    for key in [key for key in swept if figures.worth_an_axis(group, key)][:AXES]:
        label = short_key(key, swept)
        caption = f"AUROC against {label}: a dot for each row (the best one large), and the mean of each value."
        yield f"axis_{key}", figures.axis_figure(group, key, label), caption
    for one, other in figures.heatmap_pairs(group, swept[:AXES])[:AXES]:
        labels = (short_key(one, swept), short_key(other, swept))
        caption = f"Mean AUROC for each {labels[0]} and {labels[1]}."
        yield f"heatmap_{one}_{other}", figures.heatmap_figure(group, (one, other), labels), caption
    for cost, label in (("seconds", "training seconds"), ("parameters", "parameters (millions)")):
        if len({row.mean(cost) for row in group.rows if not math.isnan(row.mean(cost))}) > 1:
            caption = f"AUROC against {label.partition(' (')[0]}; the best row large. Up and to the left is better."
            yield f"cost_{cost}", figures.cost_figure(group, cost, label), caption


def write_report(ranking: Ranking, directory: Path, title: str) -> None:
    """Write ``comparison.csv``, ``comparison.md``, ``figures/*.png`` and ``report.html``."""
    sections = []
    for number, group in enumerate(ranking.groups, start=1):
        pictures = []
        for name, figure, caption in group_figures(group, ranking):
            stem = name if number == 1 else f"group{number}_{name}"
            png = save_figure(figure, directory / "figures" / f"{stem}.png", dpi=160)
            pictures.append(Picture(png, caption))
        heading, table = group_heading(number, group, ranking), group_table(group, ranking)
        further = len(table.columns) - FURTHER
        main = select(table, range(further))
        sections.append(Section(heading, group_words(group, ranking), main, notes(group, ranking), pictures))
        rest = replace(select(table, [*range(table.words), *range(further, len(table.columns))]), marked=False)
        sections.append(Section(f"Further figures{f' of group {number}' * (len(ranking.groups) > 1)}", table=rest))
    if ranking.unranked:
        sections.append(Section("Not ranked", table=unranked_table(ranking)))
    sections.append(Section("How this was computed", methods(ranking)))
    footer = f"histolight {version('histolight')} compare, {datetime.now():%Y-%m-%d %H:%M}, {_counts(ranking)}"
    write_csv(directory / "comparison.csv", comparison_csv(ranking))
    write_atomically(directory / "comparison.md", markdown_text(ranking, title, footer))
    write_atomically(directory / "report.html", render_page(title, answer(ranking), sections, footer))


def markdown_text(ranking: Ranking, title: str, footer: str) -> str:
    """Say it in Markdown: the answer, the tables, the runs that have no place, the methods."""
    blocks = [f"# {title}", *answer(ranking)]
    for number, group in enumerate(ranking.groups, start=1):
        blocks += [f"## {group_heading(number, group, ranking)}", *group_words(group, ranking)]
        blocks += [as_markdown(group_table(group, ranking)), *notes(group, ranking)]
    if ranking.unranked:
        blocks += ["## Not ranked", as_markdown(unranked_table(ranking))]
    return "\n\n".join([*blocks, "## How this was computed", *methods(ranking), footer]) + "\n"


def _counts(ranking: Ranking) -> str:
    counts = _count(len(ranking.runs), "run"), _count(len(ranking.rows), "row"), len(ranking.unranked)
    return "{} in {}, {} not ranked".format(*counts)


def terminal_text(ranking: Ranking, width: int | None) -> str:
    """Say it in a terminal: the answer, the tables, the runs that have no place.

    Args:
        ranking: What was found.
        width: Of the terminal, in characters; None where the output is no terminal.
    """
    blocks = ["\n".join(answer(ranking))]
    for number, group in enumerate(ranking.groups, start=1):
        if len(ranking.groups) > 1:
            blocks.append("\n".join([group_heading(number, group, ranking), *group_words(group, ranking)]))
        blocks += [as_text(group_table(group, ranking), width), "\n".join(notes(group, ranking))]
    if ranking.unranked:
        blocks.append("Not ranked:\n" + as_text(unranked_table(ranking)))
    return "\n\n".join([*blocks, _counts(ranking)])
