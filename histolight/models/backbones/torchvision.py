"""Classification networks of torchvision: ``model.name=NAME`` as in ``torchvision.models.get_model``."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
import torchvision
from torch import nn
from torchvision import models
from torchvision.models.vision_transformer import VisionTransformer, interpolate_embeddings

from histolight.config.schema import ModelConfig
from histolight.models.backbones.family import HALF, IMAGENET, Backbone, Family, too_small

# Networks with further outputs for training, which torchvision builds on request and which fail on small tiles. With
# its own weights torchvision turns ImageNet's statistics into (0.5, 0.5) inside them.
AUXILIARY = ("googlenet", "inception_v3")
# Layers that average the last feature map; where the average is no layer, those that make the map.
POOLED: dict[type[nn.Module], str] = {
    models.ConvNeXt: "avgpool",
    models.DenseNet: "features",
    models.EfficientNet: "avgpool",
    models.MNASNet: "layers",
    models.MobileNetV2: "features",
    models.MobileNetV3: "avgpool",
    models.RegNet: "avgpool",
    models.ResNet: "avgpool",
    models.ShuffleNetV2: "conv5",
}


class Torchvision(Family):
    """Classification networks under torchvision's own names."""

    def names(self, name: str) -> list[str]:
        """List torchvision's classification networks."""
        return list(models.list_models(module=models))

    def build(self, config: ModelConfig, image_size: int) -> Backbone:
        """Build a network; its last linear layer, or 1x1 convolution, gives one logit."""
        name = config.name
        options: dict[str, Any] = {"aux_logits": False, "init_weights": True} if name in AUXILIARY else {}
        if name.startswith("vit_"):
            options = {"image_size": image_size}
        try:
            network = models.get_model(name, weights=None, num_classes=1, **options)
        except (AssertionError, ValueError, RuntimeError) as error:
            raise too_small(name, image_size) from error
        if name.startswith("squeezenet"):
            network.classifier[2] = nn.Identity()  # a ReLU behind the last layer: no logit could be negative
        head = [path for path, module in network.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)][-1]
        statistics = HALF if name in AUXILIARY else IMAGENET
        return Backbone(network, head, *statistics, pooled=POOLED.get(type(network)))

    def pretrained_state(self, config: ModelConfig) -> Mapping[str, torch.Tensor]:
        """Download the weights that torchvision recommends."""
        weights = torchvision.models.get_model_weights(config.name).DEFAULT
        return dict(weights.get_state_dict(progress=True, check_hash=True))

    def adapt_state(
        self, network: nn.Module, state: dict[str, torch.Tensor], image_size: int
    ) -> dict[str, torch.Tensor]:
        """Rename the layers of old DenseNet files; interpolate a transformer's positions for another size."""
        # These files date from before "norm.1" became "norm1".
        old = re.compile(r"(denselayer\d+\.(?:norm|conv))\.([12])\.")
        state = {old.sub(r"\1\2.", key): value for key, value in state.items()}
        if isinstance(network, VisionTransformer) and "encoder.pos_embedding" in state:
            return dict(interpolate_embeddings(image_size, network.patch_size, state))
        return state


FAMILY = Torchvision()
