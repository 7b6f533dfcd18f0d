from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from histolight.config.schema import DataConfig
from histolight.data.sources import load_source
from histolight.data.table import read_groups, sample, with_groups
from histolight.errors import DataError, RequestError

IDS = ["0012", "b", "a", "c.d"]
LABELS = np.array([0, 1, 0, 1])


@pytest.fixture
def root(tmp_path, make_tiles, write_kaggle):
    return write_kaggle(tmp_path / "a (b)=c", IDS, make_tiles(4), LABELS)


def config(root, **values) -> DataConfig:
    return DataConfig(source="kaggle", root=str(root), image_size=32, **values)


def test_the_table_is_sorted_and_its_ids_are_strings(root, make_tiles):
    source = load_source(config(root))
    assert source.table["id"].tolist() == ["0012", "a", "b", "c.d"]
    assert source.table["label"].tolist() == [0, 0, 1, 1]
    assert source.table["label"].dtype == np.int8
    assert source.table["row"].tolist() == [0, 1, 2, 3]
    assert source.table[["group", "split"]].isna().all(axis=None)
    np.testing.assert_array_equal(source.read_tile(1), make_tiles(4)[2])


@pytest.mark.parametrize(
    "text",
    [
        b"\xef\xbb\xbfid,label\r\n0012,0\r\nb,1\r\na,0\r\nc.d,1\r\n",
        b'"id","label"\n"0012","0"\n"b","1"\n"a","0"\n"c.d","1"',
        b"fold,label,id\n1,0,0012\n2, 1, b\n3,0,a\n\n4,1,c.d\n",
    ],
)
def test_a_csv_may_be_written_in_any_usual_way(root, text):
    expected = load_source(config(root)).table
    (root / "train_labels.csv").write_bytes(text)
    pd.testing.assert_frame_equal(load_source(config(root)).table, expected)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "is empty"),
        (b"id,label\n", "no rows"),
        (b"name,label\na,1\n", "no column id; its columns: name, label"),
        (b"id|label\na|1\n", "no column id, label; its columns: id|label"),
        ("id,label\né,1\n".encode("latin-1"), "not UTF-8"),
        (b"id,label\na,1,2\n", "not a table"),
        (b"id,label\na,1\nb,1,2\n", "not a table"),
    ],
)
def test_a_csv_that_is_no_table_of_labels_is_refused(root, text, message):
    (root / "train_labels.csv").write_bytes(text)
    with pytest.raises(RequestError, match=r"train_labels\.csv") as caught:
        load_source(config(root))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_every_problem_is_listed_at_once(root):
    (root / "train_labels.csv").write_text("id,label\na,2\na,0\nb,\n../x,1\nd/e,1\n,0\ngone,1\n")
    with pytest.raises(DataError) as caught:
        load_source(config(root))
    found = set(zip(caught.value.problems["id"], caught.value.problems["problem"], strict=True))
    assert found == {
        ("a", "label is not 0 or 1"),
        ("b", "label is not 0 or 1"),
        ("a", "id twice"),
        ("../x", "id is not a file name"),
        ("d/e", "id is not a file name"),
        ("", "id is not a file name"),
        ("gone", "id without a tile"),
        ("0012", "tile without an id"),
        ("c.d", "tile without an id"),
    }
    assert "row 4" in caught.value.problems.set_index("id").loc["../x", "detail"]
    assert str(caught.value).startswith("10 problems with ")


def test_two_files_of_one_id_are_an_error(root):
    (root / "train" / "a.TIF").write_bytes((root / "train" / "a.tif").read_bytes())
    with pytest.raises(DataError, match=r"two files of one id: 2 \(a, a\)"):
        load_source(config(root))


def test_hidden_files_are_ignored_and_other_files_are_named(root, caplog):
    (root / "train" / ".DS_Store").write_text("x")
    (root / "train" / "._a.tif").write_text("x")
    (root / "train" / "notes.txt").write_text("x")
    assert len(load_source(config(root)).table) == 4
    assert "1 files" in caplog.text
    assert "notes.txt" in caplog.text


@pytest.mark.parametrize(("gone", "message"), [("train_labels.csv", "is missing"), ("train", "train is missing")])
def test_a_missing_part_is_named(root, gone, message):
    (root / gone).rename(root / "moved")
    with pytest.raises(RequestError, match=message):
        load_source(config(root))


def test_a_missing_root_is_named():
    with pytest.raises(RequestError, match=r"^data.root=/nowhere is not a folder; "):
        load_source(config("/nowhere"))


def test_the_tilde_is_the_home_folder(root, monkeypatch):
    monkeypatch.setenv("HOME", str(root.parent))
    assert len(load_source(config(f"~/{root.name}")).table) == 4


