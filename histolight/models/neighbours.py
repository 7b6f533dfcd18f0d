"""``model.probe=knn``: the last layer of a network that is never trained, a vote of the nearest training tiles."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.functional import normalize

TEMPERATURE = 0.07


class NearestNeighbours(nn.Module):
    """One logit from the labels of the nearest tiles by cosine similarity.

    As in Wu et al. 2018 (arXiv:1805.01978) and Caron et al. 2021 (arXiv:2104.14294) a neighbour of similarity s votes
    with exp(s / 0.07), here divided by the vote of the nearest. The logit is log((v1 + 1/2) / (v0 + 1/2)), v1 and v0
    being the sums of the votes for each class: it stays finite where all agree.

    Args:
        width: Number of features.
    """

    features: torch.Tensor
    labels: torch.Tensor
    votes: torch.Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.remember(torch.zeros(1, width), torch.zeros(1), 1)

    def remember(self, features: torch.Tensor, labels: torch.Tensor, count: int) -> None:
        """Keep tiles to vote.

        Args:
            features: ``(N, F)`` float32.
            labels: ``(N,)`` float32, 0 or 1.
            count: How many vote, the k of its name, at most N.
        """
        self.register_buffer("features", normalize(features))
        self.register_buffer("labels", labels)
        self.register_buffer("votes", torch.ones(count, device=features.device))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Map features ``(n, F)`` to logits ``(n, 1)``."""
        with torch.autocast(features.device.type, enabled=False):  # bf16 would tell few neighbours apart
            similarities, places = (normalize(features.float()) @ self.features.T).topk(len(self.votes))
            return vote(similarities, self.labels[places], len(self.votes))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *others: Any) -> None:
        for name, value in self.named_buffers():  # as many tiles as the checkpoint has
            if prefix + name in state_dict:
                setattr(self, name, value.new_empty(state_dict[prefix + name].shape))
        super()._load_from_state_dict(state_dict, prefix, *others)


def vote(similarities: torch.Tensor, labels: torch.Tensor, count: int) -> torch.Tensor:
    """Let the first ``count`` of the nearest tiles vote.

    Args:
        similarities: ``(n, K)``, falling.
        labels: ``(n, K)`` of the same tiles, 0 or 1.
        count: At most K.

    Returns:
        Logits ``(n, 1)``.

    >>> vote(torch.ones(1, 3), torch.tensor([[1.0, 1.0, 0.0]]), 3).exp()
    tensor([[1.6667]])
    """
    weights = ((similarities[:, :count] - similarities[:, :1]) / TEMPERATURE).exp()
    tumour = (weights * labels[:, :count]).sum(1, keepdim=True)
    benign = (weights * (1 - labels[:, :count])).sum(1, keepdim=True)
    return (tumour + 0.5).log() - (benign + 0.5).log()
