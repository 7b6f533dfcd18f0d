"""Names of ``conf/optimizer`` and ``conf/scheduler`` turned into PyTorch's objects."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn
from torch.optim import lr_scheduler

from histolight.config.schema import OptimizerConfig, SchedulerConfig
from histolight.errors import RequestError
from histolight.models.blocks import depth_of, find_blocks


def parameter_groups(network: nn.Module, head: str, config: OptimizerConfig) -> list[dict[str, Any]]:
    """Sort the trainable parameters by the learning rate and the weight decay that they get.

    Args:
        network: The backbone with its last layer.
        head: Dotted name of that layer inside ``network``.
        config: ``adamw`` decays no biases and no parameters of normalisation layers, which have one dimension;
            ``backbone_lr_factor`` is the factor of everything but the head, and ``layer_decay`` that from each block of
            a transformer to the one before; what lies behind the last block has none, what embeds patches one more.

    Returns:
        Groups for an optimizer, in the order of the parameters: a single one where all get the same.

    Raises:
        RequestError: ``layer_decay`` is for a transformer, and this network is none.
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    decayed = config.layer_decay < 1
    blocks = find_blocks(network) if decayed else ""
    count = len(list(network.get_submodule(blocks).children())) if decayed else 0
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            lr = config.lr * (1 if name.startswith(f"{head}.") else config.backbone_lr_factor)
            if decayed and not name.startswith(f"{head}."):
                lr *= config.layer_decay ** (count + 1 - depth_of(name, blocks, count))
            decay = 0.0 if config.name == "adamw" and parameter.ndim <= 1 else config.weight_decay
            groups.setdefault((lr, decay), []).append(parameter)
    return [{"params": group, "lr": lr, "weight_decay": decay} for (lr, decay), group in groups.items()]


def build_optimizer(groups: list[dict[str, Any]], config: OptimizerConfig, fused: bool = True) -> torch.optim.Optimizer:
    """Build the optimizer of :func:`parameter_groups`; fused, if allowed, where PyTorch has one for their device."""
    fused &= all(parameter.device.type in ("cuda", "cpu") for group in groups for parameter in group["params"])
    if config.name == "sgd":
        nesterov = config.momentum > 0
        return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, nesterov=nesterov, fused=fused)
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[config.name]
    return kind(groups, lr=config.lr, fused=fused)


def build_scheduler(
    optimizer: torch.optim.Optimizer, config: SchedulerConfig, total_steps: int
) -> lr_scheduler.LRScheduler:
    """Build the schedule, to be stepped after every batch.

    Args:
        optimizer: Its learning rates, one a group, are the highest.
        config: Which schedule.
        total_steps: Optimizer steps until the schedule's end.

    Raises:
        RequestError: one_cycle has too few steps to rise and fall.
    """
    if config.name == "one_cycle":
        if total_steps < 2 or math.isclose(config.pct_start * total_steps, 1):  # where PyTorch divides by zero
            raise RequestError(
                f"scheduler=one_cycle with scheduler.pct_start={config.pct_start} can't rise and fall over "
                f"{total_steps} step{'s' * (total_steps > 1)}: use a smaller data.batch_size, more epochs, or "
                "scheduler=constant"
            )
        return lr_scheduler.OneCycleLR(
            optimizer,
            max_lr=[group["lr"] for group in optimizer.param_groups],
            total_steps=total_steps,
            pct_start=config.pct_start,
            div_factor=config.div_factor,
            final_div_factor=config.final_div_factor,
            cycle_momentum="momentum" not in optimizer.defaults,  # which is a setting of ours
        )
    if config.name == "cosine":
        return lr_scheduler.CosineAnnealingLR(optimizer, T_max=total_steps)
    return lr_scheduler.ConstantLR(optimizer, factor=1.0, total_iters=0)
