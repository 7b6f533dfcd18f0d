"""CutMix and MixUp for labels that speak of the centre 32x32 alone.

Both put a part of another tile into a tile. The label is mixed by what happens to the centre: where a third of the
centre's pixels, or a third of each of them, comes from the other tile, so does a third of the label. Whatever happens
outside the centre changes no label.
"""

from __future__ import annotations

import torch

from histolight.config.schema import CENTRE


def mix_tiles(
    tiles: torch.Tensor, labels: torch.Tensor, cutmix: float, mixup: float, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mix each tile with another one of the batch, which may be itself.

    A tile is cut (:func:`random_boxes`) with probability ``cutmix``; any other is blended with its partner, whose share
    is drawn from Beta(``mixup``, ``mixup``) (Zhang et al. 2018, "mixup: Beyond Empirical Risk Minimization").

    Args:
        tiles: ``(N, 3, S, S)`` floats, S at least 32.
        labels: ``(N,)`` float32 in [0, 1].
        cutmix: Probability.
        mixup: Parameter of the Beta distribution, at least 0; 0 blends nothing.
        generator: Source of the random numbers, on the device of the tiles.

    Returns:
        A new batch and its labels in [0, 1]; where both strengths are 0, the arguments themselves.
    """
    if cutmix == 0 and mixup == 0:
        return tiles, labels
    count, size, device = len(tiles), tiles.shape[-1], tiles.device
    partners = torch.randperm(count, device=device, generator=generator)
    shares = torch.zeros(count, 1, 1, 1, device=device)
    if mixup > 0:
        # Beta is the Dirichlet distribution of two; torch.distributions offers both, but no generator.
        parameters = torch.full((count, 2), mixup, device=device)
        shares = torch._sample_dirichlet(parameters, generator=generator)[:, 0].view(-1, 1, 1, 1)
    if cutmix > 0:
        cut = torch.empty(count, 1, 1, 1, device=device).uniform_(generator=generator) < cutmix
        shares = torch.where(cut, random_boxes(count, size, generator).unsqueeze(1).float(), shares)
    shares = shares.expand(count, 1, size, size)
    first = (size - CENTRE) // 2
    centre = shares[:, 0, first : first + CENTRE, first : first + CENTRE].mean(dim=(1, 2))
    return torch.lerp(tiles, tiles[partners], shares), torch.lerp(labels, labels[partners], centre)


def random_boxes(count: int, size: int, generator: torch.Generator) -> torch.Tensor:
    """Draw boxes as CutMix does: a share of the area, evenly from [0, 1], and a middle, evenly from the tile.

    What reaches beyond the tile is cut off (Yun et al. 2019, "CutMix: Regularization Strategy to Train Strong
    Classifiers with Localizable Features").

    Args:
        count: Boxes.
        size: Height and width of a tile in pixels.
        generator: Source of the random numbers; its device is that of the result.

    Returns:
        ``(count, size, size)`` bool: pixels whose middle lies in the box.
    """
    area, *middle = torch.empty(3, count, device=generator.device).uniform_(generator=generator)
    half = (area.sqrt() / 2).unsqueeze(1)
    pixels = (torch.arange(size, device=generator.device) + 0.5) / size
    down, across = ((pixels - place.unsqueeze(1)).abs() < half for place in middle)
    return down.unsqueeze(2) & across.unsqueeze(1)
