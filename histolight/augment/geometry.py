"""Mirror flips and quarter turns. They move no pixel between grid points, so nothing is interpolated."""

from __future__ import annotations

import torch


def random_flips(tiles: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Mirror each tile left-right and top-bottom, each with probability 1/2.

    Args:
        tiles: ``(N, C, H, W)``, any dtype.
        generator: Source of the random numbers, on the device of the tiles.
    """
    tiles = torch.where(_coins(tiles, generator), tiles.flip(-1), tiles)
    return torch.where(_coins(tiles, generator), tiles.flip(-2), tiles)


def random_dihedral(tiles: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Move each tile by one of the eight symmetries of the square, all equally likely.

    Every one of them is a transposition or not, followed by a flip or not along each axis.

    Args:
        tiles: ``(N, C, S, S)``, any dtype.
        generator: Source of the random numbers, on the device of the tiles.
    """
    return random_flips(torch.where(_coins(tiles, generator), tiles.transpose(-1, -2), tiles), generator)


def _coins(tiles: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    coins = torch.randint(2, (len(tiles),), device=tiles.device, generator=generator, dtype=torch.uint8)
    return coins.bool().view(-1, 1, 1, 1)
