"""Random changes of a batch of tiles, on its device, one decision per tile (not one for the whole batch).

A torchvision transform that is given a batch draws a single random decision for all of it; these draw one per tile.
"""

from __future__ import annotations

import torch

from histolight.augment.colour import change_brightness, change_contrast, change_gamma, change_hue, change_saturation
from histolight.augment.geometry import random_dihedral, random_flips, shift_and_scale
from histolight.augment.scanner import add_noise, blur
from histolight.augment.stain import change_stains
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

    def draw(low: float, high: float, *shape: int) -> torch.Tensor:
        return torch.empty(len(tiles), *shape, device=tiles.device).uniform_(low, high, generator=generator)

    # A key at 0 draws nothing: runs of before it existed repeat exactly. The order is that of a slide's way: it is cut,
    # stained, lit and scanned.
    if config.shift > 0 or config.scale > 0:
        tiles = shift_and_scale(tiles, draw(-config.shift, config.shift, 2), draw(1 - config.scale, 1 + config.scale))
    if config.stain > 0:
        tiles = change_stains(tiles, draw(1 - config.stain, 1 + config.stain, 3), draw(-config.stain, config.stain, 3))
    for change, strength, neutral in (
        (change_brightness, config.brightness, 1),
        (change_contrast, config.contrast, 1),
        (change_saturation, config.saturation, 1),
        (change_hue, config.hue, 0),
        (change_gamma, config.gamma, 1),
    ):
        if strength > 0:
            tiles = change(tiles, draw(neutral - strength, neutral + strength))
    if config.blur > 0:
        tiles = blur(tiles, draw(0, config.blur), config.blur)
    if config.noise > 0:
        tiles = add_noise(tiles, draw(0, config.noise), generator)
    return tiles


def as_floats(tiles: torch.Tensor) -> torch.Tensor:
    """Turn uint8 into float32 in [0, 1], in the same memory format; floats stay as they are."""
    return tiles if tiles.is_floating_point() else tiles.float().div_(255)
