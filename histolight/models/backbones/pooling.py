"""``model.pooling=centre``: the last feature map averaged over the tile's centre third, which the label is about."""

from __future__ import annotations

import torch
from torch import nn


def centre_weights(height: int, width: int) -> torch.Tensor:
    """Weigh the cells of a feature map by how much of each lies in the centre third of the tile.

    The mean of the map times these weights is the mean over that third: of a 96x96 tile the 32x32 that the label is
    about.

    Returns:
        float32 (height, width) with a mean of 1.

    >>> centre_weights(6, 6)[2]
    tensor([0., 0., 9., 9., 0., 0.])
    """

    def overlap(cells: int) -> torch.Tensor:
        start = torch.arange(cells, dtype=torch.float64) / cells
        inside = (start + 1 / cells).clamp(max=2 / 3) - start.clamp(min=1 / 3)
        return inside.clamp(min=0) / inside.clamp(min=0).mean()

    return torch.outer(overlap(height), overlap(width)).float()


class CentreWeights(nn.Module):
    """Weigh a feature map ``(N, C, H, W)`` by :func:`centre_weights`; nothing of it stands in a state dict."""

    weights: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("weights", torch.empty(0, 0), persistent=False)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Return the weighted map; the weights are computed once for a size."""
        if self.weights.shape != features.shape[-2:]:
            self.weights = centre_weights(features.shape[-2], features.shape[-1]).to(features.device)
        return features * self.weights.to(features.dtype)


def pool_centre(network: nn.Module, pooled: str) -> None:
    """Weigh the last feature map, which the network then averages as before: no key of its state dict changes.

    Args:
        network: Changed in place.
        pooled: As in :class:`histolight.models.backbones.family.Backbone`.
    """
    layer = network.get_submodule(pooled)
    if isinstance(layer, nn.Sequential):
        layer.append(CentreWeights())
    else:
        network.set_submodule(pooled, nn.Sequential(CentreWeights(), layer))
