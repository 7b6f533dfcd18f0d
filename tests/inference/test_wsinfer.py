from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import histolight.inference.wsinfer
from histolight.data.datamodule import to_floats
from histolight.errors import HistolightError, RequestError
from histolight.inference.wsinfer import TwoLogits, export_wsinfer
from histolight.models.classifier import Classifier

SIZE = 32
pytestmark = pytest.mark.filterwarnings(
    "ignore:.torch.jit.load:FutureWarning", "ignore:.torch.jit.load:DeprecationWarning"
)
TILES = np.random.default_rng(0).integers(0, 255, (5, SIZE, SIZE, 3), dtype=np.uint8)


def network(mpp: float | None = 0.972, stain: str = "none", **model) -> Classifier:
    torch.manual_seed(0)
    fields = {"name": "shufflenet_v2_x0_5", "weights": None, "normalize": "imagenet", **model}
    options = {"image_size": SIZE, "mpp": mpp, "stain": stain}
    classifier = Classifier(model=fields, optimizer={}, scheduler={}, loss={}, **options).requires_grad_(False)
    for module in classifier.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = (
                None  # the statistics of one pass replace the initial ones, with which all logits are alike
            )
    logits = classifier(torch.rand(64, 3, SIZE, SIZE))
    classifier.backbone.get_submodule(classifier.head).weight /= logits.std()
    return classifier.eval()


@pytest.mark.parametrize(
    "model", [{}, {"input_size": 48}, {"input_size": 48, "interpolation": "bicubic"}, {"pooling": "centre"}]
)
def test_the_softmax_of_the_file_is_the_score_of_the_network(tmp_path: Path, model: dict) -> None:
    classifier = network(**model)
    assert export_wsinfer(classifier, TILES, tmp_path, None) < 1e-5
    loaded = torch.jit.load(tmp_path / "torchscript_model.pt")
    for count in (1, 5):  # any number of tiles, as WSInfer gives them: (N, 3, S, S) from ToTensor
        values = torch.from_numpy(TILES[:count]).permute(0, 3, 1, 2).float() / 255
        found = loaded(values)
        assert found.shape == (count, 2)
        expected = classifier(to_floats(torch.from_numpy(TILES[:count]), "none")).sigmoid()
        torch.testing.assert_close(found.softmax(1)[:, 1], expected, atol=1e-5, rtol=0)
    assert expected.std() > 0.01


def test_the_configuration_is_the_one_that_wsinfer_validates(tmp_path: Path) -> None:
    export_wsinfer(network(), TILES, tmp_path, None)
    config = json.loads((tmp_path / "config.json").read_text())
    # The fields that wsinfer-zoo's schema requires, with its types.
    assert config["num_classes"] == len(config["class_names"]) == 2
    assert (config["patch_size_pixels"], config["spacing_um_px"]) == (SIZE, 0.972)
    assert config["architecture"] == "shufflenet_v2_x0_5"
    assert [transform["name"] for transform in config["transform"]] == ["Resize", "ToTensor"]
    assert {path.name for path in tmp_path.iterdir()} == {"config.json", "torchscript_model.pt"}


def test_a_given_pixel_size_is_written_and_an_unknown_one_asked_for(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"give slides.model_mpp=MICRONS"):
        export_wsinfer(network(mpp=None), TILES, tmp_path, None)
    assert not list(tmp_path.iterdir())
    export_wsinfer(network(mpp=None), TILES, tmp_path, 0.5)
    assert json.loads((tmp_path / "config.json").read_text())["spacing_um_px"] == 0.5


def test_stain_normalisation_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"data.stain=macenko, which WSInfer's format can't express"):
        export_wsinfer(network(stain="macenko"), TILES, tmp_path, None)
    assert not list(tmp_path.iterdir())


def test_a_file_that_differs_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Shifted(TwoLogits):
        def forward(self, tiles: torch.Tensor) -> torch.Tensor:
            return super().forward(tiles) + torch.tensor([0.0, 0.1])

    monkeypatch.setattr(histolight.inference.wsinfer, "TwoLogits", Shifted)
    with pytest.raises(HistolightError, match="nothing was written"):
        export_wsinfer(network(), TILES, tmp_path, None)
    assert not list(tmp_path.iterdir())
