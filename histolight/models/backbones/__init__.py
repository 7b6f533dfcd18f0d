"""Networks by name, their pretrained weights, and the exchange of their last layer for one logit.

A new network of torchvision, of timm, or of a hub needs no code: add ``conf/model/NAME.yaml`` with ``name: NAME``, or
write ``model.name=NAME`` on the command line. A new family is one module here with a ``FAMILY``
(:class:`histolight.models.backbones.family.Family`).
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib
import pkgutil

import torch
from torch import nn

from histolight.config.checks import absolute_path, check_weights_file
from histolight.config.schema import ModelConfig
from histolight.errors import RequestError, nearest
from histolight.models.backbones.family import IMAGENET, PIXELS, Backbone, Family, TooSmallError, too_small
from histolight.models.backbones.pooling import centre_weights, pool_centre
from histolight.models.backbones.weights import fitted_state, log_taken, read_weights

__all__ = [
    "IMAGENET",
    "PIXELS",
    "Backbone",
    "build_backbone",
    "centre_weights",
    "check_name",
    "check_weights",
    "load_weights",
    "resolve_model",
]


INPUT_SIZES = (48, 64, 96, 128, 160, 192, 224, 256, 299, 384)  # pixels; of these the first that works is named
_fitting: set[str] = set()  # networks and sizes that were found to fit: many points of a sweep have the same


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
    prefixes = {
        prefix: family
        for family in families()
        for prefix in ((family.prefix,) if isinstance(family.prefix, str) else family.prefix)
    }
    fitting = max((prefix for prefix in prefixes if prefix and name.startswith(prefix)), key=len, default=None)
    asked = [prefixes[fitting]] if fitting else [family for family in families() if not family.prefix]
    known = {valid: family for family in asked for valid in family.names(name)}
    if name not in known:
        raise RequestError(f"model.name={name} is not known: {nearest(name, known)}")
    return known[name]


def check_weights(name: str, weights: str | None) -> None:
    """Raise :class:`RequestError` for a weights file that isn't there, and for a download that the network has not."""
    pretrained = check_name(name).pretrained
    if weights == "imagenet" and pretrained is None:
        raise RequestError(f"model.name={name} has no ImageNet weights: use model.weights=null")
    if weights in ("imagenet", "hub") and weights != pretrained:
        raise RequestError(f"model.name={name} has no weights {weights}: use model.weights={pretrained} or null")
    check_weights_file(weights)


def resolve_model(config: ModelConfig, image_size: int) -> ModelConfig:
    """Check a network and its weights file before any work starts; fill in what a hub's model says of itself.

    Args:
        config: Its ``weights`` is resolved already.
        image_size: Height and width of the tiles in pixels.

    Returns:
        A configuration from which the network can be built without the hub; paths in it are absolute.

    Raises:
        RequestError: The network or its weights do not exist, do not fit each other, or a key does not fit them.
        HistolightError: The model's own configuration can't be downloaded.
    """
    family = check_name(config.name)
    check_weights(config.name, config.weights)
    prefix, folder, path = config.name.partition("/local-dir:")
    if folder:
        config = dataclasses.replace(config, name=f"{prefix}{folder}{absolute_path(path)}")
    config = family.resolve(config)
    for key in ("mean", "std"):
        if len(getattr(config, key) or [0] * 3) != 3:
            raise RequestError(f"model.{key}={getattr(config, key)} needs three numbers, one a channel")
    size = config.input_size or image_size
    if config.weights in (None, "imagenet", "hub"):
        if (key := repr((config, size))) not in _fitting:
            _check_size(config, size)
            _fitting.add(key)
        return config
    try:
        with torch.device("meta"):
            backbone = build_backbone(config, size)
    except NotImplementedError:  # networks that compute their initial weights
        backbone = build_backbone(config, size)
    state = read_weights(family, config)
    log_taken(state, fitted_state(family, backbone.network, backbone.head, state, config, size), config.weights)
    return dataclasses.replace(config, weights=absolute_path(str(config.weights)))


def _check_size(config: ModelConfig, size: int) -> None:
    """Refuse a network that can't work at this size, and name a larger one at which it does, by trying it."""

    def fits(other: int) -> bool:
        with contextlib.suppress(TooSmallError):
            _build_without_memory(config, other)
            return True
        return False

    try:
        _build_without_memory(config, size)
    except TooSmallError:
        larger = next((other for other in INPUT_SIZES if other > size and fits(other)), None)
        raise too_small(config.name, size, larger) from None


def _build_without_memory(config: ModelConfig, size: int) -> None:
    """Build a network without its weights; one that computes them is checked where it is built in earnest."""
    with contextlib.suppress(NotImplementedError), torch.device("meta"):
        build_backbone(config, size)


def build_backbone(config: ModelConfig, image_size: int) -> Backbone:
    """Build a network from random weights with one logit.

    Args:
        config: The network and its keys; ``weights`` is not looked at.
        image_size: Height and width in pixels of what enters the network.

    Raises:
        RequestError: The name is unknown, a key does not fit the network, or it can't work at this size.
    """
    name, family = config.name, check_name(config.name)
    if family.pretrained != "hub" and not name.startswith("timm/"):
        given = [key for key, value in (("kwargs", config.kwargs), ("architecture", config.architecture)) if value]
        given += ["features"] if config.features != "pooled" else []
        if given:
            raise RequestError(f"model.{given[0]} is for networks of timm/ and hf/, and model.name={name} is none")
    backbone = family.build(config, image_size)
    network, head = backbone.network, backbone.head
    _check_output(backbone, name, image_size)
    _start_small(network.get_submodule(head))
    if config.pooling == "centre":
        if backbone.pooled is None:
            raise RequestError(
                f"model.pooling=centre needs a network that averages its last feature map, and model.name={name} does "
                "not: use model.pooling=mean, or a ResNet, DenseNet, MobileNet, EfficientNet or ConvNeXt"
            )
        pool_centre(network, backbone.pooled)
        _check_output(backbone, name, image_size)  # the weights of the map come into being here
    if config.dropout > 0:
        network.set_submodule(head, nn.Sequential(nn.Dropout(config.dropout), network.get_submodule(head)))
    return backbone


def _start_small(layer: nn.Module) -> None:
    """Draw a last layer anew that begins much larger than PyTorch's own, as EfficientNet's with one output does."""
    if not isinstance(layer, nn.Linear) or layer.weight.is_meta:
        return
    if layer.weight.detach().std() > layer.in_features**-0.5:
        layer.reset_parameters()


def _check_output(backbone: Backbone, name: str, image_size: int) -> None:
    network, training = backbone.network, backbone.network.training
    try:
        with torch.no_grad():
            shape = network.eval()(torch.zeros(1, 3, image_size, image_size)).shape
    except (RuntimeError, AssertionError, ValueError) as error:
        raise too_small(name, image_size, backbone.size) from error
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
        config: Its ``weights`` is ``imagenet`` or ``hub`` (downloaded), null (nothing to do), or the path of a file.
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
    state = fitted_state(family, network, head, read_weights(family, config), config, image_size)
    network.load_state_dict(state, strict=False)
