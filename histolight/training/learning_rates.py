"""The loss at rising learning rates, by Lightning's finder: which ``optimizer.lr`` suits a network and its tiles."""

from __future__ import annotations

import copy
import sys
from pathlib import Path

import lightning as L
import numpy as np
from lightning.pytorch.loggers import Logger
from lightning.pytorch.tuner import Tuner

from histolight.config.schema import SchedulerConfig
from histolight.data.datamodule import TileDataModule
from histolight.models.classifier import Classifier
from histolight.reports.figures import learning_rate_figure
from histolight.reports.parts import save_figure
from histolight.training import loggers

LEAST, MOST, STEPS = 1e-6, 1.0, 100
_KEPT = 0.98  # part of itself that Lightning's running mean of the loss keeps each step
_NOISY = 10  # steps at the beginning, over which the running mean of the loss has not settled


def range_test(trainer: L.Trainer, classifier: Classifier, datamodule: TileDataModule) -> tuple[np.ndarray, np.ndarray]:
    """Train a copy of a network for a hundred steps, each at a higher learning rate than the one before.

    Every parameter gets the same rate, whatever ``optimizer.backbone_lr_factor``. It ends early where the
    loss has grown several times. Leslie N. Smith, Cyclical Learning Rates for Training Neural Networks, 2017.

    Args:
        trainer: Used for this alone; Lightning keeps a checkpoint in its default folder in the meantime.
        classifier: Left as it is.
        datamodule: Likewise used for this alone.

    Returns:
        The learning rates, and the running mean of the loss that had been reached at each: float64 ``(n,)`` twice.
    """
    trainer.fit_loop.max_epochs = trainer.check_val_every_n_epoch = STEPS  # only the training loss is looked at
    again = copy.deepcopy(classifier)
    again.scheduler_config = SchedulerConfig("constant")  # in whose place the finder's own comes
    finder = Tuner(trainer).lr_find(
        again,
        datamodule=datamodule,
        min_lr=LEAST,
        max_lr=MOST,
        num_training=STEPS,
        update_attr=False,
    )
    assert finder is not None
    rates, losses = (np.array(finder.results[name], dtype=np.float64) for name in ("lr", "loss"))
    # Lightning divides a running mean of n losses as if there were n + 1: the first would be half of what it is.
    seen = np.arange(1, len(losses) + 1)
    losses = losses * (1 - _KEPT ** (seen + 1)) / (1 - _KEPT**seen)
    finite = np.isfinite(losses)
    return rates[finite], losses[finite]


def show_learning_rates(
    rates: np.ndarray, losses: np.ndarray, current: float, logger: Logger | None, directory: Path, progress: bool
) -> None:
    """Draw the curve into ``figures/lr_finder.png``, log it, and with ``progress`` print what it suggests."""
    suggested = steepest(rates, losses)
    figure = learning_rate_figure(rates, losses, suggested)
    png = save_figure(figure, directory / "figures" / "lr_finder.png")
    loggers.log_picture(logger, "lr_finder", png, 0)
    if logger is not None:
        for step, (rate, loss) in enumerate(zip(rates, losses, strict=True)):
            logger.log_metrics({"lr_finder/learning_rate": rate, "lr_finder/loss": loss}, step)
    suggestion = "no learning rate, as the loss falls nowhere" if suggested is None else f"optimizer.lr={suggested:.1e}"
    if progress:
        print(
            f"the learning rate finder suggests {suggestion}; this training takes {current:g}",
            file=sys.stderr,
            flush=True,
        )


def steepest(rates: np.ndarray, losses: np.ndarray) -> float | None:
    """Choose the learning rate at which the loss falls fastest, on a logarithmic axis; None where it falls nowhere.

    Lightning's own suggestion takes the slope on a linear axis, which is steepest where the rates are tiny.

    >>> rates = np.geomspace(1e-6, 1, 100)
    >>> round(steepest(rates, 1 / (1 + np.exp(2 * np.log(rates / 1e-3)))), 4)
    0.0009
    """
    if len(rates) < _NOISY + 2:
        return None
    slopes = np.gradient(losses[_NOISY:], np.log(rates[_NOISY:]))
    return float(rates[_NOISY:][slopes.argmin()]) if slopes.min() < 0 else None
