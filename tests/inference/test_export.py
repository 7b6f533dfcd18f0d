from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from PIL import Image

import histolight.inference.export
from histolight.data.datamodule import to_floats
from histolight.errors import HistolightError, RequestError
from histolight.inference.export import check_packages, describe, export_onnx
from histolight.models.classifier import Classifier

SIZE = 32
METRICS = {
    "threshold": 0.25,
    "split": "slide",
    "data_fingerprint": "abc",
    "val": {"auroc": {"value": 0.9, "low": None}},
}


def classifier(name: str) -> Classifier:
    """A network of random weights whose logits differ from tile to tile by about one."""
    torch.manual_seed(0)
    network = Classifier(model={"name": name, "weights": None}, optimizer={}, scheduler={}, loss={}, image_size=SIZE)
    tiles = torch.rand(64, 3, SIZE, SIZE)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None  # the statistics of one pass replace the initial ones
    with torch.no_grad():
        network(tiles)
        logits = network.eval()(tiles)
        layer = network.backbone.get_submodule(network.head)
        layer.weight /= logits.std()
        layer.bias -= (logits / logits.std()).mean()
    return network.requires_grad_(False)


def tiny() -> Classifier:
    """A network that is exported in a second."""
    network = classifier("resnet18")
    network.backbone, network.head = torch.nn.Sequential(torch.nn.Conv2d(3, 1, SIZE), torch.nn.Flatten()), "1"
    return network.eval()


# The exporter alone takes ten seconds to start; what it is asked for is tested quickly in commands/ and reliability/.
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def tiles() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (53, SIZE, SIZE, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def exported(tiles: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("export") / "model.onnx"
    network = classifier("resnet18")
    assert export_onnx(network, tiles, path, describe(network, "my run", METRICS)) <= 1e-5
    return path


# benchmarks/export.py exports every network of conf/model, which takes minutes.
def test_a_network_of_another_family_is_exported_with_parity(tiles: np.ndarray, tmp_path: Path) -> None:
    assert export_onnx(classifier("convnext_tiny"), tiles, tmp_path / "model.onnx", {}) <= 1e-4


@pytest.mark.parametrize("count", [1, 2, 7, 53])
def test_any_number_of_tiles_gives_torchs_scores(count: int, exported: Path, tiles: np.ndarray) -> None:
    session = onnxruntime.InferenceSession(exported, providers=["CPUExecutionProvider"])
    score, logit, features = session.run(["score", "logit", "features"], {"tiles": tiles[:count]})
    with torch.inference_mode():
        pixels = torch.from_numpy(tiles[:count]).permute(0, 3, 1, 2).float() / 255
        expected = classifier("resnet18")(pixels).numpy()
        backbone = classifier("resnet18").backbone
        backbone.fc = torch.nn.Identity()
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
        np.testing.assert_allclose(features, backbone((pixels - mean) / std), atol=1e-4)
    assert score.shape == logit.shape == (count,)
    np.testing.assert_allclose(logit, expected, atol=1e-4)
    np.testing.assert_allclose(score, 1 / (1 + np.exp(-expected)), atol=1e-5)
    if count == 53:
        assert np.std(logit) > 0.1


def test_the_file_says_what_it_is(exported: Path) -> None:
    model = onnx.load(exported)
    onnx.checker.check_model(model)
    about = {entry.key: entry.value for entry in model.metadata_props}
    assert json.loads(about["classes"]) == ["benign", "tumour"]
    np.testing.assert_allclose(json.loads(about["mean"]), [0.485, 0.456, 0.406], rtol=1e-6)
    np.testing.assert_allclose(json.loads(about["std"]), [0.229, 0.224, 0.225], rtol=1e-6)
    assert (about["run"], about["threshold"], about["image_size"]) == ("my run", "0.25", "32")
    assert about["mpp"] == "null"  # the network was built without a pixel size
    assert json.loads(about["auroc"]) == {"val": {"value": 0.9, "low": None}}
    assert json.loads(about["versions"])["torch"] == torch.__version__.partition("+")[0]
    assert about["use"].startswith("research only")


def test_a_difference_is_refused_and_leaves_nothing(
    tiles: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = histolight.inference.export.TileScorer.forward

    def other(self: histolight.inference.export.TileScorer, tiles: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        score, logit = original(self, tiles)
        return (score, logit) if torch.compiler.is_compiling() else (score + 2e-4, logit)

    monkeypatch.setattr(histolight.inference.export.TileScorer, "forward", other)
    with pytest.raises(HistolightError, match=r"differs from torch by 2.0e-04 in probability, above 1e-04"):
        export_onnx(tiny(), tiles, tmp_path / "model.onnx", {})
    assert list(tmp_path.iterdir()) == []


def test_a_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxscript" else found(name))
    with pytest.raises(RequestError, match=r"needs onnxscript: install histolight with its extra, histolight\[onnx\]"):
        check_packages()


def test_the_example_of_the_documentation_needs_neither_torch_nor_histolight(
    exported: Path, tiles: np.ndarray, tmp_path: Path
) -> None:
    text = (Path(__file__).resolve().parents[2] / "docs" / "onnx.md").read_text()
    (example,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    (tmp_path / "score.py").write_text(example)
    for number in range(2):
        Image.fromarray(tiles[number]).save(tmp_path / f"{number}.tif")
    # A module that is None in sys.modules can't be imported.
    code = (
        "import runpy, sys; sys.modules.update(dict.fromkeys(('torch', 'histolight', 'lightning', 'onnx')));"
        "sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    command = [sys.executable, "-c", code, "score.py", str(exported), "0.tif", "1.tif"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    with torch.inference_mode():
        scores = classifier("resnet18")(torch.from_numpy(tiles[:2]).permute(0, 3, 1, 2).float() / 255).sigmoid()
    expected = [f"{n}.tif: {s:.4f}, {'tumour' if s > 0.25 else 'benign'}" for n, s in enumerate(scores.tolist())]
    assert done.stdout.splitlines() == expected


def test_reinhards_normalisation_is_inside_and_macenkos_is_refused(tiles: np.ndarray, tmp_path: Path) -> None:
    network = tiny()
    network.stain = "reinhard"
    path = tmp_path / "model.onnx"
    assert export_onnx(network, tiles, path, describe(network, "run", METRICS)) <= 1e-4
    about = {entry.key: entry.value for entry in onnx.load(path).metadata_props}
    assert about["stain"] == "reinhard"
    plain = tiny()
    with torch.inference_mode():
        difference = network(to_floats(torch.from_numpy(tiles), "reinhard")) - plain(
            to_floats(torch.from_numpy(tiles), "none")
        )
    assert difference.abs().max() > 0.01
    network.stain = "macenko"
    with pytest.raises(RequestError, match=r"data.stain=macenko, and ONNX has no eigenvectors: export a run with"):
        export_onnx(network, tiles, tmp_path / "other.onnx", {})
    assert not (tmp_path / "other.onnx").exists()
