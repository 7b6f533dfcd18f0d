"""What a search looks through: lists, ranges and intervals of Hydra's grammar as Optuna's distributions."""

from __future__ import annotations

import importlib.util
import math
import random
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from histolight.config import hydra_adapter as hydra
from histolight.config.texts import kinds
from histolight.errors import RequestError

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution, FloatDistribution, IntDistribution

LIKE_OTHERS = ("trainer.max_epochs", "scheduler", "scheduler.name", "scheduler.total_epochs")  # see check_axes


def check_axes(axes: Sequence[hydra.Override], pruner: str) -> None:
    """Refuse axes that a search can't compare points along.

    Raises:
        RequestError: Optuna is missing, there is no axis, folds or seeds are axes, or points of different schedules
            would be compared at equal epochs.
    """
    if importlib.util.find_spec("optuna") is None:
        raise RequestError("a search needs optuna: install histolight with its extra, histolight[optuna]")
    if not axes:
        raise RequestError("a search needs an axis, such as optimizer.lr=1e-4,1e-3 or optimizer.lr=interval(1e-4,1e-2)")
    for axis in axes:
        key = axis.key_or_group
        if key in ("seed", "data.seed", "data.fold"):
            raise RequestError(
                f"{key} can't be searched, as its values are equally good: give one value (sweep.seeds=3 trains the "
                "best points with three further seeds)"
            )
        if pruner != "none" and key in LIKE_OTHERS:
            raise RequestError(
                f"{key} can't be swept with sweep.pruner={pruner}, which compares points at equal epochs of one "
                "schedule: give one value, or sweep.pruner=none"
            )


def space_of(axes: Sequence[hydra.Override]) -> dict[str, BaseDistribution]:
    """Turn axes into Optuna's distributions, by key; values of a list are kept as they are written.

    Raises:
        RequestError: An interval is empty, is not of numbers, or can't be logarithmic.
    """
    from optuna.distributions import CategoricalDistribution

    space: dict[str, BaseDistribution] = {}
    for axis in axes:
        if not axis.is_sweep_override():
            space[axis.key_or_group] = CategoricalDistribution([axis.get_value_element_as_str()])
        elif axis.is_discrete_sweep():
            values = list(dict.fromkeys(axis.sweep_string_iterator()))
            shuffled = getattr(axis.value(), "shuffle", False)  # at random, while a study knows one order
            space[axis.key_or_group] = CategoricalDistribution(sorted(values) if shuffled else values)
        else:
            space[axis.key_or_group] = _interval(axis)
    return space


def _interval(axis: hydra.Override) -> FloatDistribution | IntDistribution:
    from optuna.distributions import FloatDistribution, IntDistribution

    key = axis.key_or_group
    interval: Any = axis.value()
    low, high, log = interval.start, interval.end, "log" in interval.tags
    kind = next(iter(kinds(key)), type(low))
    if kind not in (int, float):
        raise RequestError(f"{axis.input_line}: {key} is no number; list its values, {key}=A,B")
    if unknown := interval.tags - {"log"}:
        raise RequestError(f"{axis.input_line}: the tag {min(unknown)} is not known; there is log")
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise RequestError(f"{axis.input_line} is empty: give the smaller number first, interval(LOW,HIGH)")
    if log and low <= 0:
        raise RequestError(f"{axis.input_line}: a logarithmic interval begins above 0")
    if kind is float:
        return FloatDistribution(low, high, log=log)
    if low != int(low) or high != int(high):
        raise RequestError(f"{axis.input_line}: {key} is a whole number, and so are the ends of its interval")
    return IntDistribution(int(low), int(high), log=log)


def ends_of(space: dict[str, BaseDistribution]) -> list[list[str]]:
    """List points that reach every value of every list, and both ends of every interval."""
    from optuna.distributions import CategoricalDistribution

    values: dict[str, tuple[Any, ...]] = {
        key: kind.choices if isinstance(kind, CategoricalDistribution) else (kind.low, kind.high)  # type: ignore[attr-defined]
        for key, kind in space.items()
    }
    return [
        overrides_of({key: some[number % len(some)] for key, some in values.items()})
        for number in range(max(map(len, values.values())))
    ]


def shuffled_grid(axes: Sequence[hydra.Override], seed: int) -> list[dict[str, str]]:
    """List the points of a grid, each as its values by key, in an order drawn from the seed.

    In the order of the grid, learning rates rising, each point would be the best so far, and none be stopped.
    """
    keys = [axis.key_or_group for axis in axes]
    values = [[override.partition("=")[2] for override in point] for point in hydra.expand(axes)]
    points = [dict(zip(keys, point, strict=True)) for point in values]
    random.Random(seed).shuffle(points)
    return points


def overrides_of(params: dict[str, Any]) -> list[str]:
    """Write a trial's parameters as overrides.

    >>> overrides_of({"optimizer.lr": 0.001, "model": "resnet18"})
    ['optimizer.lr=0.001', 'model=resnet18']
    """
    return [f"{key}={value}" for key, value in params.items()]
