"""What every family of networks has in common: how it names, builds and fills them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import nn

from histolight.config.schema import ModelConfig
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
        mean: Per channel, what its pretrained weights expect to be subtracted from pixels in [0, 1] ...
        std: ... and divided by.
        pooled: Dotted name of the layer that averages the last feature map, or of the ``nn.Sequential`` whose output is
            averaged; None in a network that averages no map.
        size: Height and width in pixels that it is made for; None where any will do.
    """

    network: nn.Module
    head: str
    mean: Statistics
    std: Statistics
    pooled: str | None = None
    size: int | None = None


class Family(ABC):
    """Networks of one origin. Each module of this folder that has a ``FAMILY`` adds one.

    Attributes:
        prefix: What all its names begin with, such as ``timm/``; empty where they stand for themselves. The family with
            the longest one that fits has the name.
        pretrained: The value of ``model.weights`` that downloads its pretrained weights; None where it has none.
    """

    prefix: str | tuple[str, ...] = ""
    pretrained: str | None = "imagenet"

    @abstractmethod
    def names(self, name: str) -> list[str]:
        """List the valid names, prefix included, of which ``name`` may be one.

        Raises:
            RequestError: A package is missing.
        """

    def resolve(self, config: ModelConfig) -> ModelConfig:
        """Fill in what a model's own configuration says, so that nothing needs to be read again; by default nothing.

        Raises:
            RequestError: There is no such model, or access to it is refused.
            HistolightError: Its configuration can't be downloaded.
        """
        return config

    @abstractmethod
    def build(self, config: ModelConfig, image_size: int) -> Backbone:
        """Build a network from random weights.

        Args:
            config: From :meth:`resolve`.
            image_size: Height and width in pixels of what enters the network.

        Raises:
            RequestError: The network can't work at this size, or has no single last layer.
        """

    def pretrained_state(self, config: ModelConfig) -> Mapping[str, torch.Tensor]:
        """Download the state dict of the pretrained weights.

        Raises:
            OSError: The download failed (RuntimeError: it is not what it should be).
        """
        raise NotImplementedError

    def adapt_state(
        self, network: nn.Module, state: dict[str, torch.Tensor], image_size: int
    ) -> dict[str, torch.Tensor]:
        """Rename or reshape what files have in another form than the network; by default nothing."""
        return state


def statistics(values: Iterable[float]) -> Statistics:
    """Make one number a channel of a list."""
    red, green, blue = values
    return red, green, blue


class TooSmallError(RequestError):
    """A network can't work at this size; the message names one that works, where it is known."""


def too_small(name: str, image_size: int, size: int | None = None) -> TooSmallError:
    """Refuse a network that can't work at this size, and name the one that it is made for."""
    way_on = f"add model.input_size={size}" if size not in (None, image_size) else "choose another network"
    return TooSmallError(f"model.name={name} can't work on {image_size}x{image_size} tiles: {way_on}")
