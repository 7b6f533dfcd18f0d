from __future__ import annotations

import dataclasses
from pathlib import Path

import lightning as L
import numpy as np
import pandas as pd
import pytest
import torch

from histolight.config.schema import Config
from histolight.data.datamodule import TileDataModule, to_floats
from histolight.data.prepare import prepare


def test_the_table_has_labels_parts_and_rows_of_the_right_tiles(small_config: Config, tile_folder: Path) -> None:
    from PIL import Image

    data = prepare(small_config.data)
    assert data.split_kind == "overlap"
    assert data.table["split"].value_counts().to_dict() == {"train": 48, "val": 12}
    for _, tile in data.table.sample(5, random_state=0).iterrows():
        expected = np.asarray(Image.open(tile_folder / str(tile["label"]) / f"{tile['id']}.png"))
        np.testing.assert_array_equal(data.tiles.gather(np.array([tile["row"]]))[0], expected)


def test_a_limit_keeps_the_classes_and_the_tiles_of_its_seed(small_config: Config) -> None:
    limited = dataclasses.replace(small_config.data, limit=20)
    first, again = prepare(limited), prepare(limited)
    other = prepare(dataclasses.replace(limited, seed=1))
    assert first.table["label"].value_counts().to_dict() == {0: 10, 1: 10}
    pd.testing.assert_frame_equal(first.table, again.table)
    assert set(first.table["id"]) != set(other.table["id"])
    assert first.fingerprint == again.fingerprint != other.fingerprint


def test_slides_keep_together(small_config: Config, tmp_path: Path) -> None:
    ids = [f"tile_{number:03d}" for number in range(60)]
    slides = [f"slide_{number % 10 // 2}" for number in range(60)]
    pd.DataFrame({"id": ids, "wsi": slides}).to_csv(tmp_path / "slides.csv", index=False)
    data = prepare(dataclasses.replace(small_config.data, groups=str(tmp_path / "slides.csv")))
    assert (data.split_kind, data.slides) == ("slide", 5)
    assert (data.table.groupby("group")["split"].nunique() == 1).all()


def test_the_fingerprint_is_of_the_content_not_of_the_place(
    small_config: Config, tile_folder: Path, tmp_path: Path
) -> None:
    import shutil

    moved = shutil.copytree(tile_folder, tmp_path / "moved", copy_function=shutil.copy)
    elsewhere = dataclasses.replace(small_config.data, root=str(moved), cache=str(tmp_path / "cache"))
    assert prepare(elsewhere).fingerprint == prepare(small_config.data).fingerprint
    shutil.move(moved / "1" / "tile_001.png", moved / "0" / "tile_001.png")
    assert prepare(elsewhere).fingerprint != prepare(small_config.data).fingerprint


def test_a_balanced_sampler_draws_both_classes_alike(small_config: Config) -> None:
    config = dataclasses.replace(small_config, data=dataclasses.replace(small_config.data, sampler="balanced"))
    data = prepare(config.data)
    tumour = data.table.query("split == 'train' and label == 1").index
    data = dataclasses.replace(data, table=data.table.drop(tumour[4:]))
    module = TileDataModule(data, config)
    module.trainer = L.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    loader = module.train_dataloader()
    orders = []
    for epoch in range(2):
        module.trainer.fit_loop.epoch_progress.current.completed = epoch
        labels, rows = (np.concatenate([getattr(batch, name) for batch in loader]) for name in ("labels", "rows"))
        assert len(labels) == 24  # three whole batches of the 28 that are drawn
        assert abs(labels.sum() - 12) <= 2
        orders.append(rows)
    assert not np.array_equal(*orders)


@pytest.mark.parametrize("value", [0, 128, 255])
def test_pixels_become_floats_from_0_to_1_in_channels_last(value: int) -> None:
    tiles = to_floats(torch.full((2, 4, 6, 3), value, dtype=torch.uint8), "none")
    assert tiles.shape == (2, 3, 4, 6)
    assert tiles.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(tiles, torch.full_like(tiles, value / 255))
