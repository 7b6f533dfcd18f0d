"""Say what the mean of the logits of two and four networks is worth on other slides: benchmarks/ensembles.csv.

Takes two evaluations of each network on the same other slides (`histolight evaluate run=RUN data=…`), as it is and with
`adapt=batch_norm`, two or more networks of a name. Figures are those of ``many_tiles.py``: levels of each half of the
tiles are chosen on the other half.

    python benchmarks/ensembles.py NETWORK=EVALUATION,ADAPTED … > benchmarks/ensembles.csv
"""

from __future__ import annotations

import argparse
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
from many_tiles import FIGURES, measured
from scipy.special import expit
from tables import csv_printer

from histolight import runs
from histolight.config.compose import saved_config

COLUMNS = ("auroc", "low", "high", *FIGURES, "ece_temperature", "ece_line")


def together(tables: list[pd.DataFrame]) -> list[str]:
    """Measure the mean of the logits of predictions on the same tiles."""
    logit = np.mean([table["logit"] for table in tables], axis=0)
    return measured(tables[0].assign(logit=logit, score=expit(logit)))


def main() -> None:
    """Print a row for each network alone, for pairs of one name or of one seed, and for all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("evaluations", nargs="+", help="NETWORK=EVALUATION,ADAPTED")
    print_row = csv_printer("networks", "seeds", *COLUMNS, *(f"adapted_{name}" for name in COLUMNS), "seconds")
    members = []
    for network, folders in (argument.rsplit("=", 1) for argument in parser.parse_args().evaluations):
        plain, adapted = (Path(folder) for folder in folders.split(","))
        tables = [
            runs.read_predictions(folder / "predictions" / "test.csv").sort_values("id", ignore_index=True)
            for folder in (plain, adapted)
        ]
        run = Path(runs.read_metrics(plain)["run"])
        members.append((network, saved_config(run).seed, *tables, runs.read_metrics(run)["seconds"]))
    pairs = [pair for pair in combinations(members, 2) if pair[0][0] == pair[1][0] or pair[0][1] == pair[1][1]]
    for group in [*((member,) for member in members), *pairs, members]:
        networks, seeds, plain_tables, adapted_tables, seconds = zip(*group, strict=True)
        names = " and ".join(dict.fromkeys(networks))
        figures = [*together(list(plain_tables)), *together(list(adapted_tables))]
        print_row(names, ", ".join(map(str, seeds)), *figures, f"{sum(seconds):.0f}")


if __name__ == "__main__":
    main()
