"""Kaggle's TIFFs with the same and other tiles as JPEGs in Parquet: one table, one pack, one training."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tissue import SIZE, as_jpeg, canvas, cut

from histolight.cli import main
from histolight.config.schema import DataConfig
from histolight.data.overlaps import pair_table
from histolight.data.pack import open_pack
from histolight.data.prepare import prepare
from histolight.data.sources import load_source
from histolight.errors import RequestError

SLIDES = [canvas(SIZE, 160, seed) for seed in range(24)]


@pytest.fixture
def listing(tmp_path: Path, write_kaggle) -> Path:
    """20 TIFFs; as JPEGs the first 4 of them again, the right-hand neighbours of 4 others, and 12 other tiles."""
    tiffs = np.concatenate([cut(slide, [(0, 0)]) for slide in SLIDES[:20]])
    write_kaggle(tmp_path / "kaggle", [f"k{n:02d}" for n in range(20)], tiffs, np.arange(20) % 2)
    others = [*tiffs[:4], *(cut(slide, [(0, 48)])[0] for slide in SLIDES[4:8])]
    others += [canvas(SIZE, SIZE, 100 + seed) for seed in range(12)]
    images = [{"bytes": as_jpeg(tile), "path": f"p{n:02d}.jpg"} for n, tile in enumerate(others)]
    (tmp_path / "hub").mkdir()
    pq.write_table(pa.table({"image": images, "label": np.arange(20) % 2}), tmp_path / "hub/tiles.parquet")
    (tmp_path / "sources.csv").write_text("source,root,name\nkaggle,kaggle,\nparquet,hub,hub\n")
    return tmp_path / "sources.csv"


def config(listing: Path, **values) -> DataConfig:
    return DataConfig(source="several", root=str(listing), cache=str(listing.parent / "cache"), **values)


def test_the_table_says_whose_each_tile_is_and_the_pack_has_the_pixels_of_both(listing):
    source = load_source(config(listing, domain="source"))
    assert source.table["domain"].value_counts().to_dict() == {"kaggle": 20, "hub": 20}
    assert (source.table["id"].str.partition("/")[0] == source.table["domain"]).all()
    pack = open_pack(source, listing.parent / "cache", SIZE)
    rows = source.table.set_index("id")["row"]
    np.testing.assert_array_equal(pack.tiles.gather(rows[["kaggle/k07"]].to_numpy())[0], SLIDES[7][:, :SIZE])


def test_copies_and_overlaps_of_tiff_and_jpeg_are_found_and_stay_together(listing):
    source = load_source(config(listing))
    pack = open_pack(source, listing.parent / "cache", SIZE)
    pairs = pair_table(source.table, pack.overlaps)
    across = pairs[pairs["id_1"].str[0] != pairs["id_2"].str[0]]
    joined = {frozenset((row.id_1, row.id_2)): (row.dy, row.dx) for row in across.itertuples()}
    assert joined == {
        **{frozenset((f"kaggle/k0{n}", f"hub/p0{n}")): (0, 0) for n in range(4)},
        **{frozenset((f"kaggle/k0{n}", f"hub/p0{n}")): (0, 48) for n in range(4, 8)},
    }
    for fold in range(3):
        data = prepare(config(listing, fold=fold, folds=3))
        assert data.split_kind == "overlap"
        assert data.leaks.empty
        split = data.table.set_index("id")["split"]
        assert all(split[f"kaggle/k0{n}"] == split[f"hub/p0{n}"] for n in range(8))


def test_a_data_set_can_be_left_out_as_a_domain_or_be_a_part(listing):
    data = prepare(config(listing, domain="source", fold=0, folds=2))
    assert set(data.part("val")["domain"]) == {"hub"}
    assert data.leaking["val"] == 8
    listing.write_text("source,root,split\nkaggle,kaggle,train\nparquet,hub,valid\n")
    given = prepare(config(listing))
    assert given.split_kind == "given"
    assert given.leaking["val"] == 8
    assert set(given.part("train")["id"].str[:6]) == {"kaggle"}


def test_slides_of_each_data_set_come_from_its_own_list(listing):
    slides = listing.parent / "slides.csv"
    slides.write_text("id,slide\n" + "".join(f"k{n:02d},s{n // 4}\n" for n in range(20)))
    listing.write_text("source,root,groups\nkaggle,kaggle,slides.csv\nparquet,hub,\n")
    data = prepare(config(listing))
    assert (data.split_kind, data.slides) == ("slide", 5)
    assert data.leaks.empty


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("source,folder\nkaggle,kaggle\n", "sources.csv has no column root; its columns: source, folder"),
        ("source,root\nkagle,kaggle\n", "data.source=kagle is not known: did you mean kaggle"),
        ("source,root\nkaggle,kaggle\nkaggle,kaggle\n", "names two rows kaggle: give each another name"),
        ("source,root\nseveral,kaggle\n", "source=several: a list can't hold another one"),
        ("source,root\nkaggle,gone\n", "gone is not a folder"),
        ("source,root,split\nkaggle,kaggle,train\nparquet,hub,\n", "kaggle brings its own split and parquet has none"),
        ("source,root,split\nkaggle,kaggle,some\n", "gives kaggle the part 'some': write train, val or test"),
    ],
)
def test_a_list_that_does_not_fit_is_one_line(listing, text, message):
    listing.write_text(text)
    with pytest.raises(RequestError, match=message) as caught:
        prepare(config(listing))
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_both_train_one_network(listing, tmp_path, undrawn, capsys):
    words = ["data=several", f"data.root={listing}", "data.domain=source", f"data.cache={tmp_path / 'cache'}"]
    words += ["trainer=cpu", "data.batch_size=8", "model=resnet18", "model.name=shufflenet_v2_x0_5"]
    words += ["model.weights=null", "trainer.max_epochs=1", "data.val_fraction=0.4"]
    assert main(["train", *words, f"hydra.run.dir={tmp_path / 'run'}"]) == 0
    assert "16 tiles)" in capsys.readouterr().out
