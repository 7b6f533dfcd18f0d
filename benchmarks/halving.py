"""What sweep=asha finds and what it costs, against the whole grid of the same trainings, as CSV.

    histolight train -m sweep=grid OVERRIDES trainer.max_epochs=10 seed=3,4,5 name=grid
    histolight train -m sweep=asha OVERRIDES trainer.max_epochs=10 seed=3 name=asha-3        (and seeds 4 and 5)
    python benchmarks/halving.py NETWORK outputs/sweeps/grid outputs/sweeps/asha-* >> benchmarks/halving.csv

``regret`` is how far the point that the search chose lies below the grid's best of that seed, by the validation AUROC
of its best epoch. ``seed_sd`` is the standard deviation of a point's AUROC over the grid's seeds, pooled over the
points whose mean lies within 0.05 of the best: points that hardly learn spread much more. ``orders_share`` and
``orders_regret`` are what other orders of the grid would have cost and lost, replayed on its curves: the mean of
fifty, and the worst.
"""

from __future__ import annotations

import random
import statistics
import sys
from pathlib import Path

import optuna
from tables import csv_printer

from histolight import runs
from histolight.config.schema import SchedulerConfig
from histolight.reports.curves import read_curves
from histolight.sweeps.trials import TIE, build_pruner, first_epoch

AXES = ("optimizer.lr", "optimizer.weight_decay", "data.batch_size")
LEARNS, ORDERS = 0.05, 50
Curves = dict[tuple[str, ...], list[float]]  # validation AUROC after each epoch, by point


def main(network: str, grid: Path, searches: list[Path]) -> None:
    whole = read_sweep(grid)
    noise = seed_noise(list(whole.values()))
    print_row = csv_printer(
        *("network", "seed", "points", "completed", "grid_epochs", "asha_epochs", "share"),
        *("best", "chosen", "regret", "seed_sd", "orders_share", "orders_regret"),
        file=sys.stdout,
    )
    for search in searches:
        ((seed, curves),) = read_sweep(search).items()
        all_curves = whole[seed]
        longest = max(len(values) for values in all_curves.values())
        completed = {point: max(values) for point, values in curves.items() if len(values) == longest}
        chosen = max(completed, key=lambda point: completed[point])
        for point, values in curves.items():
            assert values == all_curves[point][: len(values)], f"{search}: {point} is not the grid's training"
        best = max(max(values) for values in all_curves.values())
        spent, all_epochs = (sum(map(len, sweep.values())) for sweep in (curves, all_curves))
        print_row(
            *(network, seed, len(curves), len(completed), all_epochs, spent, f"{spent / all_epochs:.3f}"),
            *(f"{value:.4f}" for value in (best, completed[chosen], best - completed[chosen], noise)),
            *replayed(all_curves),
        )


def read_sweep(directory: Path) -> dict[int, Curves]:
    """Read the curves of a sweep's points, by seed."""
    curves: dict[int, Curves] = {}
    for path in sorted(directory.glob("*/config.yaml")):
        config = runs.read_config(path)
        point = tuple(str(config[group][key]) for group, key in (axis.split(".") for axis in AXES))
        curves.setdefault(config["seed"], {})[point] = _after_epochs(path.parent)
    return curves


def replayed(curves: Curves) -> tuple[str, str]:
    """Run the search on recorded curves, over fifty orders: mean share of the grid's epochs, and the worst regret."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    epochs = max(map(len, curves.values()))
    shares, regrets = [], []
    for order in range(ORDERS):
        first = first_epoch(SchedulerConfig(), epochs)
        study = optuna.create_study(direction="maximize", pruner=build_pruner("asha", epochs, first))
        points = random.Random(order).sample(sorted(curves), len(curves))
        spent, best = 0, 0.0
        for point in points:
            trial = study.ask()
            for epoch, auroc in enumerate(curves[point], start=1):
                spent += 1
                trial.report(auroc - TIE * trial.number, epoch)
                if epoch < epochs and trial.should_prune():
                    study.tell(trial, state=optuna.trial.TrialState.PRUNED)
                    break
            else:
                best = max(best, *curves[point])
                study.tell(trial, max(curves[point]))
        shares.append(spent / epochs / len(curves))
        regrets.append(max(max(values) for values in curves.values()) - best)
    return f"{statistics.mean(shares):.3f}", f"{max(regrets):.4f}"


def _after_epochs(directory: Path) -> list[float]:
    curve = read_curves(directory)["val/auroc"]
    return curve[curve.index > 0].tolist()


def seed_noise(by_seed: list[Curves]) -> float:
    """Standard deviation over seeds of the AUROC of a point that learns, pooled."""
    finals = {point: [max(curves[point]) for curves in by_seed] for point in by_seed[0]}
    best = max(statistics.mean(values) for values in finals.values())
    learning = [values for values in finals.values() if statistics.mean(values) > best - LEARNS]
    return statistics.mean(statistics.variance(values) for values in learning) ** 0.5


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), [Path(path) for path in sys.argv[3:]])
