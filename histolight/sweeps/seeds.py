"""Further seeds for the leaders of a sweep: the seed that chose them is not counted in the verdict on them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from histolight import runs
from histolight.config import hydra_adapter as hydra
from histolight.errors import RequestError
from histolight.sweeps.launch import PointLauncher
from histolight.sweeps.points import Point, Sweep

if TYPE_CHECKING:
    from histolight.sweeps.sweep import SweepPlan


def check_seeds(plan: SweepPlan) -> None:
    """Refuse further seeds where leaders can't be chosen.

    Raises:
        RequestError: Seeds or folds are axes.
    """
    axes = {axis.key_or_group for axis in plan.axes}
    if plan.settings.seeds and (wrong := sorted(axes & {"seed", "data.seed", "data.fold"})):
        raise RequestError(f"sweep.seeds chooses leaders among points of one seed and split: give {wrong[0]} one value")


def train_leaders(
    plan: SweepPlan, sweep: Sweep, train: Callable[[DictConfig], Any], tried: Sequence[tuple[Point, list[str]]]
) -> None:
    """Train the best points with ``sweep.seeds`` further seeds; the files of those that chose them get ``chose_from``.

    Args:
        plan: The sweep's plan.
        sweep: The sweep.
        train: Trains a point.
        tried: The points to choose among, each with its overrides.
    """
    completed = [(point, values) for point, values in tried if point.auroc is not None]
    if not plan.settings.seeds or not completed:
        return
    for point, _ in completed:
        runs.update_metrics(point.directory, chose_from=len(tried))
    leaders = sorted(completed, key=lambda one: -(one[0].auroc or 0.0))[: plan.settings.leaders]
    seeds = range(plan.master.seed + 1, plan.master.seed + 1 + plan.settings.seeds)
    points = [[*values, f"seed={seed}"] for _, values in leaders for seed in seeds]
    PointLauncher(hydra.build_launcher(plan.master, train), sweep).launch(points, len(tried))
