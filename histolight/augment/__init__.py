"""Random changes of a batch of tiles, on its device, one decision per tile (not one for the whole batch).

A torchvision transform that is given a batch draws a single random decision for all of it; these draw one per tile.
"""

from __future__ import annotations

import torch

from histolight.augment.colour import change_brightness, change_contrast, change_saturation
from histolight.augment.geometry import random_dihedral, random_flips
from histolight.augment.stain import change_stains
from histolight.config import AugmentConfig

__all__ = ["as_floats", "augment_tiles"]


def augment_tiles(tiles: torch.Tensor, config: AugmentConfig, generator: torch.Generator) -> torch.Tensor:
    """Augment a batch as ``conf/augment`` says.

    Args:
        tiles: ``(N, 3, H, W)`` uint8, or floats in [0, 1].
        config: Which changes, and how large.
        generator: Source of the random numbers, on the device of the tiles.

    Returns:
        A new batch of floats in [0, 1], of the same shape.
    """
    if config.geometry == "flips":
        tiles = random_flips(tiles, generator)
    elif config.geometry == "dihedral":
        tiles = random_dihedral(tiles, generator)
    tiles = as_floats(tiles)  # only now: bytes are moved about faster
    if config.stain > 0:  # before the colours, as a slide is stained before it is scanned
        factors = _uniform((len(tiles), 3), 1 - config.stain, 1 + config.stain, tiles, generator)
        tiles = change_stains(tiles, factors, _uniform((len(tiles), 3), -config.stain, config.stain, tiles, generator))
    for change, strength in (
        (change_brightness, config.brightness),
        (change_contrast, config.contrast),
        (change_saturation, config.saturation),
    ):
        if strength > 0:
            tiles = change(tiles, _uniform((len(tiles),), 1 - strength, 1 + strength, tiles, generator))
    return tiles


def as_floats(tiles: torch.Tensor) -> torch.Tensor:
    """Turn uint8 into float32 in [0, 1], in the same memory format; floats stay as they are."""
    return tiles if tiles.is_floating_point() else tiles.float().div_(255)


def _uniform(
    shape: tuple[int, ...], low: float, high: float, tiles: torch.Tensor, generator: torch.Generator
) -> torch.Tensor:
    return torch.empty(shape, device=tiles.device).uniform_(low, high, generator=generator)
