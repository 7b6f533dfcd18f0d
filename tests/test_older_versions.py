"""Runs and a sweep made by commit 1b6ccd3 load, compare and continue.

The archive holds 32 tiles of 32x32, two runs on them (one interrupted after its first epoch) and a sweep of two points
on synthetic tiles, with p4m_densenet, its backbone frozen at ternary weights, which compress well.
"""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import histolight
from histolight.config.compose import saved_config

ARCHIVE = Path(__file__).parent / "fixtures" / "made_by_1b6ccd3.tar.xz"
MADE_IN = "/srv/histolight"  # the folder stands in every saved configuration
SWEEP = [
    "data=synthetic",
    "data.limit=60",
    "model=p4m_densenet",
    "model.weights=weights.pth",
    "model.freeze=backbone",
    "augment=none",
    "trainer=cpu",
    "data.image_size=32",
    "data.batch_size=8",
    "data.cache=cache",
    "trainer.max_epochs=1",
    "name=old",
    "hydra.sweep.dir=sweeps/old",
]


@pytest.fixture
def old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(tmp_path, filter="data")
    for path in tmp_path.rglob("config.yaml"):
        path.write_text(path.read_text().replace(MADE_IN, str(tmp_path)))
    return tmp_path


def test_a_run_loads_and_its_network_gives_its_predictions(old: Path) -> None:
    run = histolight.load_run("runs/completed")
    assert run.metrics["status"] == "completed"
    assert (run.config.model.name, run.config.data.mpp) == ("p4m_densenet", None)
    predictions = run.predictions("val")
    tiles = np.stack([np.asarray(Image.open(next(old.glob(f"tiles/*/{name}.png")))) for name in predictions["id"]])
    logits = run.classifier()(torch.from_numpy(tiles).permute(0, 3, 1, 2) / 255)
    np.testing.assert_allclose(logits, predictions["logit"], rtol=1e-3, atol=1e-4)


def _as_before_the_key(run: Path, split: str | None) -> None:
    """Make a saved configuration one of a version without ``data.split``, of a run that recorded this split."""
    lines = (run / "config.yaml").read_text().splitlines()
    (run / "config.yaml").write_text("\n".join(line for line in lines if not line.startswith("  split:")) + "\n")
    metrics = json.loads((run / "metrics.json").read_text())
    (run / "metrics.json").write_text(json.dumps(metrics | {"split": split}))


@pytest.mark.parametrize(
    ("recorded", "split"), [("random", "random"), ("slide", "auto"), ("given", "auto"), (None, "auto")]
)
def test_a_run_from_before_data_split_keeps_the_split_that_it_had(old: Path, recorded: str | None, split: str) -> None:
    run = Path("runs/interrupted")
    assert "split:" not in (run / "config.yaml").read_text()
    _as_before_the_key(run, recorded)
    assert saved_config(run).data.split == split


@pytest.mark.slow
def test_an_interrupted_random_run_from_before_data_split_continues_with_its_tiles(old: Path) -> None:
    words = [
        "data=folder",
        "data.root=tiles",
        "data.image_size=32",
        "data.batch_size=8",
        "data.cache=cache",
        "trainer=cpu",
    ]
    words += ["data.split=random", "model=p4m_densenet", "augment=none", "trainer.max_epochs=1", "hydra.run.dir=random"]
    run = histolight.train(words)
    before = (Path("random") / "splits.csv").read_text()
    assert run.metrics["split"] == "random"
    _as_before_the_key(Path("random"), "random")
    metrics = json.loads(Path("random/metrics.json").read_text())
    Path("random/metrics.json").write_text(json.dumps(metrics | {"status": "interrupted"}))
    assert histolight.train(["run=random"]).metrics["split"] == "random"
    assert (Path("random") / "splits.csv").read_text() == before


def test_a_sweep_compares(old: Path) -> None:
    comparison = histolight.compare("sweeps/old")
    assert len(comparison.rows) == 2
    assert comparison.not_ranked == []


@pytest.mark.slow
def test_an_interrupted_run_continues_to_its_end(old: Path) -> None:
    run = histolight.train(["run=runs/interrupted"])
    assert run.metrics["status"] == "completed"
    assert run.metrics["epochs"] == 12
    assert histolight.evaluate(run, directory="evaluation").metrics["split"] == "slide"


@pytest.mark.slow
def test_a_sweep_goes_on_with_the_points_that_it_lacks(old: Path) -> None:
    before = {path: path.read_bytes() for path in Path("sweeps/old").glob("*/metrics.json")}
    points = histolight.sweep([*SWEEP, "optimizer.lr=0.001,0.01,0.1"])
    assert [point.directory.name for point in points] == ["0_lr=0.001", "1_lr=0.01", "2_lr=0.1"]
    assert [point.metrics["status"] for point in points] == ["completed"] * 3, points[-1].metrics.get("reason")
    assert all(path.read_bytes() == content for path, content in before.items())
    index = json.loads(Path("sweeps/old/sweep.json").read_text())
    assert len(index["points"]) == 3
