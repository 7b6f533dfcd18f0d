from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from tissue import SIZE, canvas, cut

from histolight.config.schema import DataConfig
from histolight.data.overlaps import find_clusters, find_leaks
from histolight.data.prepare import prepare
from histolight.errors import RequestError


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Class folders of 40 tiles: 0 to 2 and 10 to 12 overlap in a row, 20 is a copy of 0, the others stand alone."""
    slides = [canvas(SIZE, SIZE, seed) for seed in range(40)]
    row, other = canvas(SIZE, 200, 100), canvas(200, SIZE, 101)
    slides[0:3] = cut(row, [(0, 0), (0, 48), (0, 96)])
    slides[10:13] = cut(other, [(0, 0), (48, 0), (96, 0)])
    slides[20] = slides[0]
    for number, tile in enumerate(slides):
        path = tmp_path / "tiles" / str(number % 2) / f"t{number:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(tile).save(path)
    return tmp_path / "tiles"


def config(root: Path, **values) -> DataConfig:
    return DataConfig(source="folder", root=str(root), cache=str(root.parent / "cache"), **values)


def split_file(root: Path, parts: dict[str, list[int]], name: str = "split.csv") -> str:
    lines = [f"t{number:02d},{part}" for part, numbers in parts.items() for number in numbers]
    (root.parent / name).write_text("\n".join(["id,split", *lines]) + "\n")
    return str(root.parent / name)


@pytest.mark.parametrize("values", [{}, {"fold": 0}, {"fold": 3}, {"test_fraction": 0.2}, {"seed": 5}])
def test_tiles_that_share_pixels_stay_together(root, values):
    data = prepare(config(root, **values))
    assert data.split_kind == "overlap"
    split = data.table.set_index("id")["split"]
    assert split[["t00", "t01", "t02", "t20"]].nunique() == 1
    assert split[["t10", "t11", "t12"]].nunique() == 1
    clusters = data.table.groupby("cluster")["id"].agg(list)
    assert sorted(map(len, clusters)) == [1] * 33 + [3, 4]
    assert clusters["t00"] == ["t00", "t01", "t02", "t20"]
    assert data.leaks.empty
    assert data.leaking == {"val": 0, "test": 0}


def test_the_sample_of_a_limit_keeps_the_clusters_of_all_tiles(root):
    data = prepare(config(root, limit=30, seed=2))
    held = set(data.table["id"])
    for members in (["t00", "t01", "t02", "t20"], ["t10", "t11", "t12"]):
        assert data.table.set_index("id")["cluster"].reindex([name for name in members if name in held]).nunique() == 1


def test_a_random_split_counts_what_it_leaks(root):
    counts = [prepare(config(root, split="random", seed=seed)) for seed in range(5)]
    assert {data.split_kind for data in counts} == {"random"}
    assert any(data.leaking["val"] for data in counts)
    for data in counts:
        split = data.table.set_index("id")["split"]
        pairs = [("t00", "t01"), ("t01", "t02"), ("t00", "t20"), ("t20", "t01"), ("t10", "t11"), ("t11", "t12")]
        across = [{a, b} for a, b in pairs if split[a] != split[b]]
        assert data.leaking["val"] == len({name for pair in across for name in pair if split[name] == "val"})
        contents = {tuple(sorted((name.replace("t20", "t00"), split[name]) for name in pair)) for pair in across}
        assert len(data.leaks) == len(contents)


def test_a_list_of_parts_is_taken_and_its_leaks_are_named(root, caplog):
    parts = {"train": [0, 1, *range(3, 25)], "validation": [2, 10, *range(25, 33)], "test": [*range(33, 38), 20]}
    parts["train"] = [number for number in parts["train"] if number not in (10, 20)]
    data = prepare(config(root, split=split_file(root, parts)))
    assert data.split_kind == "given"
    assert data.table["split"].value_counts().to_dict() == {"train": 22, "val": 10, "test": 6}
    assert "2 tiles are not named" in caplog.text
    leaks = data.leaks.set_index(["id_1", "id_2"])
    assert set(leaks.index) == {("t00", "t20"), ("t20", "t01"), ("t01", "t02"), ("t10", "t11")}
    assert leaks.loc[("t01", "t02")].to_dict() == {"split_1": "train", "split_2": "val", "dy": 0, "dx": 48}
    assert data.leaking == {"val": 2, "test": 1}


def test_the_splits_of_a_run_are_such_a_list(root):
    data = prepare(config(root, test_fraction=0.2, seed=3))
    data.table[["id", "split", "cluster"]].to_csv(root.parent / "splits.csv", index=False)
    again = prepare(config(root, split=str(root.parent / "splits.csv")))
    assert again.split_kind == "given"
    pd.testing.assert_series_equal(again.table["split"], data.table["split"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "is not a file: give auto, random or a CSV id,split"),
        ("id,part\nt00,train\n", "has no column split"),
        ("id,split\nt00,learning\n", "gives the part 'learning' to t00: write train, val or test"),
        ("id,split\nt00,train\nt00,val\n", "names 1 ids more than once, first t00"),
        ("id,split\nx,train\ny,val\n", "names none of the 40 tiles: its ids must be those of the tiles, such as t00"),
        ("id,split\nt00,train\nt01,val\n", "the train part has no tile of class 1"),
    ],
)
def test_a_list_that_is_no_split_is_refused(root, text, message):
    path = root.parent / "list.csv"
    if text is not None:
        path.write_text(text)
    with pytest.raises(RequestError, match=message) as caught:
        prepare(config(root, split=str(path)))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["val", "valid", "Validation"])
def test_folders_named_as_parts_are_a_given_split(root, tmp_path, name):
    for part, numbers in {"train": range(24), name: range(24, 36), "test": [36, 37, 38, 39, 11]}.items():
        for number in numbers:
            source = root / str(number % 2) / f"t{number:02d}.png"
            target = tmp_path / "parts" / part / str(number % 2) / ("same.png" if number == 24 else source.name)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(source.read_bytes())
    data = prepare(config(tmp_path / "parts"))
    assert data.split_kind == "given"
    assert data.table["split"].value_counts().to_dict() == {"train": 24, "val": 12, "test": 5}
    assert {"train/t00", f"{name}/same", "test/t11"} <= set(data.table["id"])
    assert data.leaking == {"val": 0, "test": 1}
    copies = data.leaks[(data.leaks[["dy", "dx"]] == 0).all(axis=1)]
    assert copies[["id_1", "id_2"]].to_numpy().tolist() == [["train/t11", "test/t11"]]
    folds = [prepare(config(tmp_path / "parts", fold=fold)) for fold in range(5)]
    assert all((data.table["split"] == "test").sum() == 5 for data in folds)
    assert {data.split_kind for data in folds} == {"overlap"}


def test_two_folders_of_one_part_are_refused(root, tmp_path):
    for part in ("train", "val", "valid"):
        (tmp_path / "parts" / part / "0").mkdir(parents=True)
    with pytest.raises(RequestError, match="two folders of one part: train, val, valid"):
        prepare(config(tmp_path / "parts"))


def test_slides_known_in_part_take_in_what_overlaps_them(root, caplog):
    groups = root.parent / "slides.csv"
    known = {number: f"s{number % 5}" for number in range(40) if number not in (1, 12, 20, 30)}
    known[0] = known[2] = "s0"
    groups.write_text("id,slide\n" + "".join(f"t{number:02d},{slide}\n" for number, slide in known.items()))
    data = prepare(config(root, groups=str(groups)))
    assert data.split_kind == "slide"
    table = data.table.set_index("id")
    assert table.loc[["t01", "t20"], "cluster"].tolist() == ["s0", "s0"]
    assert table.loc["t12", "cluster"] == table.loc["t11", "group"]
    assert table.loc["t30", "cluster"] == "t30"
    assert table.loc["t30", "split"] == "train"
    assert (table.groupby("cluster")["split"].nunique() == 1).all()
    assert sum(data.without_slide.values()) == 4
    assert prepare(config(root)).without_slide == {}


def test_an_unknown_tile_between_two_slides_joins_them_and_blank_copies_join_none():
    table = pd.DataFrame({"id": list("abcdef"), "group": ["s1", None, "s2", "s3", None, "s4"], "row": range(6)})
    pairs = np.array([[0, 1, 16, 0], [1, 2, 16, 0], [3, 4, 0, 0], [3, 5, 0, 16]], np.int32)
    blank = np.array([1, 9, 9, 1, 1, 9], np.float32)  # a, too, but for what it shares with b
    assert find_clusters(table, pairs, blank).tolist() == ["s1", "s1", "s1", "s3", "e", "s4"]
    shown = np.full(6, 9, np.float32)
    assert find_clusters(table, pairs, shown).tolist() == ["s1", "s1", "s1", "s3", "s3", "s4"]
    assert find_clusters(table.assign(group=None), pairs, blank).tolist() == ["a", "a", "a", "d", "d", "d"]
    assert find_clusters(table.assign(group="one"), pairs, shown).tolist() == ["one"] * 6


def test_leaks_count_each_tile_once_and_every_copy():
    table = pd.DataFrame({"id": list("abcde"), "row": range(5), "split": ["train", "val", "val", "test", "test"]})
    pairs = np.array([[0, 1, 0, 0], [0, 2, 0, 0], [0, 3, 16, 0], [3, 4, 0, 0]], np.int32)
    leaks, leaking = find_leaks(table, pairs, 5)
    assert leaking == {"val": 2, "test": 2}
    assert set(map(tuple, leaks[["id_1", "id_2"]].to_numpy())) == {("a", "b"), ("a", "d"), ("b", "d")}
    nothing, none = find_leaks(table.assign(split="train"), pairs, 5)
    assert nothing.empty
    assert none == {"val": 0, "test": 0}


@pytest.mark.slow
def test_on_real_tiles_no_pair_lies_across_the_hold_out_or_any_fold(real_tiles, tmp_path, caplog):
    caplog.set_level(logging.ERROR, logger="histolight")
    tiles = DataConfig(source="kaggle", root=str(real_tiles), cache=str(tmp_path))
    for data in (
        DataConfig(**{**vars(tiles), **values})
        for values in [{}, {"test_fraction": 0.2}, *({"fold": fold} for fold in range(5))]
    ):
        prepared = prepare(data)
        assert prepared.split_kind == "overlap"
        assert prepared.leaks.empty
        assert (prepared.table["split"] == "val").mean() == pytest.approx(0.2, abs=0.001)
    random = prepare(DataConfig(**{**vars(tiles), "split": "random"}))
    assert len(random.leaks) == 95
    folds = [prepare(DataConfig(**{**vars(tiles), "split": "random", "fold": fold})) for fold in range(5)]
    assert {82, 76} <= {len(data.leaks) for data in folds}
