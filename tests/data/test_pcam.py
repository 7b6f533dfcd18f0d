from __future__ import annotations

import gzip
import shutil

import h5py
import numpy as np
import pandas as pd
import pytest

from histolight.config.schema import DataConfig
from histolight.data.pack import open_pack
from histolight.data.sources import load_source
from histolight.errors import DataError, RequestError

PREFIX = "camelyonpatch_level_2_split_"
LABELS = {"train": np.array([0, 1, 0, 1, 1]), "valid": np.array([0, 1, 0]), "test": np.array([1, 0])}


@pytest.fixture
def parts(make_tiles):
    return {name: (make_tiles(len(labels), seed), labels) for seed, (name, labels) in enumerate(LABELS.items())}


@pytest.fixture
def root(tmp_path, parts, write_pcam):
    return write_pcam(tmp_path / "data", parts)


def config(root, **values) -> DataConfig:
    return DataConfig(source="pcam", root=str(root), image_size=32, cache=str(root.parent / "cache"), **values)


def test_ids_labels_and_the_official_split(root):
    table = load_source(config(root)).table
    assert table["id"].is_monotonic_increasing
    assert table["row"].tolist() == list(range(10))
    assert table["id"].tolist()[:3] == ["test_0000000", "test_0000001", "train_0000000"]
    assert table["split"].tolist() == ["test"] * 2 + ["train"] * 5 + ["val"] * 3
    assert table["label"].tolist() == [1, 0, 0, 1, 0, 1, 1, 0, 1, 0]
    assert table["group"].isna().all()


@pytest.mark.parametrize("options", [{}, {"chunks": (2, 32, 32, 3), "compression": "gzip"}])
def test_tiles_are_read_in_place(tmp_path, parts, write_pcam, options):
    root = write_pcam(tmp_path / "data", parts, **options)
    source = load_source(config(root))
    assert all(isinstance(array, np.memmap) for array in source.arrays) == (not options)
    pack = open_pack(source, tmp_path / "cache", 32)
    assert not (pack.folder / "tiles.npy").exists()
    rows = np.array([9, 0, 4, 4, 3, 2, 7, 1])
    expected = np.concatenate([parts[name][0] for name in ("test", "train", "valid")])[rows]
    np.testing.assert_array_equal(pack.tiles.gather(rows), expected)


def test_a_user_block_does_not_shift_the_tiles(root, parts):
    with h5py.File(root / f"{PREFIX}train_x.h5", "w", userblock_size=512) as file:
        file["x"] = parts["train"][0]
    source = load_source(config(root))
    assert isinstance(source.arrays[1], np.memmap)
    np.testing.assert_array_equal(source.arrays[1], parts["train"][0])


def test_slides_come_from_the_meta_files(root):
    pd.DataFrame({"coord_x": range(3), "wsi": ["s1", "s2", ""]}).to_csv(root / f"{PREFIX}valid_meta.csv")
    groups = load_source(config(root)).table.set_index("id")["group"]
    assert groups.dropna().to_dict() == {"val_0000000": "s1", "val_0000001": "s2"}


def test_gzipped_files_are_unpacked_once_into_the_cache(root, parts, capsys):
    expected = load_source(config(root)).table
    for path in list(root.glob("*.h5")):
        with open(path, "rb") as plain, gzip.open(f"{path}.gz", "wb") as packed:
            shutil.copyfileobj(plain, packed)
        path.unlink()
    source = load_source(config(root))
    pd.testing.assert_frame_equal(source.table, expected)
    np.testing.assert_array_equal(source.arrays[2], parts["valid"][0])
    assert "unpacking" in capsys.readouterr().err
    unpacked = {path: path.stat().st_mtime_ns for path in (root.parent / "cache" / "pcam").glob("*.h5")}
    assert len(unpacked) == 6
    assert load_source(config(root)).fingerprint == source.fingerprint
    assert {path: path.stat().st_mtime_ns for path in unpacked} == unpacked


