"""Stain normalisation: every tile as if one laboratory had stained it and one scanner had read it.

A tile with hardly any tissue has no stain to measure, and stays as it is. Nothing here is random.
"""

from __future__ import annotations

import torch

from histolight.augment.colour import mix_channels
from histolight.augment.constants import constant

LIGHT = 240 / 255  # of an empty slide; this and what follows: Macenko et al. 2009 and the code that they published
BACKGROUND = 0.15  # optical density; a pixel with less than that in any channel is no tissue
EXTREMES = 0.01  # of the angles on each side, and of the amounts above, are left out as outliers
TISSUE = 0.05  # of a tile's pixels at least, or the tile stays as it is
# The published reference: density of one unit of haematoxylin and of eosin in red, green, blue; 99th percentiles.
_REFERENCE_STAINS = torch.tensor([[0.5626, 0.7201, 0.4062], [0.2159, 0.8012, 0.5581]])
_REFERENCE_AMOUNTS = torch.tensor([1.9705, 1.0308])

# CIELAB's mean and standard deviation within a tile: medians over 4,000 tiles of Kaggle's training set.
_REFERENCE_MEAN = torch.tensor([60.0, 22.5, -9.9])
_REFERENCE_DEVIATION = torch.tensor([18.7, 7.2, 5.8])
# sRGB to CIE XYZ, each divided by that of white, D65 (IEC 61966-2-1). The inverses stand here because ONNX has none.
_XYZ_OF_RGB = torch.tensor(
    [[0.412453, 0.357580, 0.180423], [0.212671, 0.715160, 0.072169], [0.019334, 0.119193, 0.950227]],
    dtype=torch.float64,
) / torch.tensor([[0.95047], [1.0], [1.08883]], dtype=torch.float64)
_RGB_OF_XYZ = torch.linalg.inv(_XYZ_OF_RGB)
# L, a, b from the three cube roots: L = 116 y - 16, a = 500 (x - y), b = 200 (y - z).
_LAB_OF_ROOTS = torch.tensor([[0, 116, 0], [500, -500, 0], [0, 200, -200]], dtype=torch.float64)
_ROOTS_OF_LAB = torch.linalg.inv(_LAB_OF_ROOTS)
_LAB_OFFSET = torch.tensor([-16, 0, 0], dtype=torch.float64)
_ROOTS_OFFSET = -_ROOTS_OF_LAB @ _LAB_OFFSET


def normalise_stain(tiles: torch.Tensor, method: str) -> torch.Tensor:
    """Normalise each tile by itself.

    Args:
        tiles: ``(N, 3, H, W)`` floats in [0, 1].
        method: ``none``, ``macenko`` or ``reinhard``.

    Returns:
        A batch of floats in [0, 1] (``tiles`` itself for ``none``).
    """
    if method == "none":
        return tiles
    with torch.no_grad(), torch.autocast(tiles.device.type, enabled=False):
        density = -((255 * tiles + 1) / (255 * LIGHT)).log()
        tissue = (density >= BACKGROUND).all(dim=1)
        enough = tissue.sum(dim=(1, 2)) >= TISSUE * tissue[0].numel()
        if method == "macenko":
            normalised, enough = _macenko(density, tissue, enough)
        else:
            normalised = _reinhard(tiles)
        return torch.where(enough.view(-1, 1, 1, 1), normalised, tiles)


