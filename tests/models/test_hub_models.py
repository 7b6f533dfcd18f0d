"""Models of hubs and folders, in timm's and in transformers' form: the same features as there, and errors in a line."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hub_models import LAYERS, MEAN, STD, dinov2_folder, timm_folder
from safetensors.torch import load_file, save_file
from torch import nn

from histolight.config.schema import ModelConfig
from histolight.errors import HistolightError, RequestError
from histolight.models.backbones import build_backbone, check_name, load_weights, resolve_model

pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    root = tmp_path_factory.mktemp("models")
    return SimpleNamespace(
        root=root, timm_model=timm_folder(root / "vit"), hf_model=dinov2_folder(root / "dino"),
        timm=f"timm/local-dir:{root / 'vit'}", hf=f"hf/local-dir:{root / 'dino'}",
    )  # fmt: skip


def built(config: ModelConfig, size: int = 32) -> nn.Module:
    config = resolve_model(config, size)
    backbone = build_backbone(config, config.input_size or size)
    load_weights(backbone.network, backbone.head, config, config.input_size or size)
    return backbone.network.eval()


@pytest.mark.parametrize("features", ["pooled", "cls", "mean", "cls+mean"])
def test_features_of_timm_are_those_of_the_model_itself(features: str, places) -> None:
    network = built(ModelConfig(places.timm, "hub", kwargs=LAYERS, features=features))
    images = torch.randn(3, 3, 32, 32)
    with torch.inference_mode():
        tokens = places.timm_model.forward_features(images)
        assert tokens.shape == (3, 1 + 2 + 16, 24)
        parts = {"cls": tokens[:, 0], "mean": tokens[:, 3:].mean(1)}
        parts |= {"pooled": parts["cls"], "cls+mean": torch.cat([parts["cls"], parts["mean"]], 1)}
        head = network.get_classifier() if features == "pooled" else network.head
        torch.testing.assert_close(network(images), head(parts[features]))


@pytest.mark.parametrize("features", ["pooled", "cls", "mean", "cls+mean"])
def test_features_of_transformers_are_those_of_the_model_itself(features: str, places) -> None:
    network = built(ModelConfig(places.hf, "hub", features=features))
    images = torch.randn(3, 3, 42, 42)
    with torch.inference_mode():
        found = places.hf_model(images)
        tokens = found.last_hidden_state
        assert tokens.shape == (3, 1 + 36, 24)  # positions interpolated from 4x4 patches
        parts = {"cls": tokens[:, 0], "mean": tokens[:, 1:].mean(1), "pooled": found.pooler_output}
        parts |= {"cls+mean": torch.cat([parts["cls"], parts["mean"]], 1)}
        torch.testing.assert_close(network(images), network.head(parts[features]))


@pytest.mark.parametrize("form", ["timm", "hf"])
def test_what_the_model_says_of_itself_is_filled_in_and_its_files_are_not_needed_again(form: str, places) -> None:
    asked = ModelConfig(getattr(places, form), None, kwargs=LAYERS if form == "timm" else {}, features="cls")
    config = resolve_model(asked, 32)
    assert (config.mean, config.std, config.interpolation) == (MEAN, STD, "bicubic")
    assert (config.input_size, config.architecture) == ((32, "vit_tiny_patch16_224"), (42, "dinov2"))[form == "hf"]
    elsewhere = replace(config, name=f"{form}/local-dir:/nowhere")
    assert resolve_model(elsewhere, 32) == elsewhere
    backbone = build_backbone(elsewhere, config.input_size)
    assert backbone.mean == tuple(MEAN)
    assert resolve_model(replace(asked, mean=[0.5] * 3, input_size=56), 32).mean == [0.5] * 3


def test_positions_are_interpolated_for_another_size(places) -> None:
    from timm.layers import resample_abs_pos_embed

    network = built(ModelConfig(places.timm, "hub", kwargs=LAYERS, features="cls", input_size=48))
    expected = resample_abs_pos_embed(places.timm_model.pos_embed, [6, 6], num_prefix_tokens=3)
    torch.testing.assert_close(network.trunk.pos_embed, expected)


@pytest.mark.parametrize(
    ("form", "changed", "message"),
    [
        ("timm", {"kwargs": {**LAYERS, "depht": 3}}, "model.kwargs does not fit vit_tiny_patch16_224 of timm: .*depht"),
        ("timm", {"kwargs": {"mlp_layer": "os.system"}}, "model.kwargs.mlp_layer=os.system is not known: valid: GELU"),
        ("timm", {"kwargs": LAYERS, "architecture": "resnet18"}, "model.kwargs does not fit resnet18 of timm"),
        ("hf", {"kwargs": {"hiden_size": 3}}, "model.kwargs.hiden_size is not known to dinov2 .*mean hidden_size"),
        ("hf", {"kwargs": {"hidden_size": "wide"}}, "model.kwargs does not fit dinov2 of transformers"),
        ("hf", {"architecture": "dinov9"}, "dinov9 is no model type of this transformers"),
        (
            "hf",
            {"input_size": 50},
            "cuts tiles into patches of 7 pixels, and 50 is no multiple: add model.input_size=28",
        ),
        ("hf", {"mean": [0.5]}, "model.mean=.* needs three numbers"),
        ("hf", {"weights": "imagenet"}, "has no weights imagenet: use model.weights=hub or null"),
    ],
)
def test_what_does_not_fit_is_said_in_a_line(form: str, changed: dict, message: str, places) -> None:
    with pytest.raises(RequestError, match=message) as caught:
        built(ModelConfig(**{"name": getattr(places, form), "weights": None, "features": "cls", **changed}))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("timm/local-dir:/nowhere", "the folder /nowhere holds no config.json"),
        ("hf/local-dir:/nowhere", "the folder /nowhere holds no config.json"),
        ("resnet18", "model.features is for networks of timm/ and hf/"),
        ("timm/resnet18", "model.features=cls needs a transformer with a class token"),
    ],
)
def test_a_name_without_a_model_is_refused(name: str, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        built(ModelConfig(name, None, features="cls"))


def test_a_transformer_names_the_size_that_it_is_made_for() -> None:
    for name in ("timm/vit_tiny_patch16_224", "timm/vit_tiny_patch16_224.augreg_in21k"):
        with pytest.raises(RequestError, match="can't work on 96x96 tiles: add model.input_size=224"):
            build_backbone(ModelConfig(name), 96)


@pytest.mark.parametrize("name", ["timm/hf-hub:lab/model", "hf/lab/model"])
@pytest.mark.parametrize("fault", ["gated", "missing", "offline", "unreachable"])
def test_what_the_hub_refuses_is_said_in_a_line(name: str, fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import httpx
    from huggingface_hub import errors

    response = httpx.Response(403, request=httpx.Request("GET", "https://example.org"))
    raised = {
        "gated": lambda: errors.GatedRepoError("Cannot access gated repo\nfor url", response=response),
        "missing": lambda: errors.RepositoryNotFoundError("404 Client Error\nnot found", response=response),
        "offline": lambda: errors.LocalEntryNotFoundError("Cannot find an appropriate cached snapshot\nfolder"),
        "unreachable": lambda: ConnectionError("Name or service\nnot known"),
    }[fault]

    def refuse(*arguments: object, **options: object) -> None:
        raise raised()

    monkeypatch.setattr("huggingface_hub.hf_hub_download", refuse)
    message = {
        "gated": "is gated: accept its licence at https://huggingface.co/lab/model, .* HF_TOKEN",
        "missing": "there is no https://huggingface.co/lab/model, or it is private",
    }.get(fault, "could not be downloaded .*without internet access use model.weights=FILE")
    with pytest.raises(HistolightError, match=message) as caught:
        resolve_model(ModelConfig(name, "hub"), 96)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_status == (2 if fault in ("gated", "missing") else 1)


@pytest.mark.parametrize(("package", "name"), [("timm", "timm/hf-hub:a/b"), ("transformers", "hf/a/b")])
def test_without_its_extra_it_is_named(package: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    extra = {"timm": "timm", "transformers": "hf"}[package]
    with pytest.raises(
        RequestError, match=rf"needs {package}: install histolight with its extra, histolight\[{extra}\]"
    ):
        check_name(name)


CODE = """
from transformers import Dinov2Config, Dinov2Model
class OwnConfig(Dinov2Config):
    model_type = "own"
