"""Annotated slides become a table as any other: labels by value, drawn by slide, split by slide."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from made_slides import Ellipse, MadeSlide, annotate

from histolight.config.compose import compose_config, typed
from histolight.config.schema import DataConfig
from histolight.data.prepare import load_tiles, prepare
from histolight.data.sources import load_source
from histolight.data.sources.slides import draw, places
from histolight.errors import DataError, RequestError

SIZE, MPP = 32, 0.972
TUMOUR = Ellipse(200, 150, 90, 60)


def made(seed: int = 0) -> MadeSlide:
    return MadeSlide((400, 300), [Ellipse(200, 150, 190, 140)], [TUMOUR], mpp=MPP, seed=seed)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four annotated slides, one whose label is 0, one of which nobody says anything."""
    folder = tmp_path_factory.mktemp("annotated")
    for number in range(4):
        made(number).write(folder / f"s{number}.tif", levels=1, compression="zlib")
        annotate(folder / f"s{number}.geojson", TUMOUR)
    MadeSlide((400, 300), [Ellipse(200, 150, 190, 140)], mpp=MPP).write(folder / "free.tif", levels=1)
    made(9).write(folder / "unknown.tif", levels=1)
    (folder / "labels.csv").write_text("slide,label\nfree.tif,0\ns0,1\n")
    return folder


def config_of(folder: Path, cache: Path, *more: str) -> DataConfig:
    labels = [f"slides.labels={folder / 'labels.csv'}"] if (folder / "labels.csv").exists() else []
    words = ["data=slides", f"data.root={folder}", f"data.cache={cache}", f"data.image_size={SIZE}", *labels]
    return typed(compose_config([*words, "slides.tiles_per_slide=40", *more])).data


def test_tiles_are_labelled_drawn_and_named_by_slide(folder: Path, tmp_path: Path, caplog) -> None:
    table = load_source(config_of(folder, tmp_path)).table
    assert "1 slides have neither an annotation nor the label 0 in slides.labels" in caplog.text
    assert table.groupby("group").size().to_dict() == {"free": 40, **{f"s{n}": 40 for n in range(4)}}
    assert table.groupby("group")["label"].sum().to_dict() == {"free": 0, **{f"s{n}": 20 for n in range(4)}}
    middle = places(table["id"])
    half = SIZE / 2
    nearest = [np.clip(c, middle[axis] - half, middle[axis] + half) for c, axis in ((TUMOUR.x, "x"), (TUMOUR.y, "y"))]
    truth = TUMOUR.contains(*(values.to_numpy() for values in nearest)) & (table["group"] != "free")
    np.testing.assert_array_equal(table["label"].to_numpy(), truth)
    drawn = [
        set(places(part["id"]).itertuples(index=False)) for _, part in table.groupby("group") if part["label"].any()
    ]
    assert drawn[0] != drawn[1]


def test_the_tiles_are_those_of_the_slide_in_any_order_of_rows(folder: Path, tmp_path: Path) -> None:
    tiles = load_tiles(load_source(config_of(folder, tmp_path)), config_of(folder, tmp_path))
    middle = places(tiles.table["id"])
    for place in range(0, len(tiles.table), 17):
        row = tiles.table.iloc[place]
        x, y = middle.iloc[place] - SIZE // 2
        if row["group"].startswith("s"):
            expected = made(int(row["group"][1:])).whole()[y : y + SIZE, x : x + SIZE]
            np.testing.assert_array_equal(tiles.pack.tiles.gather(np.array([row["row"]]))[0], expected)


def test_a_slide_never_lies_on_two_sides(folder: Path, tmp_path: Path) -> None:
    for fold in range(2):
        data = prepare(config_of(folder, tmp_path, "data.folds=2", f"data.fold={fold}", "data.test_fraction=0.3"))
        assert data.split_kind == "slide"
        assert data.table.groupby("group")["split"].nunique().max() == 1
        assert set(data.table["split"]) == {"train", "val", "test"}


def test_the_draw_is_of_the_seed_and_of_the_slide_alone(folder: Path, tmp_path: Path) -> None:
    one = load_source(config_of(folder, tmp_path)).table["id"]
    assert load_source(config_of(folder, tmp_path)).table["id"].tolist() == one.tolist()
    other = load_source(config_of(folder, tmp_path, "data.seed=1")).table["id"]
    assert set(other) != set(one)
    config = config_of(folder, tmp_path)
    config.slides.tiles_per_slide = None
    everything = load_source(config).table
    assert set(one) < set(everything["id"])
    assert not everything["id"].duplicated().any()


