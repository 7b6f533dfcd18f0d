"""Features are computed once: kept when killed, read by others, and never those of another network."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from histolight.data.features import FeatureCache, features_key

TILES = torch.arange(40).float()


def compute(rows: np.ndarray, seen: list[int], stop: int | None = None) -> Iterator[torch.Tensor]:
    for start in range(0, len(rows), 4):
        if stop is not None and start >= stop:
            raise KeyboardInterrupt
        batch = rows[start : start + 4]
        seen.extend(batch.tolist())
        yield torch.stack([TILES[batch], TILES[batch] ** 2], 1)


def test_each_tile_is_computed_once_whoever_asks_and_a_kill_loses_a_batch_at_most(tmp_path: Path) -> None:
    rows, seen = np.array([9, 3, 5, 30, 31, 7, 8, 2, 20, 21]), []
    cache = FeatureCache(tmp_path / "features" / "key", 40)
    with pytest.raises(KeyboardInterrupt):
        cache.features(rows, lambda rows: compute(rows, seen, stop=8), "train", 4)
    assert seen == [2, 3, 5, 7, 8, 9, 20, 21]
    again = FeatureCache(tmp_path / "features" / "key", 40)
    found = again.features(rows, lambda rows: compute(rows, seen), "train", 4)
    assert sorted(seen) == sorted(rows.tolist())
    torch.testing.assert_close(found, torch.stack([TILES[rows], TILES[rows] ** 2], 1), rtol=0, atol=0)
    more = np.array([39, 9, 0])
    torch.testing.assert_close(again.features(more, lambda rows: compute(rows, seen), "val", 4)[:, 0], TILES[more])
    assert sorted(seen) == sorted([*rows.tolist(), 0, 39])


def test_a_damaged_cache_is_computed_anew(tmp_path: Path) -> None:
    cache, rows = FeatureCache(tmp_path / "key", 40), np.arange(6)
    whole = cache.features(rows, lambda rows: compute(rows, []), "train", 4)
    for name in ("done.npy", "values.npy"):
        (tmp_path / "key" / name).write_bytes(b"x")
        seen: list[int] = []
        torch.testing.assert_close(cache.features(rows, lambda rows: compute(rows, seen), "train", 4), whole)  # noqa: B023
        assert seen == rows.tolist()


def test_the_key_is_that_of_the_backbone_and_not_of_its_head() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 1))
    key = features_key(network, "1", {"mean": [0.5]})
    nn.init.zeros_(network[1].weight)
    assert features_key(network, "1", {"mean": [0.5]}) == key
    assert features_key(network, "1", {"mean": [0.6]}) != key
    with torch.no_grad():
        network[0].weight[0, 0] += 1e-6
    assert features_key(network, "1", {"mean": [0.5]}) != key
