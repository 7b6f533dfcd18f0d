"""Where the time of a training goes: the operators of twenty steps, by their own time, as text.

The steps are those of ``histolight train``, with Lightning, the input path and the logging. The first ten are left out.

    python benchmarks/operators.py data=kaggle data.root=FOLDER model=densenet121
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from histolight.config.compose import typed
from histolight.config.request import requested_config
from histolight.data.datamodule import TileDataModule
from histolight.data.prepare import prepare
from histolight.hardware import compile_module
from histolight.models.classifier import Classifier
from histolight.training.callbacks import Speed
from histolight.training.fit import check_request
from histolight.training.trainer import build_trainer, quiet_lightning

SKIPPED, STEPS, ROWS = 10, 20, 25


class Window(L.Callback):
    """Profile some steps of a training."""

    def __init__(self, steps: int) -> None:
        self.steps = steps
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])]
        self.profile = profile(activities=activities)

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Begin after the first steps."""
        if batch_idx == SKIPPED:
            self.profile.start()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """End, and the training with it."""
        if batch_idx == SKIPPED + self.steps:
            self.profile.stop()
            trainer.should_stop = True


def show_profile(overrides: list[str], steps: int = STEPS) -> None:
    """Print the table of a training, and on a GPU for which part of the time a kernel ran."""
    config = check_request(typed(requested_config([*overrides, "trainer.max_epochs=1", "scheduler=constant"])))
    data = prepare(config.data)
    if len(data.part("train")) // config.data.batch_size <= SKIPPED + steps:
        raise SystemExit(f"an epoch must have more than {SKIPPED + steps} steps: use more tiles or a smaller batch")
    with tempfile.TemporaryDirectory() as folder, quiet_lightning():
        trainer = build_trainer(config, Path(folder), Speed(), progress=False)
        trainer.callbacks.append(window := Window(steps))  # type: ignore[attr-defined]  # a list, declared in a connector
        classifier = Classifier.from_config(config, 1.0)
        if config.trainer.compile != "none":
            compile_module(classifier.backbone, config.trainer.compile, trainer.strategy.root_device)
        trainer.fit(classifier, TileDataModule(data, config))
    where = "self_cuda_time_total" if trainer.strategy.root_device.type == "cuda" else "self_cpu_time_total"
    print(f"{config.model.name}, batch {config.data.batch_size}, {steps} steps, torch {torch.__version__}")
    averages = window.profile.key_averages()
    print(averages.table(sort_by=where, row_limit=ROWS, max_name_column_width=50))
    kernels = [event.time_range for event in window.profile.events() if event.device_type == DeviceType.CUDA]
    if kernels:
        span = max(kernel.end for kernel in kernels) - min(kernel.start for kernel in kernels)
        busy = sum(kernel.elapsed_us() for kernel in kernels)
        print(f"{len(kernels) / steps:.0f} kernels a step; they ran for {busy / span:.1%} of {span / 1000:.0f} ms")


def main() -> None:
    """Profile the overrides on the command line."""
    show_profile(sys.argv[1:])


if __name__ == "__main__":
    main()
