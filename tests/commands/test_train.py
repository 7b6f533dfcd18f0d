from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zlib
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from omegaconf import OmegaConf
from PIL import Image

from histolight.cli import main
from histolight.config.request import training_request

TINY = ["model.name=shufflenet_v2_x0_5", "model.weights=null"]


def kaggle(root: Path, count: int = 24) -> Path:
    random = np.random.default_rng(0)
    (root / "train").mkdir(parents=True)
    lines = ["id,label"]
    for number in range(count):
        name = f"{zlib.crc32(bytes([number])):08x}"
        tile = random.integers(0, 256, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(tile).save(root / "train" / f"{name}.tif")
        lines.append(f"{name},{number % 2}")
    (root / "train_labels.csv").write_text("\n".join(lines) + "\n")
    return root


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("histolight:")]
    assert len(lines) == 1
    return lines[0]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data=kaggle", "data.root=/nowhere"], "data.root=/nowhere is not a folder"),
        (["optimizer.lr=abc"], "optimizer.lr=abc is of the wrong type: it must be a number"),
        (["optimizer.lrr=1"], "optimizer.lrr is not a key: did you mean optimizer.lr"),
        (["model.name=densnet121"], "model.name=densnet121 is not known: did you mean densenet121"),
        (["model.weights=missing.pth"], "model.weights=missing.pth is not a file"),
        (["data=pcam", "data.root=."], "camelyonpatch_level_2_split_train_x.h5"),
        (["run=nowhere"], "nowhere is not a folder"),
        (["run=."], ". is not a run directory: it has no metrics.json"),
        (["like=."], ". is not a run directory: it has no config.yaml"),
        (["run=x", "seed=1"], "run=DIR continues a run as it is"),
        (["trainer=gpu"], "PyTorch sees no GPU here"),
    ],
)
def test_a_wrong_request_is_one_line_status_2_and_leaves_nothing(
    overrides: list[str], message: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import torch

    if overrides == ["trainer=gpu"] and torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    assert main(["train", *overrides]) == 2
    assert message in one_line(capsys)
    assert not list(here.iterdir())


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("truncated", "damaged image: 1"),
        ("label", "12"),
        ("missing", "id without a tile: 1"),
        ("surplus", "tile without an id: 1"),
    ],
)
def test_damaged_data_are_one_line_status_2_and_listed_in_full(
    damage: str, message: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = kaggle(here / "tiles")
    tile = sorted((root / "train").iterdir())[3]
    if damage == "truncated":
        tile.write_bytes(tile.read_bytes()[:1000])
    elif damage == "label":
        (root / "train_labels.csv").write_text((root / "train_labels.csv").read_text().replace(",1\n", ",2\n"))
    elif damage == "missing":
        tile.unlink()
    else:
        shutil.copy(tile, tile.with_name("other.tif"))
    overrides = ["data=kaggle", f"data.root={root}", "data.image_size=32", f"data.cache={here / 'cache'}"]
    assert main(["train", *overrides, "model.weights=null", "hydra.run.dir=out"]) == 2
    line = one_line(capsys)
    assert message in line
    assert "data_problems.csv" in line
    problems = (here / "out" / "data_problems.csv").read_text().splitlines()
    assert problems[0] == "id,problem,detail"
    assert len(problems) == 1 + {"label": 12}.get(damage, 1)
    recorded = json.loads((here / "out" / "metrics.json").read_text())
    assert recorded["status"] == "failed"
    assert not [path for path in (here / "cache").rglob("*") if path.is_dir() and ".partial" in path.name]


@pytest.mark.usefixtures("undrawn")
def test_training_run_continue_and_like(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = kaggle(here / "täglich = neu (1)")
    small = ["data=kaggle", f"data.root={root}", "data.image_size=32", f"data.cache={here / 'cache'}", "trainer=cpu"]
    small += [*TINY, "data.batch_size=8", "trainer.max_epochs=1", "hydra.run.dir=first"]
    assert main(["train", *small]) == 0
    printed = capsys.readouterr().out
    assert "val AUROC 0." in printed
    assert "split by overlap, slides unknown" in printed
    assert "tensorboard --logdir first" in printed

    assert main(["train", *small]) == 2
    assert "first holds a run: continue it with run=first" in one_line(capsys)
    assert main(["train", "run=first"]) == 2
    assert "first is completed: nothing to continue" in one_line(capsys)

    before = (here / "first" / "predictions" / "val.csv").read_text()
    assert main(["train", "like=first", "hydra.run.dir=second"]) == 0
    assert (here / "second" / "predictions" / "val.csv").read_text() == before
    assert main(["train", "like=first", "seed=3", "hydra.run.dir=third"]) == 0
    assert (here / "third" / "predictions" / "val.csv").read_text() != before
    config = OmegaConf.load(here / "third" / "config.yaml")
    assert (config.seed, config.data.root, config.like) == (3, str(root), "first")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- a\n- b\n", "is damaged: it is not a configuration"),
        ("", "is damaged: it is not a configuration"),
        ("data: {source: synthetic, rot: 3}\n", "is damaged: Key 'rot' not in 'DataConfig'"),
        ("data: {batch_size: many}\n", "is damaged: Value 'many'"),
        ("data: {batch_size: -1}\n", "data.batch_size=-1 is out of range"),
        ("data: [\n", "is damaged: "),
    ],
)
@pytest.mark.parametrize("how", ["run", "like"])
def test_a_damaged_configuration_is_one_line(how: str, text: str, message: str, here: Path, capsys) -> None:
    (here / "run").mkdir()
    (here / "run" / "config.yaml").write_text(text)
    (here / "run" / "metrics.json").write_text('{"status": "interrupted"}')
    assert main(["train", f"{how}=run"]) == 2
    assert message in one_line(capsys)
    assert [path.name for path in here.iterdir()] == ["run"]