def test_unlabelled_tiles_keep_the_order_of_the_submission(tmp_path, make_tiles, write_kaggle):
    root = write_kaggle(tmp_path / "data", IDS, make_tiles(4), None)
    table = load_source(config(root), labelled=False).table
    assert "label" not in table
    assert table.sort_values("order")["id"].tolist() == IDS
    assert len(sample(table, 2, seed=0)) == 2


def test_the_fingerprint_follows_the_pixels_and_not_the_place_or_the_labels(root, write_kaggle, make_tiles):
    before = load_source(config(root)).fingerprint
    moved = root.rename(root.with_name("moved"))
    (moved / "train_labels.csv").write_text("id,label\n0012,1\nb,1\na,1\nc.d,1\n")
    assert load_source(config(moved)).fingerprint == before
    (moved / "train" / "a.tif").touch()
    assert load_source(config(moved)).fingerprint != before


def test_slides_come_from_data_groups(root, tmp_path):
    groups = tmp_path / "slides.csv"
    groups.write_text("id,coord,wsi\n0012,1,tumor_033\nb,1,normal_033\nunknown,1,x\na,1,\n")
    table = load_source(config(root, groups=str(groups))).table.set_index("id")
    assert table["group"].dropna().to_dict() == {"0012": "tumor_033", "b": "normal_033"}


def test_kaggles_list_of_slides_is_found_and_said(root, caplog):
    caplog.set_level("INFO", logger="histolight")
    (root / "patch_id_wsi_full.csv").write_text(",id,wsi\n0,a,s1\n1,b,s2\n")
    assert load_source(config(root)).table["group"].notna().sum() == 2
    assert "patch_id_wsi_full.csv" in caplog.text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("id,x,y\na,1,2\n", "its columns: id, x, y"),
        ("id,slide,patient\na,1,2\n", "its columns: id, slide, patient"),
        ("id\na\n", "its columns: id"),
        ("id,slide\nz,1\n", "none of the 4 tiles"),
        ("id,slide\na,1\na,2\n", "more than once"),
    ],
)
def test_a_useless_list_of_slides_is_refused(root, tmp_path, text, message):
    (tmp_path / "slides.csv").write_text(text)
    with pytest.raises(RequestError, match=r"slides.csv") as caught:
        load_source(config(root, groups=str(tmp_path / "slides.csv")))
    assert message in str(caught.value)


def test_a_missing_list_of_slides_is_named(tmp_path):
    with pytest.raises(RequestError, match=r"data\.groups=.*gone.csv is not a file"):
        read_groups(tmp_path / "gone.csv")


def test_groups_leave_other_columns_and_the_order_alone():
    table = pd.DataFrame({"id": ["b", "a"], "label": [1, 0]}, index=[5, 7])
    joined = with_groups(table, pd.DataFrame({"id": ["a"], "group": ["s"]}))
    assert joined["group"].isna().tolist() == [True, False]
    pd.testing.assert_frame_equal(joined[["id", "label"]], table)


def test_a_sample_is_stratified_repeatable_and_independent_of_the_order():
    table = pd.DataFrame({"id": [f"{n:04d}" for n in range(1000)], "label": ([0, 0, 0, 1] * 250), "row": range(1000)})
    drawn = sample(table, 200, seed=3)
    assert len(drawn) == 200
    assert drawn["label"].sum() == 50
    assert drawn["id"].is_monotonic_increasing
    assert drawn["id"].astype(int).tolist() == drawn["row"].tolist()
    pd.testing.assert_frame_equal(sample(table.sample(frac=1, random_state=1), 200, seed=3), drawn)
    assert sample(table, 200, seed=4)["id"].tolist() != drawn["id"].tolist()
    assert len(sample(table, 5000, seed=0)) == len(sample(table, None, seed=0)) == 1000


def test_a_sample_keeps_the_shares_of_a_given_split():
    table = pd.DataFrame({"id": [f"{n:04d}" for n in range(400)], "label": [0, 1] * 200})
    table["split"] = ["train"] * 200 + ["val"] * 100 + ["test"] * 100
    drawn = sample(table, 40, seed=0)
    assert drawn.groupby(["split", "label"]).size().to_dict() == {
        ("test", 0): 5, ("test", 1): 5, ("train", 0): 10, ("train", 1): 10, ("val", 0): 5, ("val", 1): 5,
    }  # fmt: skip


def test_the_labels_are_no_slides(root):
    with pytest.raises(
        RequestError, match="names the labels of the tiles, not their slides: give a CSV id,<slide column>"
    ):
        load_source(config(root, groups=str(root / "train_labels.csv")))
