"""Lightning's Trainer as a run needs it: its callbacks, its files, its silence."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.profilers import PassThroughProfiler, Profiler, PyTorchProfiler, SimpleProfiler

from histolight import files
from histolight.config.schema import Config, TrainerConfig
from histolight.errors import RequestError
from histolight.hardware import prepare_matrix_products, resolve_precision
from histolight.training import loggers
from histolight.training.callbacks import (
    AveragedWeights,
    EpochLines,
    Patience,
    Progress,
    Speed,
    TileGrid,
    Watched,
)
from histolight.training.checkpoints import AtomicCheckpoints, RunCheckpoint


def build_trainer(
    config: Config,
    directory: Path,
    speed: Speed,
    progress: bool = True,
    watched: Callable[[Mapping[int, float]], None] | None = None,
) -> L.Trainer:
    """Build Lightning's Trainer with the callbacks of a run; ``watched`` as in :class:`Watched`."""
    settings = config.trainer
    bar = progress and sys.stdout.isatty()
    callbacks: list[L.Callback] = [
        speed,
        *([Progress(speed)] if bar else [EpochLines(speed)] if progress else []),
        TileGrid(),
        *([Watched(watched)] if watched else []),
        *([AveragedWeights(settings.ema)] if settings.ema is not None else []),
        *([AveragedWeights(None, settings.swa)] if settings.swa is not None else []),
        RunCheckpoint(directory / "checkpoints"),
    ]
    if settings.patience is not None:
        callbacks.append(Patience("val/auroc", mode="max", patience=settings.patience))
    prepare_matrix_products()
    with quiet_lightning():
        return L.Trainer(
            max_epochs=settings.max_epochs,
            accelerator=settings.accelerator,
            devices=int(settings.devices) if settings.devices.isdigit() else settings.devices,
            num_nodes=settings.num_nodes,
            strategy=settings.strategy,
            precision=resolve_precision(settings.precision, settings.accelerator),  # type: ignore[arg-type]  # a Literal there
            deterministic=settings.deterministic,
            benchmark=not settings.deterministic,
            accumulate_grad_batches=settings.accumulate,
            gradient_clip_val=settings.clip,
            profiler=_build_profiler(settings.profiler, directory),
            logger=loggers.build_logger(config, directory),
            callbacks=callbacks,
            plugins=[AtomicCheckpoints()],
            default_root_dir=directory,
            use_distributed_sampler=False,
            num_sanity_val_steps=0,
            enable_model_summary=False,
            enable_progress_bar=bar,
        )


def check_tasks(settings: TrainerConfig) -> None:
    """Refuse processes that the environment calls those of one training, where none that is shared was asked for.

    Raises:
        RequestError: SLURM starts several tasks, and not one for each of ``trainer.devices``; or this is not the first
            process, which alone writes, of a training that has one.
    """
    alone = settings.devices == "1" and settings.num_nodes == 1
    for name in files.RANKS:
        if alone and os.environ.get(name, "0") != "0" and "SLURM_NTASKS" not in os.environ:
            raise RequestError(
                f"{name}={os.environ[name]} in the environment says that another process of this training writes its "
                f"results, and with trainer.devices=1 there is none: unset {name}"
            )
    tasks, each_node = os.environ.get("SLURM_NTASKS", "1"), os.environ.get("SLURM_NTASKS_PER_NODE")
    if tasks == "1" or os.environ.get("SLURM_JOB_NAME") in ("bash", "interactive"):  # which Lightning takes for none
        return
    if each_node is None or (settings.devices.isdigit() and settings.devices != each_node):
        raise RequestError(
            f"SLURM starts {tasks} tasks here (SLURM_NTASKS), which would share one training: start each training with "
            f"srun --ntasks=1, or use --ntasks-per-node={tasks} with trainer.devices={tasks} for one on several GPUs"
        )


class NoProfiler(PassThroughProfiler):
    """Nothing around what is done: Lightning's own enters a generator there, about thirty times a step."""

    nothing = contextlib.nullcontext()

    def profile(self, action_name: str) -> Any:
        """Return a context that does nothing."""
        return self.nothing


def _build_profiler(name: str, directory: Path) -> Profiler:
    """Build the profiler that writes its table of each stage into the run directory."""
    if name == "none":
        return NoProfiler()
    return {"simple": SimpleProfiler, "pytorch": PyTorchProfiler}[name](dirpath=directory, filename="profile")


class quiet_lightning(warnings.catch_warnings):  # noqa: N801  # used like a function
    """Silence Lightning's advertisements and advice that does not apply to loaders without workers."""

    def __enter__(self) -> Any:
        result = super().__enter__()
        for name in ("lightning.pytorch", "lightning.fabric"):
            logging.getLogger(name).setLevel(logging.ERROR)
        warnings.filterwarnings("ignore", module="lightning.*")
        return result