def test_the_configuration_of_a_saved_run_is_printed(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "run").mkdir()
    (here / "run" / "config.yaml").write_text("data: {source: synthetic, batch_size: 7}\n")
    assert main(["train", "--cfg", "job", "like=run", "seed=3"]) == 0
    printed = OmegaConf.create(capsys.readouterr().out)
    assert (printed.data.batch_size, printed.seed, printed.like) == (7, 3, "run")


def test_runs_named_in_the_same_second_have_a_folder_each(here: Path) -> None:
    now = datetime.now()
    taken = [f"again-{now + timedelta(seconds=second):%Y-%m-%d_%H-%M-%S}" for second in range(600)]
    for name in taken:
        Path("outputs/runs", name).mkdir(parents=True)
    for number in (2, 3):
        directory = training_request(["name=again"])[1]
        assert directory.name in [f"{name}-{number}" for name in taken]
        for name in taken:
            Path("outputs/runs", f"{name}-{number}").mkdir(exist_ok=True)  # the request took one


@pytest.mark.usefixtures("undrawn")
def test_an_interrupted_run_is_continued_by_its_folder(here: Path, capsys, monkeypatch) -> None:
    from histolight.models.classifier import Classifier

    root = kaggle(here / "tiles")
    original = Classifier.training_step

    def interrupt(self: Classifier, batch, batch_idx: int):
        if self.trainer.current_epoch == 1:
            raise KeyboardInterrupt
        return original(self, batch, batch_idx)

    monkeypatch.setattr(Classifier, "training_step", interrupt)
    small = ["data=kaggle", f"data.root={root}", "data.image_size=32", f"data.cache={here / 'cache'}", "trainer=cpu"]
    small += [*TINY, "data.batch_size=8", "trainer.max_epochs=2", "hydra.run.dir=cut"]
    assert main(["train", *small]) == 1
    assert "continue with histolight train run=cut" in one_line(capsys)
    monkeypatch.setattr(Classifier, "training_step", original)
    assert main(["train", "run=cut"]) == 0
    assert json.loads((here / "cut" / "metrics.json").read_text())["epochs"] == 2


@pytest.mark.slow
def test_two_processes_train_one_model_and_count_every_tile_once(here: Path) -> None:
    """DDP over gloo through the console script: Lightning starts the second process with the same command."""
    import pandas as pd
    from sklearn.metrics import roc_auc_score

    root = kaggle(here / "tiles", count=35)
    script = Path(sys.executable).with_name("histolight")
    small = ["data=kaggle", f"data.root={root}", "data.image_size=32", f"data.cache={here / 'cache'}", "trainer=cpu"]
    small += [*TINY, "data.batch_size=4", "trainer.max_epochs=1"]
    command = [str(script), "train", *small, "trainer.devices=2", "trainer.strategy=ddp"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        command, cwd=here, capture_output=True, text=True, timeout=240, env=environment, check=False
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("val AUROC") == 1
    (run,) = (here / "outputs" / "runs").iterdir()
    recorded = json.loads((run / "metrics.json").read_text())
    table = pd.read_csv(run / "predictions" / "val.csv")
    assert len(table) == 7
    assert table["id"].is_unique
    assert recorded["val"]["auroc"]["value"] == pytest.approx(roc_auc_score(table["label"], table["score"]))
