"""A ranking as tables and data: for the page and the terminal, as CSV, and as ``comparison.json``."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from histolight.ranking.answer import above, lack, ranks_text
from histolight.ranking.ranking import LEVEL, Ranking
from histolight.ranking.rows import COSTS, Row, short_key, text_of
from histolight.reports.page import Cell, Table
from histolight.reports.parts import interval_text
from histolight.statistics.figures import FIGURES


def ranked_keys(ranking: Ranking) -> list[str]:
    """List the swept keys that differ among the ranked rows."""
    return [key for key in ranking.swept if len({row.config[key] for row in ranking.rows}) > 1]


def main_table(ranking: Ranking) -> Table:
    """Lay out the verdict: possible ranks, what differs, AUROC, how much worse than a better row."""
    assert ranking.verdict is not None
    names, row_cells = _names(ranking)
    words = ["rank", *names, *["best of"] * (ranking.by is not None)]
    rows = []
    for place, row in enumerate(ranking.rows):
        verdict = ranking.verdict
        cells = [Cell(ranks_text(verdict.ranks[place])), *row_cells[place]]
        if ranking.by is not None:
            cells.append(Cell(f"{row.chosen_from} point{'s' * (row.chosen_from != 1)}"))
        interval = interval_text(verdict.row_low[place], verdict.row_high[place])
        cells.append(Cell(f"{verdict.auroc[place]:.4f}", interval))
        if len(ranking.rows) > 1:
            cells.append(_verdict_cell(ranking, place))
        rows.append(cells)
    marked = 0 if ranking.verdict.reason else len(ranking.best_set)
    return Table([*words, "AUROC", *["verdict"] * (len(ranking.rows) > 1)], rows, words=len(words), marked=marked)


def _names(ranking: Ranking) -> tuple[list[str], list[list[Cell]]]:
    """Headings and cells that say which row it is: its values of the swept keys, or its name."""
    keys = ranked_keys(ranking)
    named = [", ".join(text_of(row.config[key]) for key in keys) for row in ranking.rows]
    if not keys or len(set(named)) < len(named):
        return ["row"], [[Cell(row.name)] for row in ranking.rows]
    return [short_key(key, keys) for key in keys], [
        [Cell(text_of(row.config[key])) for key in keys] for row in ranking.rows
    ]


def _verdict_cell(ranking: Ranking, place: int) -> Cell:
    verdict = ranking.verdict
    assert verdict is not None
    if verdict.reason:
        return Cell("not ranked")
    if verdict.best[place]:
        return Cell("may be the best" if len(ranking.best_set) > 1 else "the best")
    better = above(ranking, place)
    gap, low, high = (matrix[better, place] for matrix in (verdict.difference, verdict.low, verdict.high))
    return Cell(f"{gap:.4f} below {f'row {better + 1}' if better else 'the first row'}", interval_text(low, high))


def other_figures() -> dict[str, str]:
    """Map every figure of merit but the one that ranks to its heading."""
    return {name: figure.heading for name, figure in FIGURES.items() if name != "auroc"}


def further_table(ranking: Ranking) -> Table:
    """Lay out the other figures and what the trainings cost: means over the runs, with their standard deviation."""
    names, row_cells = _names(ranking)
    pooled = ranking.rows[0].pooled is not None
    further = other_figures() | COSTS
    rows = []
    for place, row in enumerate(ranking.rows):
        cells = [*row_cells[place], *(_figure_cell(row, name) for name in further)]
        if pooled:
            cells.append(Cell("" if row.pooled is None else f"{row.pooled:.4f}"))
        rows.append(cells)
    return Table([*names, *further.values(), *["pooled AUROC"] * pooled], rows, words=len(names))


def _figure_cell(row: Row, name: str) -> Cell:
    value, spread = row.mean(name), row.sd(name)
    if math.isnan(value):
        return Cell("n/a")
    if name == "parameters":
        return Cell(f"{value / 1e6:.2f} M")
    if name in COSTS:
        return Cell(f"{value:,.0f}" if value >= 10 else f"{value:.1f}")
    return Cell(f"{value:.3f}", "" if math.isnan(spread) else f"± {spread:.3f}")


def domain_table(ranking: Ranking) -> Table | None:
    """Lay out the AUROC of each row in each domain, the worst domain first; None where the runs have no domains."""
    measured = [domain_aurocs(row, ranking.part) for row in ranking.rows]
    if not any(measured):
        return None
    domains = pd.DataFrame(measured).mean().sort_values().index
    names, row_cells = _names(ranking)
    rows = [
        [*row_cells[place], *(Cell(f"{aurocs[name]:.4f}" if name in aurocs else "n/a") for name in domains)]
        for place, aurocs in enumerate(measured)
    ]
    return Table([*names, *map(str, domains)], rows, words=len(names))


def domain_aurocs(row: Row, part: str) -> dict[str, float]:
    """Return the AUROC of a row in each domain, the mean over its runs; the worst domain first."""
    measured: dict[str, list[float]] = {}
    for run in row.runs:
        for domain in run.metrics.get(f"{part}_by_domain") or []:
            if domain["auroc"]:
                measured.setdefault(str(domain["domain"]), []).append(domain["auroc"]["value"])
    means = {domain: float(np.mean(values)) for domain, values in measured.items()}
    return dict(sorted(means.items(), key=lambda entry: entry[1]))


def unranked_table(ranking: Ranking) -> Table:
    """List the runs and rows without a place, with status and reason."""
    rows = []
    for row in ranking.unranked:
        more = f"and {len(row.directories) - 1} more" if len(row.directories) > 1 else ""
        rows.append([Cell(row.name), Cell(row.status), Cell(row.reason), Cell(str(row.directories[0]), more)])
    return Table(["row or run", "status", "reason", "folder"], rows, words=4)


def comparison_csv(ranking: Ranking) -> pd.DataFrame:
    """Put everything that is known of each ranked row into a table of numbers."""
    return pd.DataFrame([_record(ranking, place) for place in range(len(ranking.rows))])


def _record(ranking: Ranking, place: int) -> dict[str, Any]:
    row, known = ranking.rows[place], row_data(ranking, place)
    first, last = known.pop("rank")
    worse = known.pop("worse_than")
    domains = known.pop("by_domain")
    record = {"row": known.pop("row"), "rank_first": first, "rank_last": last}
    record |= {key: row.config[key] for key in ranking.swept}
    record |= {"population": ranking.population, "split": ranking.split, **known}
    record["runs"] = ";".join(known["runs"])
    record |= {f"worse_{key}": value for key, value in (worse or {}).items()}
    record |= {"worst_domain": next(iter(domains), None)} if domains else {}
    for name in other_figures():
        record |= {name: row.mean(name), f"{name}_sd": row.sd(name)}
    return record | {"auroc_pooled": row.pooled, **{name: row.mean(name) for name in COSTS}}


def row_data(ranking: Ranking, place: int) -> dict[str, Any]:
    """Say what ``comparison.json`` says of one row."""
    row, verdict = ranking.rows[place], ranking.verdict
    assert verdict is not None
    worse = None
    if not verdict.best[place]:
        better = above(ranking, place)
        matrices = {"by": verdict.difference, "low": verdict.low, "high": verdict.high, "p": verdict.p}
        worse = {"row": ranking.rows[better].name, **{key: _number(m[better, place]) for key, m in matrices.items()}}
    return {
        "row": row.name,
        "auroc": _number(verdict.auroc[place]),
        "low": _number(verdict.row_low[place]),
        "high": _number(verdict.row_high[place]),
        "rank": [int(rank) for rank in verdict.ranks[place]],
        "in_best_set": bool(verdict.best[place]),
        "unit": ranking.unit,
        "seeds": len({seed for _, seed in row.pairs}),
        "folds": ranking.folds,
        "part": ranking.part,
        "tiles": ranking.tiles,
        "slides": ranking.slides,
        "auroc_sd": _number(row.sd("auroc")),
        "by_domain": domain_aurocs(row, ranking.part),
        "chosen_from": row.chosen_from,
        "worse_than": worse,
        "runs": [str(run.directory) for run in row.runs],
    }


def _number(value: float) -> float | None:
    return None if math.isnan(value) else float(value)


def comparison_data(ranking: Ranking) -> dict[str, Any]:
    """Say what ``comparison.json`` says; ``docs/comparison.md`` has the meaning of each entry."""
    return {
        "rows": [row_data(ranking, place) for place in range(len(ranking.rows))],
        "best_set": ranking.best_set,
        "population": ranking.population,
        "split": ranking.split,
        "method": method(ranking),
        "not_ranked": [
            {
                "row": row.name,
                "status": row.status,
                "reason": row.reason,
                "runs": [str(path) for path in row.directories],
            }
            for row in ranking.unranked
        ],
    }


def method(ranking: Ranking) -> str:
    """Name the method and its degrees of freedom in one line."""
    covariance, verdict, rows = ranking.covariance, ranking.verdict, len(ranking.rows)
    if covariance is None or verdict is None:
        return "none: no row can be ranked"
    if covariance.lack or (rows > 1 and verdict.reason):
        return f"none: {lack(ranking)}"
    over = {
        "slides": "clustered by slide (Obuchowski 1997)",
        "components": "clustered by groups of overlapping tiles (Obuchowski 1997)",
        "tiles": "over tiles (DeLong 1988)",
    }[ranking.clusters]
    seeds = ", with seeds as readers nested in configurations (Hillis 2014)" if ranking.unit == "configuration" else ""
    tests = f", Holm over all {rows * (rows - 1) // 2} pairs" if rows > 2 else ""
    return (
        f"covariance of AUROCs {over}{seeds}; t with nu1 = {covariance.degrees_of_freedom:.1f}{tests}, {LEVEL:.0%} for "
        "all claims together"
    )


def counts_text(ranking: Ranking) -> str:
    """Count what was compared: ``20 runs in 2 rows, 1 not ranked``."""
    runs, rows = ((count, f"{count:,} {what}{'s' * (count != 1)}") for count, what in _counts(ranking))
    return f"{runs[1]} in {rows[1]}, {len(ranking.unranked)} not ranked"


def _counts(ranking: Ranking) -> Sequence[tuple[int, str]]:
    return (len(ranking.runs), "run"), (len(ranking.rows), "row")
