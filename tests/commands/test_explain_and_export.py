"""Explain and export from the command line: one tiny training, and every kind of bad input."""

from __future__ import annotations

import contextlib
import io
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from histolight import cli, runs
from histolight.config.compose import compose_config, typed
from histolight.data.prepare import prepare
from histolight.inference import export
from histolight.training.fit import check_request, train

COMMANDS = ["explain", "export"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with tiles and a completed run."""
    place = tmp_path_factory.mktemp("place")
    random = np.random.default_rng(0)
    for number in range(40):
        tile = random.normal(170 - 45 * (number % 2), 40, (64, 64, 3)).clip(0, 255).astype(np.uint8)
        (place / "tiles" / str(number % 2)).mkdir(parents=True, exist_ok=True)
        Image.fromarray(tile).save(place / "tiles" / str(number % 2) / f"{number}.png")
    overrides = ["data=folder", f"data.root={place}/tiles", f"data.cache={place}/cache", "data.image_size=64"]
    overrides += ["data.test_fraction=0.2", "data.batch_size=8", "model.name=shufflenet_v2_x0_5"]
    overrides += ["model.weights=null"]
    config = check_request(typed(compose_config([*overrides, "trainer=cpu", "trainer.max_epochs=1"])))
    train(config, prepare(config.data), place / "run", progress=False)
    return place


@pytest.fixture
def run(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the run, in the working directory."""
    monkeypatch.chdir(tmp_path)
    return shutil.copytree(place / "run", tmp_path / "my run")


@pytest.mark.parametrize("part", ["val", "test"])
def test_explain_writes_page_pictures_and_tables(run: Path, part: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["explain", f"run={run}", "tiles=2", f"part={part}"]) == 0
    (place,) = Path("outputs/explain").iterdir()
    assert re.fullmatch(r"my-run-\d{4}-.*", place.name)
    printed = capsys.readouterr().out
    assert "which is 25.0 % of the tile" in printed
    assert str(place / "report.html") in printed
    table = pd.read_csv(place / "attributions.csv", dtype={"id": str})
    predictions = pd.read_csv(run / "predictions" / f"{part}.csv", dtype={"id": str})
    assert set(table["id"]) == set(predictions["id"])
    assert table["share"].dropna().between(0, 1).all()
    found = json.loads((place / "explain.json").read_text())
    assert found["centre_share"]["all"]["value"] == pytest.approx(table.loc[table["sampled"], "share"].mean())
    assert found["area_share"] == 0.25
    page = (place / "report.html").read_text()
    assert not re.search(r"https?:|<script", page)
    for name in ("surest_right", "closest", "centre"):
        assert Image.open(place / "figures" / f"{name}.png").size[0] > 500
    assert not list(place.glob("**/.*"))[1:]  # nothing but the lock


@pytest.mark.slow
def test_export_prints_the_parity(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["export", f"run={run}", "hydra.run.dir=out"]) == 0
    printed = capsys.readouterr().out
    difference = re.search(r"8 validation tiles: score differs from torch by at most (\S+)", printed)
    assert difference is not None
    assert float(difference[1]) <= 1e-4
    assert [path.name for path in Path("out").iterdir() if path.name != ".histolight.lock"] == ["model.onnx"]


def test_export_for_wsinfer_writes_the_model_and_its_configuration(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    request = ["export", f"run={run}", "format=wsinfer", "slides.model_mpp=0.972", "hydra.run.dir=out"]
    assert cli.main(request) == 0
    assert "8 validation tiles: score differs from torch by at most" in capsys.readouterr().out
    names = {path.name for path in Path("out").iterdir() if path.name != ".histolight.lock"}
    assert names == {"torchscript_model.pt", "config.json"}
    assert json.loads(Path("out/config.json").read_text())["spacing_um_px"] == 0.972


def test_what_export_cannot_write_is_refused(run: Path) -> None:
    assert "format=x is not known: valid: onnx, wsinfer" in refused("export", f"run={run}", "format=x")
    assert "give slides.model_mpp=MICRONS" in refused("export", f"run={run}", "format=wsinfer")
    assert "is for format=wsinfer" in refused("export", f"run={run}", "slides.model_mpp=1")


def refused(command: str, *overrides: str) -> str:
    """Run a command that is refused, and leaves nothing behind; return its line."""
    before = sorted(Path().rglob("*"))
    with contextlib.redirect_stderr(io.StringIO()) as error:
        assert cli.main([command, *overrides]) == 2
    (line,) = [line for line in error.getvalue().splitlines() if line.startswith("histolight: ")]
    assert sorted(Path().rglob("*")) == before
    return line


@pytest.mark.parametrize("command", COMMANDS)
def test_a_wrong_request_is_refused(command: str, run: Path) -> None:
    assert "run= is missing" in refused(command)
    assert f"rum is not a key of histolight {command}: did you mean run" in refused(command, "rum=x")
    assert "nowhere is not a folder" in refused(command, "run=nowhere")
    assert "is not a run directory" in refused(command, "run=.")
    line = refused(command, f"run={run}", f"hydra.run.dir={run}")
    assert "holds files already (" in line
    Path("file").touch()
    assert "file can't be used (Not a directory)" in refused(command, f"run={run}", "hydra.run.dir=file")


@pytest.mark.parametrize("command", COMMANDS)
def test_an_unfinished_or_damaged_run_is_refused(command: str, run: Path) -> None:
    runs.update_metrics(run, status="interrupted")
    assert "is interrupted, not completed: continue it" in refused(command, f"run={run}")
    runs.update_metrics(run, status="completed")
    (run / "predictions" / "val.csv").write_text("id\nx\n")
    assert "val.csv has no column group, label, logit, score" in refused(command, f"run={run}")
    (run / "predictions" / "val.csv").unlink()
    assert "val.csv is missing" in refused(command, f"run={run}")


@pytest.mark.parametrize("command", COMMANDS)
def test_tiles_that_changed_or_are_gone_are_refused(command: str, place: Path, run: Path) -> None:
    tiles = shutil.copytree(place / "tiles", Path("tiles"))
    text = (run / "config.yaml").read_text().replace(f"{place}/tiles", str(tiles.resolve()))
    (run / "config.yaml").write_text(text.replace(f"{place}/cache", str(place / "other cache")))
    changed = tiles / "0" / "0.png"
    Image.fromarray(np.full((64, 64, 3), 7, dtype=np.uint8)).save(changed)
    assert f"({tiles.resolve()}) are no longer those that" in refused(command, f"run={run}")
    changed.write_bytes(b"no picture")
    assert "bytes that are not TIFF, PNG, JPEG, BMP or WebP" in refused(command, f"run={run}")
    shutil.rmtree(tiles)
    assert "is not a folder" in refused(command, f"run={run}")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("part=train", "part=train is not known: valid: test, val"),
        ("tiles=0", "tiles=0 is out of range: it is a whole number from 1 to 64"),
        ("tiles=many", "tiles=many is out of range"),
    ],
)
def test_what_explain_cannot_show_is_refused(override: str, message: str, run: Path) -> None:
    assert message in refused("explain", f"run={run}", override)


