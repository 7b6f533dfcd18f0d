"""Successive halving against the full grid, replayed on the curves of ``pruning.csv``, as CSV.

    python benchmarks/asha.py > benchmarks/asha.csv

A training is a function of its configuration and seed, so what sweep=asha does one point after the other is known from
the curve of every point: the study, the pruner and the order are those of the sweep, and only the trainings are read.
Three ways to judge a point are compared: on its one schedule of 5 epochs, which a point goes on with, from the first
epoch on or once it is past its peak (as the sweep does); and at 1 and at 3 epochs by a training whose schedule ends
there, which a point that goes on begins again. Each is repeated for many orders of the grid.
``regret`` is how far the chosen point lies below the grid's best, by the validation AUROC of its
best epoch; ``seed_sd`` is the standard deviation of a point's AUROC over seeds, pooled; ``within`` the part of the
orders whose regret is no larger.
"""

from __future__ import annotations

import random
import statistics
import sys
from collections.abc import Iterable
from pathlib import Path

import optuna
from tables import csv_printer, read_results

from histolight.sweeps.trials import TIE, build_pruner

EPOCHS, RUNGS, ORDERS = 5, (1, 3), 50
WAYS = {  # and the first epoch after which a point may be stopped
    "one schedule, past its peak": 2,
    "one schedule, from its first epoch": 1,
    "a schedule for each rung": 1,
}
Point = tuple[str, ...]
Curves = dict[tuple[int, int], dict[Point, list[float]]]  # by seed and epochs of the schedule


def main(path: Path) -> None:
    curves = read_curves(path)
    whole = [seed for seed, epochs in sorted(curves) if epochs == EPOCHS]
    noise = seed_noise([curves[seed, EPOCHS] for seed in whole])
    print_row = csv_printer(
        "judged", "seed", "points", "grid_epochs", "asha_epochs", "share", "regret", "worst_regret", "seed_sd", "within"
    )
    for judged in WAYS:
        for seed in whole:
            if "rung" in judged and (seed, 1) not in curves:
                continue
            final = {point: max(values) for point, values in curves[seed, EPOCHS].items()}
            results = [replay(curves, seed, judged, order) for order in range(ORDERS)]
            regrets = [max(final.values()) - final[chosen] for chosen, _ in results]
            spent, grid = statistics.mean(epochs for _, epochs in results), EPOCHS * len(final)
            within = sum(regret <= noise for regret in regrets) / ORDERS
            figures = (f"{statistics.mean(regrets):.4f}", f"{max(regrets):.4f}", f"{noise:.4f}", f"{within:.2f}")
            print_row(judged, seed, len(final), grid, f"{spent:.0f}", f"{spent / grid:.2f}", *figures)


def read_curves(path: Path) -> Curves:
    curves: Curves = {}
    for row in read_results(path):
        point = tuple(str(row[key]) for key in ("optimizer.lr", "optimizer.weight_decay", "data.batch_size"))
        of_training = curves.setdefault((int(row["seed"]), int(row["schedule_epochs"])), {})
        of_training.setdefault(point, []).append(float(row["val_auroc"]))
    return curves


def seed_noise(finals: Iterable[dict[Point, list[float]]]) -> float:
    """Standard deviation of a point's AUROC over seeds, pooled."""
    by_seed = list(finals)
    variances = [statistics.variance(max(curves[point]) for curves in by_seed) for point in by_seed[0]]
    return statistics.mean(variances) ** 0.5


def replay(curves: Curves, seed: int, judged: str, order: int) -> tuple[Point, int]:
    """Run the search over an order of the grid: the best completed point, and the epochs that all cost."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    pruner = optuna.pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=3)  # with rungs that were trained
    if WAYS[judged] > 1:
        pruner = build_pruner("asha", EPOCHS, WAYS[judged])
    study = optuna.create_study(direction="maximize", pruner=pruner)
    points = sorted(curves[seed, EPOCHS])
    random.Random(order).shuffle(points)
    spent, completed = 0, {}
    for point in points:
        trial, whole = study.ask(), curves[seed, EPOCHS][point]
        again = "rung" in judged
        for epoch in RUNGS if again else range(1, EPOCHS):
            auroc = curves[seed, epoch][point][-1] if again else whole[epoch - 1]
            trial.report(auroc - TIE * trial.number, epoch)
            spent += epoch if again else 1
            if trial.should_prune():
                study.tell(trial, state=optuna.trial.TrialState.PRUNED)
                break
        else:
            spent += EPOCHS if again else 1
            completed[point] = max(whole)
            study.tell(trial, max(whole))
    return max(completed, key=lambda point: completed[point]), spent


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).with_name("pruning.csv"))
