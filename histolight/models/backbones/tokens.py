"""A transformer's tokens pooled into features, and one logit from these: ``model.features=cls | mean | cls+mean``."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import nn

TRUNK = "trunk."


class TokenNetwork(nn.Module):
    """One logit from pooled tokens.

    Args:
        trunk: A vision transformer of timm (with ``forward_features``) or of transformers.
        features: ``cls``, ``mean``, ``cls+mean``, or of transformers ``pooled``, which is its ``pooler_output``.
        width: Channels of a token.
        prefix: Tokens in front of those of the patches: the class token and the registers.
    """

    def __init__(self, trunk: nn.Module, features: str, width: int, prefix: int) -> None:
        super().__init__()
        self.trunk, self.kind, self.prefix = trunk, features, prefix
        self.head = nn.Linear(width * (2 if features == "cls+mean" else 1), 1)
        # Positions of another size are interpolated, by some models only where they are asked to.
        asked = "interpolate_pos_encoding" in inspect.signature(trunk.forward).parameters
        self.options = {"interpolate_pos_encoding": True} if asked else {}

    def tokens(self, images: torch.Tensor) -> torch.Tensor:
        """Map ``(N, 3, S, S)`` to tokens ``(N, prefix + patches, width)``, normalised as the model's own end does."""
        trunk: Any = self.trunk
        if hasattr(trunk, "forward_features"):
            return trunk.forward_features(images)
        return trunk(images, **self.options).last_hidden_state

    def pool(self, images: torch.Tensor) -> torch.Tensor:
        """Map ``(N, 3, S, S)`` to features ``(N, F)``."""
        if self.kind == "pooled":
            return self.trunk(images, **self.options).pooler_output
        tokens = self.tokens(images)
        whole, patches = tokens[:, 0], tokens[:, self.prefix :]
        parts = {"cls": [whole], "mean": [patches.mean(1)], "cls+mean": [whole, patches.mean(1)]}[self.kind]
        return torch.cat(parts, 1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Map ``(N, 3, S, S)`` normalised floats to logits ``(N, 1)``."""
        return self.head(self.pool(images))