class OwnModel(Dinov2Model):
    config_class = OwnConfig
"""


def test_code_of_a_model_runs_only_where_it_is_asked_for(places, monkeypatch, tmp_path: Path) -> None:
    import json
    import shutil

    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    folder = tmp_path / "own"
    shutil.copytree(places.root / "dino", folder)
    content = json.loads((folder / "config.json").read_text())
    content |= {"model_type": "own", "auto_map": {"AutoConfig": "own.OwnConfig", "AutoModel": "own.OwnModel"}}
    (folder / "config.json").write_text(json.dumps(content))
    save_file(places.hf_model.state_dict(), folder / "model.safetensors")
    (folder / "own.py").write_text(CODE + f"open({str(tmp_path / 'ran')!r}, 'w').close()\n")
    config = ModelConfig(f"hf/local-dir:{folder}", "hub", features="cls")
    with pytest.raises(
        RequestError, match="own is no model type .*: add model.trust_remote_code=true to run its own code"
    ):
        built(config)
    assert not (tmp_path / "ran").exists()
    network = built(replace(config, trust_remote_code=True))
    assert (tmp_path / "ran").exists()
    images = torch.randn(2, 3, 42, 42)
    with torch.inference_mode():
        torch.testing.assert_close(network.tokens(images), places.hf_model(images).last_hidden_state)


WRAPPED = {
    "safetensors": lambda state: state,
    "plain": lambda state: state,
    "state_dict": lambda state: {"state_dict": {f"module.{key}": value for key, value in state.items()}, "epoch": 3},
    "compiled": lambda state: {"model": {f"_orig_mod.module.{key}": value for key, value in state.items()}},
    "teacher": lambda state: {
        "teacher": {f"backbone.{key}": value for key, value in state.items()} | {"dino_head.mlp": torch.zeros(2)},
        "student": {},
    },
    "encoder": lambda state: {f"encoder.{key}": value for key, value in state.items()},
}


@pytest.mark.parametrize("kind", WRAPPED)
@pytest.mark.parametrize("features", ["cls", "pooled"])
def test_wrapped_weights_are_taken_and_said_in_a_line(kind: str, features: str, places, tmp_path: Path, caplog) -> None:
    state = load_file(places.root / "vit" / "model.safetensors")
    path = tmp_path / ("w.safetensors" if kind == "safetensors" else "w.pth")
    save_file(state, path) if kind == "safetensors" else torch.save(WRAPPED[kind](state), path)
    with caplog.at_level("WARNING", "histolight"):
        network = built(ModelConfig(places.timm, str(path), kwargs=LAYERS, features=features))
    expected = built(ModelConfig(places.timm, "hub", kwargs=LAYERS, features=features)).state_dict()
    for key, value in network.state_dict().items():
        assert key.startswith("head.") or torch.equal(value, expected[key]), key
    if kind == "teacher":
        assert f"{len(state)} keys taken, {len(state)} of them renamed; 1 left out (dino_head.mlp)" in caplog.text


def test_a_file_in_the_form_of_transformers_is_taken_too(places, caplog) -> None:
    """Newer ones name tensors otherwise in the file than in the network."""
    path = places.root / "dino" / "model.safetensors"
    network = built(ModelConfig(places.hf, str(path), features="mean"))
    for key, value in places.hf_model.state_dict().items():
        assert torch.equal(network.trunk.state_dict()[key], value), key


def test_weights_of_another_network_are_refused_before_any_work(places, tmp_path: Path) -> None:
    for name, weights in ((places.timm, "dino"), (places.hf, "vit")):
        config = ModelConfig(name, str(places.root / weights / "model.safetensors"), features="cls")
        config = replace(config, kwargs=LAYERS if name == places.timm else {})
        with pytest.raises(RequestError, match=r"model.weights=.* doesn't fit model.name=.*: keys \d+ missing"):
            resolve_model(config, 32)
    (tmp_path / "w.safetensors").write_bytes(b"no tensors")
    with pytest.raises(RequestError, match="can't be read as a plain state dict of tensors"):
        resolve_model(ModelConfig(places.hf, str(tmp_path / "w.safetensors")), 32)
