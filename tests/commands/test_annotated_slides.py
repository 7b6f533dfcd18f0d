"""From annotated slides to a tile model, and back on the slides, by the command line alone."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from made_slides import Ellipse, MadeSlide, annotate
from sklearn.metrics import roc_auc_score

from histolight.cli import main as cli
from histolight.data.sources.slides import places

SIZE = 32
NETWORK = ["model.name=shufflenet_v2_x0_5", "model.weights=null", "trainer=cpu", "trainer.max_epochs=1", "logger=csv"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("annotated")
    (place / "slides").mkdir()
    for number in range(5):
        tumour = Ellipse(180 + 10 * number, 150, 80, 60)
        tissue = Ellipse(200, 150, 190, 140)
        MadeSlide((400, 300), [tissue], [tumour] * (number < 3), 0.972, number).write(
            place / "slides" / f"s{number}.tif", levels=1, compression="zlib"
        )
        if number < 3:
            annotate(place / "slides" / f"s{number}.geojson", tumour)
    (place / "labels.csv").write_text("slide,label\ns3,0\ns4,0\n")
    assert cli(["train", *tiles(place), *NETWORK, f"hydra.run.dir={place / 'run'}"]) == 0
    return place


def tiles(place: Path) -> list[str]:
    words = ["data=slides", f"data.root={place / 'slides'}", f"slides.labels={place / 'labels.csv'}"]
    return [*words, f"data.cache={place / 'cache'}", f"data.image_size={SIZE}", "data.batch_size=16", *DRAWN]


DRAWN = ["slides.tiles_per_slide=24"]


def test_a_training_splits_by_slide_and_keeps_where_its_tiles_lie(place: Path) -> None:
    splits = pd.read_csv(place / "run" / "splits.csv")
    assert splits.groupby("group")["split"].nunique().max() == 1
    assert splits.groupby("group").size().tolist() == [24] * 5
    assert json.loads((place / "run" / "metrics.json").read_text())["split"] == "slide"
    assert (places(splits["id"]).max() < [400, 300]).all()


@pytest.mark.slow
def test_two_commands_lead_to_a_heat_map(place: Path, tmp_path: Path) -> None:
    request = ["predict", f"run={place / 'run'}", "data=slides", f"data.root={place / 'slides'}"]
    assert cli([*request, f"hydra.run.dir={tmp_path / 'out'}"]) == 0
    assert (tmp_path / "out" / "slides" / "s0" / "heatmap.png").is_file()
    assert pd.read_csv(tmp_path / "out" / "slides.csv")["tile_mpp"].tolist() == [0.972] * 5


def test_an_evaluation_measures_all_tiles_and_whole_slides(place: Path, tmp_path: Path, capsys) -> None:
    request = ["evaluate", f"run={place / 'run'}", *tiles(place)[:5], f"hydra.run.dir={tmp_path / 'out'}"]
    assert cli(request) == 0
    assert "test: AUROC over 5 slides, 3 with tumour: " in capsys.readouterr().out
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    predictions = pd.read_csv(tmp_path / "out" / "predictions" / "test.csv")
    assert len(predictions) > 5 * 24
    score = {
        slide: np.sort(own["score"])[::-1][: max(1, round(len(own) / 100))].mean()
        for slide, own in predictions.groupby("group")
    }
    expected = roc_auc_score([1, 1, 1, 0, 0], [score[f"s{number}"] for number in range(5)])
    assert metrics["slides_auroc"]["test"]["value"] == pytest.approx(expected)
    assert metrics["test"]["auroc"]["value"] == pytest.approx(roc_auc_score(predictions["label"], predictions["score"]))
    assert (tmp_path / "out" / "figures" / "test_slides.png").is_file()
    assert "beside it the score of each tile" in (tmp_path / "out" / "report.html").read_text()


def test_drawn_tiles_give_no_figure_over_slides(place: Path, tmp_path: Path, undrawn: None, capsys) -> None:
    others = [*tiles(place)[:5], "slides.tiles_per_slide=20"]
    assert cli(["evaluate", f"run={place / 'run'}", *others, f"hydra.run.dir={tmp_path / 'out'}"]) == 0
    assert (
        "no AUROC over slides: the score of a slide is of all its tiles, and these were drawn"
        in capsys.readouterr().out
    )
    assert json.loads((tmp_path / "out" / "metrics.json").read_text())["slides_auroc"] == {"test": None}


def test_explore_shows_where_the_tiles_lie(place: Path, tmp_path: Path) -> None:
    assert cli(["explore", *tiles(place), f"hydra.run.dir={tmp_path / 'out'}"]) == 0
    table = pd.read_csv(tmp_path / "out" / "places.csv")
    assert table.columns.tolist() == ["id", "slide", "label", "x", "y"]
    inside = ((table["x"] - 200) / 190) ** 2 + ((table["y"] - 150) / 140) ** 2
    assert inside.max() < 1.4  # the centre of a tile holds tissue
    assert "Where the tiles lie" in (tmp_path / "out" / "report.html").read_text()
