"""Networks by name, their pretrained weights, and the exchange of their last layer for one logit.

A new network of torchvision or timm needs no code: add ``conf/model/NAME.yaml`` with ``name: NAME``, or write
``model.name=NAME`` on the command line. A new family is one module here with a ``FAMILY``
(:class:`histolight.models.backbones.family.Family`).
"""

from __future__ import annotations

import functools
import importlib
import pkgutil

import torch
from torch import nn

from histolight.config.schema import ModelConfig
from histolight.errors import RequestError, nearest
from histolight.models.backbones.family import IMAGENET, PIXELS, Backbone, Family, too_small
from histolight.models.backbones.pooling import centre_weights, pool_centre
from histolight.models.backbones.weights import check_weights_file, load_state, read_weights

__all__ = [
    "IMAGENET",
    "PIXELS",
    "Backbone",
    "build_backbone",
    "centre_weights",
    "check_name",
    "check_weights",
    "load_weights",
]


@functools.cache
def families() -> list[Family]:
    """Return the ``FAMILY`` of each module of this folder that has one."""
    modules = (importlib.import_module(f"{__name__}.{module.name}") for module in pkgutil.iter_modules(__path__))
    return [module.FAMILY for module in modules if hasattr(module, "FAMILY")]


def check_name(name: str) -> Family:
    """Return the family of a network.

    Raises:
        RequestError: The name is unknown; the message gives the nearest ones.
    """
    prefixed = [family for family in families() if family.prefix and name.startswith(family.prefix)]
    asked = prefixed or [family for family in families() if not family.prefix]
    known = {valid: family for family in asked for valid in family.names(name)}
    if name not in known:
        raise RequestError(f"model.name={name} is not known: {nearest(name, known)}")
    return known[name]


def check_weights(name: str, weights: str | None) -> None:
    """Raise :class:`RequestError` for the path of a weights file that isn't there, and where ImageNet's don't exist."""
    if weights == "imagenet" and not check_name(name).pretrained:
        raise RequestError(f"model.name={name} has no ImageNet weights: use model.weights=null")
    check_weights_file(weights)


def build_backbone(name: str, image_size: int, dropout: float = 0.0, pooling: str = "mean") -> Backbone:
    """Build a network from random weights with one logit.

    Args:
        name: A classification network of torchvision, ``p4m_densenet``, or ``timm/NAME``.
        image_size: Height and width in pixels of what enters the network.
        dropout: Probability of an extra dropout in front of the last layer; a network's own dropout stays.
        pooling: ``mean``, or ``centre``: see :func:`centre_weights`.

    Raises:
        RequestError: The name is unknown, or the network can't work at this size.
    """
    backbone = check_name(name).build(name, image_size)
    network, head = backbone.network, backbone.head
    _check_output(network, name, image_size)
    if pooling == "centre":
        if backbone.pooled is None:
            raise RequestError(
                f"model.pooling=centre needs a network that averages its last feature map, and model.name={name} does "
                "not: use model.pooling=mean, or a ResNet, DenseNet, MobileNet, EfficientNet or ConvNeXt"
            )
        pool_centre(network, backbone.pooled)
        _check_output(network, name, image_size)  # the weights of the map come into being here
    if dropout > 0:
        network.set_submodule(head, nn.Sequential(nn.Dropout(dropout), network.get_submodule(head)))
    return backbone


def _check_output(network: nn.Module, name: str, image_size: int) -> None:
    training = network.training
    try:
        with torch.no_grad():
            shape = network.eval()(torch.zeros(1, 3, image_size, image_size)).shape
    except (RuntimeError, AssertionError, ValueError) as error:
        raise too_small(name, image_size) from error
    finally:
        network.train(training)
    if shape != (1, 1):
        raise RequestError(
            f"model.name={name} gives an output of shape {tuple(shape)}, not one logit: choose another network"
        )


def load_weights(network: nn.Module, head: str, config: ModelConfig, image_size: int) -> None:
    """Load pretrained weights into a network, its last layer excepted unless the file has one with one logit.

    Args:
        network: From :func:`build_backbone`, changed in place.
        head: Dotted name of its last layer.
        config: Its ``weights`` is ``imagenet`` (downloaded), null (nothing to do), or the path of a state dict.
        image_size: Height and width in pixels of what enters the network.

    Raises:
        RequestError: The file is missing, is no plain state dict, or belongs to another network; or there are no such
            weights.
        HistolightError: The download failed.
    """
    if config.weights is None:
        return
    check_weights(config.name, config.weights)
    family = check_name(config.name)
    state = family.adapt_state(network, read_weights(family, config), image_size)
    load_state(network, head, state, config)
