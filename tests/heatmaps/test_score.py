from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import shapely
import shapely.affinity
from made_slides import Ellipse, MadeSlide, tumour_share
from scipy.special import logit
from sklearn.metrics import roc_auc_score

from histolight.heatmaps.score import SlideSettings, score_slides, slides_table

SETTINGS = SlideSettings(
    mpp=None,
    mpp_tolerance=0.1,
    model_mpp=0.972,
    tile=96,
    stride=32,
    tissue="otsu",
    threshold=0.5,
    batch_size=64,
)
MADE = MadeSlide(
    (5000, 4000),
    [Ellipse(2500, 2000, 2200, 1700)],
    [Ellipse(1700, 1500, 700, 500), Ellipse(3300, 2600, 500, 600)],
    mpp=0.5,
)


class Killed(BaseException):
    pass


class Perfect:
    """Scores each tile with the share of tumour in its centre; can be killed after some batches."""

    def __init__(self, kill_after: int | None = None) -> None:
        self.kill_after, self.seen = kill_after, 0

    def __call__(self, path, header, count, batches, title) -> np.ndarray:
        kept = path.with_name("logits.npy")
        finished = list(np.load(kept, allow_pickle=False)) if kept.exists() else []
        path.write_bytes(header)
        for number, tiles in enumerate(batches(len(finished) // SETTINGS.batch_size)):
            self.seen += len(tiles)
            finished += list(logit(tumour_share(tiles)).astype(np.float32))
            if number + 1 == self.kill_after:
                np.save(kept, np.array(finished))
                raise Killed
        kept.unlink(missing_ok=True)
        assert len(finished) == count
        return np.array(finished, np.float32)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return MADE.write(tmp_path_factory.mktemp("made") / "made.tif")


@pytest.fixture(scope="module")
def scored(made: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("scored")
    rows, problems = score_slides([made], SETTINGS, directory, Perfect(), {})
    assert problems == {}
    (directory / "rows.json").write_text(json.dumps(rows))
    return directory


def test_a_perfect_scorer_has_the_tumour_where_and_as_large_as_it_is(scored: Path) -> None:
    row = json.loads((scored / "rows.json").read_text())[0]
    pixel = (0.5 / 1000) ** 2
    assert row["tumour_mm2"] == pytest.approx(sum(shape.area for shape in MADE.tumours) * pixel, rel=0.05)
    assert row["tissue_mm2"] == pytest.approx(MADE.tissue[0].area * pixel, rel=0.05)
    assert row["regions"] == 2
    assert row["stated_mpp"] == pytest.approx(0.5, rel=1e-3)
    assert row["highest_score"] > 0.95
    table = pd.read_parquet(scored / "slides" / "made" / "scores.parquet")
    assert row["tiles"] == len(table)
    truth = MADE.truth(table["x"].to_numpy(), table["y"].to_numpy())
    assert roc_auc_score(truth, table["score"]) > 0.999


def test_the_outlines_are_those_of_the_tumour(scored: Path) -> None:
    collection = json.loads((scored / "slides" / "made" / "regions.geojson").read_text())
    for feature, shape in zip(collection["features"], MADE.tumours, strict=True):
        outline = shapely.from_geojson(json.dumps(feature["geometry"]))
        expected = shapely.Point(shape.x, shape.y).buffer(1, quad_segs=64)
        expected = shapely.affinity.scale(expected, shape.rx, shape.ry)
        assert outline.area == pytest.approx(shape.area, rel=0.05)
        assert outline.intersection(expected).area / outline.union(expected).area > 0.9


def test_every_file_of_a_slide_is_there(scored: Path) -> None:
    names = {path.name for path in (scored / "slides" / "made").iterdir()}
    pictures = {"heatmap.png", "tissue.png", "heatmap.ome.tif"}
    assert names == {"scores.parquet", "regions.geojson", "slide.json", *pictures}


@pytest.mark.parametrize("after", [1, 30])
def test_killed_it_goes_on_to_the_same_bytes(made: Path, scored: Path, tmp_path: Path, after: int) -> None:
    with pytest.raises(Killed):
        score_slides([made], SETTINGS, tmp_path, Perfect(after), {})
    rest = Perfect()
    rows, _ = score_slides([made], SETTINGS, tmp_path, rest, {})
    assert rest.seen == rows[0]["tiles"] - 64 * after
    for path in (scored / "slides" / "made").iterdir():
        assert (tmp_path / "slides" / "made" / path.name).read_bytes() == path.read_bytes(), path.name


def test_a_finished_slide_is_not_scored_again_unless_the_request_or_the_file_changed(scored, made, tmp_path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    shutil.copy(made, folder / "made.tif")
    shutil.copytree(scored / "slides", tmp_path / "slides")
    again = Perfect()
    rows, _ = score_slides([folder / "made.tif"], SETTINGS, tmp_path, again, {})
    assert (again.seen, rows) == (0, json.loads((scored / "rows.json").read_text()))
    score_slides([folder / "made.tif"], SETTINGS, tmp_path, again, {"networks": "others"})
    assert again.seen == rows[0]["tiles"]
    MadeSlide((600, 500), [Ellipse(300, 250, 250, 200)]).write(folder / "made.tif")
    rows, _ = score_slides([folder / "made.tif"], SETTINGS, tmp_path, again, {"networks": "others"})
    assert rows[0]["tissue_mm2"] == pytest.approx(np.pi * 250 * 200 * 0.25e-6, rel=0.1)


@pytest.fixture
def bad_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "folder"
    folder.mkdir()
    small = MadeSlide((700, 600), [Ellipse(350, 300, 300, 250)], [Ellipse(350, 300, 120, 120)])
    small.write(folder / "good.tif")
    small.write(folder / "z_good.ome.tif", ome=True)
    MadeSlide((700, 600), []).write(folder / "blank.tif")
    MadeSlide((180, 170), [Ellipse(90, 80, 80, 70)]).write(folder / "tiny.tif", levels=1)
    (folder / "empty.svs").write_bytes(b"")
    (folder / "magic.ndpi").write_bytes(b"not a slide")
    (folder / "cut.tif").write_bytes((folder / "good.tif").read_bytes()[:8000])
    return folder


def test_what_fails_is_named_and_the_others_go_on(bad_folder: Path, tmp_path: Path, caplog) -> None:
    rows, problems = score_slides(sorted(bad_folder.iterdir()), SETTINGS, tmp_path / "out", Perfect(), {})
    assert [row["slide"] for row in rows] == ["good", "z_good"]
    assert list(problems) == ["blank.tif", "cut.tif", "empty.svs", "magic.ndpi", "tiny.tif"]
    assert problems["blank.tif"] == "blank.tif shows no tissue: slides.tissue=none scores all of it"
    assert problems["tiny.tif"].startswith("tiny is smaller than a tile: 92x87 pixels")
    assert problems["empty.svs"] == "empty.svs is empty: copy it again"
    assert len(caplog.messages) == 5
    assert not any("\n" in text for text in problems.values())
    table = slides_table(rows, problems)
    assert table["slide"].tolist() == ["good", "z_good", "blank", "cut", "empty", "magic", "tiny"]
    assert table["problem"].isna().tolist() == [True] * 2 + [False] * 5
    assert table["tiles"].tolist()[:2] == [row["tiles"] for row in rows]


def test_everything_is_scored_without_a_mask_and_with_ones_own_what_it_shows(tmp_path: Path) -> None:
    from PIL import Image

    path = MadeSlide((700, 600), [Ellipse(200, 300, 150, 250)]).write(tmp_path / "a.tif")
    count = {}
    mask = np.zeros((6, 7), np.uint8)
    mask[2:4, 2:4] = 255
    Image.fromarray(mask).save(tmp_path / "a.png")
    for tissue in ("otsu", "none", str(tmp_path)):
        settings = SlideSettings(**{**vars(SETTINGS), "tissue": tissue})
        rows, problems = score_slides([path], settings, tmp_path / f"out-{len(tissue)}", Perfect(), {})
        assert problems == {}
        count[tissue] = rows[0]["tiles"]
    columns, rows_ = ((size // 2 - 96) // 32 + 1 for size in (700, 600))  # at 1 µm, within 10 % of 0.972
    assert count["none"] == columns * rows_
    assert 4 <= count[str(tmp_path)] <= 16 < count["otsu"] < count["none"]


def test_a_denser_stride_gives_a_finer_map(tmp_path: Path) -> None:
    path = MadeSlide((700, 600), [Ellipse(350, 300, 300, 250)], [Ellipse(350, 300, 150, 120)]).write(tmp_path / "a.tif")
    area = np.pi * 150 * 120 * 0.25e-6
    errors = []
    for stride in (96, 16):
        settings = SlideSettings(**{**vars(SETTINGS), "stride": stride})
        rows, _ = score_slides([path], settings, tmp_path / str(stride), Perfect(), {})
        errors.append(abs(rows[0]["tumour_mm2"] / area - 1))
    assert errors[1] < 0.03 < errors[0]


@pytest.mark.parametrize("name", ["logits.partial", "scores.parquet", "slide.json", "heatmap.png"])
def test_a_file_of_others_in_a_slides_folder_is_left_alone(made: Path, tmp_path: Path, name: str) -> None:
    place = tmp_path / "slides" / "made"
    place.mkdir(parents=True)
    (place / name).write_bytes(b"[1]")
    rows, problems = score_slides([made], SETTINGS, tmp_path, Perfect(), {})
    assert rows == []
    assert f"made holds {name}, which histolight did not write" in problems["made.tif"]
    assert [(path.name, path.read_bytes()) for path in place.iterdir()] == [(name, b"[1]")]
