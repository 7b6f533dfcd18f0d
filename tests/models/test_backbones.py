from __future__ import annotations

import copy
import pickle
import re
import sys
from pathlib import Path

import pytest
import torch
import torchvision

from histolight.config.schema import ModelConfig
from histolight.errors import HistolightError, RequestError
from histolight.models.backbones import build_backbone, centre_weights, check_name, check_weights, load_weights

# RegNets can't be built on the meta device, and the large ones have the blocks of the small ones.
LARGE = re.compile(r"regnet_\w_(3_2|8|16|32|128)gf")
NAMES = [name for name in torchvision.models.list_models(module=torchvision.models) if not LARGE.fullmatch(name)]
QUICK = {re.match(r"[a-z]+(_v\d)?", name)[0]: name for name in reversed(NAMES)}.values()  # the first of each family
UNFIT = {"maxvit_t", "vit_h_14"}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow) for name in NAMES]
)
def test_every_network_of_torchvision_gives_one_logit_or_says_that_it_cannot(name: str) -> None:
    with torch.device("cpu" if name.startswith("regnet") else "meta"):
        if name in UNFIT:
            with pytest.raises(RequestError, match=f"model.name={name} can't work on 96x96 tiles"):
                build_backbone(ModelConfig(name), 96)
            return
        backbone = build_backbone(ModelConfig(name), 96)
        layer = backbone.network.get_submodule(backbone.head)
        assert 1 in (getattr(layer, "out_features", 0), getattr(layer, "out_channels", 0))


@pytest.mark.parametrize(
    ("name", "near"), [("densnet121", "densenet121"), ("ResNet18", "resnet18"), ("resnet_34", "resnet34")]
)
def test_an_unknown_name_is_answered_with_the_nearest(name: str, near: str) -> None:
    with pytest.raises(RequestError, match=f"model.name={name} is not known: did you mean .*{near}"):
        check_name(name)


@pytest.fixture
def pretrained(tmp_path: Path) -> Path:
    """A state dict as torchvision's own: 1,000 classes."""
    torch.manual_seed(1)
    path = tmp_path / "resnet18.pth"
    torch.save(torchvision.models.resnet18().state_dict(), path)
    return path


def test_a_state_dict_is_loaded_but_for_its_head(pretrained: Path) -> None:
    backbone = build_backbone(ModelConfig("resnet18"), 96)
    head = backbone.network.fc.weight.clone()
    load_weights(backbone.network, backbone.head, ModelConfig("resnet18", str(pretrained)), 96)
    expected = torch.load(pretrained, weights_only=True)
    for key, value in backbone.network.state_dict().items():
        if not key.startswith("fc."):
            assert torch.equal(value, expected[key]), key
    assert torch.equal(backbone.network.fc.weight, head)


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2"])
@pytest.mark.parametrize(("saved", "loaded"), [(0.0, 0.0), (0.0, 0.2), (0.2, 0.0), (0.2, 0.2)])
def test_a_head_with_one_logit_is_loaded_too(name: str, saved: float, loaded: float, tmp_path: Path) -> None:
    network = build_backbone(ModelConfig(name, dropout=saved), 96).network.eval()
    torch.save(network.state_dict(), tmp_path / "own.pth")
    backbone = build_backbone(ModelConfig(name, dropout=loaded), 96)
    load_weights(backbone.network, backbone.head, ModelConfig(name, str(tmp_path / "own.pth")), 96)
    tiles = torch.rand(2, 3, 96, 96)
    with torch.inference_mode():
        torch.testing.assert_close(backbone.network.eval()(tiles), network(tiles))


def test_dropout_in_front_of_the_head_does_not_disturb_the_weights(pretrained: Path) -> None:
    backbone = build_backbone(ModelConfig("resnet18", dropout=0.5), 96)
    load_weights(backbone.network, backbone.head, ModelConfig("resnet18", str(pretrained)), 96)
    assert isinstance(backbone.network.fc[0], torch.nn.Dropout)
    assert torch.equal(backbone.network.conv1.weight, torch.load(pretrained, weights_only=True)["conv1.weight"])


def test_old_densenet_names_are_understood(tmp_path: Path) -> None:
    state = torchvision.models.densenet121().state_dict()
    old = {re.sub(r"(denselayer\d+\.(?:norm|conv))([12])\.", r"\1.\2.", key): value for key, value in state.items()}
    assert old.keys() != state.keys()
    torch.save(old, tmp_path / "old.pth")
    backbone = build_backbone(ModelConfig("densenet121"), 96)
    load_weights(backbone.network, backbone.head, ModelConfig("densenet121", str(tmp_path / "old.pth")), 96)
    key = "features.denseblock1.denselayer1.conv1.weight"
    assert torch.equal(backbone.network.state_dict()[key], state[key])


