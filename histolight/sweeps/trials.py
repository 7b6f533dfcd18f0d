"""The trials of a search: Optuna's study beside the points, and the workers that ask it what to train next.

==================== ==================================================================================================
``optuna.journal``   Optuna's journal: every trial, with its values after each epoch; ``optuna-dashboard`` opens it
==================== ==================================================================================================

Each trial is tied to the folder of its point, whose ``metrics.json`` says what became of it; the study follows. A trial
that is running in the study while nobody holds its point's lock was cut off, and whoever asks next goes on with it.
"""

from __future__ import annotations

import contextlib
import math
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import optuna
from omegaconf import DictConfig
from optuna.distributions import BaseDistribution
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.trial import FrozenTrial, TrialState

from histolight import files, runs
from histolight.config.schema import SchedulerConfig
from histolight.errors import PrunedError
from histolight.locks import HeldError, Lock
from histolight.ranking.searched import JOURNAL, STUDY
from histolight.sweeps import launch
from histolight.sweeps.points import Point, Sweep
from histolight.sweeps.spaces import overrides_of

REDUCTION = 4  # of four points that reach a rung one goes on, to four times the epochs
TIE = 1e-9  # less for each trial before: of equals only the earlier one is among the best that go on
POINT, AGAIN = "point", "again"  # attributes of a trial: its folder; whether it tries a failed point once more
NAMES = {"asha": "successive halving", "hyperband": "Hyperband", "median": "the median rule"}

optuna.logging.set_verbosity(optuna.logging.WARNING)


@dataclass(frozen=True)
class Search:
    """What the workers of a search know.

    Attributes:
        sweep: The points and their folders.
        space: Optuna's distributions, by key.
        order: The points of a grid in the order in which they are tried; empty where TPE chooses.
        count: So many trials.
        ends: Time (seconds since 1970) from which no further trial begins.
        pruner: ``none``, ``median``, ``hyperband`` or ``asha``.
        seed: Of the sampler.
        epochs: Of a whole training.
        first: The first epoch after which a point may be stopped.
        begun: When this command began, as the sweep's lock file says; a later one replaces its workers.
        drawn: Draw figures and pages.
        points_per_gpu: So many points share a GPU.
    """

    sweep: Sweep
    space: dict[str, BaseDistribution]
    order: list[dict[str, str]]
    count: int
    ends: float
    pruner: str
    seed: int
    epochs: int
    first: int
    begun: int
    drawn: bool
    points_per_gpu: int


class _JournalLock(JournalFileOpenLock):
    """Our own lock for Optuna's journal, which the dead let go of; it takes off a line that a kill cut short."""

    def __init__(self, journal: Path) -> None:
        self._journal = journal
        self._lock = Lock(journal.with_name(".histolight-journal.lock"))

    def acquire(self) -> bool:
        self._lock.acquire(wait=True)
        with self._journal.open("r+b") as file:
            content = file.read()
            if content and not content.endswith(b"\n"):
                file.truncate(content.rfind(b"\n") + 1)
        return True

    def release(self) -> None:
        self._lock.release()


def open_study(search: Search) -> optuna.Study:
    """Open the study in the sweep's folder, or make it."""
    path = search.sweep.directory / JOURNAL
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        storage = optuna.storages.JournalStorage(JournalFileBackend(str(path), lock_obj=_JournalLock(path)))
        return optuna.create_study(
            storage=storage,
            study_name=STUDY,
            direction="maximize",
            load_if_exists=True,
            pruner=build_pruner(search.pruner, search.epochs, search.first),
        )


def first_epoch(scheduler: SchedulerConfig, epochs: int) -> int:
    """Return the first epoch, from 1, after which points can be compared: where a one-cycle schedule is past its peak.

    Before it, their AUROCs say nothing of how they end (``benchmarks/asha.py``).
    """
    if scheduler.name != "one_cycle":
        return 1
    return min(epochs, max(1, math.ceil(scheduler.pct_start * (scheduler.total_epochs or epochs) - 1e-9)))


