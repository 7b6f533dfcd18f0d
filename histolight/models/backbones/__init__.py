"""Networks by name, their pretrained weights, and the exchange of their last layer for one logit.

A new network of torchvision or timm needs no code: add ``conf/model/NAME.yaml`` with ``name: NAME``, or write
``model.name=NAME`` on the command line.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import URLError

import torch
import torchvision
from torch import nn
from torch.utils.hooks import RemovableHandle
from torchvision.models.vision_transformer import VisionTransformer, interpolate_embeddings

from histolight.config.schema import ModelConfig
from histolight.errors import HistolightError, RequestError, nearest, unreadable_reason
from histolight.models.backbones.p4m import MULTIPLE, P4MDenseNet

Statistics = tuple[float, float, float]

IMAGENET: tuple[Statistics, Statistics] = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HALF: tuple[Statistics, Statistics] = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
# Networks with further outputs for training, which torchvision builds on request and which fail on small tiles. With
# its own weights torchvision turns ImageNet's statistics into (0.5, 0.5) inside them.
AUXILIARY = ("googlenet", "inception_v3")
# Where networks of timm average the last feature map, and the layers that make it in those of torchvision.
_POOLS = ("global_pool", "head.global_pool")
_LAST_MAPS = ("features", "layer4", "conv5", "layers", "trunk_output")
P4M = "p4m_densenet"
PIXELS: tuple[Statistics, Statistics] = ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


@dataclass(frozen=True)
class Backbone:
    """A network with one logit.

    Attributes:
        network: Maps ``(N, 3, S, S)`` normalised floats to logits ``(N, 1)``.
        head: Dotted name of its last layer inside ``network``.
        mean: Per channel, what its ImageNet weights expect to be subtracted from pixels in [0, 1] ...
        std: ... and divided by.
    """

    network: nn.Module
    head: str
    mean: Statistics
    std: Statistics


def check_name(name: str) -> None:
    """Raise :class:`RequestError`, with the nearest names, for a network that nobody knows."""
    if name.startswith("timm/"):
        timm = _import_timm(name)
        architecture, _, tag = name.removeprefix("timm/").partition(".")
        known = [
            f"timm/{model}" for model in timm.list_models(f"{architecture}.*" if tag else "", pretrained=bool(tag))
        ]
        if name not in known:
            raise RequestError(f"model.name={name} is not known: {nearest(name, known)}")
    else:
        known = [*torchvision.models.list_models(module=torchvision.models), P4M]
        if name not in known:
            raise RequestError(f"model.name={name} is not known: {nearest(name, known)}")


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
    check_name(name)
    if name.startswith("timm/"):
        timm = _import_timm(name)
        network = timm.create_model(name.removeprefix("timm/"), pretrained=False, num_classes=1)
        layer = network.get_classifier()
        head = next((path for path, module in network.named_modules() if module is layer), None)
        if head is None:
            raise RequestError(f"model.name={name} has more than one last layer: choose another network")
        statistics = (network.pretrained_cfg["mean"], network.pretrained_cfg["std"])
    elif name == P4M:
        if image_size % MULTIPLE:
            raise RequestError(
                f"model.name={P4M} is symmetric only on tiles whose side is a multiple of {MULTIPLE}, and "
                f"{image_size} is none: choose another model.input_size or another network"
            )
        network, head, statistics = P4MDenseNet(), "classifier", IMAGENET
    else:
        options: dict[str, Any] = (
            {"aux_logits": False, "init_weights": True} if name in ("googlenet", "inception_v3") else {}
        )
        if name.startswith("vit_"):
            options = {"image_size": image_size}
        try:
            network = torchvision.models.get_model(name, weights=None, num_classes=1, **options)
        except (AssertionError, ValueError, RuntimeError) as error:
            raise _too_small(name, image_size) from error
        if name.startswith("squeezenet"):
            network.classifier[2] = nn.Identity()  # a ReLU behind the last layer: no logit could be negative
        head = [path for path, module in network.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)][-1]
        statistics = HALF if name in AUXILIARY else IMAGENET
    _check_size(network, name, image_size)
    if pooling == "centre":
        if isinstance(network.get_submodule(head), nn.Conv2d):  # whose bias comes before the average
            raise _not_averaged(name)
        _pool_centre(network, name, image_size)
    if dropout > 0:
        network.set_submodule(head, nn.Sequential(nn.Dropout(dropout), network.get_submodule(head)))
    return Backbone(network, head, *statistics)


def _check_size(network: nn.Module, name: str, image_size: int) -> None:
    training = network.training
    try:
        with torch.inference_mode():
            shape = network.eval()(torch.zeros(1, 3, image_size, image_size)).shape
    except (RuntimeError, AssertionError, ValueError) as error:
        raise _too_small(name, image_size) from error
    finally:
        network.train(training)
    if shape != (1, 1):
        raise RequestError(
            f"model.name={name} gives an output of shape {tuple(shape)}, not one logit: choose another network"
        )


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


def _pool_centre(network: nn.Module, name: str, image_size: int) -> None:
    """Weigh the last feature map, which the network then averages as before: no key of its state dict changes."""
    layers = dict(network.named_modules())
    pool, last = (next((layers[key] for key in keys if key in layers), None) for keys in (_POOLS, _LAST_MAPS))

    def change_map(change: Callable[[nn.Module, torch.Tensor], torch.Tensor]) -> RemovableHandle:
        if pool is not None:
            return pool.register_forward_pre_hook(lambda layer, features: change(layer, features[0]))
        assert last is not None
        return last.register_forward_hook(lambda layer, _, features: change(layer, features))

    def logit(change: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        training, handle = network.training, change_map(lambda _, features: change(features))
        try:
            with torch.inference_mode():
                return network.eval()(torch.linspace(-2, 2, 3 * image_size**2).view(1, 3, image_size, image_size))
        finally:
            handle.remove()
            network.train(training)

    def only_corner(features: torch.Tensor) -> torch.Tensor:
        corner = features.new_zeros(features.shape[-2:])
        corner[0, 0] = corner.numel()
        return features * corner

    def corner_everywhere(features: torch.Tensor) -> torch.Tensor:
        return features[..., :1, :1].expand_as(features).clone()

    if (pool or last) is None:
        raise _not_averaged(name)
    # In a network that averages its last map, both have the same effect.
    without = logit(torch.zeros_like)
    if not torch.allclose(logit(only_corner) - without, logit(corner_everywhere) - without, rtol=0.01, atol=0):
        raise _not_averaged(name)
    sizes: list[tuple[int, int]] = []

    def note_size(features: torch.Tensor) -> torch.Tensor:
        sizes.append((features.shape[-2], features.shape[-1]))
        return features

    logit(note_size)
    layer = pool if pool is not None else last
    assert layer is not None
    # On the device like the rest, but in no state dict.
    layer.register_buffer("centre", centre_weights(*sizes[0]), persistent=False)
    # Of the layer that runs, which in a copy of the network is another one.
    change_map(lambda layer, features: features * layer.get_buffer("centre").to(features.dtype))


def _not_averaged(name: str) -> RequestError:
    return RequestError(
        f"model.pooling=centre needs a network that averages its last feature map, and model.name={name} does not: "
        "use model.pooling=mean, or a ResNet, DenseNet, MobileNet, EfficientNet or ConvNeXt"
    )


def _too_small(name: str, image_size: int) -> RequestError:
    return RequestError(f"model.name={name} can't work on {image_size}x{image_size} tiles: choose another network")


def check_weights(name: str, weights: str | None) -> None:
    """Raise :class:`RequestError` for the path of a weights file that isn't there, and where ImageNet's don't exist."""
    if name == P4M and weights == "imagenet":
        raise RequestError(f"model.name={P4M} has no ImageNet weights: use model.weights=null")
    if weights not in (None, "imagenet", "auto") and not Path(str(weights)).expanduser().is_file():
        raise RequestError(
            f"model.weights={weights} is not a file: give imagenet, null, or the path of a state dict (.pth)"
        )


