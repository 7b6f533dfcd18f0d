"""Constants of a computation, copied to each device once: a copy from the host would wait for the device every step."""

from __future__ import annotations

import torch

_COPIES: dict[tuple[int, torch.device, torch.dtype], torch.Tensor] = {}


def constant(values: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Return a constant on the device and of the type of another tensor.

    Args:
        values: A constant of a module, which lives as long as the process.
        like: What it is computed with.
    """
    key = (id(values), like.device, like.dtype)
    if key not in _COPIES:
        with torch.inference_mode(False):  # else what is copied while validating could not be used in training
            copy = values.to(like)
        if not _lasts(copy):
            return copy
        _COPIES[key] = copy
    return _COPIES[key]


def _lasts(copy: torch.Tensor) -> bool:
    """Say whether it is a tensor with values, not one that stands for them while a network is exported."""
    return type(copy) is torch.Tensor