def test_missing_surplus_and_reshaped_keys_are_listed(pretrained: Path, tmp_path: Path) -> None:
    state = torch.load(pretrained, weights_only=True)
    del state["layer1.0.conv1.weight"]
    state["zebra"] = torch.zeros(1)
    state["conv1.weight"] = torch.zeros(64, 3, 3, 3)
    torch.save(state, tmp_path / "odd.pth")
    backbone = build_backbone(ModelConfig("resnet18"), 96)
    with pytest.raises(RequestError) as caught:
        load_weights(backbone.network, backbone.head, ModelConfig("resnet18", str(tmp_path / "odd.pth")), 96)
    for text in ("1 missing (layer1.0.conv1.weight)", "1 surplus (zebra)", "1 of another shape (conv1.weight)"):
        assert text in str(caught.value)


def test_weights_of_another_network_are_refused_by_a_transformer_too(pretrained: Path) -> None:
    backbone = build_backbone(ModelConfig("vit_b_32"), 96)
    with pytest.raises(RequestError, match=r"doesn't fit model.name=vit_b_32: keys \d+ missing .*; \d+ surplus"):
        load_weights(backbone.network, backbone.head, ModelConfig("vit_b_32", str(pretrained)), 96)


def test_squeezenet_can_call_a_tile_benign() -> None:
    torch.manual_seed(0)
    backbone = build_backbone(ModelConfig("squeezenet1_1"), 96)
    torch.nn.init.constant_(backbone.network.get_submodule(backbone.head).bias, -1.0)
    logits = backbone.network(torch.rand(4, 3, 96, 96))
    assert (logits < 0).all()
    logits.sum().backward()
    assert backbone.network.get_submodule(backbone.head).weight.grad.any()


class Malicious:
    def __reduce__(self) -> tuple:
        return (Path.touch, (Path("hacked"),))


@pytest.mark.parametrize("content", ["text", "pickle", "list", "empty", "nested"])
def test_a_file_that_is_no_state_dict_is_refused_and_runs_nothing(
    content: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "weights.pth"
    if content == "text":
        path.write_text("hello")
    elif content == "pickle":
        path.write_bytes(pickle.dumps({"a": Malicious()}))
    elif content == "list":
        torch.save([torch.zeros(1)], path)
    elif content == "nested":
        torch.save({"state_dict": {"a": torch.zeros(1)}}, path)
    else:
        path.touch()
    backbone = build_backbone(ModelConfig("resnet18"), 96)
    with pytest.raises(RequestError, match="model.weights=.*(state dict|doesn't fit)"):
        load_weights(backbone.network, backbone.head, ModelConfig("resnet18", str(path)), 96)
    assert not (tmp_path / "hacked").exists()


def test_a_missing_file_is_refused_before_anything_is_built() -> None:
    with pytest.raises(RequestError, match=r"model.weights=missing.pth is not a file"):
        check_weights("resnet18", "missing.pth")


def test_a_failed_download_names_the_ways_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from urllib.error import URLError

    def refuse(*arguments: object, **options: object) -> None:
        raise URLError("no network")

    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path))
    monkeypatch.setattr("urllib.request.urlopen", refuse)
    monkeypatch.setattr("torch.hub.urlopen", refuse)
    backbone = build_backbone(ModelConfig("resnet18"), 96)
    with pytest.raises(HistolightError, match=r"could not be downloaded .*model.weights=null .*model.weights=PATH"):
        load_weights(backbone.network, backbone.head, ModelConfig("resnet18", "imagenet"), 96)
    torch.save(torchvision.models.resnet18().state_dict(), tmp_path / "file.pth")
    load_weights(backbone.network, backbone.head, ModelConfig("resnet18", str(tmp_path / "file.pth")), 96)


@pytest.mark.slow
def test_real_mobilenet_weights_load(mobilenet_weights: Path) -> None:
    path = mobilenet_weights
    backbone = build_backbone(ModelConfig("mobilenet_v2"), 96)
    load_weights(backbone.network, backbone.head, ModelConfig("mobilenet_v2", str(path)), 96)
    state = torch.load(path, weights_only=True)
    assert torch.equal(backbone.network.features[0][0].weight, state["features.0.0.weight"])


def test_timm_gives_one_logit_and_its_own_statistics() -> None:
    backbone = build_backbone(ModelConfig("timm/tf_efficientnet_lite0"), 96)
    assert backbone.network.get_submodule(backbone.head).out_features == 1
    assert (backbone.mean, backbone.std) == ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    assert build_backbone(ModelConfig("timm/resnet18"), 96).mean == (0.485, 0.456, 0.406)


