"""Say what trainings reached on other slides, and what they cost: benchmarks/trainings.csv.

Takes folders of `histolight evaluate run=RUN data=… calibrate=true`, each with the name of its row.

    python benchmarks/trainings.py 'NAME=EVALUATION' … > benchmarks/trainings.csv
"""

from __future__ import annotations

import argparse
from pathlib import Path

from tables import csv_printer

from histolight import runs
from histolight.config.compose import saved_config


def main() -> None:
    """Print a row for each evaluation."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("evaluations", nargs="+", help="NAME=EVALUATION")
    print_row = csv_printer(
        *("name", "seed", "training_tiles", "parameters", "epochs", "tiles_per_second", "seconds"),
        *("own_validation", "auroc", "low", "high", "accuracy_at_threshold", "ece_calibrated"),
    )
    for name, folder in (argument.rsplit("=", 1) for argument in parser.parse_args().evaluations):
        evaluation = runs.read_metrics(Path(folder))
        run = Path(evaluation["run"])
        trained, config = runs.completed_metrics(run), saved_config(run)
        auroc = evaluation["test"]["auroc"]
        figures = (
            trained["val"]["auroc"]["value"],
            *(auroc[end] for end in ("value", "low", "high")),
            evaluation["test_at_threshold"]["accuracy"]["value"],
            evaluation["test_calibrated"]["ece"]["value"],
        )
        print_row(
            *(name, config.seed, sum(trained["tiles"]["train"].values()), trained["parameters"]),
            *(config.trainer.max_epochs, f"{trained['tiles_per_second']:.0f}", f"{trained['seconds']:.0f}"),
            *(f"{figure:.3f}" for figure in figures),
        )


if __name__ == "__main__":
    main()
