from __future__ import annotations

import io
import json
import logging
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from tissue import canvas, cut

from histolight.config.schema import ColumnsConfig, DataConfig
from histolight.data.images import decode
from histolight.data.overlaps import pair_table
from histolight.data.pack import open_pack
from histolight.data.prepare import prepare
from histolight.data.sources import load_source
from histolight.errors import DataError, RequestError

COUNT = 30


def config(root: Path, **values) -> DataConfig:
    return DataConfig(**{"source": "parquet", "root": str(root), "image_size": 32, "cache": f"{root}-cache", **values})


@pytest.fixture
def columns(make_tiles, encoded) -> dict[str, list]:
    images = [encoded(tile) for tile in make_tiles(COUNT)]
    return {"image": images, "label": [number % 2 for number in range(COUNT)]}


@pytest.fixture
def write(tmp_path):
    def write_table(values: dict, name: str = "tiles.parquet", **options) -> Path:
        (tmp_path / "data").mkdir(exist_ok=True)
        pq.write_table(pa.table(values), tmp_path / "data" / name, **{"row_group_size": 10, **options})
        return tmp_path / "data"

    return write_table


def test_tiles_come_in_order_and_parts_from_file_names(tmp_path, make_tiles, write_parquet):
    parts = {"train": (make_tiles(25), np.arange(25) % 2), "validation": (make_tiles(13, 1), np.arange(13) % 2)}
    root = write_parquet(tmp_path / "data", parts)
    source = load_source(config(root))
    table = source.table.set_index("id")
    assert table["split"].value_counts().to_dict() == {"train": 25, "val": 13}
    assert table.loc["validation_4", ["label", "row"]].tolist() == [0, 29]
    pack = open_pack(source, tmp_path / "cache", 32)
    expected = np.concatenate([parts["train"][0], parts["validation"][0]])
    np.testing.assert_array_equal(pack.tiles.gather(np.arange(38)), expected)


@pytest.mark.parametrize("order", [range(COUNT), range(COUNT - 1, -1, -1), [29, 0, 15, 0, 29, 3]])
def test_rows_can_be_read_in_any_order(columns, write, make_tiles, order, monkeypatch):
    monkeypatch.setattr("histolight.data.sources.parquet._BATCH", 4)
    monkeypatch.setattr("histolight.data.sources.parquet._KEPT", 8)
    source = load_source(config(write(columns)))
    for row in order:
        np.testing.assert_array_equal(source.read_tile(row), make_tiles(COUNT)[row])


