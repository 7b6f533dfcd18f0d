"""Say what the mean of the logits of two and four networks is worth on other slides: benchmarks/ensembles.csv.

Takes evaluations on the same other slides (`histolight evaluate run=RUN data=…`), each with the name of its network,
two or more a network. Figures are those of ``many_tiles.py``: levels of each half of the tiles are chosen on the other.

    python benchmarks/ensembles.py NETWORK=EVALUATION NETWORK=EVALUATION … > benchmarks/ensembles.csv
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


def together(tables: list[pd.DataFrame]) -> list[str]:
    """Measure the mean of the logits of predictions on the same tiles."""
    logit = np.mean([table["logit"] for table in tables], axis=0)
    return measured(tables[0].assign(logit=logit, score=expit(logit)))


def main() -> None:
    """Print a row for each network alone, for pairs of one network or of one seed, and for all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("evaluations", nargs="+", help="NETWORK=EVALUATION")
    print_row = csv_printer(
        "networks", "seeds", "auroc", "low", "high", *FIGURES, "ece_temperature", "ece_line", "seconds"
    )
    members = []
    for network, folder in (argument.rsplit("=", 1) for argument in parser.parse_args().evaluations):
        table = runs.read_predictions(Path(folder) / "predictions" / "test.csv").sort_values("id", ignore_index=True)
        run = Path(runs.read_metrics(Path(folder))["run"])
        members.append((network, saved_config(run).seed, table, runs.read_metrics(run)["seconds"]))
    pairs = [pair for pair in combinations(members, 2) if pair[0][0] == pair[1][0] or pair[0][1] == pair[1][1]]
    for group in [*((member,) for member in members), *pairs, members]:
        networks, seeds, tables, seconds = zip(*group, strict=True)
        name = " and ".join(dict.fromkeys(networks))
        print_row(name, ", ".join(map(str, seeds)), *together(list(tables)), f"{sum(seconds):.0f}")


if __name__ == "__main__":
    main()
