"""Integrated gradients of a transformer's patches: what theory says of them, and the page of a run."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from captum.attr import IntegratedGradients
from hub_models import LAYERS, dinov2_folder, timm_folder

from histolight.cli import main
from histolight.explanation.grad_cam import feature_layers
from histolight.explanation.patches import patch_attributions
from histolight.models.classifier import Classifier


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Classifier:
    folder = tmp_path_factory.mktemp("models") / "vit"
    timm_folder(folder)
    model = {"name": f"timm/local-dir:{folder}", "weights": None, "architecture": "vit_tiny_patch16_224"}
    kwargs = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2, "reg_tokens": 2, **LAYERS}
    torch.manual_seed(0)
    found = Classifier({**model, "kwargs": kwargs, "features": "cls+mean"}, {}, {}, {}, image_size=32)
    with torch.no_grad():
        found.backbone.trunk.patch_embed.proj.weight.normal_(std=0.1)  # so that it tells patches apart
    return found.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def tiles() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (20, 32, 32, 3), dtype=np.uint8)


def logits_from(network: Classifier, embedded: torch.Tensor) -> torch.Tensor:
    """The logits of patches that are embedded already, by timm's own methods."""
    trunk = network.backbone.trunk
    tokens = trunk._pos_embed(embedded.flatten(2).transpose(1, 2))
    tokens = trunk.norm(trunk.blocks(trunk.norm_pre(trunk.patch_drop(tokens))))
    return network.backbone.head(torch.cat([tokens[:, 0], tokens[:, 3:].mean(1)], 1))[:, 0]


def test_they_are_those_of_captum_and_add_up_to_the_difference(network: Classifier, tiles: np.ndarray) -> None:
    layer = feature_layers(network.backbone, 32).shown
    assert layer == "trunk.patch_embed.proj"
    called = np.arange(20) % 3 == 0
    signs = torch.from_numpy(np.where(called, 1.0, -1.0)).float()
    pixels = (torch.from_numpy(tiles).permute(0, 3, 1, 2).float() / 255 - network.mean) / network.std
    embedded = network.backbone.trunk.patch_embed.proj(pixels)
    baseline = embedded.mean((2, 3), keepdim=True).expand_as(embedded)
    torch.testing.assert_close(logits_from(network, embedded), network.backbone(pixels)[:, 0])
    method = IntegratedGradients(lambda patches: logits_from(network, patches) * signs.repeat(len(patches) // 20))
    expected = method.attribute(embedded, baseline, n_steps=64, method="riemann_middle").sum(1)
    np.testing.assert_allclose(patch_attributions(network, layer, tiles, called, 64), expected, rtol=1e-3, atol=1e-5)
    difference = (logits_from(network, embedded) - logits_from(network, baseline)) * signs
    assert difference.abs().mean() > 0.01
    found = patch_attributions(network, layer, tiles, called, 64).sum((1, 2))
    np.testing.assert_allclose(found, difference, atol=0.02 * float(difference.abs().max()))


@pytest.mark.parametrize("form", ["timm", "hf"])
def test_a_run_of_a_transformer_is_explained(form: str, small: list[str], undrawn, tmp_path: Path, capsys) -> None:
    folder = tmp_path / "model"
    timm_folder(folder) if form == "timm" else dinov2_folder(folder)
    words = [*small, f"model.name={form}/local-dir:{folder}", "model.features=cls", "model.weights=hub", "augment=none"]
    words += ["model.kwargs={mlp_layer: SwiGLUPacked, act_layer: SiLU}"] * (form == "timm")
    assert (
        main(["train", *words, "model.freeze=backbone", "model.probe=linear", f"hydra.run.dir={tmp_path / 'run'}"]) == 0
    )
    assert main(["explain", f"run={tmp_path / 'run'}", "tiles=2", f"hydra.run.dir={tmp_path / 'out'}"]) == 0
    about = json.loads((tmp_path / "out/explain.json").read_text())
    assert (about["method"], about["cells"]) == ("integrated gradients of patches", 4 if form == "timm" else 6)
    assert "one a patch of the transformer" in capsys.readouterr().out
    assert "Integrated gradients (Sundararajan et al., 2017)" in (tmp_path / "out/report.html").read_text()