def test_a_damaged_gzip_leaves_nothing_behind(root):
    path = root / f"{PREFIX}train_x.h5"
    path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes())[:-500])
    path.unlink()
    with pytest.raises(RequestError, match=r"train_x.h5.gz is damaged .*: download it again"):
        load_source(config(root))
    assert not [path for path in (root.parent / "cache" / "pcam").iterdir() if path.suffix != ".lock"]


def test_every_missing_file_is_named(root):
    for name in ("train_x", "test_y"):
        (root / f"{PREFIX}{name}.h5").unlink()
    with pytest.raises(RequestError) as caught:
        load_source(config(root))
    assert f"lacks {PREFIX}test_y.h5, {PREFIX}train_x.h5 (" in str(caught.value)


def _replace(root, kind, value):
    with h5py.File(root / f"{PREFIX}train_{kind}.h5", "w") as file:
        file[kind] = value


@pytest.mark.parametrize(
    ("kind", "value", "message"),
    [
        ("x", np.zeros((5, 32, 32, 3), np.uint16), "x is uint16"),
        ("x", np.zeros((5, 96, 96, 3), np.uint8), "data.image_size=32"),
        ("x", np.zeros((5, 32, 32), np.uint8), "is needed"),
        ("x", np.zeros((4, 32, 32, 3), np.uint8), "but x has 4 tiles"),
        ("y", np.zeros((6, 1, 1, 1), np.uint8), "but x has 5 tiles"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(root, kind, value, message):
    _replace(root, kind, value)
    with pytest.raises(RequestError, match=r"train_[xy]\.h5") as caught:
        load_source(config(root))
    assert message in str(caught.value)


def test_labels_other_than_0_and_1_are_listed(root):
    _replace(root, "y", np.array([0, 1, 2, 1, 7]).reshape(-1, 1, 1, 1))
    with pytest.raises(DataError) as caught:
        load_source(config(root))
    assert caught.value.problems["id"].tolist() == ["train_0000002", "train_0000004"]


def test_a_meta_file_of_another_length_is_refused(root):
    (root / f"{PREFIX}train_meta.csv").write_text("wsi\ns1\n")
    with pytest.raises(RequestError, match="1 rows, but x has 5 tiles"):
        load_source(config(root))


@pytest.mark.parametrize("link", ["external link", "soft link", "virtual", "external storage", "group", "none"])
def test_data_outside_the_file_are_refused(root, link, tmp_path):
    secret = tmp_path / "secret.h5"
    with h5py.File(secret, "w") as file:
        file["x"] = np.zeros((5, 32, 32, 3), np.uint8)
    with h5py.File(root / f"{PREFIX}train_x.h5", "w") as file:
        if link == "external link":
            file["x"] = h5py.ExternalLink(str(secret), "/x")
        elif link == "soft link":
            file["real"] = np.zeros((5, 32, 32, 3), np.uint8)
            file["x"] = h5py.SoftLink("/real")
        elif link == "virtual":
            layout = h5py.VirtualLayout((5, 32, 32, 3), np.uint8)
            layout[:] = h5py.VirtualSource(str(secret), "x", (5, 32, 32, 3))
            file.create_virtual_dataset("x", layout)
        elif link == "external storage":
            file.create_dataset("x", (5, 32, 32, 3), np.uint8, external=[(str(secret), 0, 5 * 32 * 32 * 3)])
        elif link == "group":
            file.create_group("x")
    with pytest.raises(RequestError, match=r"train_x\.h5"):
        load_source(config(root))


def test_a_truncated_file_is_refused(root):
    path = root / f"{PREFIX}train_x.h5"
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(RequestError, match="not a whole HDF5 file"):
        load_source(config(root))


def test_the_test_tiles_can_be_predicted_without_any_other_file(root, parts):
    for path in root.glob("*.h5"):
        if path.name != f"{PREFIX}test_x.h5":
            path.unlink()
    source = load_source(config(root), labelled=False)
    assert "label" not in source.table
    assert source.table["id"].tolist() == [f"test_{row:07d}" for row in range(len(parts["test"][0]))]
    np.testing.assert_array_equal(source.arrays[0], parts["test"][0])
