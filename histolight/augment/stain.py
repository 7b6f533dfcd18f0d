"""Jitter of the stains: how much haematoxylin, eosin and DAB lies in each pixel, taken apart and put together again.

Light that passes stained tissue falls off exponentially (Beer and Lambert), so the negative logarithm of a pixel, its
optical density, is a sum over stains of amount x colour. The colours are those of Ruifrok & Johnston 2001,
"Quantification of histochemical staining by color deconvolution"; scikit-image's ``rgb2hed`` uses the same.
"""

from __future__ import annotations

import torch

from histolight.augment.colour import mix_channels
from histolight.augment.constants import constant
from histolight.augment.registry import Draw, augmentation

DARKEST = 1 / 255  # darker pixels count as this one, the darkest that 8 bits tell from black: log 0 is no density

# The density in red, green and blue of one unit of each stain.
_RGB_OF_HED = torch.tensor(((0.65, 0.70, 0.29), (0.07, 0.99, 0.11), (0.27, 0.57, 0.78)), dtype=torch.float64)
_HED_OF_RGB = torch.linalg.inv(_RGB_OF_HED)


def change_stains(tiles: torch.Tensor, factors: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
    """Turn the amount c of each stain into ``factor * c + offset`` in every pixel of a tile.

    The method is that of Tellez et al. 2018, "Whole-slide mitosis detection in H&E breast histology using PHH3 as a
    reference to train distilled stain-invariant convolutional networks". Amounts are in natural logarithms: an amount
    of 1 lets ``exp(-density)`` of the light through.

    Args:
        tiles: ``(N, 3, H, W)`` floats in [0, 1].
        factors: ``(N, 3)``, at least 0: for haematoxylin, eosin and DAB.
        offsets: ``(N, 3)``, of either sign.

    Returns:
        A new batch in [0, 1]. Factors of 1 and offsets of 0 return the tiles but for rounding, and black, which becomes
        1/255.
    """
    rgb_of_hed, hed_of_rgb = constant(_RGB_OF_HED, tiles), constant(_HED_OF_RGB, tiles)
    # Taking apart, changing and putting together are one 3x3 matrix.
    change = (hed_of_rgb.unsqueeze(0).unsqueeze(3) * factors.view(-1, 1, 3, 1) * rgb_of_hed).sum(2)
    added = (offsets.unsqueeze(2) * rgb_of_hed).sum(1)
    return mix_channels(log_light(tiles), change, -added).exp_().clamp_(0, 1)


@augmentation("stained", stain={"most": 1})
def jitter_stains(tiles: torch.Tensor, draw: Draw, stain: float) -> torch.Tensor:
    """Draw for each stain a factor from [1 - stain, 1 + stain] and an offset from [-stain, stain]."""
    return change_stains(tiles, draw(1 - stain, 1 + stain, 3), draw(-stain, stain, 3))


def log_light(tiles: torch.Tensor) -> torch.Tensor:
    """Turn pixels in [0, 1] into minus their optical density, the natural logarithm, at least log(1/255)."""
    return tiles.clamp_min(DARKEST).log_()
