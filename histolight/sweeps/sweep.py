"""A sweep: many trainings from one command, each a point with a run directory of its own.

Hydra expands the lists and its launchers run the points, one after another or in parallel; where Optuna chooses points
or stops them, the launchers run workers that ask it (:mod:`histolight.sweeps.search`). What is kept here makes a
sweep one that finishes: a point is known by a hash of its configuration, so that the same command given again skips
what is completed; a point's fault is written into its own ``metrics.json`` and does not stop the others.
"""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, open_dict

from histolight import files, runs
from histolight.config import hydra_adapter as hydra
from histolight.config.checks import check_weights_file
from histolight.config.compose import compose_config, sweep_settings, typed
from histolight.config.schema import Config, SweepConfig
from histolight.config.texts import as_typed
from histolight.data.sources import check_labelled
from histolight.errors import InterruptionError, RequestError, command_line
from histolight.interrupts import signals_interrupt
from histolight.sweeps.devices import share_out
from histolight.sweeps.launch import PointLauncher, is_held, release, train_point
from histolight.sweeps.pages import pages_drawn
from histolight.sweeps.points import Point, Sweep, shown
from histolight.sweeps.progress import live_line
from histolight.sweeps.search import check_folder, check_search, count_trials, search
from histolight.sweeps.seeds import check_seeds, train_leaders
from histolight.sweeps.spaces import ends_of, space_of


@dataclasses.dataclass(frozen=True)
class SweepResult:
    """A sweep that ran to its end: its name, where it lies, its points in their order, and whether they are repeats."""

    name: str
    directory: Path
    points: list[Point]
    repeats: bool


@hydra.own_hydra()
def run_sweep(overrides: Sequence[str], progress: bool = True) -> SweepResult:
    """Train every point of a sweep that is not completed yet.

    Args:
        overrides: As on the command line: lists and ranges are swept, single values hold for all points.
        progress: Show on stderr how many points are done.

    Raises:
        RequestError: A point can't be composed, would need several devices at once, or the name is taken.
        InterruptionError: Ctrl-C or SIGTERM; the message says how to continue.
        HistolightError: The launcher itself failed.
    """
    plan = plan_sweep(_named(overrides))
    with files.reading(plan.directory):
        continued = (plan.directory / "sweep.json").is_file()
    with files.claimed(plan.directory, continued, otherwise="choose another folder with hydra.sweep.dir=FOLDER"):
        files.lock_file(plan.directory).touch()  # tells this command from those before
        sweep = open_sweep(plan)
        _refuse_one_fault_of_all(sweep, plan)
        total = count_trials(plan) + plan.settings.leaders * plan.settings.seeds
        done = sum(point.status in ("completed", "pruned") for point in sweep.current())
        with signals_interrupt(), live_line(sweep, total, progress):
            try:
                with pages_drawn(sweep, total - done) as later:
                    train = functools.partial(train_point, drawn=not later, points_per_gpu=plan.settings.points_per_gpu)
                    tried = search(plan, sweep, not later) if plan.searched else train_grid(plan, sweep, train)
                    train_leaders(plan, sweep, train, tried)
            except KeyboardInterrupt as error:
                raise InterruptionError(_how_to_continue(sweep, plan, total)) from error
            finally:
                release(workers="Joblib" in plan.master.hydra.launcher._target_)
        return SweepResult(plan.master.name, shown(plan.directory), sweep.current(), sweep.repeats)


@dataclasses.dataclass(frozen=True)
class SweepPlan:
    """A sweep before any of its points trains.

    Attributes:
        overrides: As they were given.
        fixed: Those that hold for all points, the sweep's name among them.
        axes: Those that are swept, as ``sweep=`` presets them or the command line gives them.
        keys: Every key that is swept.
        master: The configuration that the points share, Hydra's own node included.
        directory: The sweep's folder.
        grid: The overrides of each point; empty where TPE chooses the points.
        configs: The composed configuration of each point of the grid.
        settings: How the sweep goes about its points.
        searched: Whether Optuna has a part in it: chooses points, stops them, or ends the sweep before all are trained.
    """

    overrides: list[str]
    fixed: list[str]
    axes: list[hydra.Override]
    keys: list[str]
    master: DictConfig
    directory: Path
    grid: list[list[str]]
    configs: list[DictConfig]
    settings: SweepConfig
    searched: bool


