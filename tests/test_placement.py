"""A training step lies on one GPU and waits for nothing: seen on PyTorch's fake CUDA device, without a GPU."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from benchmark_scripts import load_benchmark
from hub_models import LAYERS, dinov2_folder, timm_folder
from packaging.version import Version

from histolight.config.compose import compose_config, config_groups, typed
from histolight.config.schema import Config
from histolight.data.datamodule import augmented, to_floats
from histolight.inference.networks import tile_views
from histolight.models.classifier import Classifier
from histolight.training.fit import check_request

launches = load_benchmark("launches")
pytestmark = pytest.mark.skipif(
    Version(torch.__version__) < Version("2.11"), reason="not every PyTorch computes on a fake CUDA device; 2.8 crashes"
)
AUGMENT = config_groups()["augment"]


def config(*overrides: str) -> Config:
    return typed(compose_config(overrides))


def test_what_mixes_devices_fails_and_what_waits_is_seen() -> None:
    with launches.fake_cuda():
        there, here = torch.zeros(4, device="cuda"), torch.zeros(4)
        with pytest.raises(RuntimeError, match="different devices|on the same device"):
            there + here

        def step() -> None:
            there.add_(1).sum().item()
            torch.tensor([1.0, 2.0], device="cuda")
            here.to("cuda", non_blocking=True)
            there[:2].cpu()

        found = launches.counted(step)
    assert found.started == ["add_", "sum", "_local_scalar_dense", "_to_copy", "_to_copy", "_to_copy"]
    assert found.waits == ["_local_scalar_dense", "_to_copy", "_to_copy"]


@pytest.mark.parametrize("stain", ["none", "macenko", "reinhard"])
@pytest.mark.parametrize("augment", AUGMENT)
def test_augmentation_and_normalisation_stay_on_the_gpu(augment: str, stain: str) -> None:
    settings = config(f"augment={augment}", "augment.cutmix=0.5", "augment.mixup=0.3").augment
    with launches.fake_cuda():
        batch = launches.batch_on_cuda(8, 96)
        results = []
        found = launches.counted(lambda: results.append(augmented(batch, settings, stain, launches.FakeGenerator)))
        assert {part.device.type for part in (*results[1][:3], to_floats(batch.tiles, stain))} == {"cuda"}
    assert found.waits == ["_linalg_eigh"] * (stain == "macenko")  # PyTorch asks whether it converged


def test_a_batch_of_resident_tiles_is_one_gather() -> None:
    with launches.fake_cuda():
        batches = launches.resident_batches(100, 8)
        batch = next(batches)
        found = launches.counted(lambda: next(batches))
    assert found.started == ["index_select"]
    assert {part.device.type for part in batch[:3]} == {"cuda"}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    root = tmp_path_factory.mktemp("models")
    pytest.importorskip("transformers")
    timm_folder(root / "timm")
    dinov2_folder(root / "hf")
    layers = ",".join(f"{key}:{value}" for key, value in LAYERS.items())
    return {
        "timm hub": [f"model.name=timm/local-dir:{root / 'timm'}", f"model.kwargs={{{layers}}}"],
        "hf hub": [f"model.name=hf/local-dir:{root / 'hf'}"],
    }


NETWORKS = {
    "torchvision": ["model.name=shufflenet_v2_x0_5"],
    "convolution for a head": ["model.name=squeezenet1_1", "data.image_size=64"],
    "enlarged": ["model.name=shufflenet_v2_x0_5", "model.input_size=64", "model.interpolation=bicubic"],
    "centre, dropout": ["model.name=resnet18", "model.pooling=centre", "model.dropout=0.1"],
    "timm": ["model.name=timm/test_resnet"],
    "transformer of timm": ["model.name=timm/test_vit", "model.input_size=160"],
    "p4m": ["model=p4m_densenet"],
    "timm hub": [],
    "hf hub": [],
}


@pytest.mark.parametrize("kind", NETWORKS)
def test_a_step_forward_stays_on_the_gpu_for_every_family_of_networks(kind: str, request) -> None:
    hub = kind.endswith("hub")
    overrides = request.getfixturevalue("folders")[kind] if hub else NETWORKS[kind]
    weights = [] if hub else ["model.weights=null"]
    settings = config("data.image_size=32", *overrides, *weights)
    classifier = Classifier.from_config(check_request(settings), 2.0)
    with launches.fake_cuda():
        launches.on_fake_cuda(classifier)
        batch = launches.batch_on_cuda(8, settings.data.image_size)
        batch = batch._replace(tiles=to_floats(batch.tiles, "none"))
        with launches.half_precision():
            found = launches.counted(lambda: classifier.training_step(batch, 0))
            classifier.eval()
            classifier.validation_step(batch, 0)
        assert classifier.loss is not None
        assert (classifier.loss.device.type, classifier.loss.dtype) == ("cuda", torch.float32)
        kept = [part for seen in (classifier._trained, classifier._evaluated) for part in seen.take()]
        assert {part.device.type for part in kept} == {"cuda"}
        assert {kept[2].dtype, kept[5].dtype} == {torch.bfloat16}
    assert found.waits == []


@pytest.mark.parametrize(("stain", "probe"), [("none", "none"), ("reinhard", "knn")])
def test_features_and_views_of_tiles_stay_on_the_gpu(stain: str, probe: str) -> None:
    settings = config("model.name=shufflenet_v2_x0_5", "model.weights=null", "model.freeze=backbone")
    settings.model.probe = probe
    classifier = Classifier.from_config(settings, 1.0).eval()
    with launches.fake_cuda(), torch.inference_mode():
        launches.on_fake_cuda(classifier)
        batch = launches.batch_on_cuda(8, 96)
        scores: list[torch.Tensor] = []

        def score() -> None:
            views = tile_views(to_floats(batch.tiles, stain), "flips")
            scores.append(torch.stack([classifier(classifier.features(view)).float() for view in views]).mean(0))

        with launches.half_precision():
            found = launches.counted(score)
        logits = scores[1]
    assert (logits.device.type, logits.dtype, logits.shape) == ("cuda", torch.float32, (8,))
    assert found.waits == []


@pytest.mark.parametrize("name", ["adam", "adamw"])
def test_gradients_are_clipped_and_weights_updated_without_waiting(name: str, small_config: Config) -> None:
    settings = dataclasses.replace(small_config, optimizer=config(f"optimizer={name}").optimizer)
    classifier = Classifier.from_config(settings, 1.0)
    with launches.fake_cuda():
        launches.on_fake_cuda(classifier)
        step = launches.optimizer_step(classifier, settings)
        clip = launches.counted(lambda: torch.nn.utils.clip_grad_norm_(classifier.parameters(), 1.0))
        update = launches.counted(step)
    assert clip.waits == update.waits == []
    assert len(update.started) <= 4


@pytest.mark.parametrize(("decay", "most"), [(0.9, 2), (None, 4)])
def test_weights_are_averaged_without_waiting(decay: float | None, most: int, small_config: Config) -> None:
    classifier = Classifier.from_config(small_config, 1.0)
    average = launches.averaged(classifier, decay)
    with launches.fake_cuda():
        launches.on_fake_cuda(classifier)
        mean = launches.counted(launches.average_step(average, classifier))
    assert mean.waits == []
    assert len(mean.started) <= most