def test_a_part_that_the_run_lacks_is_refused(run: Path) -> None:
    metrics = json.loads((run / "metrics.json").read_text())
    del metrics["test"]
    (run / "metrics.json").write_text(json.dumps(metrics))
    assert "has no test part" in refused("explain", f"run={run}", "part=test")


def test_export_without_its_extra_names_it(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "PACKAGES", ("onnx_that_is_not_there",))
    line = refused("export", f"run={run}")
    assert "needs onnx_that_is_not_there: install histolight with its extra, histolight[onnx]" in line


def test_tiles_that_moved_are_found_where_data_root_says(
    place: Path, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = (run / "config.yaml").read_text().replace(f"root: {place}/tiles", "root: /gone")
    (run / "config.yaml").write_text(config)
    shutil.copytree(place / "tiles", "moved")
    commands = {"explain": ["tiles=1"], "export": ["format=wsinfer", "slides.model_mpp=1"]}
    for command, own in commands.items():
        request = [f"run={run}", *own, f"hydra.run.dir={command}"]
        assert "data.root=/gone is not a folder; give the one that holds the tiles" in refused(command, *request)
        assert cli.main([command, *request, "data.root=moved"]) == 0
    assert "8 validation tiles: score differs" in capsys.readouterr().out
    Image.new("RGB", (64, 64)).save("moved/0/0.png")
    line = refused("explain", f"run={run}", "data.root=moved")
    assert f"(moved) are no longer those that {run} was trained on: restore them" in line