def _named(overrides: Sequence[str]) -> list[str]:
    """Name a sweep that has no name by its time, and take the folder of that name, numbered where it is taken."""
    fixed, _ = _fixed_and_swept(overrides)
    if {"name", "hydra.sweep.dir"} & {override.partition("=")[0] for override in fixed}:
        return list(overrides)
    name = time.strftime("name=%Y-%m-%d_%H-%M-%S")
    directory = Path(str(compose_config([*fixed, name]).hydra.sweep.dir)).expanduser()
    taken = files.take_folder(directory, "choose another folder with hydra.sweep.dir=FOLDER")
    return [*overrides, f"{name}{taken.name.removeprefix(directory.name)}"]


def plan_sweep(overrides: Sequence[str]) -> SweepPlan:
    """Compose what is asked for, every point of a grid included.

    Raises:
        RequestError: A point can't be composed, or would need several devices at once.
    """
    fixed, swept = _fixed_and_swept(overrides)
    if not any(override.partition("=")[0] == "name" for override in fixed):
        fixed.append(time.strftime("name=%Y-%m-%d_%H-%M-%S"))
    master = compose_config(fixed)
    directory = Path(str(master.hydra.sweep.dir)).expanduser().absolute()
    axes = _axes(master, fixed, swept)
    with open_dict(master):
        master.hydra.sweep.dir = str(directory)
    settings = _settings(master, axes)
    share_out(master, settings.points_per_gpu)
    keys = [axis.key_or_group for axis in axes] + ["seed"] * (settings.seeds > 0)
    if settings.sampler == "grid":
        _refuse_intervals(axes)
    grid = hydra.expand(axes) if settings.sampler == "grid" else []
    configs = [compose_config([*fixed, *values]) for values in grid]
    for config in configs or [master]:
        _refuse_several_devices(config)
    searched = settings.sampler == "tpe" or settings.pruner != "none" or bool(settings.n_trials or settings.timeout)
    plan = SweepPlan(list(overrides), fixed, axes, keys, master, directory, grid, configs, settings, searched)
    if searched:
        check_search(plan)
    check_seeds(plan)
    return plan


def _refuse_one_fault_of_all(sweep: Sweep, plan: SweepPlan) -> None:
    """Refuse a sweep, before any work, of which every point would fail for one reason; else only those points fail.

    Raises:
        RequestError: The reason.
    """
    launcher = str(plan.master.hydra.launcher._target_)
    if "Basic" not in launcher and "Joblib" not in launcher:
        return  # the machines of a cluster may have other folders
    first = None
    for config in _to_train(sweep, plan):
        try:
            _check_point(typed(config), trains_here="Basic" in launcher)
            return
        except RequestError as error:
            if first is not None and str(error) != str(first):
                return
            first = error
    if first is not None:
        raise first


def _check_point(config: Config, trains_here: bool) -> None:
    """Refuse a point as its training would, where that takes PyTorch only in the process that trains it."""
    check_labelled(config.data)
    check_weights_file(config.model.weights)
    if trains_here:
        from histolight.training.fit import check_request

        check_request(config)


def _to_train(sweep: Sweep, plan: SweepPlan) -> Iterator[DictConfig]:
    """Compose the points that are not completed; of a search that has chosen none yet, some that reach every value."""
    if not plan.searched:
        points = zip(plan.grid, plan.configs, strict=True)
        yield from (config for values, config in points if sweep.point(values).status != "completed")
    elif not sweep.current():
        yield from (compose_config([*plan.fixed, *values]) for values in ends_of(space_of(plan.axes)))


def open_sweep(plan: SweepPlan) -> Sweep:
    """Find the points that the sweep has already, and allot folders to those of the grid.

    Raises:
        RequestError: The folder holds a sweep with another base configuration, or something else.
    """
    if plan.searched:
        sweep = Sweep(plan.directory, plan.fixed, plan.keys, [plan.master], listed=False)
        check_folder(sweep)
        return sweep
    sweep = Sweep(plan.directory, plan.fixed, plan.keys, plan.configs, listed=True)
    for values, config in zip(plan.grid, plan.configs, strict=True):
        sweep.point(values, config)
    return sweep


def train_grid(plan: SweepPlan, sweep: Sweep, train: Callable[[DictConfig], Any]) -> list[tuple[Point, list[str]]]:
    """Hand the points of a grid to the launcher, in batches where the sweeper has a largest size.

    Returns:
        The points, each with its overrides.
    """
    launcher = PointLauncher(hydra.build_launcher(plan.master, train), sweep)
    step = plan.master.hydra.sweeper.max_batch_size or len(plan.grid)
    for first in range(0, len(plan.grid), step):
        launcher.launch(plan.grid[first : first + step], first)
    return [(sweep.point(values), values) for values in plan.grid]


