"""What the classifier keeps of an epoch, and how its last layer begins."""

from __future__ import annotations

import pytest
import torch

from histolight.config.schema import ModelConfig
from histolight.models.backbones import build_backbone
from histolight.models.classifier import Seen


@pytest.mark.parametrize("size", [1, 700, 5000])
def test_an_epoch_is_what_its_batches_were_one_behind_the_other(size: int) -> None:
    seen = Seen()
    for epoch in range(2):  # the second must hold nothing of the first
        rows = torch.randperm(6000 - epoch)
        labels, logits = (rows % 2).float(), torch.randn(len(rows), dtype=torch.bfloat16, requires_grad=True)
        for batch in zip(rows.split(size), labels.split(size), logits.split(size), strict=True):
            seen.add(*batch)
        taken = seen.take()
        for found, given in zip(taken, (rows, labels, logits), strict=True):
            assert torch.equal(found, given)
            assert found.dtype == given.dtype
            assert not found.requires_grad


def test_a_batch_is_copied_since_a_graph_writes_the_next_one_into_the_same_memory() -> None:
    seen, logits = Seen(), torch.zeros(3)
    for step in range(2):
        logits.fill_(step)
        seen.add(torch.arange(3), torch.ones(3), logits)
    assert seen.take()[2].tolist() == [0, 0, 0, 1, 1, 1]


@pytest.mark.parametrize("name", ["efficientnet_b0", "timm/tf_efficientnet_lite0", "mobilenet_v2", "resnet18"])
def test_the_last_layer_begins_no_larger_than_pytorch_begins_one(name: str) -> None:
    torch.manual_seed(0)
    backbone = build_backbone(ModelConfig(name), 96)
    layer = backbone.network.get_submodule(backbone.head)
    assert 0 < layer.weight.detach().std() <= layer.in_features**-0.5
