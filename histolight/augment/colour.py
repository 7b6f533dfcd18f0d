"""Changes of light and colour with one factor per tile; a factor of 1 changes nothing.

The definitions are those of ``torchvision.transforms.v2.functional``'s ``adjust_*``, which take one factor per batch.
"""

from __future__ import annotations

import torch


def change_brightness(tiles: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
    """Multiply each tile by its factor.

    Args:
        tiles: ``(N, 3, H, W)`` floats in [0, 1].
        factors: ``(N,)``, at least 0.
    """
    return (tiles * _per_tile(factors)).clamp(0, 1)


def change_contrast(tiles: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
    """Stretch each tile by its factor about the mean of its grey.

    Args:
        tiles: ``(N, 3, H, W)`` floats in [0, 1].
        factors: ``(N,)``, at least 0.
    """
    return _blend(tiles, _grey(tiles).mean(dim=(-3, -2, -1), keepdim=True), factors)


def change_saturation(tiles: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
    """Stretch each pixel's colour by its tile's factor about the pixel's grey.

    Args:
        tiles: ``(N, 3, H, W)`` floats in [0, 1].
        factors: ``(N,)``, at least 0.
    """
    return _blend(tiles, _grey(tiles), factors)


def _blend(tiles: torch.Tensor, centre: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
    return torch.lerp(centre.expand_as(tiles), tiles, _per_tile(factors)).clamp(0, 1)


def _grey(tiles: torch.Tensor) -> torch.Tensor:
    """Luma of ITU-R BT.601, ``(N, 1, H, W)``."""
    weights = torch.tensor([0.2989, 0.587, 0.114], device=tiles.device, dtype=tiles.dtype).view(1, 3, 1, 1)
    return (tiles * weights).sum(dim=1, keepdim=True)


def _per_tile(factors: torch.Tensor) -> torch.Tensor:
    return factors.view(-1, 1, 1, 1)
