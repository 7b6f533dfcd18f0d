"""Networks of timm, an extra: ``model.name=timm/NAME``, and what hubs and folders hold in its form."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from histolight.config.schema import ModelConfig
from histolight.errors import RequestError, nearest
from histolight.models.backbones.family import Backbone, Family, statistics, too_small
from histolight.models.backbones.tokens import TRUNK, TokenNetwork

PREFIX = "timm/"
POOLED = ("global_pool", "head.global_pool")


class Timm(Family):
    """Every classification network of timm."""

    prefix: str | tuple[str, ...] = PREFIX

    def names(self, name: str) -> list[str]:
        """List timm's networks, with the tags of pretrained weights where ``name`` has one."""
        architecture, _, tag = name.removeprefix(PREFIX).partition(".")
        known = import_timm(name).list_models(f"{architecture}.*" if tag else "", pretrained=bool(tag))
        return [f"{PREFIX}{model}" for model in known]

    def build(self, config: ModelConfig, image_size: int) -> Backbone:
        """Build a network; its classifier, or a layer on its pooled tokens, gives one logit."""
        architecture = config.architecture or config.name.removeprefix(PREFIX)
        of_tokens = config.features != "pooled"
        network = self._create(config, architecture, 0 if of_tokens else 1, image_size)
        standard = network.pretrained_cfg
        mean, std = statistics(config.mean or standard["mean"]), statistics(config.std or standard["std"])
        size = standard["input_size"][-1] if standard.get("fixed_input_size") else None
        if of_tokens:
            prefix = getattr(network, "num_prefix_tokens", 0)
            if not prefix or getattr(network, "cls_token", None) is None:
                raise RequestError(
                    f"model.features={config.features} needs a transformer with a class token, and "
                    f"model.name={config.name} is none: use model.features=pooled"
                )
            tokens = TokenNetwork(network, config.features, network.embed_dim, prefix)
            return Backbone(tokens, "head", mean, std, size=size)
        layer = network.get_classifier()
        head = next((path for path, module in network.named_modules() if module is layer), None)
        if head is None:
            raise RequestError(f"model.name={config.name} has more than one last layer: choose another network")
        return Backbone(network, head, mean, std, _pooled(network), size)

    def _create(self, config: ModelConfig, architecture: str, classes: int, image_size: int) -> Any:
        timm = import_timm(config.name)
        options = {key: _layer(key, value) for key, value in config.kwargs.items()}
        if config.input_size is not None and _is_fixed(timm, architecture):
            options["img_size"] = image_size
        try:
            return timm.create_model(architecture, pretrained=False, num_classes=classes, **options)
        except AssertionError as error:
            raise too_small(config.name, image_size) from error
        except (TypeError, ValueError, RuntimeError, AttributeError) as error:
            if not config.kwargs:
                raise too_small(config.name, image_size) from error
            reason = " ".join(str(error).split()).rpartition("__init__() ")[2][:160]
            raise RequestError(f"model.kwargs does not fit {architecture} of timm: {reason}") from error

    def pretrained_state(self, config: ModelConfig) -> Mapping[str, torch.Tensor]:
        """Download the weights that timm recommends, or those of the tag."""
        network = import_timm(config.name).create_model(config.name.removeprefix(PREFIX), pretrained=True)
        return dict(network.state_dict())

    def adapt_state(
        self, network: nn.Module, state: dict[str, torch.Tensor], image_size: int
    ) -> dict[str, torch.Tensor]:
        """Rename what other releases of a vision transformer name otherwise; interpolate positions of another size."""
        from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn

        if isinstance(network, TokenNetwork):  # a classifier or a norm behind the pooling is none of the tokens'
            inner = {key.removeprefix(TRUNK): value for key, value in state.items() if key.startswith(TRUNK)}
            inner = {key: value for key, value in inner.items() if not key.startswith(("head.", "fc_norm."))}
            adapted = self.adapt_state(network.trunk, inner, image_size)
            own = {key: value for key, value in state.items() if not key.startswith(TRUNK)}
            return {f"{TRUNK}{key}": value for key, value in adapted.items()} | own
        if not isinstance(network, VisionTransformer):
            return state
        patches = "patch_embed.proj.weight"
        if patches in state and state[patches].shape[1:] != network.patch_embed.proj.weight.shape[1:]:
            return state  # another size of patches is another network
        return dict(checkpoint_filter_fn(dict(state), network))


def _is_fixed(timm: Any, architecture: str) -> bool:
    standard = timm.get_pretrained_cfg(architecture)
    return bool(standard and standard.fixed_input_size)


def _layer(key: str, value: Any) -> Any:
    """Turn the name of a layer into the layer, from a fixed table: a configuration names no other code."""
    if not key.endswith("_layer") or value is None:
        return value
    from timm import layers

    table: dict[str, Any] = {
        "SwiGLUPacked": layers.SwiGLUPacked,
        "SwiGLU": layers.SwiGLU,
        "GluMlp": layers.GluMlp,
        "Mlp": layers.Mlp,
        "SiLU": nn.SiLU,
        "GELU": nn.GELU,
        "ReLU": nn.ReLU,
        "LayerNorm": nn.LayerNorm,
    }
    if value not in table:
        raise RequestError(f"model.kwargs.{key}={value} is not known: {nearest(str(value), table)}")
    return table[value]


def _pooled(network: nn.Module) -> str | None:
    """Name the layer that averages a last feature map ``(N, C, H, W)``."""
    from timm.layers import SelectAdaptivePool2d

    layers = dict(network.named_modules())
    for place in POOLED:
        layer = layers.get(place)
        if isinstance(layer, SelectAdaptivePool2d) and layer.pool_type in ("avg", "fast", "fastavg"):
            return place if getattr(layer.pool, "input_fmt", "NCHW") == "NCHW" else None
    return None


def import_timm(name: str) -> Any:
    """Import timm.

    Raises:
        RequestError: It is not installed.
    """
    try:
        import timm
    except ImportError:
        raise RequestError(
            f"model.name={name} needs timm: install histolight with its extra, histolight[timm]"
        ) from None
    return timm


FAMILY = Timm()
