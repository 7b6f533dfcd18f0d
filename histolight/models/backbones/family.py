"""What every family of networks has in common: how it names, builds and fills them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from histolight.errors import RequestError

Statistics = tuple[float, float, float]

IMAGENET: tuple[Statistics, Statistics] = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HALF: tuple[Statistics, Statistics] = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
PIXELS: tuple[Statistics, Statistics] = ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


@dataclass(frozen=True)
class Backbone:
    """A network with one logit.

    Attributes:
        network: Maps ``(N, 3, S, S)`` normalised floats to logits ``(N, 1)``.
        head: Dotted name of its last layer inside ``network``.
        mean: Per channel, what its ImageNet weights expect to be subtracted from pixels in [0, 1] ...
        std: ... and divided by.
        pooled: Dotted name of the layer that averages the last feature map, or of the ``nn.Sequential`` whose output is
            averaged; None in a network that averages no map.
    """

    network: nn.Module
    head: str
    mean: Statistics
    std: Statistics
    pooled: str | None = None


class Family:
    """Networks of one origin. Each module of this folder that has a ``FAMILY`` adds one.

    Attributes:
        prefix: What all its names begin with, such as ``timm/``; empty where they stand for themselves.
        pretrained: Whether it has ImageNet weights.
    """

    prefix = ""
    pretrained = True

    def names(self, name: str) -> list[str]:
        """List the valid names, prefix included, of which ``name`` may be one.

        Raises:
            RequestError: A package is missing.
        """
        raise NotImplementedError

    def build(self, name: str, image_size: int) -> Backbone:
        """Build a network from random weights.

        Raises:
            RequestError: The network can't work at this size, or has no single last layer.
        """
        raise NotImplementedError

    def imagenet_state(self, name: str) -> Mapping[str, torch.Tensor]:
        """Download the state dict of the ImageNet weights.

        Raises:
            OSError: The download failed (RuntimeError: it is not what it should be).
        """
        raise NotImplementedError

    def adapt_state(
        self, network: nn.Module, state: dict[str, torch.Tensor], image_size: int
    ) -> dict[str, torch.Tensor]:
        """Rename or reshape what files have in another form than the network; by default nothing."""
        return state


def too_small(name: str, image_size: int) -> RequestError:
    """Refuse a network that can't work at this size."""
    return RequestError(f"model.name={name} can't work on {image_size}x{image_size} tiles: choose another network")