@pytest.mark.parametrize(
    ("name", "near"),
    [("timm/tf_efficientnet_lit0", "timm/tf_efficientnet_lite0"), ("timm/resnet18.a1_in2k", "timm/resnet18.a1_in1k")],
)
def test_an_unknown_name_of_timm_is_answered_with_the_nearest(name: str, near: str) -> None:
    with pytest.raises(RequestError, match=f"model.name={name} is not known: did you mean .*{near}"):
        check_name(name)
    check_name(near)


def test_a_network_of_timm_with_two_last_layers_is_refused() -> None:
    pytest.importorskip("timm")
    with pytest.raises(RequestError, match="has more than one last layer: choose another network"):
        build_backbone(ModelConfig("timm/levit_128s"), 224)


def test_without_timm_its_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(RequestError, match=r"needs timm: install histolight with its extra, histolight\[timm\]"):
        check_name("timm/resnet18")


@pytest.mark.slow
def test_real_timm_weights_give_timms_features(timm_weights: Path) -> None:
    import timm

    backbone = build_backbone(ModelConfig("timm/tf_efficientnet_lite0"), 96)
    config = ModelConfig("timm/tf_efficientnet_lite0", str(timm_weights))
    load_weights(backbone.network, backbone.head, config, 96)
    original = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    original.load_state_dict(torch.load(timm_weights, weights_only=True))
    tiles = torch.rand(2, 3, 96, 96)
    with torch.inference_mode():
        expected = original.eval().forward_features(tiles)
        torch.testing.assert_close(backbone.network.eval().forward_features(tiles), expected)


@pytest.mark.parametrize("size", [1, 2, 3, 4, 6, 7, 9])
def test_centre_weights_are_the_areas_of_the_centre_third(size: int) -> None:
    fine = torch.zeros(size * 3, size * 3)  # each cell split into 3 x 3
    fine[size : 2 * size, size : 2 * size] = 1
    area = torch.nn.functional.avg_pool2d(fine[None, None], 3)[0, 0]
    torch.testing.assert_close(centre_weights(size, size), area / area.mean())


@pytest.mark.parametrize(
    "name",
    [
        "resnet18",
        "densenet121",
        "mobilenet_v2",
        "mobilenet_v3_small",
        "mnasnet0_5",
        "shufflenet_v2_x0_5",
        "regnet_y_400mf",
        "efficientnet_b0",
        "convnext_tiny",
        "p4m_densenet",
        "timm/tf_efficientnet_lite0",
        "timm/resnet18",
        "timm/regnety_002",
    ],
)
def test_centre_pooling_averages_the_centre_of_the_last_map(name: str) -> None:
    if name.startswith("timm/"):
        pytest.importorskip("timm")
    torch.manual_seed(0)
    centre = build_backbone(ModelConfig(name, pooling="centre"), 96).network.eval()
    backbone = build_backbone(ModelConfig(name), 96)
    plain = backbone.network.eval()
    plain.load_state_dict(centre.state_dict())
    layer = plain.get_submodule(backbone.pooled)

    def centre_everywhere(features: torch.Tensor) -> torch.Tensor:
        if name == "densenet121":
            features = features.relu()  # before the average, not in a layer
        third = features.shape[-1] // 3
        assert third == features.shape[-1] / 3
        return features[..., third:-third, third:-third].mean((-2, -1), keepdim=True).expand_as(features).clone()

    if isinstance(layer, torch.nn.Sequential):
        layer.register_forward_hook(lambda _, __, output: centre_everywhere(output))
    else:
        layer.register_forward_pre_hook(lambda _, inputs: centre_everywhere(inputs[0]))
    tiles = torch.randn(2, 3, 96, 96)
    with torch.inference_mode():
        torch.testing.assert_close(centre(tiles), plain(tiles), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2"])
def test_a_copy_of_a_network_with_centre_pooling_runs_on_its_own_device(name: str) -> None:
    network = build_backbone(ModelConfig(name, pooling="centre"), 96).network
    assert copy.deepcopy(network).to("meta")(torch.zeros(2, 3, 96, 96, device="meta")).device.type == "meta"


@pytest.mark.parametrize("name", ["vgg11", "alexnet", "squeezenet1_1", "vit_b_32", "swin_t", "googlenet"])
def test_networks_that_average_no_map_cannot_pool_the_centre(name: str) -> None:
    with pytest.raises(RequestError, match=f"model.pooling=centre needs .* model.name={name} does not: use "):
        build_backbone(ModelConfig(name, pooling="centre"), 96)
    with torch.device("meta"):
        build_backbone(ModelConfig(name, pooling="mean"), 96)