def build_pruner(name: str, epochs: int, first: int) -> optuna.pruners.BasePruner:
    """Build one of Optuna's pruners for trainings of so many epochs, which stops none before the first that counts."""
    if name == "asha":
        return optuna.pruners.SuccessiveHalvingPruner(min_resource=first, reduction_factor=REDUCTION)
    if name == "hyperband":
        return optuna.pruners.HyperbandPruner(min_resource=first, max_resource=epochs, reduction_factor=REDUCTION)
    return optuna.pruners.MedianPruner(n_warmup_steps=first) if name == "median" else optuna.pruners.NopPruner()


def work(config: DictConfig, search: Search, only: int | None = None) -> None:
    """Train trials until none is left to begin: what Hydra's launchers run, in this process or in another.

    Args:
        config: Of the job; that of each trial is composed here.
        search: What to search.
        only: Go on with this trial alone, which was cut off.
    """
    study = open_study(search)
    while (taken := _take(study, search, only)) is not None:
        trial, config, lock = taken
        try:
            _train(trial, config, search)
        finally:
            lock.release()


def cut_off(study: optuna.Study, search: Search) -> list[FrozenTrial]:
    """List the trials that are running by the study, but nowhere."""
    return [
        trial
        for trial in study.get_trials(states=(TrialState.RUNNING,))
        if POINT not in trial.user_attrs or not launch.is_held(point_of(trial, search.sweep).directory)
    ]


def goes_on(study: optuna.Study, search: Search) -> bool:
    """Say whether a further trial is to begin."""
    superseded = files.lock_file(search.sweep.directory).stat().st_mtime_ns != search.begun
    if superseded or time.time() >= search.ends:
        return False
    trials = study.get_trials(deepcopy=False)
    return any(trial.state == TrialState.WAITING for trial in trials) or len(first_tries(trials)) < search.count


