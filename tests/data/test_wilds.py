"""A small Camelyon17-WILDS in its own layout: 5 hospitals of two slides, patches as PNGs with an alpha channel."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from histolight.cli import main
from histolight.config.schema import DataConfig
from histolight.data.prepare import prepare
from histolight.data.sources import load_source
from histolight.errors import DataError, RequestError

PER_SLIDE = 6


@pytest.fixture
def root(tmp_path: Path, make_tiles) -> Path:
    rows = []
    for slide, number in np.ndindex(10, PER_SLIDE):
        place = {"patient": f"{4 + slide:03d}", "node": 4, "x_coord": 3328 + 32 * number, "y_coord": 21792}
        split = int(number == 5 and slide < 6)
        rows.append(place | {"tumor": number % 2, "slide": slide, "center": slide // 2, "split": split})
    table = pd.DataFrame(rows)
    for row, tile in zip(table.itertuples(), make_tiles(len(table)), strict=True):
        folder = f"patient_{row.patient}_node_{row.node}"
        path = tmp_path / f"camelyon17_v1.0/patches/{folder}/patch_{folder}_x_{row.x_coord}_y_{row.y_coord}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(tile).convert("RGBA").save(path)
    table.to_csv(tmp_path / "camelyon17_v1.0" / "metadata.csv")
    return tmp_path / "camelyon17_v1.0"


def config(root: Path, **values) -> DataConfig:
    return DataConfig(source="wilds", root=str(root), image_size=32, cache=str(root.parent / "cache"), **values)


def change(root: Path, **values) -> None:
    table = pd.read_csv(root / "metadata.csv", index_col=0, dtype=str)
    for name, value in values.items():
        table.loc[table.index[7], name] = value
    table.to_csv(root / "metadata.csv")


@pytest.mark.parametrize("below", [".", ".."])
def test_slides_centres_and_the_official_split_are_taken(root, below, make_tiles, caplog):
    source = load_source(config(root / below), keep_domains=True)
    table = source.table.set_index("id")
    tile = table.loc["patch_patient_005_node_4_x_3360_y_21792"]
    assert tile[["label", "group", "domain", "split"]].tolist() == [1, "1", "0", "train"]
    np.testing.assert_array_equal(source.read_tile(tile["row"]), make_tiles(60)[7])
    assert table.groupby("domain")["split"].agg(lambda parts: "/".join(sorted(set(parts)))).to_dict() == {
        "0": "train/unused",
        "1": "val",
        "2": "test",
        "3": "train",
        "4": "train",
    }
    assert "2 tiles of training slides that WILDS keeps as id_val are left out" in caplog.text


def test_no_slide_lies_on_two_sides_and_what_wilds_keeps_apart_is_not_used(root):
    data = prepare(config(root))
    assert data.split_kind == "given"
    assert data.table["split"].value_counts().to_dict() == {"train": 34, "val": 12, "test": 12}
    assert (data.table.groupby("group")["split"].nunique() == 1).all()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"tumor": "2"}, r"label is not 0 or 1: 1 \(patch_patient_005_node_4_x_3360"),
        ({"split": "5"}, r"split is not 0 or 1: 1 \(patch_patient_005_node_4_x_3360"),
        ({"slide": ""}, "no slide: 1"),
        ({"x_coord": "1"}, r"row without a tile: 1 \(patch_patient_005_node_4_x_1_y"),
        ({"x_coord": "3328"}, "id twice: 1"),
    ],
)
def test_rows_that_are_wrong_are_listed(root, values, message):
    change(root, **values)
    with pytest.raises(DataError, match=message) as caught:
        load_source(config(root))
    assert "\n" not in str(caught.value)


def test_other_folders_are_refused(root):
    with pytest.raises(RequestError, match="metadata.csv is missing"):
        load_source(config(root / "patches"))
    (root / "metadata.csv").write_text("patient,node,tumor\n1,2,0\n")
    with pytest.raises(RequestError, match="has no column x_coord, y_coord, slide, center, split"):
        load_source(config(root))
    (root / "patches").rename(root / "tiles")
    with pytest.raises(RequestError, match="has no column|patches is missing"):
        load_source(config(root))


def test_it_trains_and_the_hospital_that_tests_is_measured(root, tmp_path, undrawn, capsys):
    words = ["data=wilds", f"data.root={root}", "data.image_size=32", f"data.cache={tmp_path / 'cache'}", "trainer=cpu"]
    words += ["data.batch_size=8", "model=resnet18", "model.name=shufflenet_v2_x0_5", "model.weights=null"]
    assert main(["train", *words, "trainer.max_epochs=1", f"hydra.run.dir={tmp_path / 'run'}"]) == 0
    assert "test AUROC" in capsys.readouterr().out
    assert "mpp: 0.972" in (tmp_path / "run/config.yaml").read_text()
