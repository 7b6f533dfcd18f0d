"""Mirror flips and quarter turns, which interpolate nothing, and small shifts and changes of scale, which do."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from histolight.augment.registry import Draw, augmentation


def random_flips(tiles: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Mirror each tile left-right and top-bottom, each with probability 1/2.

    Args:
        tiles: ``(N, C, H, W)``, any dtype; fastest as uint8 in channels_last memory.
        generator: Source of the random numbers, on the device of the tiles.

    Returns:
        A new batch, in channels_last memory.
    """
    across, down = _coins(tiles, generator), _coins(tiles, generator)
    pixels = tiles.permute(0, 2, 3, 1)
    return _choose([pixels, pixels.flip(2)], across, down)


def random_dihedral(tiles: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Move each tile by one of the eight symmetries of the square, all equally likely.

    Every one of them is a transposition or not, followed by a flip or not along each axis.

    Args:
        tiles: ``(N, C, S, S)``, any dtype; fastest as uint8 in channels_last memory.
        generator: Source of the random numbers, on the device of the tiles.

    Returns:
        A new batch, in channels_last memory.
    """
    transposed, across, down = (_coins(tiles, generator) for _ in range(3))
    pixels = tiles.permute(0, 2, 3, 1)
    turned = pixels.transpose(1, 2).contiguous()
    return _choose([pixels, pixels.flip(2), turned, turned.flip(2)], 2 * transposed + across, down)


def shift_and_scale(tiles: torch.Tensor, shifts: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
    """Enlarge each tile about its middle, then shift it; what comes in at the border is mirrored, bilinearly sampled.

    Args:
        tiles: ``(N, C, S, S)`` floats.
        shifts: ``(N, 2)`` in pixels, to the right and down.
        factors: ``(N,)``, above 0; 2 shows everything twice as large.

    Returns:
        A new batch.
    """
    places = torch.zeros(len(tiles), 2, 3, device=tiles.device)  # from a place in the result to where it comes from
    places[:, 0, 0] = places[:, 1, 1] = 1 / factors
    places[:, :, 2] = -shifts * (2 / tiles.shape[-1]) / factors.unsqueeze(1)  # the tile reaches from -1 to 1
    grid = F.affine_grid(places, list(tiles.shape), align_corners=False)
    return F.grid_sample(tiles, grid, mode="bilinear", padding_mode="reflection", align_corners=False)


@augmentation("cut", shift={"most": 8}, scale={"most": 0.25})
def jitter_place(tiles: torch.Tensor, draw: Draw, shift: float, scale: float) -> torch.Tensor:
    """Draw shifts along each axis from [-shift, shift] pixels, not whole, and factors from [1 - scale, 1 + scale]."""
    return shift_and_scale(tiles, draw(-shift, shift, 2), draw(1 - scale, 1 + scale))


def _choose(versions: Sequence[torch.Tensor], version: torch.Tensor, down: torch.Tensor) -> torch.Tensor:
    """Take each tile from one of several batches ``(N, H, W, C)``, upside down where ``down`` is 1.

    Whole rows of pixels are gathered: several times faster on a CPU than choosing pixel by pixel, and nothing that a
    GPU has to be waited for.
    """
    count, height, width, channels = versions[0].shape
    row = torch.arange(height, device=down.device)
    row = torch.where(down.bool().unsqueeze(1), row.flip(0), row)
    tile = version * count + torch.arange(count, device=down.device)
    rows = (tile.unsqueeze(1) * height + row).flatten()
    chosen = torch.cat(list(versions)).flatten(0, 1).index_select(0, rows)
    return chosen.view(count, height, width, channels).permute(0, 3, 1, 2)


def _coins(tiles: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    coins = torch.randint(2, (len(tiles),), device=tiles.device, generator=generator, dtype=torch.uint8)
    return coins.long()