def _macenko(density: torch.Tensor, tissue: torch.Tensor, enough: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Normalise by the two stains that a tile's own densities show.

    Macenko et al. 2009, "A method for normalizing histology slides for quantitative analysis": the densities of tissue
    lie in a plane between two directions, the stains; the plane is that of the first two principal components, and the
    stains are its extreme angles.

    Args:
        density: ``(N, 3, H, W)``, optical density in natural logarithms.
        tissue: ``(N, H, W)`` bool.
        enough: ``(N,)`` bool: tiles with tissue to measure.

    Returns:
        The tiles in [0, 1], and ``(N,)`` bool: those in which two stains were found.
    """
    pixels, inside = density.flatten(2), tissue.flatten(1)
    count = inside.sum(1)
    mean = (pixels * inside.unsqueeze(1)).sum(2) / count.clamp_min(1).unsqueeze(1)
    spread = (pixels - mean.unsqueeze(2)) * inside.unsqueeze(1)
    products = (spread.unsqueeze(1) * spread.unsqueeze(2)).sum(3)  # not a matrix product: a GPU rounds that to TF32
    products = torch.where(enough.view(-1, 1, 1), products, torch.eye(3, device=products.device))
    vectors = torch.linalg.eigh(products).eigenvectors
    side, along = vectors[:, :, 1], vectors[:, :, 2]
    along = along * along.sum(1, keepdim=True).sign()  # into the quarter of positive densities

    plane = mix_channels(density, torch.stack([side, along], 2), density.new_zeros(len(density), 2)).flatten(2)
    angles = torch.atan2(plane[:, 1], plane[:, 0])
    nowhere = torch.full_like(angles, -torch.inf)
    ends = [sign * _upper_percentile(torch.where(inside, sign * angles, nowhere), count) for sign in (-1, 1)]
    stains = torch.stack([angle.cos().unsqueeze(1) * side + angle.sin().unsqueeze(1) * along for angle in ends], 1)
    swapped = (stains[:, 0, 0] <= stains[:, 1, 0]).view(-1, 1, 1)  # haematoxylin takes more of the red
    stains = torch.where(swapped, stains.flip(1), stains)

    # Least squares for two directions of length 1: the inverse of [[1, c], [c, 1]] is [[1, -c], [-c, 1]] / (1 - c^2).
    common = (stains[:, 0] * stains[:, 1]).sum(1).view(-1, 1, 1)
    unmix = ((stains - common * stains.flip(1)) / (1 - common**2).clamp_min(1e-6)).mT  # (N, 3, 2)
    amounts = mix_channels(density, unmix, density.new_zeros(len(density), 2)).flatten(2)
    everything = torch.full_like(count, amounts.shape[2])
    most = torch.stack([_upper_percentile(amounts[:, stain], everything) for stain in (0, 1)], 1)
    stained = enough & (common.flatten() < 0.9995) & (most > 0.01).all(1)

    scale = constant(_REFERENCE_AMOUNTS, density) / most.clamp_min(0.01)
    change = (unmix.unsqueeze(3) * scale.view(-1, 1, 2, 1) * constant(_REFERENCE_STAINS, density)).sum(2)
    light = mix_channels(density, -change, density.new_zeros(len(density), 3)).exp_()
    return light.mul_(LIGHT).clamp_(0, 1), stained


def _upper_percentile(values: torch.Tensor, count: torch.Tensor) -> torch.Tensor:
    """Interpolate the 99th percentile of each row linearly, as numpy does, from its largest values alone.

    Args:
        values: ``(N, P)``; -inf is not counted.
        count: ``(N,)``: how many are.
    """
    largest = values.topk(int(EXTREMES * (values.shape[1] - 1)) + 2).values
    place = EXTREMES * (count - 1).clamp_min(0).to(values)
    first = place.floor().long()
    low, high = (largest.gather(1, (first + step).unsqueeze(1)).squeeze(1) for step in (0, 1))
    return torch.where(place > first, torch.lerp(low, high, place - first), low)


def _reinhard(tiles: torch.Tensor) -> torch.Tensor:
    """Give each channel of CIELAB the reference's mean and standard deviation.

    Reinhard et al. 2001, "Color transfer between images", in CIELAB instead of their own space, as is
    usual in histology.
    """
    lab = rgb_to_lab(tiles)
    deviation, mean = torch.std_mean(lab, dim=(2, 3), correction=0, keepdim=True)
    scale = constant(_REFERENCE_DEVIATION, lab).view(1, 3, 1, 1) / deviation.clamp_min(1e-3)
    return lab_to_rgb((lab - mean) * scale + constant(_REFERENCE_MEAN, lab).view(1, 3, 1, 1))


def rgb_to_lab(tiles: torch.Tensor) -> torch.Tensor:
    """Turn sRGB ``(N, 3, H, W)`` in [0, 1] into CIELAB under D65: L in [0, 100], a and b of either sign."""
    linear = torch.where(tiles > 0.04045, ((tiles + 0.055) / 1.055) ** 2.4, tiles / 12.92)
    relative = _mix(linear, _XYZ_OF_RGB)
    roots = torch.where(
        relative > (6 / 29) ** 3, relative.clamp_min(1e-6) ** (1 / 3), relative * (29 / 6) ** 2 / 3 + 4 / 29
    )
    return _mix(roots, _LAB_OF_ROOTS, _LAB_OFFSET)


def lab_to_rgb(lab: torch.Tensor) -> torch.Tensor:
    """Turn CIELAB under D65, ``(N, 3, H, W)``, into sRGB; what no screen shows is cut off at 0 and 1."""
    roots = _mix(lab, _ROOTS_OF_LAB, _ROOTS_OFFSET)
    relative = torch.where(roots > 6 / 29, roots**3, (roots - 4 / 29) * 3 * (6 / 29) ** 2)
    linear = _mix(relative, _RGB_OF_XYZ).clamp_(0, 1)
    return torch.where(linear > 0.0031308, 1.055 * linear.clamp_min(1e-6) ** (1 / 2.4) - 0.055, linear * 12.92).clamp_(
        0, 1
    )


def _mix(tiles: torch.Tensor, matrix: torch.Tensor, offset: torch.Tensor | None = None) -> torch.Tensor:
    """Multiply one matrix with every pixel of every tile, a column."""
    added = tiles.new_zeros(3) if offset is None else constant(offset, tiles)
    return mix_channels(tiles, constant(matrix, tiles).T.unsqueeze(0), added.unsqueeze(0))