def test_a_row_group_is_read_once_and_little_of_it_is_kept(columns, write, monkeypatch):
    monkeypatch.setattr("histolight.data.sources.parquet._BATCH", 2)
    monkeypatch.setattr("histolight.data.sources.parquet._KEPT", 6)
    source = load_source(config(write(columns, row_group_size=COUNT)))
    opened = []
    whole = pq.ParquetFile.iter_batches
    monkeypatch.setattr(
        pq.ParquetFile, "iter_batches", lambda *args, **named: opened.append(1) or whole(*args, **named)
    )
    reader = source.read_tile.__closure__[[*source.read_tile.__code__.co_freevars].index("reader")].cell_contents
    for row in range(COUNT):
        source.read_tile(row)
        source.read_luma(row)
        assert len(reader._kept) <= 8
    assert len(opened) == 1


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        (np.arange(COUNT) % 2 == 1, None),
        (np.arange(COUNT) % 2 * 1.0, None),
        (["Normal", "Tumor"] * (COUNT // 2), None),
        (["b", "a"] * (COUNT // 2), ["b", "a"]),
        (pa.array(["0", "1"] * (COUNT // 2)).dictionary_encode(), None),
    ],
)
def test_labels_are_numbers_truth_values_or_names(columns, write, labels, classes):
    root = write({**columns, "label": labels})
    if classes:
        with pytest.raises(RequestError, match=r"data.classes=\[NEGATIVE,POSITIVE\] gives"):
            load_source(config(root))
    table = load_source(config(root, classes=classes)).table
    assert table["label"].tolist() == [number % 2 for number in table["row"]]


def test_names_of_classes_in_the_metadata_turn_the_numbers_round(columns, write):
    features = {"info": {"features": {"label": {"names": ["tumor", "normal"], "_type": "ClassLabel"}}}}
    table = pa.table(columns).replace_schema_metadata({"huggingface": json.dumps(features)})
    root = write(columns)
    pq.write_table(table, root / "tiles.parquet")
    found = load_source(config(root)).table
    assert found["label"].tolist() == [1 - number % 2 for number in found["row"]]


def test_slide_centre_and_part_are_columns(columns, write):
    extra = {"wsi": [number // 3 for number in range(COUNT)], "center": [f"c{number // 10}" for number in range(COUNT)]}
    extra["fold"] = ["train"] * 20 + ["valid"] * 10
    root = write({**columns, **extra})
    table = load_source(config(root, columns=ColumnsConfig(split="fold")), keep_domains=True).table.set_index("row")
    assert table.loc[29, ["id", "group", "domain", "split"]].tolist() == ["tiles_0000029", "9", "c2", "val"]
    data = prepare(config(root))
    assert data.split_kind == "slide"
    assert data.slides == 10


def test_ids_are_a_column_or_paths_or_rows(columns, write):
    root = write({**columns, "id": [f"t{number:02d}" for number in range(COUNT)]})
    assert load_source(config(root)).table["id"].tolist()[:2] == ["t00", "t01"]
    images = [{"bytes": data, "path": "same.png"} for data in columns["image"]]
    ids = load_source(config(write({**columns, "image": images}))).table["id"]
    assert ids.tolist()[:2] == ["tiles_0000000", "tiles_0000001"]


def test_tiles_without_labels_are_for_prediction(columns, write):
    root = write({"image": columns["image"]})
    assert len(load_source(config(root), labelled=False).table) == COUNT
    with pytest.raises(RequestError, match="has no column label, and .*; its columns: image"):
        load_source(config(root))


@pytest.mark.parametrize(
    ("change", "values", "message"),
    [
        (
            {"image": None},
            {},
            "has no column of images, bytes or structs of bytes and path: name it with data.columns.i",
        ),
        ({"mask": [b"x"] * COUNT}, {"columns": ColumnsConfig(image="msk")}, "has no column of images msk"),
        ({}, {"columns": ColumnsConfig(slide="wsi")}, "data.columns.slide=wsi is not a column of .*: image, label"),
        ({"slide": ["a"] * COUNT, "patient": ["b"] * COUNT}, {}, "may be the slide: choose one of slide, patient with"),
        ({"label": list(range(COUNT))}, {}, "column label of .* has 30 kinds of labels, 0, 1, 10, 11, …: a label is 0"),
        ({"label": [0, 1, 2] * 10}, {}, "has 3 kinds of labels, 0, 1, 2: a label is 0 or 1, or one of two names"),
        ({"label": ["a", "b"] * 15}, {}, "2 kinds of labels, a, b: .* data.classes=.NEGATIVE,POSITIVE. gives"),
        ({"label": [None, 1] * 15}, {}, r"no label: 15 \('tiles_0000000'|no label: 15 \(tiles_0000000"),
        ({"id": ["a"] * COUNT}, {}, "id twice: 29"),
        ({"split": ["train", "extra"] * 15}, {}, "the column split has the part 'extra'"),
        ({"image": [b""] * COUNT}, {}, "no image: 30"),
        ({"image": [b"no image"] * COUNT}, {}, "not an image: 30"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(columns, write, change, values, message):
    table = {name: column for name, column in {**columns, **change}.items() if column is not None}
    with pytest.raises(RequestError, match=message) as caught:
        prepare(config(write(table), **values))
    assert "\n" not in str(caught.value)


def test_one_of_two_columns_of_images_is_named_as_the_message_says(columns, write):
    root = write({"left": columns["image"], "right": columns["image"], "label": columns["label"]})
    with pytest.raises(RequestError, match=r"name it with data.columns.image=NAME; its columns: left, right, label"):
        load_source(config(root))
    assert len(load_source(config(root, columns=ColumnsConfig(image="left"))).table) == COUNT


def test_mixed_sizes_are_listed(columns, write, make_tiles, encoded):
    columns["image"][7] = encoded(make_tiles(1)[0, :16])
    with pytest.raises(DataError, match="1 tiles cannot be used: wrong size: 1") as caught:
        prepare(config(write(columns)))
    assert caught.value.problems["id"].tolist() == ["tiles_0000007"]


@pytest.mark.parametrize("group_rows", [10, 5000])
def test_a_corrupt_row_group_is_named(columns, write, group_rows, monkeypatch):
    monkeypatch.setattr("histolight.data.sources.parquet._KEPT", 4)
    root = write(columns, row_group_size=group_rows, compression="none", use_dictionary=False)
    path = root / "tiles.parquet"
    metadata = pq.read_metadata(path)
    group = metadata.num_row_groups - 1
    data = bytearray(path.read_bytes())
    begin = metadata.row_group(group).column(0).data_page_offset
    data[begin : begin + 60] = b"\xff" * 60
    path.write_bytes(data)
    source = load_source(config(root))
    with pytest.raises(DataError, match="damaged row group: ") as caught:
        open_pack(source, root.parent / "cache", 32)
    assert len(caught.value.problems) == min(group_rows, COUNT)
    assert f"tiles.parquet, row group {group}: " in caught.value.problems["detail"].iloc[0]


def test_no_file_a_cut_one_and_one_that_changes_are_refused(columns, write, tmp_path):
    with pytest.raises(RequestError, match="has no .parquet files"):
        load_source(config(tmp_path))
    root = write(columns)
    source = load_source(config(root))
    write({name: values[:20] for name, values in columns.items()})
    with pytest.raises(DataError, match="it changed since its tiles were listed|damaged row group: 30"):
        open_pack(source, root.parent / "cache", 32)
    (root / "tiles.parquet").write_bytes((root / "tiles.parquet").read_bytes()[:-9])
    with pytest.raises(RequestError, match="tiles.parquet is not a whole Parquet file"):
        load_source(config(root))


def test_files_of_two_data_sets_and_a_name_without_a_part_are_refused(columns, write):
    write(columns, "train-0.parquet")
    write(columns, "validation-0.parquet")
    root = write(columns, "extra.parquet")
    with pytest.raises(RequestError, match="the name of extra.parquet says no part, that of train-0.parquet does"):
        load_source(config(root))
    write({**columns, "slide": ["a"] * COUNT}, "extra.parquet")
    with pytest.raises(RequestError, match="has the columns image, label, but extra.parquet has"):
        load_source(config(root))


def test_without_pyarrow_the_extra_is_named(columns, write, monkeypatch):
    root = write(columns)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(RequestError, match=r"data=parquet needs pyarrow: .* histolight\[parquet\]"):
        load_source(config(root))


def test_jpegs_of_one_place_are_found_in_luma(write, encoded):
    large = canvas(96, 200, 5)
    tiles = cut(large, [(0, 0), (0, 48), (0, 96)])
    images = [encoded(tile, "JPEG", quality=75) for tile in (*tiles, *(canvas(96, 96, seed) for seed in range(20)))]
    pack = open_pack(
        source := load_source(config(root := write({"image": images, "label": [0, 1] * 11 + [0]}), image_size=96)),
        root.parent / "cache",
        96,
    )
    pairs = pair_table(source.table, pack.overlaps)
    found = {(row.id_1[-1], row.id_2[-1], row.dy, row.dx) for row in pairs.itertuples()}
    assert found == {("0", "1", 0, 48), ("1", "2", 0, 48)}


@pytest.mark.slow
def test_on_the_real_files_overlaps_are_found_in_luma_and_none_lies_across_sides(tmp_path, real_parquet, caplog):
    """Both parts as given, and the training part split by overlap: the hold-out and each of five folds."""
    caplog.set_level(logging.ERROR, logger="histolight")
    given = prepare(config(real_parquet, image_size=96, cache=str(tmp_path / "cache")))
    assert given.table["split"].value_counts().to_dict() == {"train": 19_171, "val": 2_907}
    assert given.split_kind == "given"
    assert given.leaks.empty
    root = tmp_path / "train"
    root.mkdir()
    for path in real_parquet.glob("train-*.parquet"):
        (root / path.name).symlink_to(path)
    tiles = config(root, image_size=96, cache=str(tmp_path / "cache"))
    pack = open_pack(source := load_source(tiles), tmp_path / "cache", 96)
    assert len(pack.overlaps) > 1_000
    chosen = np.random.default_rng(0).choice(len(pack.overlaps), 200, replace=False)
    images = pd.concat([pd.read_parquet(path) for path in sorted(root.iterdir())])["image"].to_list()
    for first, second, dy, dx in pack.overlaps[chosen]:
        one, two = (luma(images[row]["bytes"]) for row in (first, second))
        height, width = 96 - abs(dy), 96 - abs(dx)
        here = one[max(dy, 0) :, max(dx, 0) :][:height, :width]
        there = two[max(-dy, 0) :, max(-dx, 0) :][:height, :width]
        np.testing.assert_array_equal(here, there)
        assert here.std() > 1
    pixels = pack.tiles.gather(source.table["row"].to_numpy()[:50])
    for place, row in enumerate(source.table["row"].to_numpy()[:50]):
        np.testing.assert_array_equal(pixels[place], decode(images[row]["bytes"], 96, set()))
    for values in [{}, *({"fold": fold} for fold in range(5))]:
        data = prepare(DataConfig(**{**vars(tiles), **values}))
        assert data.split_kind == "overlap"
        assert data.leaks.empty
        assert (data.table["split"] == "val").mean() == pytest.approx(0.2, abs=0.001)
    random = prepare(DataConfig(**{**vars(tiles), "split": "random"}))
    assert random.leaking["val"] > 500


def luma(data: bytes) -> np.ndarray:
    image = Image.open(io.BytesIO(data))
    image.draft("L", image.size)
    return np.asarray(image)
