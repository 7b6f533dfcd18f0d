"""A search: Optuna, through Hydra's sweeper, chooses the points one batch after the other."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from typing import Any

from omegaconf import DictConfig, open_dict

from histolight.config import hydra_adapter as hydra
from histolight.sweeps.launch import PointLauncher
from histolight.sweeps.points import Sweep


def search(
    config: DictConfig, params: dict[str, str], sweep: Sweep, arguments: list[str], train: Callable[[DictConfig], Any]
) -> None:
    """Let Hydra's Optuna sweeper choose points until ``n_trials`` of them are completed or have failed just now."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)  # of what its later versions kept as it is
    settings = config.hydra.sweeper
    with open_dict(settings):
        settings.params = params
    sweep.points += [point for point in sweep.known() if point.status == "completed"]
    settings.n_trials -= len(sweep.points)
    if settings.n_trials <= 0:
        return
    sweep.save()  # the search's own files must not come first: without sweep.json the folder would be another's
    _try_again(settings.storage, settings.study_name)
    sweeper = hydra.build_sweeper(config, train).sweeper
    sweeper.launcher = PointLauncher(sweeper.launcher, sweep)
    try:
        sweeper.sweep(arguments)
    except ValueError:  # Optuna has no best trial when all of them failed
        if any(point.status == "completed" for point in sweep.points):
            raise
    finally:
        logging.getLogger("histolight").disabled = False


def _try_again(storage: str, study_name: str) -> None:
    """Put the failed and the cut-off trials of an earlier command first in Optuna's queue."""
    import optuna

    study = optuna.create_study(study_name=study_name, storage=storage, direction="maximize", load_if_exists=True)
    for trial in study.get_trials(states=(optuna.trial.TrialState.RUNNING,)):
        study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
    chosen = [(trial.state, trial.params or trial.system_attrs.get("fixed_params")) for trial in study.get_trials()]
    settled = [params for state, params in chosen if state != optuna.trial.TrialState.FAIL]
    for _, params in chosen:
        if params and params not in settled:
            study.enqueue_trial(params)
            settled.append(params)