def first_tries(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """Leave out the trials that never began, and those that try a failed point again."""
    return [trial for trial in trials if POINT in trial.user_attrs and AGAIN not in trial.user_attrs]


def point_of(trial: FrozenTrial | optuna.Trial, sweep: Sweep) -> Point:
    """Return the point of a trial that has one."""
    return Point((), sweep.directory / trial.user_attrs[POINT])


def _take(study: optuna.Study, search: Search, only: int | None) -> tuple[optuna.Trial, DictConfig, Lock] | None:
    """Take a trial that was cut off, or else ask for a new one; its point is locked before another worker may ask.

    Returns:
        The trial, the configuration of its point, and the lock; None where nothing is left to begin.
    """
    with Lock(search.sweep.directory / ".histolight-search.lock"):
        search.sweep.reload()
        for frozen in study.get_trials(states=(TrialState.RUNNING,)):
            if POINT not in frozen.user_attrs:  # killed while it was asked for
                study.tell(frozen.number, state=TrialState.FAIL)
            elif only in (None, frozen.number) and (lock := _locked(point_of(frozen, search.sweep))):
                trial = optuna.Trial(study, frozen._trial_id)
                return trial, search.sweep.compose(_values(trial, search)), lock
        while only is None and goes_on(study, search):
            trial = _ask(study, search)
            config = search.sweep.compose(_values(trial, search))
            if lock := _begun(study, search, trial, config):
                return trial, config, lock
            study.tell(trial, state=TrialState.FAIL)
        return None


def _ask(study: optuna.Study, search: Search) -> optuna.Trial:
    """Ask for a trial: by TPE, from a seed of its own so that workers don't draw the same; or the next of the grid."""
    trials = study.get_trials(deepcopy=False)
    waiting = any(trial.state == TrialState.WAITING for trial in trials)
    if search.order:
        tried = [trial.params for trial in first_tries(trials)]
        if not waiting:
            study.enqueue_trial(next(params for params in search.order if params not in tried))
        return study.ask(search.space)
    study.sampler = optuna.samplers.TPESampler(seed=(search.seed + 1000 * len(trials)) % 2**32)
    return study.ask(search.space)


def _values(trial: optuna.Trial, search: Search) -> list[str]:
    return overrides_of({key: trial.params[key] for key in search.space})


def _begun(study: optuna.Study, search: Search, trial: optuna.Trial, config: DictConfig) -> Lock | None:
    """Tie a trial to its point and lock that; None for a point that another trial trains or has failed at."""
    sweep = search.sweep
    point = sweep.point(_values(trial, search), config)
    sweep.save()
    folder = point.directory.relative_to(sweep.directory).as_posix()
    known = [other for other in study.get_trials(deepcopy=False) if other.user_attrs.get(POINT) == folder]
    trial.set_user_attr(POINT, folder)
    if known and point.status == "failed" and AGAIN not in trial.user_attrs:
        return None
    return _locked(point)


def _locked(point: Point) -> Lock | None:
    """Lock a point's folder; None where a live process holds it."""
    point.directory.mkdir(parents=True, exist_ok=True)
    lock = Lock(files.lock_file(point.directory))
    with contextlib.suppress(HeldError):
        lock.acquire(watch=False)
        return lock
    return None


def _train(trial: optuna.Trial, config: DictConfig, search: Search) -> None:
    """Train a trial's point, unless it is, and tell the study what its ``metrics.json`` says."""
    point = point_of(trial, search.sweep)
    if point.status not in ("completed", "pruned"):
        files.clear_leftovers(point.directory)
        search.sweep.ready(point)

        def watched(aurocs: Mapping[int, float]) -> None:
            _report(trial, aurocs, search)

        launch.train_and_record(config, point, search.drawn, search.points_per_gpu, watched)
    tell(trial.study, trial.number, point)


def _report(trial: optuna.Trial, aurocs: Mapping[int, float], search: Search) -> None:
    """Report a training's validation AUROCs by epoch.

    Raises:
        PrunedError: The pruner stops it.
    """
    reported = trial.study.get_trials(deepcopy=False)[trial.number].intermediate_values
    for epoch, auroc in aurocs.items():
        if epoch not in reported:
            trial.report(auroc - TIE * trial.number, epoch)
    epoch = max(aurocs)
    if trial.should_prune():
        raise PrunedError(
            f"{NAMES[search.pruner]} stopped it after epoch {epoch} of {search.epochs}, at a validation AUROC of "
            f"{aurocs[epoch]:.4f}",
            epoch,
        )


def tell(study: optuna.Study, number: int, point: Point) -> None:
    """Tell the study what became of a trial; an interrupted one keeps running by the study, to be gone on with."""
    status = point.status
    if status == "completed" and point.auroc is not None:
        study.tell(number, point.auroc)
    elif status == "pruned":
        study.tell(number, state=TrialState.PRUNED)
    elif status != "interrupted":
        if status != "failed":
            runs.update_metrics(point.directory, status="failed", reason="it left no result: disk full?")
        study.tell(number, state=TrialState.FAIL)


def running(study: optuna.Study) -> list[FrozenTrial]:
    """List the trials that are running by the study."""
    return study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))


def tried(study: optuna.Study, sweep: Sweep) -> list[tuple[Point, list[str]]]:
    """List the points that were tried, each once, with its overrides."""
    params = {trial.user_attrs[POINT]: trial.params for trial in first_tries(study.get_trials(deepcopy=False))}
    return [(Point((), sweep.directory / folder), overrides_of(values)) for folder, values in params.items()]


def try_again(study: optuna.Study, sweep: Sweep) -> None:
    """Put the points that failed in an earlier command first in the study's queue."""
    trials = study.get_trials(deepcopy=False)
    queued = [trial.system_attrs.get("fixed_params") for trial in trials if trial.state == TrialState.WAITING]
    for point, params in {point_of(trial, sweep): trial.params for trial in first_tries(trials)}.items():
        if point.status == "failed" and params not in queued:
            study.enqueue_trial(params, user_attrs={AGAIN: True})
