"""Forms in which people have their tiles and labels: taken where they mean one thing, with a line that says how."""

from __future__ import annotations

import dataclasses
import gzip
import io
import re
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image, features

from histolight.config.schema import DataConfig
from histolight.data.images import decode
from histolight.data.labels import read_label
from histolight.data.pack import open_pack
from histolight.data.sources import load_source
from histolight.data.table import TileError, matching_ids, read_csv
from histolight.errors import DataError, RequestError

RNG = np.random.default_rng(0)
SIZE = 32


def tile(size: int = SIZE) -> Image.Image:
    return Image.fromarray(RNG.integers(0, 256, (size, size, 3), dtype=np.uint8))


def save(path: Path, image: Image.Image | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    (image or tile()).save(path)


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def with_alpha(image: Image.Image, value: int) -> Image.Image:
    image = image.convert("RGBA")
    image.putalpha(Image.new("L", image.size, value))
    return image


NEW_PILLOW = pytest.mark.skipif(
    int(features.version("pil").split(".")[0]) < 13, reason="older Pillow can't read what it wrote"
)


@pytest.mark.parametrize(
    ("image", "kind", "expected"),
    [
        (with_alpha(tile(), 255), "PNG", lambda image: image.convert("RGB")),
        (with_alpha(tile(), 255), "TIFF", lambda image: image.convert("RGB")),
        (tile().convert("L"), "PNG", lambda image: image.convert("RGB")),
        (tile().convert("L"), "JPEG", None),
        (tile().convert("LA"), "PNG", lambda image: image.convert("RGB")),
        (tile().convert("P"), "PNG", lambda image: image.convert("RGB")),
        (tile().convert("P"), "TIFF", lambda image: image.convert("RGB")),
        (tile().convert("CMYK"), "TIFF", lambda image: image.convert("RGB")),
        (tile().convert("CMYK"), "JPEG", None),
        pytest.param(tile().convert("YCbCr"), "TIFF", None, marks=NEW_PILLOW),
        (tile().convert("1"), "PNG", lambda image: image.convert("RGB")),
        (tile().convert("1"), "TIFF", lambda image: image.convert("RGB")),
        (tile().convert("L"), "BMP", lambda image: image.convert("RGB")),
        (tile(), "BMP", lambda image: image),
        (tile(), "WEBP", None),
        (with_alpha(tile(), 255), "WEBP", None),
    ],
)
def test_modes_with_one_meaning_are_read_as_rgb(image, kind, expected, caplog) -> None:
    said: set[str] = set()
    data = encoded(image, kind)
    pixels = decode(data, SIZE, set(), said)
    decode(data, SIZE, set(), said)
    assert (pixels.shape, pixels.dtype) == ((SIZE, SIZE, 3), np.uint8)
    if expected is not None:
        np.testing.assert_array_equal(pixels, np.asarray(expected(image)))
    warned = [record for record in caplog.records if "are read as RGB" in record.getMessage()]
    assert len(warned) == len(said) == int(Image.open(io.BytesIO(data)).mode != "RGB")  # once, of two tiles


@pytest.mark.parametrize("value", [0, 128, 254])
def test_what_is_not_opaque_is_refused_with_both_readings(value: int) -> None:
    for image in (with_alpha(tile(), value), with_alpha(tile().convert("L"), value).convert("LA")):
        with pytest.raises(TileError, match="as black or as white; save it as 8-bit RGB"):
            decode(encoded(image, "PNG"), SIZE, set())


def test_a_palette_with_a_transparent_colour_is_refused_where_it_occurs() -> None:
    image = tile().convert("P")
    with pytest.raises(TileError, match="P with transparency"):
        decode(encoded(image, "PNG", transparency=int(np.asarray(image)[0, 0])), SIZE, set())


def test_a_tiff_that_pillow_cannot_read_says_so() -> None:
    import tifffile

    buffer = io.BytesIO()
    tifffile.imwrite(buffer, RNG.random((SIZE, SIZE, 3)).astype(np.float32))
    with pytest.raises(TileError, match="a TIFF of .* bytes that Pillow can't read; save it as 8-bit RGB"):
        decode(buffer.getvalue(), SIZE, set())


def test_a_lossless_webp_is_its_pixels_and_a_cut_or_moving_one_is_refused() -> None:
    image = tile()
    data = encoded(image, "WEBP", lossless=True)
    np.testing.assert_array_equal(decode(data, SIZE, set()), np.asarray(image))
    for wrong in (data[:100], encoded(image, "WEBP", save_all=True, append_images=[tile()])):
        with pytest.raises(TileError, match="damaged|several images|not an image"):
            decode(wrong, SIZE, set())


def test_numbered_classes_and_formats_of_pictures_make_a_folder_of_tiles(tmp_path: Path) -> None:
    for number, suffix in enumerate(("bmp", "webp", "BMP", "png")):
        save(tmp_path / "data" / f"Class_{number % 2}" / f"{number}.{suffix}")
    table = load_source(DataConfig(source="folder", root=str(tmp_path / "data"), image_size=SIZE)).table
    assert table.set_index("id")["label"].to_dict() == {"0": 0, "1": 1, "2": 0, "3": 1}


@pytest.mark.parametrize("form", ["train/{}.tif", "./train/{}", "C:\\data\\train\\{}.TIF", "/data/train/{}.png"])
def test_ids_with_folders_are_those_of_tiles_and_it_is_said(form: str, caplog) -> None:
    listed = pd.Series([form.format("0"), form.format("1"), "2"])
    assert matching_ids(listed, ["0", "1", "2"], "labels.csv").tolist() == ["0", "1", "2"]
    assert f"2 ids of labels.csv are read without their folder, such as {listed[0]}" in caplog.text


def test_ids_that_differ_in_their_folders_alone_stay_as_they_are() -> None:
    listed = pd.Series(["train/0.tif", "val/0.tif", "other/1.tif", "1"])
    assert matching_ids(listed, ["0", "1"], "labels.csv").tolist() == listed.tolist()


def test_grey_jpegs_are_packed_with_their_luma(tmp_path: Path) -> None:
    for number in range(6):
        save(tmp_path / "data" / str(number % 2) / f"{number}.jpg", tile().convert(("L", "RGB", "CMYK")[number % 3]))
    config = DataConfig(source="folder", root=str(tmp_path / "data"), image_size=SIZE)
    assert len(open_pack(load_source(config), tmp_path / "cache", SIZE).tiles) == 6


def test_tiles_of_another_size_name_the_key_that_works(tmp_path: Path) -> None:
    for number in range(4):
        save(tmp_path / "data" / str(number % 2) / f"{number}.png", tile(48))
    config = DataConfig(source="folder", root=str(tmp_path / "data"), image_size=SIZE)
    with pytest.raises(DataError, match="48x48 pixels where .*; all have this size: use data.image_size=48"):
        open_pack(load_source(config), tmp_path / "cache", SIZE)
    config.image_size = 48
    assert open_pack(load_source(config), tmp_path / "cache", 48).tiles.image_size == 48
    save(tmp_path / "data" / "0" / "other.png", tile(64))
    with pytest.raises(DataError) as caught:
        open_pack(load_source(DataConfig(source="folder", root=config.root)), tmp_path / "cache", 96)
    assert caught.value.advice == "4 of all 5 tiles have 48x48 pixels: use data.image_size=48"
    assert str(caught.value).endswith(f"the first: 48x48 pixels where data.image_size=96; {caught.value.advice}")
    config.image_size = 48
    with pytest.raises(
        DataError, match="1 tiles cannot be used: wrong size: 1 .*; cut the tiles of a wrong size to one"
    ):
        open_pack(load_source(config), tmp_path / "cache", 48)


# fmt: off
PLAIN_LABELS = [
    ("0", "1"), ("0.0", "1.0"), ("0.", "1."), ("False", "True"), ("false", "true"), ("FALSE", "TRUE"), ('"0"', '"1"'),
    ('"""0"""', '"""1"""'), ("'0'", "'1'"), (" 0", "1 "), ("00", "01"), ("0e0", "1e0"), ("-0.0", "+1"),
    ("normal", "tumor"), ("Benign", "Malignant"), ("no_metastasis", "Metastatic"), ("0_normal", "1-tumour"),
]
# fmt: on


def kaggle(root: Path, rows: list[tuple[str, str]], folder: str = "train", text: str = "id,label\n") -> DataConfig:
    for number in range(4):
        save(root / folder / f"t{number}.tif")
    (root / "train_labels.csv").write_text(text + "".join(f"{name},{label}\n" for name, label in rows))
    return DataConfig(source="kaggle", root=str(root), image_size=SIZE)


@pytest.mark.parametrize("forms", PLAIN_LABELS)
def test_labels_of_every_plain_form_are_taken(forms: tuple[str, str], tmp_path: Path, caplog) -> None:
    config = kaggle(tmp_path, [(f"t{number}", forms[number % 2]) for number in range(4)])
    table = load_source(config).table
    assert table["label"].tolist() == [0, 1, 0, 1]
    assert table["id"].tolist() == ["t0", "t1", "t2", "t3"]


@pytest.mark.parametrize("label", ["2", "0.5", "-1", "", "yes?", "nan", "1_0", "1e400", "inf", "٢"])
def test_other_labels_are_shown(label: str, tmp_path: Path) -> None:
    assert read_label(label) is None
    config = kaggle(tmp_path, [("t0", label), ("t1", "1"), ("t2", "0"), ("t3", "1")])
    with pytest.raises(DataError, match=r"label is not 0 or 1: 1 \(t0\): .* in row 1 of train_labels.csv"):
        load_source(config)


@pytest.mark.parametrize("suffix", [".tif", ".TIF", ".png"])
def test_ids_may_have_the_suffix_of_their_file(suffix: str, tmp_path: Path, caplog) -> None:
    rows = [(f"t{number}{suffix if number else ''}", str(number % 2)) for number in range(4)]
    config = kaggle(tmp_path, rows)
    (tmp_path / "slides.csv").write_text("id,slide\n" + "".join(f"t{n}{suffix},s{n}\n" for n in range(4)))
    (tmp_path / "split.csv").write_text("id,split\n" + "".join(f"t{n}{suffix},train\n" for n in range(4)))
    config.groups, config.split = str(tmp_path / "slides.csv"), str(tmp_path / "split.csv")
    table = load_source(config).table
    assert table["id"].tolist() == ["t0", "t1", "t2", "t3"]
    assert table["group"].tolist() == ["s0", "s1", "s2", "s3"]
    assert table["split"].tolist() == ["train"] * 4
    assert "3 ids of train_labels.csv are read without their suffix" in caplog.text
    kaggle(tmp_path, [*rows, ("t1", "1")])
    with pytest.raises(DataError, match="id twice: 2"):
        load_source(config)


def test_a_submission_keeps_the_ids_that_it_is_given(tmp_path: Path) -> None:
    for number in range(3):
        save(tmp_path / "test" / "test" / f"t{number}.tif")
    (tmp_path / "sample_submission.csv").write_text("id,label\nt2.tif,0\nt0.tif,0\nt1.tif,0\n")
    config = DataConfig(source="kaggle", root=str(tmp_path), image_size=SIZE)
    table = load_source(config, labelled=False).table
    assert table.sort_values("order")["id"].tolist() == ["t2.tif", "t0.tif", "t1.tif"]


@pytest.mark.parametrize(
    ("header", "separator", "said"),
    [
        ("id;label", ";", "its columns are separated by semicolons, and read so"),
        ("id\tlabel", "\t", "its columns are separated by tabs, and read so"),
        ("ID,Label", ",", "the column Label is read as label"),
        ("filename,class", ",", "the column filename is read as id"),
        ("Image_ID\tTarget", "\t", "the column Target is read as label"),
        ("filename,image,label", ",", None),
        ("ID;LABEL;note, if any", ",", None),
    ],
)
def test_tables_of_spreadsheets_are_read(header: str, separator: str, said: str | None, tmp_path: Path, caplog) -> None:
    config = kaggle(tmp_path, [])
    rows = [f"t{number}{separator}{number % 2}" for number in range(4)]
    for encoding in ("utf-8", "utf-8-sig", "utf-16"):
        (tmp_path / "train_labels.csv").write_text("\n".join([header, *rows]) + "\n", encoding=encoding)
        caplog.clear()
        if said is None:
            with pytest.raises(RequestError, match="has no column id.*; name them in its first line"):
                load_source(config)
            continue
        assert load_source(config).table["label"].tolist() == [0, 1, 0, 1]
        assert said in caplog.text


def test_tiles_that_were_saved_in_another_format_are_read(tmp_path: Path, caplog) -> None:
    config = kaggle(tmp_path, [(f"t{number}.tif", str(number % 2)) for number in range(4)])
    for path in (tmp_path / "train").glob("*.tif"):
        save(path.with_suffix(".png"))
        path.unlink()
    assert load_source(config).table["id"].tolist() == ["t0", "t1", "t2", "t3"]
    assert "are read though they are no .tif, such as t0.png" in caplog.text


@pytest.mark.parametrize("form", ["zip beside", "zip as csv", "gz beside", "gz as csv", "zip with a folder"])
def test_packed_tables_are_read(form: str, tmp_path: Path, caplog) -> None:
    config = kaggle(tmp_path, [(f"t{number}", str(number % 2)) for number in range(4)])
    path = tmp_path / "train_labels.csv"
    text = path.read_bytes()
    path.unlink()
    (tmp_path / "sample_submission.csv").write_text("id,label\nx,0\n")
    if form.startswith("gz"):
        target = path if form.endswith("csv") else path.with_name("train_labels.csv.gz")
        target.write_bytes(gzip.compress(text))
    else:
        with zipfile.ZipFile(path if form.endswith("csv") else path.with_name("train_labels.csv.zip"), "w") as out:
            out.writestr("folder/train_labels.csv" if "folder" in form else "train_labels.csv", text)
            out.writestr("__MACOSX/._train_labels.csv", b"\0")
    assert load_source(config).table["label"].tolist() == [0, 1, 0, 1]
    assert "is packed, and read without unpacking it" in caplog.text


def test_a_packed_table_that_is_damaged_or_ambiguous_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "labels.csv"
    path.write_bytes(gzip.compress(b"id,label\n" * 1000)[:-20])
    with pytest.raises(RequestError, match=r"labels.csv is damaged \(.*\): download it again"):
        read_csv(path)
    with zipfile.ZipFile(path, "w") as out:
        out.writestr("a.csv", "id\nx\n")
        out.writestr("b.csv", "id\nx\n")
    with pytest.raises(RequestError, match="is a zip with 2 tables in it: unzip it, and give the CSV"):
        read_csv(path)
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(RequestError, match="is damaged"):
        read_csv(path)


def test_tiles_in_train_train_are_found(tmp_path: Path) -> None:
    config = kaggle(tmp_path, [(f"t{number}", str(number % 2)) for number in range(4)], folder="train/train")
    assert len(open_pack(load_source(config), tmp_path / "cache", SIZE).tiles) == 4


def test_what_is_still_zipped_or_lies_below_is_named(tmp_path: Path) -> None:
    config = DataConfig(source="kaggle", root=str(tmp_path), image_size=SIZE)
    kaggle(tmp_path / "below", [(f"t{number}", str(number % 2)) for number in range(4)])
    with pytest.raises(RequestError, match=f"use data.root={tmp_path / 'below'}"):
        load_source(config)
    assert len(load_source(DataConfig(source="kaggle", root=str(tmp_path / "below"))).table) == 4
    (tmp_path / "train.zip").write_bytes(b"")
    with pytest.raises(RequestError, match="unzip train.zip there"):
        load_source(config)


@pytest.mark.parametrize("names", [("0", "1"), ("benign", "cancer")])
def test_folders_of_patients_that_hold_class_folders_are_slides(names, tmp_path: Path, caplog) -> None:
    for number in range(12):
        patient, label = 8863 + number // 4, number % 2
        if (patient, label) != (8865, 1):  # not every patient has both
            save(tmp_path / str(patient) / names[label] / f"{patient}_x{number}.png")
    table = load_source(DataConfig(source="folder", root=str(tmp_path), image_size=SIZE)).table
    assert table.groupby("group")["label"].agg(["size", "sum"]).to_numpy().tolist() == [[4, 2], [4, 2], [2, 0]]
    assert table["id"].iloc[0] == "8863_x0"
    assert "3 folders of" in caplog.text
    assert "are taken for slides (or patients): 8863, 8864, 8865" in caplog.text


@pytest.mark.parametrize(
    ("folder", "slides"),
    [
        ("patient{}", {"patient0", "patient1"}),
        ("SOB/adenosis/B_A_14-{}/40X", {"B_A_14-0", "B_A_14-1"}),
        ("00{}", set()),
        ("adenosis{}x", set()),
    ],
)
def test_slides_in_class_folders_are_known_by_their_names(
    folder: str, slides: set[str], tmp_path: Path, caplog
) -> None:
    for number in range(8):
        save(tmp_path / str(number % 2) / folder.format(number // 4) / f"B_A-14-{number // 4}-40-{number}.png")
    config = DataConfig(source="folder", root=str(tmp_path), image_size=SIZE)
    assert {*load_source(config).table["group"].dropna()} == slides
    if slides:
        assert f"2 folders in the class folders of {tmp_path} are taken for slides (or patients): " in caplog.text
        return
    assert "are not taken for slides, as they may be anything" in caplog.text
    rows = [f"{name},s{place % 3}" for place, name in enumerate(load_source(config).table["id"])]
    (tmp_path / "slides.csv").write_text("\n".join(["id,slide", *rows]) + "\n")
    caplog.clear()
    config.groups = str(tmp_path / "slides.csv")
    assert {*load_source(config).table["group"]} == {"s0", "s1", "s2"}
    assert "not taken for slides" not in caplog.text


def test_patients_in_the_parts_of_a_split_and_with_classes_of_their_own(tmp_path: Path) -> None:
    for number in range(12):
        part = "train" if number < 8 else "val"
        save(tmp_path / part / f"p{number // 4}" / ("NORM", "TUM")[number % 2] / f"{number}.png")
        save(tmp_path / part / f"q{number // 4}" / ("NORM", "TUM")[number % 2] / f"{number}q.png")
    config = DataConfig(source="folder", root=str(tmp_path), image_size=SIZE, classes=["NORM", "TUM"])
    table = load_source(config).table
    assert set(table["group"]) == {"p0", "p1", "p2", "q0", "q1", "q2"}
    assert table["split"].value_counts().to_dict() == {"train": 16, "val": 8}
    assert table["label"].mean() == 0.5


def test_equal_names_in_two_classes_are_two_tiles(tmp_path: Path, caplog) -> None:
    for name in ("0/1.png", "0/2.png", "1/1.png", "1/3.png"):
        save(tmp_path / name)
    table = load_source(DataConfig(source="folder", root=str(tmp_path), image_size=SIZE)).table
    assert dict(zip(table["id"], table["label"], strict=True)) == {"0/1": 0, "1/1": 1, "2": 0, "3": 1}
    assert "2 tiles have the name of another: their ids are their paths, such as 0/1" in caplog.text
    save(tmp_path / "0/2.tif")
    with pytest.raises(DataError, match="id twice: 2"):
        load_source(DataConfig(source="folder", root=str(tmp_path), image_size=SIZE))


@pytest.mark.parametrize("names", [("NonTumor", "Tumor"), ("normal", "metastatic"), ("0_normal", "1_tumor")])
def test_usual_names_of_classes_and_parts_are_known_in_any_dress(names: tuple[str, str], tmp_path: Path) -> None:
    for number in range(8):
        part = "Training" if number < 4 else "testing"
        save(tmp_path / part / names[number % 2] / f"{number}.png")
    save(tmp_path / "__MACOSX" / "0" / "0.png")
    save(tmp_path / "Training" / "__MACOSX" / "0.png")
    table = load_source(DataConfig(source="folder", root=str(tmp_path), image_size=SIZE)).table
    assert table["label"].tolist() == [0, 1] * 4
    assert table["split"].tolist() == ["train"] * 4 + ["test"] * 4


@pytest.mark.parametrize("below", ["a/b", "a/b/c", "patients"])
def test_tiles_further_below_are_named(below: str, tmp_path: Path) -> None:
    for number in range(4):
        patient = f"p{number // 2}" if below == "patients" else ""
        save(tmp_path / "top" / below / patient / str(number % 2) / f"{number}.png")
    with pytest.raises(RequestError, match=f"; use data.root={tmp_path / 'top' / below}$"):
        load_source(DataConfig(source="folder", root=str(tmp_path / "top"), image_size=SIZE))
    config = DataConfig(source="folder", root=str(tmp_path / "top" / below), image_size=SIZE)
    assert load_source(config).table["label"].tolist() == [0, 1, 0, 1]


def test_tiles_are_looked_for_below_only_where_they_can_be(tmp_path: Path) -> None:
    """Kaggle's folder has parts without classes; a folder that can't be read is nobody's concern."""
    for number in range(4):
        save(tmp_path / "kaggle" / ("train", "test")[number % 2] / f"{number}.png")
        save(tmp_path / "twice" / ("train", "training")[number % 2] / str(number // 2) / f"{number}.png")
    closed = tmp_path / "closed"
    closed.mkdir(mode=0)
    with pytest.raises(RequestError, match="has no two class folders such as 0 and 1") as caught:
        load_source(DataConfig(source="folder", root=str(tmp_path), image_size=SIZE))
    assert "use data.root" not in str(caught.value)


@pytest.mark.parametrize("slides", [2, 3])
def test_slides_that_are_named_as_classes_are_no_classes_without_a_word(slides: int, tmp_path: Path) -> None:
    names = ["01_normal", "02_tumor", "03_normal"][:slides]
    for number in range(4 * slides):
        save(tmp_path / names[number % slides] / str(number // slides % 2) / f"{number}.png")
    config = DataConfig(source="folder", root=str(tmp_path), image_size=SIZE)
    if slides == 2:
        readings = re.escape("data.classes=[01_normal,02_tumor] takes them for classes, data.classes=[0,1] for slides")
        with pytest.raises(RequestError, match=readings):
            load_source(config)
        as_classes = load_source(dataclasses.replace(config, classes=["01_normal", "02_tumor"])).table
        assert as_classes.groupby("label")["id"].count().tolist() == [4, 4]
        assert as_classes["group"].isna().all()
        config = dataclasses.replace(config, classes=["0", "1"])
    table = load_source(config).table
    assert sorted(table["group"].unique()) == names
    assert table.groupby("group")["label"].mean().tolist() == [0.5] * slides


def test_advice_on_folders_names_what_works(tmp_path: Path) -> None:
    for number in range(4):
        save(tmp_path / "archive" / str(number % 2) / f"{number}.png")
    with pytest.raises(RequestError, match=f"use data.root={tmp_path / 'archive'}"):
        load_source(DataConfig(source="folder", root=str(tmp_path), image_size=SIZE))
    assert len(load_source(DataConfig(source="folder", root=str(tmp_path / "archive"))).table) == 4
    for number in range(20):
        save(tmp_path / "many" / f"class{number:02d}" / f"{number}.png")
    config = DataConfig(source="folder", root=str(tmp_path / "many"), image_size=SIZE)
    with pytest.raises(RequestError, match=r"class07 and 12 more; name them with data.classes=\[NEGATIVE,POSITIVE\]"):
        load_source(config)
    config.classes = ["class00", "class19"]
    assert len(load_source(config).table) == 2