def load_weights(network: nn.Module, head: str, config: ModelConfig, image_size: int) -> None:
    """Load pretrained weights into a network, its last layer excepted unless the file has one with one logit.

    Args:
        network: From :func:`build_backbone`, changed in place.
        head: Dotted name of its last layer.
        config: Its ``weights`` is ``imagenet`` (downloaded by torchvision or timm), null (nothing to do), or the path
            of a state dict.
        image_size: Height and width in pixels of what enters the network.

    Raises:
        RequestError: The file is missing, is no plain state dict, or belongs to another network; or there are no such
            weights.
        HistolightError: The download failed.
    """
    if config.weights is None:
        return
    check_weights(config.name, config.weights)
    state = _imagenet_state(config.name) if config.weights == "imagenet" else _read_state(config.weights)
    # torchvision's DenseNet files date from before "norm.1" became "norm1".
    state = {re.sub(r"(denselayer\d+\.(?:norm|conv))\.([12])\.", r"\1\2.", key): value for key, value in state.items()}
    # model.dropout puts the last layer at the second place of a Sequential.
    own_head = f"{head}.1." if isinstance(network.get_submodule(head), nn.Sequential) else f"{head}."
    state = {re.sub(rf"^{re.escape(head)}\.(1\.)?", own_head, key): value for key, value in state.items()}
    if isinstance(network, VisionTransformer) and "encoder.pos_embedding" in state:
        state = dict(interpolate_embeddings(image_size, network.patch_size, state))
    own = network.state_dict()
    of_head = re.compile(rf"{re.escape(head)}\.|aux[12]\.|AuxLogits\.")
    state = {key: value for key, value in state.items() if not of_head.match(key) or _fits(key, value, own)}
    # Files from before PyTorch 0.4.1 have no num_batches_tracked, which only a batch norm without momentum reads.
    needed = [key for key in own if not of_head.match(key) and not key.endswith("num_batches_tracked")]
    faults = {
        "missing": [key for key in needed if key not in state],
        "surplus": [key for key in state if key not in own],
        "of another shape": [key for key, value in state.items() if key in own and not _fits(key, value, own)],
    }
    if any(faults.values()):
        text = "; ".join(f"{len(keys)} {fault} ({', '.join(keys[:3])})" for fault, keys in faults.items() if keys)
        raise RequestError(f"model.weights={config.weights} doesn't fit model.name={config.name}: keys {text}")
    network.load_state_dict(state, strict=False)


