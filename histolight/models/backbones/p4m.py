"""A DenseNet whose logit is the same for a tile and for the same tile turned or mirrored.

Veeling et al., "Rotation Equivariant CNNs for Digital Pathology", MICCAI 2018 (arXiv 1806.03962), with the group
convolutions of Cohen & Welling, "Group Equivariant Convolutional Networks", ICML 2016 (arXiv 1602.07576), over p4m:
translations, and the eight symmetries of the square.

Feature maps are ``(N, C * 8, H, W)``: channel ``8 * c + 4 * m + r`` holds what channel c sees with its filter mirrored
(m = 1) and then turned r times by 90 degrees. A symmetry of the tile turns or mirrors each of these maps and swaps the
eight of a channel: :func:`turn` and :func:`mirror` say how.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from histolight.config.schema import ModelConfig
from histolight.errors import RequestError
from histolight.models.backbones.family import IMAGENET, Backbone, Family

NAME = "p4m_densenet"
SYMMETRIES = 8
BLOCKS = 5
MULTIPLE = 2 ** (BLOCKS - 1)  # each pooling between blocks must halve an even map, else symmetry is lost


def turn(maps: torch.Tensor) -> torch.Tensor:
    """Turn functions on p4m by 90 degrees counter-clockwise.

    Args:
        maps: ``(..., M, R, H, W)``, M x R being 2 x 4 (mirrored or not, turns), or 1 x 1 for functions on the plane.

    Returns:
        The same shape, H and W swapped.
    """
    return torch.rot90(maps, 1, (-2, -1)).roll(1, -3)


def mirror(maps: torch.Tensor) -> torch.Tensor:
    """Mirror functions on p4m left to right; shapes as in :func:`turn`."""
    # mirror * turn^r = turn^-r * mirror: the other half, in the opposite order, beginning with no turn.
    return maps.flip((-4, -3, -1)).roll(1, -3)


class P4MConv(nn.Module):
    """Correlation with filters in all eight symmetries; zero padding keeps H and W; no bias.

    Args:
        in_channels: Channels of the input, each of one map where ``lifting``, else of eight.
        out_channels: Channels of the output, each of eight maps.
        kernel_size: Height and width of the filters, odd.
        lifting: The input is a tile (Cohen & Welling's P4MConvZ2), not a function on p4m (P4MConvP4M).
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, lifting: bool = False) -> None:
        super().__init__()
        self.group = (1, 1) if lifting else (2, 4)
        self.padding = kernel_size // 2
        in_maps = in_channels * (1 if lifting else SYMMETRIES)
        self.weight = nn.Parameter(torch.empty(out_channels, in_maps, kernel_size, kernel_size))
        nn.init.kaiming_normal_(self.weight)

    def filters(self) -> torch.Tensor:
        """Return all eight symmetries of the filters, ``(out_channels * 8, input maps, k, k)``."""
        weight = self.weight.unflatten(1, (-1, *self.group))
        bank = []
        for filters in (weight, mirror(weight)):
            for _ in range(4):
                bank.append(filters)
                filters = turn(filters)
        return torch.stack(bank, dim=1).flatten(0, 1).flatten(1, 3)

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        """Map ``(N, in_channels * 8, H, W)``, or tiles ``(N, in_channels, H, W)``, to maps for all symmetries."""
        return F.conv2d(maps, self.filters(), padding=self.padding)


class P4MBatchNorm(nn.BatchNorm2d):
    """Batch norm with one mean, variance, scale and shift for the eight maps of a channel.

    Args:
        num_features: Channels, a map's eight symmetries counting once.
    """

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        """Normalise ``(N, num_features * 8, H, W)``."""
        joined = maps.unflatten(1, (-1, SYMMETRIES)).flatten(2, 3)
        return super().forward(joined).unflatten(2, (SYMMETRIES, -1)).flatten(1, 2)


class P4MDenseBlock(nn.Module):
    """One dense layer: batch norm, ReLU, 3x3 convolution, its output appended to its input."""

    def __init__(self, channels: int, growth_rate: int) -> None:
        super().__init__()
        self.norm = P4MBatchNorm(channels)
        self.conv = P4MConv(channels, growth_rate, 3)

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        """Map ``(N, channels * 8, H, W)`` to ``(N, (channels + growth_rate) * 8, H, W)``."""
        return torch.cat([maps, self.conv(F.relu(self.norm(maps)))], dim=1)


class P4MPooling(nn.Module):
    """Mean over the eight maps of a channel: what is left turns and mirrors with the tile, and swaps nothing."""

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        """Map ``(N, C * 8, H, W)`` to ``(N, C, H, W)``."""
        return maps.unflatten(1, (-1, SYMMETRIES)).mean(2)


class P4MDenseNet(nn.Module):
    """Five dense blocks of one layer each, average pooling between them, and one logit.

    By default 123,400 parameters, about as many as the paper's network (119,000), and 1.74e9 floating-point operations
    for a 96x96 tile (torchvision's densenet121: 1.04e9).

    The logit is exactly invariant, up to rounding, under the eight symmetries of a square tile whose side is a multiple
    of 16 pixels: no convolution has a stride, and every pooling halves an even map.

    Args:
        growth_rate: Channels that a block adds.
        channels: Channels of the first convolution.
    """

    def __init__(self, growth_rate: int = 9, channels: int = 9) -> None:
        super().__init__()
        layers: list[nn.Module] = [P4MConv(3, channels, 3, lifting=True)]
        for block in range(BLOCKS):
            if block:
                # Pooling and a 1x1 convolution commute: in this order the latter costs a quarter.
                layers += [P4MBatchNorm(channels), nn.ReLU(), nn.AvgPool2d(2), P4MConv(channels, channels, 1)]
            layers.append(P4MDenseBlock(channels, growth_rate))
            channels += growth_rate
        self.features = nn.Sequential(*layers, P4MBatchNorm(channels), nn.ReLU(), P4MPooling())
        self.classifier = nn.Linear(channels, 1)

    def forward(self, tiles: torch.Tensor) -> torch.Tensor:
        """Map ``(N, 3, S, S)`` normalised floats to logits ``(N, 1)``."""
        # The eight maps of a channel lie together only so, and batch norm then copies nothing.
        maps = self.features(tiles.contiguous())
        return self.classifier(maps.mean((-2, -1)))


class P4M(Family):
    """The one network of this module; it starts from random weights."""

    pretrained = None

    def names(self, name: str) -> list[str]:
        """Name it."""
        return [NAME]

    def build(self, config: ModelConfig, image_size: int) -> Backbone:
        """Build it for tiles on which it is symmetric."""
        if image_size % MULTIPLE:
            raise RequestError(
                f"model.name={NAME} is symmetric only on tiles whose side is a multiple of {MULTIPLE}, and "
                f"{image_size} is none: add model.input_size={-(-image_size // MULTIPLE) * MULTIPLE}"
            )
        return Backbone(P4MDenseNet(), "classifier", *IMAGENET, pooled="features")


FAMILY = P4M()
