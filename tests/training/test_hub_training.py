"""A hub's model trains, probes, predicts and is exported like any network, and its run needs the hub no more."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hub_models import dinov2_folder, timm_folder

from histolight.config.compose import compose_config, typed
from histolight.data.datamodule import TileDataModule
from histolight.data.prepare import prepare
from histolight.inference.export import export_onnx
from histolight.inference.networks import load_classifiers
from histolight.models.classifier import Classifier
from histolight.training.fit import check_request, train

pytest.importorskip("transformers")
pytestmark = pytest.mark.usefixtures("undrawn")


@pytest.mark.parametrize("form", ["timm", "hf"])
def test_it_trains_and_its_run_stands_alone(form: str, small: list[str], tmp_path: Path, caplog) -> None:
    folder = tmp_path / "model"
    timm_folder(folder) if form == "timm" else dinov2_folder(folder)
    overrides = [*small, f"model.name={form}/local-dir:{folder}", "model.features=cls+mean", "model.weights=auto"]
    overrides += ["model.kwargs={mlp_layer: SwiGLUPacked, act_layer: SiLU}"] * (form == "timm")
    config = check_request(typed(compose_config([*overrides, "model.freeze=backbone", "augment=none"])))
    assert config.model.weights == "hub"
    data = prepare(config.data)
    metrics = train(config, data, tmp_path / "run")
    assert metrics["status"] == "completed"
    kept = list((Path(config.data.cache) / "features").glob("*/done.npy"))
    assert any(np.load(path).all() for path in kept)  # of every tile: another seed, fold or point computes none
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TileDataModule, "_computed", lambda *_: pytest.fail("computed again"))
        again = check_request(typed(compose_config([*overrides, "model.freeze=backbone", "augment=none", "seed=1"])))
        train(again, prepare(again.data), tmp_path / "again")
    assert len(list((Path(config.data.cache) / "features").glob("*/done.npy"))) == len(kept)
    own = replace(config, model=replace(config.model, weights=str(tmp_path / "run/checkpoints/best.ckpt")))
    with caplog.at_level("WARNING", "histolight"):
        from_own = Classifier.from_config(check_request(own), 1.0)  # its last layer too
    assert "left out (mean, std)" in caplog.text
    shutil.rmtree(folder)
    assert typed(compose_config(small)).model.kwargs == {}
    network = load_classifiers([tmp_path / "run"], 32)[0]
    assert network.input_size == (32 if form == "timm" else 42)
    assert network.ends_in_head()
    torch.testing.assert_close(from_own.backbone.state_dict(), network.backbone.state_dict(), rtol=0, atol=0)
    predictions = pd.read_csv(tmp_path / "run/predictions/val.csv", dtype={"id": str})
    rows = data.table.set_index("id")["row"][predictions["id"]].to_numpy()
    with torch.inference_mode():
        logits = network(torch.from_numpy(data.tiles.gather(rows)).permute(0, 3, 1, 2).float() / 255)
    np.testing.assert_allclose(logits.numpy(), predictions["logit"], rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("form", ["timm", "hf"])
def test_it_is_exported(form: str, small: list[str], tmp_path: Path) -> None:
    folder = tmp_path / "model"
    timm_folder(folder) if form == "timm" else dinov2_folder(folder)
    overrides = [*small, f"model.name={form}/local-dir:{folder}", "model.features=cls+mean", "model.weights=hub"]
    overrides += ["model.kwargs={mlp_layer: SwiGLUPacked, act_layer: SiLU}"] * (form == "timm")
    config = check_request(typed(compose_config(overrides)))
    tiles = np.random.default_rng(0).integers(0, 256, (9, 32, 32, 3), dtype=np.uint8)
    assert export_onnx(Classifier.from_config(config, 1.0).eval(), tiles, tmp_path / "model.onnx", {}) <= 1e-4
