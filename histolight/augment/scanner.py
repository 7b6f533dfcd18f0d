"""What a scanner does to a tile: a focus that is a little off, and noise."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from histolight.augment.registry import Draw, augmentation


def blur_tiles(tiles: torch.Tensor, sigmas: torch.Tensor, largest: float) -> torch.Tensor:
    """Blur each tile by a Gaussian of its own width, cut off at 3 ``largest``; the border is mirrored.

    Args:
        tiles: ``(N, C, H, W)`` floats.
        sigmas: ``(N,)`` in pixels, 0 to ``largest``; 0 leaves a tile as it is.
        largest: A number that the host knows, so that the size of the kernel does not wait for the device.
    """
    radius = math.ceil(3 * largest)
    steps = torch.arange(-radius, radius + 1, device=tiles.device)
    weights = (-0.5 * (steps / sigmas.clamp_min(1e-3).unsqueeze(1)) ** 2).exp()
    weights = (weights / weights.sum(1, keepdim=True))[..., None, None, None]
    # Sums of shifted tiles: several times faster on a CPU than a convolution with a kernel for each tile.
    for dim, border in ((2, (0, 0, radius, radius)), (3, (radius, radius, 0, 0))):
        padded, size = F.pad(tiles, border, mode="reflect"), tiles.shape[dim]
        tiles = padded.narrow(dim, 0, size) * weights[:, 0]
        for step in range(1, 2 * radius + 1):
            tiles.addcmul_(padded.narrow(dim, step, size), weights[:, step])
    return tiles


def add_noise(tiles: torch.Tensor, deviations: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Add Gaussian noise to every value, with each tile's own standard deviation.

    Args:
        tiles: ``(N, C, H, W)`` floats in [0, 1].
        deviations: ``(N,)``, at least 0.
        generator: Source of the random numbers, on the device of the tiles.
    """
    # Not in channels_last memory, where a CPU draws much more slowly.
    noise = torch.randn(tiles.shape, device=tiles.device, dtype=tiles.dtype, generator=generator)
    return noise.mul_(deviations.view(-1, 1, 1, 1)).add_(tiles).clamp_(0, 1)


# Behind each other: what is out of focus is blurred before the sensor adds its noise.
@augmentation("scanned", blur={"most": 5})
def jitter_focus(tiles: torch.Tensor, draw: Draw, blur: float) -> torch.Tensor:
    """Draw the standard deviation of a Gaussian blur from [0, blur] pixels."""
    return blur_tiles(tiles, draw(0, blur), blur)


@augmentation("scanned", noise={"most": 1})
def jitter_noise(tiles: torch.Tensor, draw: Draw, noise: float) -> torch.Tensor:
    """Draw the standard deviation of Gaussian noise from [0, noise]; a pixel is 0 to 1."""
    return add_noise(tiles, draw(0, noise), draw.generator)
