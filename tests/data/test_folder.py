from __future__ import annotations

import os
import sys

import numpy as np
import pytest
from PIL import Image

from histolight.config.schema import DataConfig
from histolight.data.sources import load_source
from histolight.errors import DataError, RequestError


def config(root, **values) -> DataConfig:
    return DataConfig(source="folder", root=str(root), image_size=32, **values)


@pytest.fixture
def root(tmp_path, make_tiles, write_folder):
    return write_folder(tmp_path / "data", ["s1/a", "s1/b", "c", "d"], make_tiles(4), np.array([0, 1, 0, 1]))


def test_ids_are_paths_below_the_class_folder(root, make_tiles):
    source = load_source(config(root))
    assert dict(zip(source.table["id"], source.table["label"], strict=True)) == {"c": 0, "d": 1, "s1/a": 0, "s1/b": 1}
    np.testing.assert_array_equal(source.read_tile(2), make_tiles(4)[0])


@pytest.mark.parametrize("names", [("benign", "cancer"), ("Normal", "Tumour"), ("negative", "POSITIVE")])
def test_usual_names_are_known(root, names):
    for old, new in zip("01", names, strict=True):
        (root / old).rename(root / new)
    assert load_source(config(root)).table["label"].tolist() == [0, 1, 0, 1]


def test_other_names_need_data_classes(root, caplog):
    (root / "0").rename(root / "stroma")
    (root / "1").rename(root / "epithelium")
    (root / "fat").mkdir()
    with pytest.raises(RequestError, match=r"epithelium, fat, stroma; name them with data.classes=\[NEGATIVE,POSITIVE"):
        load_source(config(root))
    assert load_source(config(root, classes=["stroma", "epithelium"])).table["label"].tolist() == [0, 1, 0, 1]
    assert "fat" in caplog.text


@pytest.mark.parametrize("classes", [["0", "gone"], ["0", "0"], ["..", "1"]])
def test_classes_must_be_two_folders_of_the_root(root, classes):
    with pytest.raises(RequestError, match=r"does not name two folders .* folders found: 0, 1"):
        load_source(config(root, classes=classes))


def test_a_third_folder_is_not_guessed_away(root):
    (root / "unsure").mkdir()
    with pytest.raises(RequestError, match="0, 1, unsure"):
        load_source(config(root))


def test_suffixes_in_any_case_and_a_warning_for_other_files(root, make_tiles, caplog):
    Image.fromarray(make_tiles(1)[0]).save(root / "0" / "e.TIFF", format="TIFF")
    Image.fromarray(make_tiles(1)[0]).save(root / "0" / "f.JPG", format="JPEG")
    (root / "0" / "notes.txt").write_text("x")
    (root / "0" / ".hidden.png").write_text("x")
    table = load_source(config(root)).table
    assert table["id"].tolist() == ["c", "d", "e", "f", "s1/a", "s1/b"]
    assert "1 entries" in caplog.text
    assert "notes.txt" in caplog.text


def test_an_id_twice_is_an_error(root, make_tiles):
    Image.fromarray(make_tiles(1)[0]).save(root / "0/c.jpg")
    with pytest.raises(DataError, match=r"2 problems .* id twice: 2") as caught:
        load_source(config(root))
    assert sorted(caught.value.problems["detail"]) == ["0/c.jpg", "0/c.png"]


def test_a_name_that_cannot_be_an_id_is_an_error(root, make_tiles):
    Image.fromarray(make_tiles(1)[0]).save(root / "0" / "line\nbreak.png")
    with pytest.raises(DataError, match="name cannot be an id") as caught:
        load_source(config(root))
    assert "\n" not in str(caught.value)
    assert caught.value.problems["detail"].tolist() == [r"'0/line\nbreak.png'"]


def test_a_class_without_images_is_an_error(root):
    for path in (root / "1").rglob("*.png"):
        path.unlink()
    with pytest.raises(RequestError, match="1 has no images"):
        load_source(config(root))


def test_a_link_to_a_parent_folder_does_not_hang(root, caplog):
    os.symlink(root / "0", root / "0" / "s1" / "loop")
    assert len(load_source(config(root)).table) == 4
    assert "s1/loop/" in caplog.text


def test_a_linked_class_folder_is_read(root, tmp_path):
    (root / "1").rename(tmp_path / "elsewhere")
    os.symlink(tmp_path / "elsewhere", root / "1")
    assert len(load_source(config(root)).table) == 4


def test_unlabelled_images_lie_in_or_below_the_root(root, make_tiles):
    Image.fromarray(make_tiles(1)[0]).save(root / "top.png")
    table = load_source(config(root), labelled=False).table
    assert table["id"].tolist() == ["0/c", "0/s1/a", "1/d", "1/s1/b", "top"]
    assert "label" not in table


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such names")
def test_a_tile_whose_name_is_not_utf8_is_refused(root):
    os.rename(os.fsencode(root / "0" / "c.png"), os.fsencode(root / "0") + b"/\xff.png")
    with pytest.raises(RequestError, match="has a name in it that is not UTF-8: rename that folder or file"):
        load_source(config(root))
