"""Tiles that overlap what trained or chose a run, found in other files; the run is as a training leaves it."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from tissue import SIZE, canvas, cut

from histolight import runs
from histolight.config.compose import to_yaml
from histolight.config.schema import Config, DataConfig
from histolight.data.prepare import PackedTiles, load_tiles, prepare
from histolight.data.sources import load_source
from histolight.inference.recognition import recognise, shared_slides

SLIDES = [canvas(SIZE, 240, seed) for seed in range(30)]


def write(root: Path, tiles: list[np.ndarray], suffix: str) -> Path:
    for number, tile in enumerate(tiles):
        path = root / str(number % 2) / f"t{number:02d}{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(tile).save(path, quality=75)
    return root


@pytest.fixture(params=[".png", ".jpg"])
def run(request, tmp_path: Path) -> Path:
    """30 tiles, each the left end of a slide of its own: 18 train, 6 validate, 6 test."""
    root = write(tmp_path / "own", [cut(slide, [(0, 0)])[0] for slide in SLIDES], request.param)
    data = DataConfig(source="folder", root=str(root), cache=str(tmp_path / "cache"), test_fraction=0.2)
    directory = tmp_path / "run"
    directory.mkdir()
    runs.write_splits(directory, prepare(data).table)
    (directory / "config.yaml").write_text(to_yaml(Config(data)))
    (directory / "metrics.json").write_text('{"status": "completed", "split": "overlap"}')
    return directory


def pack(root: Path) -> PackedTiles:
    data = DataConfig(source="folder", root=str(root), cache=str(root.parent / "cache"))
    return load_tiles(load_source(data), data)


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_neighbours_of_what_trained_or_chose_are_recognised_in_files_of_any_kind(run, tmp_path, suffix) -> None:
    other = write(tmp_path / "other", [cut(slide, [(0, 32)])[0] for slide in SLIDES], suffix)
    found = recognise(run, pack(other))
    splits = runs.read_splits(run)["split"]
    used = splits[splits != "test"]
    assert set(found.table["id"]) == set(used.index)  # of one slide, tiles have the same name here and there
    assert set(found.table["how"]) == {"overlap"}
    assert (found.table["known_id"] == found.table["id"]).all()
    assert (found.table["part"].to_numpy() == used[found.table["id"]].to_numpy()).all()
    assert found.counts == {"trained": 0, "chose": 0, "overlap": 24}
    assert found.kind == "24 of 30 tiles known to the run"
    assert found.sentence == ("by their pixels, of these 30 tiles 24 overlap a tile that trained or chose it")


def test_a_run_whose_own_tiles_moved_says_so_without_advice_that_is_of_other_tiles(run, tmp_path, caplog) -> None:
    (tmp_path / "own").rename(tmp_path / "moved")
    found = recognise(run, pack(tmp_path / "moved"))
    assert found.kind == "24 of 30 tiles known to the run"
    assert not found.overlaps
    assert caplog.messages[-1] == f"the run's own tiles can't be read: data.root={tmp_path / 'own'} is not a folder"


def test_tiles_beside_them_are_not_recognised(run, tmp_path) -> None:
    found = recognise(run, pack(write(tmp_path / "other", [cut(slide, [(0, 112)])[0] for slide in SLIDES], ".png")))
    assert found.table.empty
    assert found.sentence == (
        "by their pixels none of these tiles trained or chose the run, and none overlaps one that did"
    )


def test_without_its_own_tiles_overlaps_are_not_looked_for_and_the_sentence_says_so(run, tmp_path) -> None:
    other = write(
        tmp_path / "other", [cut(slide, [(0, 32 * (row > 0))])[0] for row, slide in enumerate(SLIDES)], ".png"
    )
    packed = pack(other)
    shutil.rmtree(tmp_path / "own")
    found = recognise(run, packed)
    assert not found.overlaps
    assert found.counts["overlap"] == 0
    assert "overlaps were not looked for, as its own tiles are not packed here" in found.sentence


def test_slides_that_trained_or_chose_are_counted_and_named(tmp_path: Path) -> None:
    rows = ["a,train,s1", "b,train,s2", "c,val,s3", "d,test,s4", "e,train,", "f,train,s5", "g,val,s6"]
    (tmp_path / "splits.csv").write_text("\n".join(["id,split,group", *rows]) + "\n")
    table = pd.DataFrame({"group": ["s1", "s1", "s3", "s4", "other", None, "s5", "s6"]})
    [sentence] = shared_slides(tmp_path, table)
    assert sentence.startswith("4 of these 6 slides have the name of one that trained or chose the run (s1, s3, s5, …)")
    assert shared_slides(tmp_path, table[table["group"].isin(["s4", "other"])]) == []
    (tmp_path / "splits.csv").write_text("id,split\na,train\n")  # of an older version
    assert shared_slides(tmp_path, table) == []
