from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from histolight.config.schema import DataConfig
from histolight.data.checks import check_table, describe, find_duplicates, find_near_blank, problem_frame
from histolight.data.pack import open_pack
from histolight.data.sources import load_source
from histolight.errors import DataError


def table(labels, ids=None) -> pd.DataFrame:
    ids = ids or [f"t{row}" for row in range(len(labels))]
    return pd.DataFrame({"id": ids, "label": labels, "row": np.arange(len(labels))})


@pytest.mark.slow
def test_real_tiles_have_the_findings_that_they_are_known_for(real_tiles, tmp_path):
    source = load_source(DataConfig(source="kaggle", root=str(real_tiles)))
    pack = open_pack(source, tmp_path, 96)
    for row in (0, 1999, 3999):
        path = real_tiles / "train" / f"{source.table['id'][row]}.tif"
        np.testing.assert_array_equal(pack.tiles.gather(np.array([row]))[0], np.asarray(Image.open(path)))
    assert source.table["label"].value_counts().to_dict() == {0: 2371, 1: 1629}
    problems, message = find_near_blank(source.table, pack.contrast)
    assert len(problems) == 15
    assert "1 labelled 1" in message
    assert len(find_duplicates(source.table, pack.hashes)[0]) == 0


def test_a_sound_table_passes():
    check_table(table([0, 0, 1, 1]), DataConfig())


def test_ids_twice_and_wrong_labels_are_listed_together():
    with pytest.raises(DataError) as caught:
        check_table(table([0, 1, 2, 1, 0], ["a", "b", "c", "a", "d"]), DataConfig())
    assert caught.value.problems["id"].tolist() == ["a", "a", "c"]
    assert str(caught.value) == "3 problems in the table of tiles: id twice: 2 (a, a); label is not 0 or 1: 1 (c): 2"


@pytest.mark.parametrize(
    ("values", "ones", "fits"),
    [
        ({}, 1, False),
        ({}, 2, True),
        ({"test_fraction": 0.2}, 2, False),
        ({"test_fraction": 0.2}, 3, True),
        ({"fold": 0}, 4, False),
        ({"fold": 0}, 5, True),
    ],
)
def test_a_class_needs_a_tile_for_each_part(values, ones, fits):
    tiles = table([0] * 20 + [1] * ones)
    if fits:
        check_table(tiles, DataConfig(**values))
    else:
        with pytest.raises(DataError, match=f"too few tiles of class 1 \\({ones}, where"):
            check_table(tiles, DataConfig(**values))


def test_describe_counts_each_kind_and_names_three():
    problems = problem_frame([(name, "gone", "") for name in "abcd"] + [("e", "odd", "")])
    assert describe(problems) == "gone: 4 (a, b, c, …); odd: 1 (e)"


def test_duplicates_are_counted_in_tiles_and_sets():
    hashes = np.array([9, 5, 7, 5, 7, 1, 7, 9], np.uint64)
    problems, message = find_duplicates(table([0, 1, 0, 1, 1, 0, 0, 0]), hashes)
    assert problems["id"].tolist() == ["t0", "t1", "t2", "t3", "t4", "t6", "t7"]
    assert problems.set_index("id")["problem"].eq("duplicate pixels, different labels").to_dict() == {
        "t0": False, "t1": False, "t2": True, "t3": False, "t4": True, "t6": True, "t7": False,
    }  # fmt: skip
    assert problems["detail"].iloc[-1] == "same pixels as t0"
    assert message.startswith(
        "7 tiles in 3 sets have exactly the same pixels as another; 1 of the sets carry both labels"
    )


def test_duplicates_follow_the_rows_of_a_sample():
    part = table([0, 1, 0, 1]).iloc[[3, 1]].reset_index(drop=True)
    assert len(find_duplicates(part, np.array([1, 2, 1, 3], np.uint64))[0]) == 0
    assert len(find_duplicates(part, np.array([1, 2, 1, 2], np.uint64))[0]) == 2


def test_near_blank_tiles_are_counted_with_their_labels():
    problems, message = find_near_blank(table([0, 1, 0, 1]), np.array([1.25, 2, 40, 60], np.float32))
    assert problems["problem"].tolist() == ["near-blank", "near-blank, labelled 1"]
    assert problems["detail"].iloc[0] == "standard deviation of grey 1.25 of 255"
    assert message.startswith("2 tiles are near-blank, 1 labelled 1, and used all the same: ")
    message = find_near_blank(table([0, 1]), np.array([1.25, 40], np.float32))[1]
    assert message.startswith("1 tile is near-blank, none labelled 1, and used all the same: ")


@pytest.mark.parametrize("find", [find_duplicates, find_near_blank])
def test_no_findings_are_no_message_and_labels_are_not_needed(find):
    problems, message = find(table([0, 1]), np.array([50, 60]))
    assert (len(problems), message) == (0, "")
    assert list(problems.columns) == ["id", "problem", "detail"]
    assert len(find(table([0, 1]).drop(columns="label"), np.array([1, 1]))[0]) == 2
