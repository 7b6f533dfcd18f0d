"""The same tiles as Kaggle's folder, class folders, PatchCamelyon's files and Parquet: the same table; each trains."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from histolight.cli import main
from histolight.config.compose import compose_config, typed
from histolight.data.prepare import PreparedData, prepare

PARTS = {"train": 24, "valid": 12, "test": 12}


@pytest.fixture
def overrides(
    tmp_path: Path, make_tiles, write_kaggle, write_folder, write_pcam, write_parquet
) -> dict[str, list[str]]:
    """The same 48 tiles in four layouts: what chooses each."""
    tiles, labels = make_tiles(48), np.arange(48) % 2
    ids = [f"{number:08x}" for number in range(48)]
    ends = np.cumsum([0, *PARTS.values()])
    parts = {part: (tiles[a:b], labels[a:b]) for part, a, b in zip(PARTS, ends[:-1], ends[1:], strict=True)}
    roots = {
        "kaggle": write_kaggle(tmp_path / "kaggle", ids, tiles, labels),
        "folder": write_folder(tmp_path / "folder", ids, tiles, labels),
        "pcam": write_pcam(tmp_path / "pcam", parts),
        "parquet": write_parquet(tmp_path / "parquet", parts),
    }
    common = ["data.image_size=32", f"data.cache={tmp_path / 'cache'}", "model.weights=null"]
    common += ["model.name=shufflenet_v2_x0_5", "data.batch_size=8", "trainer=cpu", "trainer.max_epochs=1"]
    return {kind: [f"data={kind}", f"data.root={root}", *common] for kind, root in roots.items()}


def contents(data: PreparedData) -> pd.DataFrame:
    """The label and the pixels of each tile, in an order that does not depend on ids."""
    table = data.table.sort_values("row")
    pixels = data.tiles.gather(table["row"].to_numpy())
    found = pd.DataFrame({"pixels": [tile.tobytes() for tile in pixels], "label": table["label"].to_numpy()})
    return found.sort_values("pixels", ignore_index=True)


def test_four_layouts_of_the_same_tiles_give_the_same_table(overrides: dict[str, list[str]]) -> None:
    data = {kind: prepare(typed(compose_config(values)).data) for kind, values in overrides.items()}
    for found in data.values():
        assert list(found.table.columns) == ["id", "label", "group", "cluster", "split", "row", "pixels", "luma"]
        pd.testing.assert_series_equal(found.table.dtypes, data["kaggle"].table.dtypes)
        pd.testing.assert_frame_equal(contents(found), contents(data["kaggle"]))
    for kind in ("pcam", "parquet"):
        assert data[kind].table["split"].value_counts().to_dict() == {"train": 24, "val": 12, "test": 12}


@pytest.mark.parametrize(
    ("kind", "split"), [("kaggle", "overlap"), ("folder", "overlap"), ("pcam", "given"), ("parquet", "given")]
)
def test_each_layout_trains(
    kind: str, split: str, overrides: dict[str, list[str]], tmp_path: Path, undrawn: None
) -> None:
    assert main(["train", *overrides[kind], f"hydra.run.dir={tmp_path / 'run'}"]) == 0
    recorded = json.loads((tmp_path / "run/metrics.json").read_text())
    assert (recorded["status"], recorded["split"]) == ("completed", split)
    assert ("test" in recorded) == (split == "given")
