"""``model.input_size``: tiles are enlarged in front of the network, whoever asks for a logit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from histolight.config.compose import compose_config, typed
from histolight.data.prepare import prepare
from histolight.errors import RequestError
from histolight.inference.export import export_onnx
from histolight.inference.networks import load_classifiers
from histolight.models.classifier import Classifier
from histolight.training.fit import check_request, train

SIZE = 32


def classifier(**model: object) -> Classifier:
    torch.manual_seed(0)
    sections = {"model": {"name": "shufflenet_v2_x0_5", "weights": None, **model}}
    network = Classifier(**sections, optimizer={}, scheduler={}, loss={}, image_size=SIZE)
    with torch.no_grad():
        for _ in range(20):  # batch-norm statistics, or all logits would be alike
            network(torch.rand(32, 3, SIZE, SIZE))
    return network.eval()


def enlarged_by_pillow(tile: np.ndarray, size: int, kernel: str) -> np.ndarray:
    channels = [Image.fromarray(channel).resize((size, size), Image.Resampling[kernel.upper()]) for channel in tile]
    return np.stack([np.asarray(channel) for channel in channels]).clip(0, 1)


@pytest.mark.parametrize(("size", "kernel"), [(48, "bilinear"), (64, "bilinear"), (97, "bilinear"), (97, "bicubic")])
def test_the_network_sees_what_pillow_enlarges(size: int, kernel: str) -> None:
    tiles = np.random.default_rng(0).random((5, 3, SIZE, SIZE), dtype=np.float32)
    large = torch.from_numpy(np.stack([enlarged_by_pillow(tile, size, kernel) for tile in tiles]))
    network = classifier(input_size=size, interpolation=kernel)
    with torch.inference_mode():
        expected = network.backbone((large - network.mean) / network.std).squeeze(1)
        torch.testing.assert_close(network(torch.from_numpy(tiles)), expected, rtol=1e-4, atol=1e-5)
        assert (network(torch.from_numpy(tiles)) - classifier()(torch.from_numpy(tiles))).abs().max() > 1e-3
        features = network.features(torch.from_numpy(tiles))
        torch.testing.assert_close(network(features), expected, rtol=1e-4, atol=1e-5)
    assert network.ends_in_head()


@pytest.mark.usefixtures("undrawn")
def test_a_checkpoint_keeps_it_and_its_predictions_and_it_costs_what_it_costs(small: list[str], tmp_path: Path) -> None:
    metrics = {}
    for size in ("null", "64"):
        overrides = [*small, f"model.input_size={size}", "trainer.max_epochs=1"]
        config = check_request(typed(compose_config(overrides)))
        data = prepare(config.data)
        metrics[size] = train(config, data, tmp_path / size)
    assert metrics["64"]["flops_per_tile"] > 3.5 * metrics["null"]["flops_per_tile"]
    network = load_classifiers([tmp_path / "64"], SIZE)[0]
    assert (network.image_size, network.input_size) == (SIZE, 64)
    predictions = pd.read_csv(tmp_path / "64/predictions/val.csv", dtype={"id": str})
    rows = data.table.set_index("id")["row"][predictions["id"]].to_numpy()
    with torch.inference_mode():
        logits = network(torch.from_numpy(data.tiles.gather(rows)).permute(0, 3, 1, 2).float() / 255)
    np.testing.assert_allclose(logits.numpy(), predictions["logit"], rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_it_is_exported(tmp_path: Path) -> None:
    tiles = np.random.default_rng(0).integers(0, 256, (9, SIZE, SIZE, 3), dtype=np.uint8)
    assert export_onnx(classifier(input_size=48), tiles, tmp_path / "model.onnx", {}) <= 1e-4


@pytest.mark.parametrize(
    ("size", "message"),
    [
        ("64", "model.input_size=64 is smaller than the tiles, data.image_size=96"),
        ("5000", "model.input_size=5000 is out of range: it must be at least 32 and at most 1024"),
        ("large", "model.input_size=large is of the wrong type: it must be a whole number"),
    ],
)
def test_sizes_that_enlarge_nothing_are_refused(size: str, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        typed(compose_config([f"model.input_size={size}"]))
