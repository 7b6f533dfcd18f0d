"""The augmentations by the keys of ``augment``: a function registers itself here, and its key needs no other place.

Every module of this folder is imported; ``conf/augment/*.yaml`` names the keys.
"""

from __future__ import annotations

import functools
import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from histolight.config.checks import check_range
from histolight.config.schema import AugmentConfig, augmentation_keys
from histolight.errors import RequestError, nearest

STAGES = ("cut", "stained", "lit", "scanned")  # a slide's way, and the order in which a tile is changed


class Draw:
    """Random numbers for a batch, one decision a tile.

    Args:
        count: Tiles of the batch.
        generator: Source of the random numbers, on the device of the tiles.
    """

    def __init__(self, count: int, generator: torch.Generator) -> None:
        self.count = count
        self.generator = generator

    def __call__(self, low: float, high: float, *shape: int) -> torch.Tensor:
        """Draw evenly from [low, high]: float32 ``(count, *shape)``."""
        numbers = torch.empty(self.count, *shape, device=self.generator.device)
        return numbers.uniform_(low, high, generator=self.generator)


@dataclass(frozen=True)
class Augmentation:
    """A registered function: which strengths it takes, and when it changes a tile."""

    change: Callable[..., torch.Tensor]
    stage: str
    limits: dict[str, dict[str, float]]


_REGISTERED: list[Augmentation] = []


def augmentation(stage: str, **limits: dict[str, float]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register a function ``change(tiles, draw, KEY=strength …)`` that returns a new batch.

    It is given floats ``(N, 3, H, W)`` in [0, 1], a :class:`Draw`, and the strengths; where all of them are 0 it is not
    called. It must leave the centre 32x32 where it is.

    Args:
        stage: One of :data:`STAGES`; within one, functions are called in the order in which they are defined.
        limits: For each key of ``augment`` that is a strength of this function, ``{"most": LIMIT}`` or ``{"below":
            LIMIT}``; a strength is at least 0.
    """

    def register(change: Callable[..., Any]) -> Callable[..., Any]:
        _REGISTERED.append(Augmentation(change, stage, {key: {"least": 0, **limit} for key, limit in limits.items()}))
        return change

    return register


@functools.cache
def augmentations() -> list[Augmentation]:
    """Return the registered functions in the order in which they change a tile."""
    for module in pkgutil.iter_modules([str(Path(__file__).parent)]):
        importlib.import_module(f"{__package__}.{module.name}")
    return sorted(_REGISTERED, key=lambda registered: STAGES.index(registered.stage))


def check_augment(config: AugmentConfig) -> None:
    """Raise :class:`RequestError` for a strength out of its range, and for a key that no function has registered."""
    limits = {key: limit for registered in augmentations() for key, limit in registered.limits.items()}
    for key in augmentation_keys():
        if key not in limits:
            raise RequestError(f"augment.{key} is a key of conf/augment that nothing registers: {nearest(key, limits)}")
        check_range(f"augment.{key}", getattr(config, key), limits[key])
