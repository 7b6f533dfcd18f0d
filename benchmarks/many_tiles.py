"""Say how good trainings of one configuration are on other slides, each alone and together: benchmarks/many_tiles.csv.

Takes runs whose validation tiles are of other slides, evaluations of such runs (`histolight evaluate run=RUN
tta=dihedral`), or evaluations on tiles of other slides (`data=folder data.root=FOLDER`): a row for each and one for the
mean of their logits. Threshold and line (slope and intercept) of each half of the tiles are chosen on the other half,
as ``levels.py`` cuts them; the interval of the AUROC is over components of overlapping tiles.

    python benchmarks/many_tiles.py NETWORK VIEWS RUN RUN … >> benchmarks/many_tiles.csv
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import pandas as pd
from levels import levels_row
from scipy.special import expit
from tables import csv_printer

from histolight import runs
from histolight.config.compose import saved_config
from histolight.statistics.intervals import auroc_interval

FIGURES = ("accuracy", "accuracy_low", "accuracy_high", "sensitivity", "specificity")


def main() -> None:
    """Print a row a run, their mean, and their ensemble."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("network")
    parser.add_argument("views")
    parser.add_argument("runs", nargs="+", type=Path)
    options = parser.parse_args()
    print_row = csv_printer(
        *("network", "views", "seed", "auroc", "low", "high", *FIGURES, "ece_temperature", "ece_line", "seconds"),
        file=sys.stdout,
    )
    tables, rows = [], []
    for directory in options.runs:
        val, test = (
            directory / "predictions" / f"{part}.csv" for part in ("val", "test")
        )  # of other tiles there is test
        table = runs.read_predictions(val if val.is_file() else test).sort_values("id").reset_index(drop=True)
        run = Path(runs.read_metrics(directory).get("run", directory))
        tables.append(table)
        rows.append(measured(table))
        seconds = f"{runs.read_metrics(run)['seconds']:.0f}"
        print_row(options.network, options.views, saved_config(run).seed, *rows[-1], seconds)
    if len(tables) > 1:
        means = [f"{np.mean([float(value) for value in column]):.3f}" for column in zip(*rows, strict=True)]
        print_row(options.network, options.views, "mean", means[0], "", "", means[3], "", "", *means[6:], "")
        logit = np.mean([table["logit"] for table in tables], axis=0)
        together = measured(tables[0].assign(logit=logit, score=expit(logit)))
        print_row(options.network, options.views, "the mean of their logits", *together, "")


def measured(table: pd.DataFrame) -> list[str]:
    """AUROC with its interval, and what levels are worth that the other half of the tiles chose."""
    auroc = auroc_interval(table["logit"], table["label"], table["cluster"])
    levels = levels_row(table, None)
    return [
        *(f"{value:.3f}" for value in (auroc.value, auroc.low, auroc.high)),
        *map(str, levels[:5]),
        *map(str, levels[7:9]),
    ]


if __name__ == "__main__":
    main()