@pytest.mark.parametrize(
    ("positive", "negative", "count", "expected"),
    [(100, 100, 10, (5, 5)), (2, 100, 10, (2, 8)), (100, 3, 10, (7, 3)), (0, 50, 10, (0, 10)), (3, 3, 10, (3, 3))],
)
def test_half_of_each_class_is_drawn_as_far_as_there_are(positive, negative, count, expected) -> None:
    labels = np.array([True] * positive + [False] * negative)
    chosen = draw(labels, count, [0, 1])
    assert len(set(chosen.tolist())) == len(chosen)
    assert (int(labels[chosen].sum()), int((~labels[chosen]).sum())) == expected


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["slides.positive=[Lesion]"], r"no tile .* is tumour; classes of the annotations: Tumor \(1\)"),
        (["slides.units=miles"], "slides.units=miles is not known: px, um, or how many times smaller"),
        (["slides.units=-1"], "slides.units=-1 is not known"),
        (["slides.annotations=nowhere"], "slides.annotations=nowhere is not a folder"),
        (["slides.tissue=nowhere"], "slides.tissue=nowhere is not known"),
        (["slides.stride=33"], "slides.stride=33 leaves gaps"),
        (["slides.model_mpp=null"], "give slides.model_mpp=MICRONS"),
        (["slides.labels=wrong.csv"], "wrong.csv: a has the label yes, not 0 or 1"),
        (["slides.labels=twice.csv"], "twice.csv names a twice"),
        (["slides.labels=free.csv"], r"a.tif has the label 0 in slides.labels, and tumour in .*a.geojson"),
        (["slides.units=16"], r"annotation 1 \(Tumor\) lies outside a"),
        (["data.root=b"], "none of the 1 slides in .*b has an annotation in .*b: NAME.geojson, NAME.xml"),
    ],
)
def test_what_can_not_be_meant_is_one_line(tmp_path: Path, monkeypatch, words: list[str], message: str) -> None:
    monkeypatch.chdir(tmp_path)
    made().write(tmp_path / "a.tif", levels=1)
    annotate(tmp_path / "a.geojson", TUMOUR)
    (tmp_path / "b").mkdir()
    made().write(tmp_path / "b" / "b.tif", levels=1)
    for name, rows in (("wrong", "a,yes"), ("twice", "a,1\na.tif,1"), ("free", "a,0")):
        (tmp_path / f"{name}.csv").write_text(f"slide,label\n{rows}\n")
    with pytest.raises((RequestError, DataError), match=message) as raised:
        load_source(config_of(tmp_path, tmp_path / "cache", *words))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("words", "message", "remedy"),
    [
        ("slides.positive=[Lesion]", r": Tumor .* with slides.positive=\[NAME\]", "slides.positive=[Tumor]"),
        ("slides.model_mpp=null", "give slides.model_mpp=MICRONS", f"slides.model_mpp={MPP}"),
        ("slides.annotations=EMPTY", "give their folder with slides.annotations=FOLDER", "slides.annotations=FOLDER"),
        ("slides.labels=none.csv", "/none.csv is not a file: give a CSV slide,label", "slides.labels=LABELS"),
    ],
)  # fmt: skip
def test_what_a_message_names_helps(folder: Path, tmp_path: Path, words: str, message: str, remedy: str) -> None:
    for name in ("empty", "slides", "drawn"):
        (tmp_path / name).mkdir()
    (tmp_path / "labels.csv").write_text("slide,label\ns0,1\ns1.tif,1\n")
    for name in ("s0", "s1"):
        (tmp_path / "slides" / f"{name}.tif").symlink_to(folder / f"{name}.tif")
        (tmp_path / "drawn" / f"{name}.geojson").symlink_to(folder / f"{name}.geojson")

    def load(word: str) -> pd.DataFrame:
        word = (
            word.replace("LABELS", str(tmp_path / "labels.csv"))
            .replace("EMPTY", str(tmp_path / "empty"))
            .replace("FOLDER", str(tmp_path / "drawn"))
        )
        found = [] if word.startswith("slides.annotations") else [f"slides.annotations={tmp_path / 'drawn'}"]
        return load_source(config_of(tmp_path / "slides", tmp_path / "cache", *found, word)).table

    with pytest.raises(RequestError, match=message):
        load(words)
    assert load(remedy)["label"].sum() == 40


def test_all_slides_that_can_not_be_used_are_listed(folder: Path, tmp_path: Path) -> None:
    for name in ("s0.tif", "s0.geojson", "labels.csv"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    (tmp_path / "bad.svs").write_bytes(b"no slide")
    (tmp_path / "bad.geojson").write_bytes(b"[]")
    (tmp_path / "s1.tif").write_bytes((folder / "s1.tif").read_bytes())
    (tmp_path / "s1.geojson").write_bytes(b"{")
    with pytest.raises(DataError, match=r"bad.svs can't be read as a slide .* and 1 more") as raised:
        load_source(config_of(tmp_path, tmp_path / "cache"))
    assert raised.value.problems["id"].tolist() == ["bad.svs", "s1.tif"]


def test_annotations_in_microns_or_in_a_levels_pixels_give_the_same_labels(folder: Path, tmp_path: Path) -> None:
    expected = load_source(config_of(folder, tmp_path)).table
    for units, factor in (("um", MPP), ("4", 0.25)):
        elsewhere = tmp_path / units
        elsewhere.mkdir()
        for number in range(4):
            annotate(elsewhere / f"s{number}.geojson", TUMOUR, factor)
        more = [f"slides.units={units}", f"slides.annotations={elsewhere}"]
        pd.testing.assert_frame_equal(load_source(config_of(folder, tmp_path, *more)).table, expected)


def test_annotated_tumour_off_the_tissue_is_warned_of(folder: Path, tmp_path: Path, caplog) -> None:
    made().write(tmp_path / "a.tif", levels=1)
    annotate(tmp_path / "a.geojson", Ellipse(25, 20, 24, 19))
    (tmp_path / "labels.csv").write_text("slide,label\na,1\n")
    with pytest.raises(RequestError, match="no tile of the slides"):
        load_source(config_of(tmp_path, tmp_path / "cache"))
    assert "a.tif: less than half of its annotated tumour lies on tissue" in caplog.text
