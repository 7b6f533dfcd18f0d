"""Low-rank adapters: they alone learn, a run goes on with them, and what is used has them merged."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hub_models import dinov2_folder, timm_folder

from histolight.config.compose import compose_config, typed
from histolight.data.prepare import prepare
from histolight.errors import InterruptionError, RequestError
from histolight.inference.networks import load_classifier
from histolight.models.classifier import Classifier
from histolight.training.fit import check_request, train

pytest.importorskip("peft")
pytestmark = pytest.mark.usefixtures("undrawn")


@pytest.mark.parametrize("form", ["timm", "hf"])
def test_adapters_alone_learn_and_are_merged(form: str, small: list[str], tmp_path: Path, monkeypatch) -> None:
    folder = tmp_path / "model"
    timm_folder(folder) if form == "timm" else dinov2_folder(folder)
    words = [*small, f"model.name={form}/local-dir:{folder}", "model.features=cls", "model.weights=hub"]
    words += ["model.kwargs={mlp_layer: SwiGLUPacked, act_layer: SiLU}"] * (form == "timm")
    config = check_request(typed(compose_config([*words, "model.lora_rank=2", "optimizer.lr=0.03"])))
    original = Classifier.from_config(check_request(typed(compose_config(words))), 1.0).backbone.state_dict()
    data = prepare(config.data)
    epoch_end = Classifier.on_train_epoch_end

    def interrupt(self: Classifier) -> None:
        if self.trainer.current_epoch == 1:
            raise KeyboardInterrupt
        epoch_end(self)

    with monkeypatch.context() as patch:
        patch.setattr(Classifier, "on_train_epoch_end", interrupt)
        with pytest.raises(InterruptionError):
            train(config, data, tmp_path / "run")
    metrics = train(config, data, tmp_path / "run", resume=True)
    network = load_classifier(tmp_path / "run")
    merged = network.backbone.state_dict()
    assert merged.keys() == original.keys()
    changed = {key for key, value in merged.items() if not torch.equal(value, original[key])}
    assert {key for key in changed if "att" not in key} == {"head.weight", "head.bias"}
    assert len([key for key in changed if "att" in key]) == (4 if form == "timm" else 8)
    assert all(key.endswith("weight") for key in changed - {"head.bias"})
    adapters = metrics["parameters"] - sum(value.numel() for value in network.backbone.parameters())
    assert adapters == 2 * 2 * ((24 + 72) + (24 + 24) if form == "timm" else 4 * 48)
    predictions = pd.read_csv(tmp_path / "run/predictions/val.csv", dtype={"id": str})
    rows = data.table.set_index("id")["row"][predictions["id"]].to_numpy()
    with torch.inference_mode():
        logits = network(torch.from_numpy(data.tiles.gather(rows)).permute(0, 3, 1, 2).float() / 255)
    np.testing.assert_allclose(logits, predictions["logit"], rtol=1e-4, atol=1e-4)


def test_a_backbone_that_stays_random_is_warned_of(
    small: list[str], mobilenet_weights: Path, caplog: pytest.LogCaptureFixture
) -> None:
    adapted = ["model.name=timm/vit_tiny_patch16_224", "model.kwargs={img_size: 32}", "model.lora_rank=4"]
    for words, key in ((adapted, "model.lora_rank=4"), (["model.freeze=backbone"], "model.freeze=backbone")):
        check_request(typed(compose_config([*small, *words])))
        assert f"{key} with model.weights=null: the backbone is random and stays so" in caplog.text
        caplog.clear()
    pretrained = ["model.name=mobilenet_v2", f"model.weights={mobilenet_weights}", "model.freeze=backbone"]
    check_request(typed(compose_config([*small, *pretrained])))
    check_request(typed(compose_config(small)))
    assert caplog.text == ""


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["model.freeze=backbone"], "keeps the backbone itself frozen"),
        (["model.name=resnet18"], "needs a transformer of timm/ or hf/"),
    ],
)
def test_what_does_not_go_with_adapters_is_said_in_a_line(words: list[str], message: str, small: list[str]) -> None:
    with pytest.raises(RequestError, match=message):
        Classifier.from_config(check_request(typed(compose_config([*small, "model.lora_rank=2", *words]))), 1.0)


def test_without_its_extra_it_is_named(small: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(RequestError, match=r"needs peft: install histolight with its extra, histolight\[lora\]"):
        check_request(typed(compose_config([*small, "model.lora_rank=2"])))
