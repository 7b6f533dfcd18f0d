"""Data that are rare in one class: stratification uses what there is, and a message names a split that works."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from histolight.config.schema import DataConfig
from histolight.data.checks import check_table
from histolight.data.prepare import prepare
from histolight.data.splits import make_split
from histolight.errors import RequestError


def tiles(positives: int, count: int = 200, slides: int = 0, seed: int = 0) -> pd.DataFrame:
    random = np.random.default_rng(seed)
    labels = np.zeros(count, np.int8)
    labels[random.permutation(count)[:positives]] = 1
    groups = [f"s{number}" for number in random.integers(0, slides, count)] if slides else [None] * count
    table = pd.DataFrame({"id": [f"{number:04d}" for number in range(count)], "label": labels, "split": None})
    table["group"] = pd.Series(groups, dtype=object)
    return table.assign(cluster=table["group"].fillna(pd.Series([f"#{number}" for number in range(count)])))


def configured(words: list[str]) -> DataConfig:
    values = {key: value for key, _, value in (word.removeprefix("data.").partition("=") for word in words)}
    read = {"split": str, "seed": int, "fold": int, "folds": int}
    return DataConfig(source="folder", **{key: read.get(key, float)(value) for key, value in values.items()})


def check_both(table: pd.DataFrame, config: DataConfig) -> None:
    check_table(table, config)
    split, _ = make_split(table, config)
    for part, of_part in table.groupby(split):
        assert set(of_part["label"]) == {0, 1}, part
    if config.fold is None and table["group"].isna().all():
        assert (split == "val").mean() == pytest.approx(config.val_fraction, abs=0.02)


@pytest.mark.parametrize("split", ["auto", "random"])
@pytest.mark.parametrize("words", [[], ["data.val_fraction=0.05"], ["data.val_fraction=0.5"]])
@pytest.mark.parametrize("seed", range(5))
def test_two_positives_among_200_are_one_on_each_side(split: str, words: list[str], seed: int) -> None:
    config = configured([f"data.split={split}", f"data.seed={seed}", *words])
    check_both(tiles(2, seed=seed), config)
    negatives = tiles(2, seed=seed)
    check_both(negatives.assign(label=1 - negatives["label"]), config)


@pytest.mark.parametrize("seed", range(8))
def test_slides_that_hold_a_rare_class_lie_on_both_sides(seed: int) -> None:
    table = tiles(3, slides=12, seed=seed)
    if table.loc[table["label"] == 1, "group"].nunique() > 1:
        check_both(table, DataConfig(source="folder", seed=seed))


@pytest.mark.parametrize("slides", [0, 6, 12])
@pytest.mark.parametrize("positives", [2, 3, 4, 6])
@pytest.mark.parametrize(
    "words",
    [
        ["data.fold=0"], ["data.fold=4"], ["data.fold=1", "data.folds=10"], ["data.test_fraction=0.2"],
        ["data.fold=0", "data.test_fraction=0.2"], ["data.fold=0", "data.split=random"], ["data.test_fraction=0.5"],
    ],
)  # fmt: skip
def test_a_split_that_a_message_names_works(words: list[str], positives: int, slides: int) -> None:
    table = tiles(positives, slides=slides)
    for _ in range(3):  # what is known before the tiles are packed, and then what is known of their slides
        said = refusal(table, configured(words))
        if not said:
            return
        named = re.search(r"use (data\.\S+=[\d.]+( data\.\S+=[\d.]+)*)", said)
        if named is None:
            assert re.search(r"give (more|at least)", said)
            return
        words = [*words, *named[1].split(" ")]
        assert not refusal(table, configured(words)) or slides, said
    raise AssertionError("it went on for ever")


def test_a_limit_that_a_message_names_works(tmp_path: Path) -> None:
    for number in range(60):
        path = tmp_path / "tiles" / str(int(number in (7, 21, 40))) / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(number).integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(path)
    config = DataConfig(source="folder", root=str(tmp_path / "tiles"), cache=str(tmp_path), image_size=32, limit=10)
    with pytest.raises(RequestError, match=r"from several slides, or use data\.limit=\d+$") as caught:
        prepare(config)
    config.limit = int(str(caught.value).rpartition("=")[2])
    assert 10 < config.limit <= 60
    assert {*prepare(config).part("val")["label"]} == {0, 1}


def refusal(table: pd.DataFrame, config: DataConfig) -> str:
    try:
        check_both(table, config)
    except RequestError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    ("slides", "held_out"),
    [
        ({"a": (3, 3), "b": (4, 2), "c": (1, 0)}, {"a", "c"}),
        ({"a": (1, 1), "b": (2, 0), "c": (3, 1)}, {"a", "b"}),
    ],
)
def test_where_no_fold_has_both_classes_slides_are_taken_as_they_fit(
    slides: dict[str, tuple[int, int]], held_out: set[str], seed: int
) -> None:
    """Slides with their numbers of tiles and of tumour tiles: half of the tiles are held out, exactly."""
    rows = [(name, int(row < tumour)) for name, (count, tumour) in slides.items() for row in range(count)]
    table = pd.DataFrame(rows, columns=["group", "label"]).astype({"label": np.int8, "group": object})
    table = table.assign(id=[f"{row:02d}" for row in range(len(table))], split=None, cluster=table["group"])
    split, _ = make_split(table, DataConfig(source="folder", seed=seed, val_fraction=0.5))
    assert set(table.loc[np.asarray(split) == "val", "group"]) == held_out


def test_a_class_in_one_slide_has_no_split_by_slide() -> None:
    table = tiles(2, slides=6)
    table.loc[table["label"] == 1, ["group", "cluster"]] = "s0"
    with pytest.raises(RequestError, match="no fraction and no number of folds works"):
        make_split(table, DataConfig(source="folder"))


def test_folds_of_slides_that_work_are_named_where_too_many_were_asked_for() -> None:
    table = tiles(2, slides=10)
    assert table.loc[table["label"] == 1, "group"].nunique() == 2
    assert "use data.folds=2, or give more tiles of it, of 5 slides" in refusal(table, configured(["data.fold=0"]))
    assert refusal(table, configured(["data.fold=0", "data.folds=2"])) == ""
    assert "use data.test_fraction=0, or" in refusal(table, configured(["data.test_fraction=0.2"]))


@pytest.mark.parametrize("file", [False, True])
def test_a_given_split_without_a_class_on_one_side_names_what_works(file: bool) -> None:
    table = tiles(2)
    table["split"] = np.where(np.arange(len(table)) <= np.flatnonzero(table["label"])[-1], "train", "val")
    said = refusal(table, DataConfig(source="folder", split="splits.csv" if file else "auto"))
    assert "the val part has no tile of class 1: " in said
    if file:
        assert said.endswith("or leave data.split out")
        assert refusal(table.assign(split=None), DataConfig(source="folder")) == ""
    else:
        assert said.endswith("use data.folds=2 data.fold=0")
        check_table(table, configured(["data.folds=2", "data.fold=0"]))
        make_split(table, configured(["data.folds=2", "data.fold=0"]))
