"""``histolight embed``: the features of the network itself, computed once, and read by trainings afterwards."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hub_models import LAYERS, timm_folder
from PIL import Image

from histolight.cli import main
from histolight.config.compose import compose_config, typed
from histolight.data.datamodule import TileDataModule
from histolight.data.prepare import prepare
from histolight.models.classifier import Classifier
from histolight.training.fit import check_request, train


@pytest.fixture
def request_words(small: list[str], tmp_path: Path) -> tuple[list[str], torch.nn.Module]:
    model = timm_folder(tmp_path / "model")
    kept = [word for word in small if word.startswith(("data", "trainer=")) and not word.startswith("data.cache")]
    kwargs = ",".join(f"{key}: {value}" for key, value in LAYERS.items())
    named = [f"model.name=timm/local-dir:{tmp_path / 'model'}", f"model.kwargs={{{kwargs}}}", "model.features=cls+mean"]
    return [*kept, f"data.cache={tmp_path / 'cache'}", *named, "model.weights=hub"], model


def test_the_table_holds_what_the_network_computes_even_after_a_kill(
    request_words, tile_folder: Path, tmp_path: Path, capsys, monkeypatch
) -> None:
    words, model = request_words
    out = tmp_path / "out"
    features, computed = Classifier.features, []

    def counted(self: Classifier, tiles: torch.Tensor) -> torch.Tensor:
        if len(tiles) == 8 and sum(computed) == 24 and "again" not in marks:
            raise KeyboardInterrupt
        computed.extend([len(tiles)] * (len(tiles) != 2))  # two show whether the network has features
        return features(self, tiles)

    marks: set[str] = set()
    monkeypatch.setattr(Classifier, "features", counted)
    assert main(["embed", *words, f"hydra.run.dir={out}"]) == 1
    assert "interrupted: continue with histolight embed data=folder" in capsys.readouterr().err
    assert not out.exists()
    marks.add("again")
    assert main(["embed", *words, f"hydra.run.dir={out}"]) == 0
    assert sum(computed) == 60  # each tile once
    table = pd.read_parquet(out / "features.parquet")
    assert list(table) == ["id", "label", "features"]
    assert table["id"].is_monotonic_increasing
    assert table["label"].value_counts().to_dict() == {0: 30, 1: 30}
    paths = [next(tile_folder.rglob(f"{Path(name).stem}.png")) for name in table["id"]]
    images = [np.asarray(Image.open(path)) for path in paths]
    pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 255
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in ([0.7, 0.6, 0.7], [0.2, 0.25, 0.2]))
    with torch.inference_mode():
        tokens = model.forward_features((pixels - mean) / std)
    expected = torch.cat([tokens[:, 0], tokens[:, 3:].mean(1)], 1)
    np.testing.assert_allclose(np.stack(table["features"]), expected, rtol=1e-4, atol=1e-5)
    about = json.loads((out / "embed.json").read_text())
    assert (about["tiles"], about["width"], about["model"]["features"]) == (60, 48, "cls+mean")


def test_a_training_reads_what_was_embedded(request_words, undrawn, tmp_path: Path, monkeypatch) -> None:
    words, _ = request_words
    assert main(["embed", *words, f"hydra.run.dir={tmp_path / 'out'}"]) == 0
    monkeypatch.setattr(TileDataModule, "_computed", lambda *_: pytest.fail("computed again"))
    options = ["model.freeze=backbone", "augment=none", "trainer.max_epochs=1"]
    config = check_request(typed(compose_config([*words, *options])))
    assert train(config, prepare(config.data), tmp_path / "run")["status"] == "completed"


def test_the_tiles_of_several_data_sets_are_embedded(request_words, tile_folder: Path, tmp_path: Path) -> None:
    words, _ = request_words
    root = tmp_path / "several.csv"
    root.write_text(f"source,root,name\nfolder,{tile_folder},a\nfolder,{tile_folder},b\n")
    kept = [word for word in words if not word.startswith(("data=", "data.root="))]
    assert main(["embed", *kept, "data=several", f"data.root={root}", f"hydra.run.dir={tmp_path / 'out'}"]) == 0
    table = pd.read_parquet(tmp_path / "out" / "features.parquet")
    assert table["id"].str[:2].value_counts().to_dict() == {"a/": 60, "b/": 60}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["optimizer.lr=1"], "optimizer.lr= has no place in histolight embed"),
        (["model.weights=null", "model.name=squeezenet1_1"], "has no features in front of one last layer"),
        (["data.root=/nowhere"], "/nowhere"),
        (["data=slides", "slides.stride=0"], "data.slides.stride=0 is out of range"),
        (["model.weights=/nowhere"], "model.weights=/nowhere is not a file"),
    ],
)
def test_a_wrong_request_is_one_line(words: list[str], message: str, small, tmp_path: Path, capsys) -> None:
    kept = [word for word in small if word.startswith(("data", "trainer=", "model"))]
    assert main(["embed", *kept, *words, f"hydra.run.dir={tmp_path / 'out'}"]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert message in lines[-1]
    assert not (tmp_path / "out").exists()
