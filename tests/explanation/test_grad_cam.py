from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from memory_packs import memory_tiles
from torch import nn

from histolight.config.schema import ModelConfig
from histolight.errors import RequestError
from histolight.explanation.grad_cam import centre_share, explain, feature_layers, grad_cam, mean_share, pick_tiles
from histolight.explanation.page import answer, summary
from histolight.models.backbones import build_backbone
from histolight.models.classifier import Classifier

SIZE = 96


def classifier(name: str = "resnet18", **model: str) -> Classifier:
    torch.manual_seed(0)
    network = Classifier(
        model={"name": name, "weights": None, **model}, optimizer={}, scheduler={}, loss={}, image_size=SIZE
    )
    return network.eval().requires_grad_(False)


def random_tiles(count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, SIZE, SIZE, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    ("name", "side", "last_side"),
    [
        ("resnet18", 6, 3),
        ("densenet121", 6, 3),
        ("mobilenet_v2", 6, 3),
        ("efficientnet_b0", 6, 3),
        ("convnext_tiny", 6, 3),
        ("swin_t", 3, 3),
        ("vgg11", 6, 3),  # its adaptive pooling has 7x7 cells, which are no finer
        ("alexnet", 2, 2),
        ("timm/tf_efficientnet_lite0", 6, 3),
    ],
)
def test_the_layers_are_the_last_one_and_the_one_before_the_last_halving(name: str, side: int, last_side: int) -> None:
    network = build_backbone(ModelConfig(name), SIZE).network.eval()
    layers = feature_layers(network, SIZE)
    shapes = []
    for layer in layers[:2]:
        network.get_submodule(layer).register_forward_hook(lambda _module, _inputs, output: shapes.append(output.shape))
    with torch.inference_mode():
        network(torch.zeros(1, 3, SIZE, SIZE))
    assert [shape[2] for shape in shapes] == ([side, last_side] if layers[0] != layers[1] else [side, side])


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("vit_b_16", "conv_proj"),
        ("timm/vit_tiny_patch16_224", "patch_embed.proj"),
        ("timm/swin_tiny_patch4_window7_224", "patch_embed.proj"),
    ],
)
def test_of_a_network_of_tokens_it_is_the_layer_that_embeds_patches(name: str, layer: str) -> None:
    import timm

    with torch.device("meta"):
        network = (
            timm.create_model(name.removeprefix("timm/"), img_size=SIZE, num_classes=1)
            if name.startswith("timm/")
            else build_backbone(ModelConfig(name), 96).network
        )
        assert feature_layers(network.eval(), SIZE) == (layer, layer, True)


def test_a_network_without_a_map_is_refused() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(3 * SIZE**2, 1))
    with pytest.raises(RequestError, match="neither a feature map nor patches"):
        feature_layers(network, SIZE)


def test_maps_are_those_of_a_computation_by_hand() -> None:
    network, tiles, called = classifier(), random_tiles(3), np.array([True, False, True])
    backbone = network.backbone
    pixels = torch.from_numpy(tiles).permute(0, 3, 1, 2).float() / 255
    hidden = (pixels - network.mean) / network.std
    for name in ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3"):
        hidden = getattr(backbone, name)(hidden)
    features = hidden.detach().requires_grad_()
    logits = backbone.fc(backbone.avgpool(backbone.layer4(features)).flatten(1)).squeeze(1)
    for number, sign in enumerate((1, -1, 1)):
        (gradient,) = torch.autograd.grad(sign * logits[number], features, retain_graph=True)
        weights = gradient[number].mean((1, 2))
        expected = (weights[:, None, None] * features[number].detach()).sum(0).clamp(min=0)
        np.testing.assert_allclose(grad_cam(network, "layer3", tiles, called)[number], expected, rtol=1e-4, atol=1e-7)


def test_a_layer_whose_output_is_changed_in_place_is_explained_alike() -> None:
    network, tiles = classifier("densenet121"), random_tiles(2)  # its forward has relu(features, inplace=True)
    pixels = torch.from_numpy(tiles).permute(0, 3, 1, 2).float() / 255
    with torch.no_grad():
        features = network.backbone.features((pixels - network.mean) / network.std)
    features.requires_grad_()
    logits = network.backbone.classifier(torch.relu(features).mean((2, 3)))
    (gradient,) = torch.autograd.grad(logits.sum(), features)
    expected = (gradient.mean((2, 3), keepdim=True) * features).sum(1).clamp(min=0).detach()
    found = grad_cam(network, "features", tiles, np.array([True, True]))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize(("size", "cells"), [(96, 3), (96, 6), (64, 4), (224, 7)])
def test_a_map_of_the_centre_alone_has_all_of_it_and_an_even_one_the_area(size: int, cells: int) -> None:
    edge = (size - 32) // 2 * cells // size
    centre = np.zeros((1, cells, cells))
    centre[:, edge : cells - edge, edge : cells - edge] = 1
    np.testing.assert_allclose(centre_share(centre, size), 1)
    np.testing.assert_allclose(centre_share(1 - centre, size), 0)
    np.testing.assert_allclose(centre_share(np.ones((1, cells, cells)), size), (32 / size) ** 2)


