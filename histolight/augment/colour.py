"""Changes of light and colour with one number per tile; a factor of 1 and a turn of 0 change nothing.

The definitions are those of ``torchvision.transforms.v2.functional``'s ``adjust_*``, which take one factor per batch;
but for the hue.
"""

from __future__ import annotations

import math

import torch

from histolight.augment.constants import constant
from histolight.augment.registry import Draw, augmentation

_LUMA = torch.tensor([0.2989, 0.587, 0.114], dtype=torch.float64)  # of red, green and blue in a grey: ITU-R BT.601
# NTSC's luma and the two axes of colour across it, row by row, for red, green and blue; as scikit-image's rgb2yiq.
_YIQ_OF_RGB = torch.tensor(
    (
        (0.299, 0.587, 0.114),
        (0.59590059, -0.27455667, -0.32134392),
        (0.21153661, -0.52273617, 0.31119955),
    ),
    dtype=torch.float64,
)
# Kept by a turn of the hue, times its cosine, and times its sine; for pixels as columns.
_TURN_PARTS = torch.stack(
    [
        torch.linalg.inv(_YIQ_OF_RGB) @ torch.tensor(part, dtype=torch.float64) @ _YIQ_OF_RGB
        for part in (
            ((1, 0, 0), (0, 0, 0), (0, 0, 0)),
            ((0, 0, 0), (0, 1, 0), (0, 0, 1)),
            ((0, 0, 0), (0, 0, -1), (0, 1, 0)),
        )
    ]
)


def change_brightness(tiles: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
    """Multiply each tile by its factor.

    Args:
        tiles: ``(N, 3, H, W)`` floats in [0, 1].
        factors: ``(N,)``, at least 0.
    """
    return (tiles * _per_tile(factors)).clamp_(0, 1)


@augmentation("lit", brightness={"most": 1})
def jitter_brightness(tiles: torch.Tensor, draw: Draw, brightness: float) -> torch.Tensor:
    """Draw the factors from [1 - brightness, 1 + brightness]."""
    return change_brightness(tiles, draw(1 - brightness, 1 + brightness))


def change_contrast(tiles: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
    """Stretch each tile by its factor about the mean of its grey.

    Args:
        tiles: ``(N, 3, H, W)`` floats in [0, 1].
        factors: ``(N,)``, at least 0.
    """
    return _blend(tiles, (tiles.mean(dim=(-2, -1)) @ constant(_LUMA, tiles)).view(-1, 1, 1, 1), factors)


@augmentation("lit", contrast={"most": 1})
def jitter_contrast(tiles: torch.Tensor, draw: Draw, contrast: float) -> torch.Tensor:
    """Draw the factors from [1 - contrast, 1 + contrast]."""
    return change_contrast(tiles, draw(1 - contrast, 1 + contrast))


def change_saturation(tiles: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
    """Stretch each pixel's colour by its tile's factor about the pixel's grey.

    Args:
        tiles: ``(N, 3, H, W)`` floats in [0, 1].
        factors: ``(N,)``, at least 0.
    """
    return _blend(tiles, (tiles.movedim(1, -1) @ constant(_LUMA, tiles)).unsqueeze(1), factors)


@augmentation("lit", saturation={"most": 1})
def jitter_saturation(tiles: torch.Tensor, draw: Draw, saturation: float) -> torch.Tensor:
    """Draw the factors from [1 - saturation, 1 + saturation]."""
    return change_saturation(tiles, draw(1 - saturation, 1 + saturation))


def change_hue(tiles: torch.Tensor, turns: torch.Tensor) -> torch.Tensor:
    """Turn the colours of each tile about the grey axis; a pixel's luma stays, unless its colour leaves [0, 1].

    The turn is one in the I-Q plane of NTSC's YIQ, a 3x3 matrix for each tile: cheaper than by way of HSV.

    Args:
        tiles: ``(N, 3, H, W)`` floats in [0, 1].
        turns: ``(N,)``, parts of the whole circle, of either sign; 1 turns back to where it was.
    """
    angles = 2 * math.pi * turns.view(-1, 1, 1)
    kept, along, across = constant(_TURN_PARTS, tiles)
    turned = kept + angles.cos() * along + angles.sin() * across
    return mix_channels(tiles, turned.mT, torch.zeros_like(turned[:, 0])).clamp_(0, 1)


@augmentation("lit", hue={"most": 0.5})
def jitter_hue(tiles: torch.Tensor, draw: Draw, hue: float) -> torch.Tensor:
    """Draw the turns from [-hue, hue], parts of the whole circle."""
    return change_hue(tiles, draw(-hue, hue))


def change_gamma(tiles: torch.Tensor, exponents: torch.Tensor) -> torch.Tensor:
    """Raise each tile to its exponent: below 1 lightens the dark parts, above 1 darkens them; black and white stay.

    Args:
        tiles: ``(N, 3, H, W)`` floats in [0, 1].
        exponents: ``(N,)``, above 0.
    """
    return tiles.pow(_per_tile(exponents))


@augmentation("lit", gamma={"below": 1})
def jitter_gamma(tiles: torch.Tensor, draw: Draw, gamma: float) -> torch.Tensor:
    """Draw the exponents from [1 - gamma, 1 + gamma]."""
    return change_gamma(tiles, draw(1 - gamma, 1 + gamma))


def mix_channels(tiles: torch.Tensor, matrices: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
    """Multiply every pixel, a row vector, by its tile's matrix and add its tile's offset.

    The products are written out: a GPU would round a matrix product to TF32.

    Args:
        tiles: ``(N, 3, H, W)``.
        matrices: ``(N, 3, C)``.
        offsets: ``(N, C)``.

    Returns:
        A new batch, ``(N, C, H, W)``.
    """
    weights = matrices[..., None, None]
    mixed = torch.addcmul(offsets[..., None, None], tiles[:, 0:1], weights[:, 0])
    return mixed.addcmul_(tiles[:, 1:2], weights[:, 1]).addcmul_(tiles[:, 2:3], weights[:, 2])


def _blend(tiles: torch.Tensor, centre: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
    """Return ``centre + factor * (tile - centre)``; about three times as fast on a CPU as ``torch.lerp``."""
    return torch.addcmul(centre * (1 - _per_tile(factors)), tiles, _per_tile(factors)).clamp_(0, 1)


def _per_tile(factors: torch.Tensor) -> torch.Tensor:
    return factors.view(-1, 1, 1, 1)
