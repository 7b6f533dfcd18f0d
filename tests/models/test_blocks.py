"""What is particular to transformers: learning rates that fall from block to block, activations computed again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from hub_models import LAYERS, dinov2_folder, timm_folder
from timm.optim import param_groups_layer_decay

from histolight.config.schema import ModelConfig, OptimizerConfig
from histolight.errors import RequestError
from histolight.models.backbones import build_backbone, resolve_model
from histolight.models.blocks import find_blocks, recompute_activations
from histolight.models.optimizers import parameter_groups


def rates(network: torch.nn.Module, head: str, **settings: Any) -> dict[str, float]:
    groups = parameter_groups(network, head, OptimizerConfig(name="sgd", lr=1.0, layer_decay=0.5, **settings))
    found = {id(parameter): group["lr"] for group in groups for parameter in group["params"]}
    return {name: found[id(parameter)] for name, parameter in network.named_parameters()}


def test_the_rates_of_a_vision_transformer_are_timms() -> None:
    network = timm.create_model("vit_tiny_patch16_224", num_classes=1, depth=3, embed_dim=96, num_heads=2, reg_tokens=2)
    groups = param_groups_layer_decay(network, weight_decay=0.0, layer_decay=0.5)
    expected = {id(parameter): group["lr_scale"] for group in groups for parameter in group["params"]}
    found = rates(network, "head")
    assert found.pop("norm.weight") == found.pop("norm.bias") == 1  # as in BEiT and MAE; timm's are the last block's
    assert found.pop("reg_token") == 0.5**4  # that of older timm is 1
    assert {name: expected[id(parameter)] for name, parameter in network.named_parameters() if name in found} == found
    assert found["patch_embed.proj.weight"] == 0.5**4


@pytest.mark.parametrize("form", ["timm", "hf"])
def test_a_hubs_model_has_the_same_rates_below_its_head(form: str, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    timm_folder(folder) if form == "timm" else dinov2_folder(folder)
    kwargs = LAYERS if form == "timm" else {}
    config = resolve_model(ModelConfig(f"{form}/local-dir:{folder}", None, kwargs=kwargs, features="cls"), 32)
    network = build_backbone(config, config.input_size or 32).network
    found = rates(network, "head", backbone_lr_factor=0.1)
    assert found["head.weight"] == 1
    below = {rate for name, rate in found.items() if name.startswith("trunk.")}
    assert sorted(below) == pytest.approx([0.0125, 0.025, 0.05, 0.1])
    last = "trunk.norm.weight" if form == "timm" else "trunk.layernorm.weight"
    assert found[last] == pytest.approx(0.1)


@pytest.mark.parametrize("name", ["resnet18", "swin_t", "vgg11", "timm/pvt_v2_b0"])
def test_a_network_without_blocks_has_no_decay(name: str) -> None:
    with torch.device("meta"), pytest.raises(RequestError, match="needs a transformer with a list of blocks"):
        find_blocks(build_backbone(ModelConfig(name), 96).network)


def test_torchvisions_transformer_has_blocks() -> None:
    with torch.device("meta"):
        assert find_blocks(build_backbone(ModelConfig("vit_b_16"), 96).network) == "encoder.layers"


@pytest.mark.parametrize("form", ["timm", "hf"])
def test_activations_computed_again_give_the_same_gradients(form: str, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    timm_folder(folder) if form == "timm" else dinov2_folder(folder)
    kwargs = LAYERS if form == "timm" else {}
    config = resolve_model(ModelConfig(f"{form}/local-dir:{folder}", None, kwargs=kwargs, features="cls+mean"), 32)
    size = config.input_size or 32
    network = build_backbone(config, size).network.train()
    block = network.get_submodule(find_blocks(network))[0]
    calls: list[int] = []
    next(block.children()).register_forward_pre_hook(lambda *_: calls.append(1))

    def gradients() -> list[torch.Tensor]:
        network.zero_grad()
        network(torch.linspace(-1, 1, 2 * 3 * size**2).view(2, 3, size, size)).sum().backward()
        return [parameter.grad.clone() for parameter in network.parameters() if parameter.grad is not None]

    kept = gradients()
    assert len(calls) == 1
    recompute_activations(network)
    torch.testing.assert_close(gradients(), kept)
    assert len(calls) == 3  # once forward, once more for the gradients


def test_a_network_that_cannot_is_refused() -> None:
    with torch.device("meta"):
        network = build_backbone(ModelConfig("resnet18"), 96).network
    with pytest.raises(RequestError, match="model.checkpointing=true is for networks of timm/ and hf/"):
        recompute_activations(network)