def _fixed_and_swept(overrides: Sequence[str]) -> tuple[list[str], list[hydra.Override]]:
    """Tell single values from lists, ranges, globs and intervals.

    Raises:
        RequestError: An override can't be read, or its key has no place in a sweep.
    """
    try:
        last = {override.get_key_element(): override for override in hydra.parse(as_typed(overrides))}
    except hydra.HydraException:
        compose_config(overrides)  # says it in our words
        raise
    parsed = list(last.values())  # of a key given twice the last counts, as in Hydra
    swept = [override for override in parsed if override.is_sweep_override()]
    for override in parsed:
        key = override.key_or_group
        if key in ("run", "like"):
            raise RequestError(f"{key}= is about a single run: leave -m out (a sweep is continued by its name=)")
        if key == "hydra.run.dir":
            raise RequestError("hydra.run.dir is the folder of a single run: that of a sweep is hydra.sweep.dir=FOLDER")
    for override in swept:
        key = override.key_or_group
        if key == "name" or key.startswith(("hydra", "sweep.")):
            raise RequestError(f"{key} can't be swept: give one value")
    return [str(override.input_line) for override in parsed if not override.is_sweep_override()], swept


def _axes(master: DictConfig, fixed: list[str], swept: list[hydra.Override]) -> list[hydra.Override]:
    """Return the axes that ``sweep=`` presets, unless the command line gives one value, and those that it gives."""
    given = {override.partition("=")[0] for override in fixed}
    presets = {key: value for key, value in (master.hydra.sweeper.params or {}).items() if key not in given}
    if not master.hydra.sweeper._target_.endswith("BasicSweeper"):
        raise RequestError("hydra/sweeper is Hydra's own: a search is sweep=optuna or sweep=asha")
    axes = [*hydra.parse(as_typed([f"{key}={value}" for key, value in presets.items()])), *swept]
    return list({axis.key_or_group: axis for axis in axes}.values())


def _settings(master: DictConfig, axes: list[hydra.Override]) -> SweepConfig:
    """Read how the sweep goes about its points, ``sampler=auto`` resolved."""
    settings = sweep_settings(master)
    if settings.sampler != "auto":
        return settings
    return dataclasses.replace(settings, sampler="grid" if all(map(_is_listed, axes)) else "tpe")


def _is_listed(axis: hydra.Override) -> bool:
    return axis.is_discrete_sweep() or not axis.is_sweep_override()


def _refuse_intervals(axes: list[hydra.Override]) -> None:
    for axis in axes:
        if not _is_listed(axis):
            raise RequestError(f"{axis.input_line} is no list of values: a search over an interval is sweep=optuna")


def _refuse_several_devices(config: DictConfig) -> None:
    """Refuse distributed training: Lightning starts its other processes with this command line, -m included."""
    settings = config.trainer
    several = settings.devices.isdigit() and int(settings.devices) > 1
    if settings.strategy == "ddp" or several or settings.num_nodes > 1:
        raise RequestError(
            "a point of a sweep trains on one device: with -m use trainer.devices=1 trainer.strategy=auto, "
            "or train such points one by one, without -m"
        )
    if settings.devices == "auto" and settings.accelerator != "cpu" and "Basic" in config.hydra.launcher._target_:
        import torch

        if torch.cuda.device_count() > 1:
            raise RequestError(
                f"trainer.devices=auto would take all {torch.cuda.device_count()} GPUs for each point: with -m use "
                "hydra/launcher=joblib, which gives each point its own, or trainer.devices=1"
            )


def _how_to_continue(sweep: Sweep, plan: SweepPlan, total: int) -> str:
    """Mark what was cut off, and give the command that goes on."""
    points = sweep.current()
    for point in points:
        if point.status == "running" and not is_held(point.directory):
            runs.update_metrics(point.directory, status="interrupted", reason="interrupted with its sweep")
    done = sum(point.status in ("completed", "pruned") for point in points)
    name = f"name={plan.master.name}"
    named = plan.overrides if name in plan.overrides else [*plan.overrides, name]
    command = command_line("histolight", "train", "-m", *named)
    return f"interrupted with {done} of {total} points completed: continue with {command}"
