from __future__ import annotations

from pathlib import Path

import pytest

from histolight import files, runs
from histolight.config.compose import compose_config, to_yaml, typed
from histolight.config.keys import run_config
from histolight.config.schema import tile_mpp
from histolight.errors import RequestError
from histolight.inference.predict import predict_config
from histolight.models.classifier import Classifier
from histolight.reports.model_card import model_card

TAKEN = ("data", "data.root", "data.mpp", "data.mpp_tolerance")


def _run(directory: Path, overrides: list[str]) -> Path:
    files.write_atomically(directory / "config.yaml", to_yaml(typed(compose_config(overrides))))
    runs.update_metrics(directory, status="completed")
    return directory


@pytest.mark.parametrize(
    ("source", "mpp"), [("kaggle", 0.972), ("pcam", 0.972), ("folder", None), ("slides", None), ("synthetic", None)]
)
def test_a_source_says_its_pixel_size_where_it_is_known(source: str, mpp: float | None) -> None:
    assert typed(compose_config([f"data={source}", "data.root=x"])).data.mpp == mpp


def test_the_pixel_size_is_kept_with_the_network() -> None:
    config = typed(
        compose_config(["data=folder", "data.root=x", "data.mpp=0.5", "model=resnet18", "data.image_size=32"])
    )
    config.model.weights = None
    classifier = Classifier.from_config(config, 1.0)
    assert classifier.mpp == 0.5
    assert classifier.hparams["mpp"] == 0.5


def test_the_model_card_says_the_pixel_size_or_that_it_is_unknown() -> None:
    known = {row[0].text: row[1].text for row in model_card({}, {}, {"data": {"mpp": 0.972}}).rows}
    unknown = {row[0].text: row[1].text for row in model_card({}, {}, {"data": {}}).rows}
    assert known["pixel size"].startswith("0.972 µm")
    assert unknown["pixel size"].startswith("Unknown")


@pytest.mark.parametrize("mpp", ["0.972", "1.05", "0.88"])
def test_tiles_of_nearly_the_same_pixel_size_are_taken(tmp_path: Path, mpp: str) -> None:
    run = _run(tmp_path / "run", ["data=kaggle", "data.root=x"])
    config = run_config(run, ["data=folder", "data.root=y", f"data.mpp={mpp}"], (), TAKEN, "predict")
    assert config.data.mpp == float(mpp)


@pytest.mark.parametrize("mpp", ["0.5", "1.1", "0.8"])
def test_tiles_of_another_pixel_size_are_refused(tmp_path: Path, mpp: str) -> None:
    run = _run(tmp_path / "run", ["data=kaggle", "data.root=x"])
    with pytest.raises(RequestError, match=rf"{mpp} µm a pixel and .*run was trained at 0.972"):
        run_config(run, ["data=folder", "data.root=y", f"data.mpp={mpp}"], (), TAKEN, "predict")


def test_an_unknown_pixel_size_is_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = _run(tmp_path / "run", ["data=kaggle", "data.root=x"])
    run_config(run, ["data=folder", "data.root=y"], (), TAKEN, "predict")
    assert caplog.text.count("pixel size of these tiles is unknown, and taken for the 0.972 µm") == 1
    caplog.clear()
    run_config(run, ["data.root=y"], (), TAKEN, "predict")
    run_config(_run(tmp_path / "other", ["data=folder", "data.root=x"]), ["data.root=y"], (), TAKEN, "predict")
    assert not caplog.text


def test_each_network_of_an_ensemble_is_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    first = _run(tmp_path / "first", ["data=folder", "data.root=x"])
    second = _run(tmp_path / "second", ["data=kaggle", "data.root=x"])
    tiles = ["data=folder", f"data.root={tmp_path}", "data.mpp=0.25"]
    assert predict_config([first], tiles).config.data.mpp == 0.25
    with pytest.raises(RequestError, match="0.25 µm a pixel and .*second was trained at 0.972"):
        predict_config([first, second], tiles)


def test_the_tolerance_can_be_widened_and_an_unknown_size_refuses_nothing(tmp_path: Path) -> None:
    run = _run(tmp_path / "run", ["data=kaggle", "data.root=x"])
    other = ["data=folder", "data.root=y"]
    assert run_config(run, [*other, "data.mpp=1.1", "data.mpp_tolerance=0.2"], (), TAKEN, "predict").data.mpp == 1.1
    assert run_config(run, other, (), TAKEN, "predict").data.mpp is None
    unknown = _run(tmp_path / "unknown", other)
    assert run_config(unknown, [*other, "data.mpp=0.25"], (), TAKEN, "predict").data.mpp == 0.25


def test_slides_are_cut_at_the_pixel_size_of_the_network(tmp_path: Path) -> None:
    assert tile_mpp(typed(compose_config(["data=slides", "data.root=x"])).data) == 0.972
    run = _run(tmp_path / "run", ["data=folder", "data.root=x", "data.mpp=0.5"])
    given = ["data=slides", "data.root=x"]
    assert tile_mpp(run_config(run, given, (), (*TAKEN, "slides.model_mpp"), "evaluate").data) == 0.5
    given.append("slides.model_mpp=0.25")
    assert tile_mpp(run_config(run, given, (), (*TAKEN, "slides.model_mpp"), "evaluate").data) == 0.25
