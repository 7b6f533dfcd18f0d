"""Networks of timm, an extra: ``model.name=timm/NAME``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from histolight.errors import RequestError
from histolight.models.backbones.family import Backbone, Family

PREFIX = "timm/"
POOLED = ("global_pool", "head.global_pool")


class Timm(Family):
    """Every classification network of timm."""

    prefix = PREFIX

    def names(self, name: str) -> list[str]:
        """List timm's networks, with the tags of pretrained weights where ``name`` has one."""
        architecture, _, tag = name.removeprefix(PREFIX).partition(".")
        known = _import_timm(name).list_models(f"{architecture}.*" if tag else "", pretrained=bool(tag))
        return [f"{PREFIX}{model}" for model in known]

    def build(self, name: str, image_size: int) -> Backbone:
        """Build a network; its classifier gives one logit."""
        network = _import_timm(name).create_model(name.removeprefix(PREFIX), pretrained=False, num_classes=1)
        layer = network.get_classifier()
        head = next((path for path, module in network.named_modules() if module is layer), None)
        if head is None:
            raise RequestError(f"model.name={name} has more than one last layer: choose another network")
        configuration = network.pretrained_cfg
        return Backbone(network, head, configuration["mean"], configuration["std"], _pooled(network))

    def imagenet_state(self, name: str) -> Mapping[str, torch.Tensor]:
        """Download the weights that timm recommends, or those of the tag."""
        return dict(_import_timm(name).create_model(name.removeprefix(PREFIX), pretrained=True).state_dict())


def _pooled(network: nn.Module) -> str | None:
    """Name the layer that averages a last feature map ``(N, C, H, W)``."""
    from timm.layers import SelectAdaptivePool2d

    layers = dict(network.named_modules())
    for place in POOLED:
        layer = layers.get(place)
        if isinstance(layer, SelectAdaptivePool2d) and layer.pool_type in ("avg", "fast", "fastavg"):
            return place if getattr(layer.pool, "input_fmt", "NCHW") == "NCHW" else None
    return None


def _import_timm(name: str) -> Any:
    try:
        import timm
    except ImportError:
        raise RequestError(
            f"model.name={name} needs timm: install histolight with its extra, histolight[timm]"
        ) from None
    return timm


FAMILY = Timm()