def _fits(key: str, value: torch.Tensor, own: Mapping[str, torch.Tensor]) -> bool:
    return key in own and value.shape == own[key].shape


def _imagenet_state(name: str) -> dict[str, torch.Tensor]:
    try:
        if name.startswith("timm/"):
            timm = _import_timm(name)
            return dict(timm.create_model(name.removeprefix("timm/"), pretrained=True).state_dict())
        return dict(torchvision.models.get_model_weights(name).DEFAULT.get_state_dict(progress=True, check_hash=True))
    except (URLError, OSError, RuntimeError) as error:
        raise HistolightError(
            f"ImageNet weights of {name} could not be downloaded ({error}): without a network use model.weights=null "
            "(random) or model.weights=PATH (a state dict)"
        ) from error


def _read_state(weights: str) -> dict[str, torch.Tensor]:
    path = Path(weights).expanduser()
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        reason = unreadable_reason(error)
        raise RequestError(f"model.weights={path} can't be read as a plain state dict of tensors ({reason})") from error
    if not isinstance(state, Mapping) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise RequestError(
            f"model.weights={path} is not a state dict (names mapped to tensors): save model.state_dict()"
        )
    return dict(state)


def _import_timm(name: str):  # type: ignore[no-untyped-def]  # timm is an extra and has no types
    try:
        import timm
    except ImportError:
        raise RequestError(
            f"model.name={name} needs timm: install histolight with its extra, histolight[timm]"
        ) from None
    return timm
