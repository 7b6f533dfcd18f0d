"""Averaged weights, a backbone that is frozen at first, and pooling of the centre, in real trainings of seconds."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from histolight.config.compose import compose_config, typed
from histolight.data.prepare import prepare
from histolight.errors import InterruptionError, RequestError
from histolight.explanation.grad_cam import centre_share, feature_layers, grad_cam
from histolight.inference.export import export_onnx
from histolight.models.classifier import Classifier
from histolight.training.fit import check_request, train

pytestmark = pytest.mark.usefixtures("undrawn")


def run(overrides: list[str], directory: Path, resume: bool = False) -> dict:
    config = check_request(typed(compose_config(overrides)))
    return train(config, prepare(config.data), directory, resume)


@pytest.mark.slow
def test_an_interrupted_run_continues_to_the_same_result(small: list[str], tmp_path: Path, monkeypatch) -> None:
    overrides = [*small, "trainer.max_epochs=3", "model.freeze_epochs=2", "trainer.swa=0.5"]
    whole = run(overrides, tmp_path / "whole")
    original = Classifier.training_step
    for cut_in in (1, 2):  # before and after the backbone thaws and the average begins

        def interrupt(self: Classifier, batch, batch_idx: int, cut_in: int = cut_in):
            if self.trainer.current_epoch == cut_in and batch_idx == 2:
                raise KeyboardInterrupt
            return original(self, batch, batch_idx)

        monkeypatch.setattr(Classifier, "training_step", interrupt)
        with pytest.raises(InterruptionError):
            run(overrides, tmp_path / "cut", resume=cut_in > 1)
    monkeypatch.setattr(Classifier, "training_step", original)
    assert run(overrides, tmp_path / "cut", resume=True)["val"] == whole["val"]
    tables = [pd.read_csv(tmp_path / name / "predictions/val.csv") for name in ("cut", "whole")]
    pd.testing.assert_frame_equal(*tables, check_exact=True)
    lasts = [torch.load(tmp_path / name / "checkpoints/last.ckpt", weights_only=True) for name in ("cut", "whole")]
    for key, value in lasts[0]["state_dict"].items():
        assert torch.equal(value, lasts[1]["state_dict"][key]), key


def test_the_mean_of_the_last_weights_is_validated_and_kept(small: list[str], tmp_path: Path, monkeypatch) -> None:
    weights: list[torch.Tensor] = []
    statistics: list[torch.Tensor] = []
    validated: list[torch.Tensor] = []

    def after_step(self: Classifier, *_: object) -> None:
        weights.append(self.backbone.fc.weight.detach().clone())
        statistics.append(self.backbone.conv1[1].running_var.clone())

    validate = Classifier.validation_step

    def watch(self: Classifier, batch, batch_idx: int) -> None:
        if self.trainer.state.fn == "fit" and batch_idx == 0:
            validated.append(self.backbone.fc.weight.detach().clone())
        validate(self, batch, batch_idx)

    monkeypatch.setattr(Classifier, "on_train_batch_end", after_step)
    monkeypatch.setattr(Classifier, "validation_step", watch)
    run([*small, "trainer.max_epochs=4", "trainer.swa=0.5"], tmp_path / "run")
    steps = len(weights) // 4
    assert steps > 2
    for epoch in (0, 1):  # before the average begins
        assert torch.equal(validated[epoch], weights[(epoch + 1) * steps - 1])
    for epoch in (2, 3):
        expected = torch.stack(weights[2 * steps : (epoch + 1) * steps]).mean(0)
        torch.testing.assert_close(validated[epoch], expected)
    last = torch.load(tmp_path / "run/checkpoints/last.ckpt", weights_only=True)
    assert torch.equal(last["state_dict"]["backbone.fc.weight"], validated[3])
    expected = torch.stack(statistics[2 * steps :]).mean(0)
    torch.testing.assert_close(last["state_dict"]["backbone.conv1.1.running_var"], expected)


def test_the_backbone_is_still_until_it_thaws(small: list[str], tmp_path: Path, monkeypatch) -> None:
    states: list[dict[str, torch.Tensor]] = []
    rates: list[float] = []
    start, end = Classifier.on_train_epoch_start, Classifier.on_train_epoch_end

    def copy(self: Classifier) -> None:
        states.append({key: value.clone() for key, value in self.state_dict().items()})

    def at_start(self: Classifier) -> None:
        copy(self)
        start(self)

    def at_end(self: Classifier) -> None:
        end(self)
        copy(self)
        rates.append(self.trainer.optimizers[0].param_groups[0]["lr"])

    monkeypatch.setattr(Classifier, "on_train_epoch_start", at_start)
    monkeypatch.setattr(Classifier, "on_train_epoch_end", at_end)
    overrides = [*small, "trainer.max_epochs=3", "optimizer.weight_decay=0.1", "optimizer=adamw"]
    run([*overrides, "model.freeze_epochs=2"], tmp_path / "run")
    before, moved = states[::2], []
    for old, new in zip(before, states[1::2], strict=True):
        moved.append({key for key in old if not torch.equal(old[key], new[key])})
    assert moved[0] == moved[1] == {"backbone.fc.weight", "backbone.fc.bias"}
    everything = {key for key in before[0] if key not in ("mean", "std")}
    assert moved[2] == everything
    assert rates[2] < 1e-4 < rates[1]  # one schedule spans all epochs


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["model.freeze_epochs=5", "trainer.max_epochs=5"],
            "model.freeze_epochs=5 leaves none .*model.freeze=backbone",
        ),
        (["trainer.ema=0.9", "trainer.swa=0.5"], "trainer.ema and trainer.swa .* set one"),
        (["trainer.swa=1"], "trainer.swa=1.0 is out of range: it must be at least 0 and below 1"),
        (["data.sampler=balanced"], "count twice: add loss.pos_weight=null"),
    ],
)
def test_what_contradicts_itself_is_refused(overrides: list[str], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        check_request(typed(compose_config(overrides)))


def test_classes_are_balanced_by_weight_or_by_sampling() -> None:
    for overrides in (["data.sampler=balanced", "loss.pos_weight=null"], ["loss.pos_weight=balanced"]):
        check_request(typed(compose_config(overrides)))


def test_a_frozen_start_is_refused_where_processes_share_a_training(
    small: list[str], tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setattr("lightning.Trainer.world_size", 2)
    with pytest.raises(RequestError, match="model.freeze_epochs needs a single process"):
        run([*small, "model.freeze_epochs=1"], tmp_path / "run")


@pytest.fixture(scope="module")
def pooled() -> dict[str, Classifier]:
    """The same MobileNetV2 on 96-px tiles, whose last map is 3x3, with both kinds of pooling."""

    def build(pooling: str) -> Classifier:
        torch.manual_seed(0)
        model = {"name": "mobilenet_v2", "weights": None, "pooling": pooling}
        network = Classifier(model=model, optimizer={}, scheduler={}, loss={})
        for module in network.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.momentum = None
        with torch.no_grad():
            network(torch.rand(16, 3, 96, 96))
            network.backbone.get_submodule(network.head).weight *= 20
        return network.eval().requires_grad_(False)

    return {pooling: build(pooling) for pooling in ("mean", "centre")}


@pytest.fixture(scope="module")
def tiles() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (5, 96, 96, 3), dtype=np.uint8)


def test_the_centre_third_alone_is_pooled_and_no_key_changes(pooled: dict[str, Classifier], tiles: np.ndarray) -> None:
    mean, centre = pooled["mean"], pooled["centre"]
    assert mean.state_dict().keys() == centre.state_dict().keys()
    mean.load_state_dict(centre.state_dict())
    floats = torch.rand(2, 3, 96, 96)
    with torch.inference_mode():
        features = mean.backbone.features((floats - mean.mean) / mean.std)
        assert features.shape[-2:] == (3, 3)
        expected = mean.backbone.classifier(features[:, :, 1, 1]).squeeze(1)
        torch.testing.assert_close(centre(floats), expected)
        assert not torch.allclose(mean(floats), expected, atol=1e-2)


@pytest.mark.slow
def test_a_network_that_pools_the_centre_is_exported_and_explained(
    pooled: dict[str, Classifier], tiles: np.ndarray, tmp_path: Path
) -> None:
    network = pooled["centre"]
    assert export_onnx(network, tiles, tmp_path / "model.onnx", {}) <= 1e-4
    _, last, _ = feature_layers(network.backbone, 96)
    called = np.array([bool(value) for _, value in zip(tiles, itertools.cycle([True, False]), strict=False)])
    maps = grad_cam(network.requires_grad_(True), last, tiles, called)
    shares = centre_share(maps, 96)
    assert maps.shape == (5, 3, 3)
    np.testing.assert_allclose(shares[~np.isnan(shares)], 1.0, atol=1e-5)  # nothing else reaches the logit
    assert not np.isnan(shares).all()
