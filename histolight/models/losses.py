"""The loss and its weight of positive tiles."""

from __future__ import annotations

import numpy as np
import torch
from torch.nn import functional as F

from histolight.errors import RequestError


def positive_weight(setting: str | None, labels: np.ndarray) -> float:
    """Turn ``loss.pos_weight`` into a number.

    Args:
        setting: ``balanced`` is negatives / positives, ``inverse`` positives / negatives (the notebook's fault), null
            is 1, anything else is the number itself.
        labels: 0 or 1 of each training tile.

    >>> positive_weight("balanced", np.array([0, 0, 0, 1]))
    3.0
    """
    positives = int(np.sum(labels == 1))
    negatives = len(labels) - positives
    if setting in ("balanced", "inverse") and 0 in (positives, negatives):
        raise RequestError(f"loss.pos_weight={setting} needs training tiles of both classes")
    if setting == "balanced":
        return negatives / positives
    if setting == "inverse":
        return positives / negatives
    return 1.0 if setting is None else float(setting)


def binary_loss(logits: torch.Tensor, labels: torch.Tensor, pos_weight: float, smoothing: float) -> torch.Tensor:
    """Return the mean binary cross-entropy with logits, in float32.

    Args:
        logits: ``(N,)``.
        labels: ``(N,)`` floats, 0 or 1 (or between, where tiles are mixed).
        pos_weight: Factor of the positive term.
        smoothing: Labels become ``label * (1 - smoothing) + smoothing / 2``.
    """
    logits = logits.float()
    targets = labels * (1 - smoothing) + smoothing / 2 if smoothing else labels
    return F.binary_cross_entropy_with_logits(logits, targets, pos_weight=logits.new_full((), pos_weight))
