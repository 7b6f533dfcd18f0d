"""A search: workers ask one study which point to train next, and stop what loses."""

from __future__ import annotations

import functools
import math
import time
from typing import TYPE_CHECKING, Any

from histolight import files
from histolight.config import hydra_adapter as hydra
from histolight.config.compose import compose_config, typed
from histolight.errors import HistolightError, RequestError, one_line
from histolight.sweeps.launch import died_alone
from histolight.sweeps.points import Point, shown
from histolight.sweeps.spaces import check_axes, ends_of, shuffled_grid, space_of

if TYPE_CHECKING:
    from optuna import Study

    from histolight.sweeps.points import Sweep
    from histolight.sweeps.sweep import SweepPlan
    from histolight.sweeps.trials import Search

TRIALS = 20  # of a search that has no end of its own
PAUSE = 1.0  # seconds between two looks at workers of an earlier command


def check_search(plan: SweepPlan) -> None:
    """Refuse a search that can't be composed.

    Raises:
        RequestError: An axis is wrong, or nothing says how many workers there are.
    """
    check_axes(plan.axes, plan.settings.pruner)
    space = space_of(plan.axes)
    for values in [] if plan.grid else ends_of(space):
        typed(compose_config([*plan.fixed, *values]))
    count_workers(plan)


def count_trials(plan: SweepPlan) -> int:
    """Return of how many points a sweep is."""
    wanted = plan.settings.n_trials or (math.inf if plan.grid else TRIALS)
    return int(min(wanted, len(plan.grid) or math.inf))


def count_workers(plan: SweepPlan) -> int:
    """Return how many jobs ask the search at a time.

    Raises:
        RequestError: The launcher doesn't say it, and ``sweep.workers`` isn't given.
    """
    launcher, workers = plan.master.hydra.launcher, plan.settings.workers
    kind = str(launcher._target_)
    if "Basic" in kind:
        workers = 1
    elif workers is None and "Joblib" in kind:
        from joblib import effective_n_jobs

        workers = effective_n_jobs(launcher.n_jobs)
    if workers is None:
        raise RequestError("sweep.workers=NUMBER is missing: so many of the launcher's jobs ask the search at a time")
    return min(workers, count_trials(plan))


def search(plan: SweepPlan, sweep: Sweep, drawn: bool) -> list[tuple[Point, list[str]]]:
    """Train points until the search is at its end.

    Returns:
        The points that it has tried, each with its overrides.

    Raises:
        RequestError: The folder holds a search of another kind.
        HistolightError: The launcher failed.
    """
    from histolight.sweeps import trials

    settings = plan.settings
    sweep.save()  # the search's own files must not come first: without sweep.json the folder would be another's
    wanted = trials.Search(
        sweep=sweep,
        space=space_of(plan.axes),
        order=shuffled_grid(plan.axes, plan.master.seed) if plan.grid else [],
        count=count_trials(plan),
        ends=time.time() + (settings.timeout or math.inf),
        pruner=settings.pruner,
        seed=plan.master.seed,
        epochs=plan.master.trainer.max_epochs,
        first=trials.first_epoch(plan.master.scheduler, plan.master.trainer.max_epochs),
        begun=files.lock_file(plan.directory).stat().st_mtime_ns,
        drawn=drawn,
        points_per_gpu=settings.points_per_gpu,
    )
    study = trials.open_study(wanted)
    _check_same_space(study, wanted)
    trials.try_again(study, sweep)
    workers = count_workers(plan)
    while True:
        if trials.goes_on(study, wanted) or trials.cut_off(study, wanted):
            try:
                _launch(plan, wanted, workers)
            except HistolightError:
                raise
            except Exception as error:
                _find_the_dead(plan, study, wanted, error)
        elif trials.running(study):  # by workers that outlived the command which started them
            time.sleep(PAUSE)
        else:
            sweep.reload()
            return trials.tried(study, sweep)


def _launch(plan: SweepPlan, wanted: Search, workers: int, only: int | None = None) -> None:
    """Run workers to their end; a fault in one of them is raised."""
    from histolight.sweeps.trials import work

    launcher = hydra.build_launcher(plan.master, functools.partial(work, search=wanted, only=only))
    for job in launcher.launch([wanted.sweep.job(".")] * workers, initial_job_idx=0):
        _ = job.return_value  # raises what failed in it


def _find_the_dead(plan: SweepPlan, study: Study, wanted: Search, error: Exception) -> None:
    """Go on alone with each trial whose process died: one killed process takes those beside it along."""
    from histolight.sweeps import trials

    died = trials.cut_off(study, wanted)
    if not died and not trials.running(study):
        raise HistolightError(f"the launcher failed: {type(error).__name__}: {one_line(str(error))}") from error
    for trial in died:
        try:
            _launch(plan, wanted, 1, only=trial.number)
        except HistolightError:
            raise
        except Exception as alone:
            if trials.POINT in trial.user_attrs:
                point = trials.point_of(trial, wanted.sweep)
                died_alone(point, alone)
                trials.tell(study, trial.number, point)


def check_folder(sweep: Sweep) -> None:
    """Refuse the folder of a search that Hydra's Optuna plugin made.

    Raises:
        RequestError: It is one.
    """
    if (sweep.directory / "optuna.db").is_file():
        raise RequestError(
            f"{shown(sweep.directory)} holds a search of Hydra's Optuna plugin (optuna.db), which can't be continued: "
            "choose another name=NAME"
        )


def _check_same_space(study: Study, wanted: Search) -> None:
    """Refuse a study that searched something else."""
    from optuna.distributions import distribution_to_json

    space: dict[str, Any] = {key: distribution_to_json(kind) for key, kind in wanted.space.items()}
    known = study.user_attrs.get("space")
    if known is None:
        study.set_user_attr("space", space)
    elif different := [key for key in sorted(known.keys() | space) if known.get(key) != space.get(key)]:
        raise RequestError(
            f"{shown(wanted.sweep.directory)} holds a search with another space ({', '.join(different)}): choose "
            "another name=NAME, or give the axes that it was begun with"
        )
