"""Names of ``conf/optimizer`` and ``conf/scheduler`` turned into PyTorch's objects."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import nn
from torch.optim import lr_scheduler

from histolight.config import OptimizerConfig, SchedulerConfig
from histolight.errors import RequestError


def build_optimizer(parameters: Iterable[nn.Parameter], config: OptimizerConfig) -> torch.optim.Optimizer:
    """Build the optimizer; fused where PyTorch has a fused one for the device of the parameters."""
    parameters = list(parameters)
    fused = all(parameter.device.type in ("cuda", "cpu") for parameter in parameters)
    if config.name == "sgd":
        return torch.optim.SGD(
            parameters,
            lr=config.lr,
            momentum=config.momentum,
            nesterov=config.momentum > 0,
            weight_decay=config.weight_decay,
            fused=fused,
        )
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[config.name]
    return kind(parameters, lr=config.lr, weight_decay=config.weight_decay, fused=fused)


def build_scheduler(
    optimizer: torch.optim.Optimizer, config: SchedulerConfig, peak: float, total_steps: int
) -> lr_scheduler.LRScheduler:
    """Build the schedule, to be stepped after every batch.

    Args:
        optimizer: Whose learning rate it sets.
        config: Which schedule.
        peak: The highest learning rate.
        total_steps: Optimizer steps until the schedule's end.

    Raises:
        RequestError: one_cycle has too few steps to rise and fall.
    """
    if config.name == "one_cycle":
        if total_steps < 2 or math.isclose(config.pct_start * total_steps, 1):  # where PyTorch divides by zero
            raise RequestError(
                f"scheduler=one_cycle with scheduler.pct_start={config.pct_start} can't rise and fall over "
                f"{total_steps} steps: use a smaller data.batch_size, more epochs, or scheduler=constant"
            )
        return lr_scheduler.OneCycleLR(
            optimizer,
            max_lr=peak,
            total_steps=total_steps,
            pct_start=config.pct_start,
            div_factor=config.div_factor,
            final_div_factor=config.final_div_factor,
        )
    if config.name == "cosine":
        return lr_scheduler.CosineAnnealingLR(optimizer, T_max=total_steps)
    return lr_scheduler.ConstantLR(optimizer, factor=1.0, total_iters=0)