def test_cells_across_the_edge_count_by_area() -> None:
    found = centre_share(np.eye(25).reshape(25, 5, 5), 96)  # cells of 19.2 pixels, the centre from 32 to 64
    pixels = np.kron(np.eye(25).reshape(25, 5, 5), np.ones((1, 96, 96)))[:, 2::5, 2::5]  # 96 points a side
    expected = pixels[:, 32:64, 32:64].sum((1, 2)) / pixels.sum((1, 2))
    np.testing.assert_allclose(found, expected, atol=0.03)
    assert found[12] == 1


def test_the_interval_agrees_with_the_central_limit() -> None:
    shares = np.random.default_rng(0).beta(2, 8, 500)
    found = mean_share(shares, [None] * 500)
    half = 1.96 * shares.std(ddof=1) / np.sqrt(500)
    assert found.value == pytest.approx(shares.mean())
    assert found.low == pytest.approx(shares.mean() - half, abs=0.15 * half)
    assert 0.95 * half < found.high - found.value < 1.3 * half  # it allows for one more tile like the largest


def test_tiles_of_a_slide_count_as_one() -> None:
    slides = np.random.default_rng(0).beta(2, 8, 40)
    found = mean_share(np.repeat(slides, 10), np.repeat([f"slide {n}" for n in range(40)], 10))
    half = 1.96 * slides.std(ddof=1) / np.sqrt(40)
    assert found.low == pytest.approx(slides.mean() - half, abs=0.25 * half)
    assert 0.95 * half < found.high - found.value < 2 * half
    assert found.high - found.low > 2 * (mean_share(np.repeat(slides, 10), [None] * 400).high - found.value)


@pytest.mark.parametrize("shares", [[], [np.nan], [0.3], [0.3, np.nan]])
def test_no_interval_without_two_tiles(shares: list[float]) -> None:
    found = mean_share(np.array(shares), [None] * len(shares))
    assert np.isnan([found.low, found.high]).all()
    assert found.value == pytest.approx(0.3) or np.isnan(found.value)


def test_picks_are_the_surest_right_and_wrong_of_both_kinds_and_the_closest() -> None:
    logits = np.array([5, 4, 1.1, -9, -8, 0.9, 3, -2, 7], dtype=np.float32)
    labels = np.array([1, 1, 1, 0, 0, 0, 0, 1, 0])
    table = pd.DataFrame({"label": labels, "logit": logits, "score": 1 / (1 + np.exp(-logits))})
    picked = pick_tiles(table, threshold=1 / (1 + np.exp(-1)), count=3)
    assert {name: places.tolist() for name, places in picked.items()} == {
        "surest right": [3, 0, 4],
        "surest wrong": [8, 7, 6],
        "closest": [2, 5, 6],
    }


class CentreOnly(nn.Module):
    """Answers the brightness of the tile; its feature map is the tile in 6x6 cells."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.AvgPool2d(16)

    def forward(self, tiles: torch.Tensor) -> torch.Tensor:
        return self.features(tiles).mean((1, 2, 3), keepdim=True).flatten(1) * 40 - 2


def test_a_bright_centre_is_found_in_the_centre() -> None:
    network = classifier(normalize="none")
    network.backbone = CentreOnly()
    pixels = np.zeros((6, SIZE, SIZE, 3), dtype=np.uint8)
    pixels[:4, 32:64, 32:64] = 255
    pixels[4:, :16] = 255
    with torch.no_grad():
        logits = network(torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255).numpy()
    predictions = pd.DataFrame(
        {
            "id": list("abcdef"),
            "label": [1, 1, 1, 0, 1, 0],
            "group": [None] * 6,
            "cluster": [None] * 6,
            "logit": logits,
            "score": 1 / (1 + np.exp(-logits)),
            "row": range(6),
        }
    )
    found = explain(network, predictions, memory_tiles(pixels), threshold=0.5, count=2, seed=0)
    np.testing.assert_allclose(found.table["share"], [1, 1, 1, 1, 0, 0])
    assert found.layer == found.last_layer == "features"
    assert found.chance == pytest.approx(1 / 9)
    assert found.shares["all"].value == pytest.approx(4 / 6)
    assert found.shares["tumour, called tumour"].value == pytest.approx(3 / 4)
    assert found.counts == {
        "all": 6,
        "tumour, called tumour": 4,
        "benign, called benign": 0,
        "benign, called tumour": 2,
        "tumour, called benign": 0,
    }
    assert answer(found)[0].startswith("66.7 % [")
    assert "More than its area" in answer(found)[1]
    assert summary(found, "run", "val")["centre_share"]["tumour, called benign"]["value"] is None


def test_the_map_is_of_the_tile_as_the_network_sees_it() -> None:
    network, tiles, called = classifier(), random_tiles(2), np.array([True, False])
    plain = grad_cam(network, "layer4", tiles, called)
    network.stain = "reinhard"
    assert not np.allclose(grad_cam(network, "layer4", tiles, called), plain, rtol=0.01)
