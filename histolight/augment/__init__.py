"""Random changes of a batch of tiles, on its device, one decision per tile (not one for the whole batch).

A torchvision transform that is given a batch draws a single random decision for all of it; these draw one per tile.
"""

from __future__ import annotations

import torch

from histolight.augment.geometry import random_dihedral, random_flips
from histolight.augment.registry import Draw, augmentations
from histolight.config.schema import AugmentConfig

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
    draw = Draw(len(tiles), generator)
    for augmentation in augmentations():
        strengths = {key: getattr(config, key) for key in augmentation.limits}
        if any(strengths.values()):  # a key at 0 draws nothing: runs of before it existed repeat exactly
            tiles = augmentation.change(tiles, draw, **strengths)
    return tiles


def as_floats(tiles: torch.Tensor) -> torch.Tensor:
    """Turn uint8 into float32 in [0, 1], in the same memory format; floats stay as they are."""
    return tiles if tiles.is_floating_point() else tiles.float().div_(255)
