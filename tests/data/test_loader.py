from __future__ import annotations

import numpy as np
import pytest
import torch
from memory_packs import memory_tiles

from histolight.data.loader import DeviceTiles, TileLoader
from histolight.data.pack import Tiles

COUNT = 37


@pytest.fixture
def tiles() -> Tiles:
    return memory_tiles(np.random.default_rng(0).integers(0, 256, (50, 8, 8, 3), dtype=np.uint8))


@pytest.fixture
def rows() -> np.ndarray:
    return np.sort(np.random.default_rng(1).choice(50, COUNT, replace=False))


def shuffled(epoch: int) -> np.ndarray:
    return np.random.default_rng(epoch).permutation(COUNT)


def test_every_tile_comes_once_with_its_label_and_pixels(tiles: Tiles, rows: np.ndarray) -> None:
    labels = rows % 2
    batches = list(TileLoader(tiles, rows, labels, 8, order=shuffled))
    assert [len(batch.rows) for batch in batches] == [8, 8, 8, 8, 5]
    seen = torch.cat([batch.rows for batch in batches]).numpy()
    assert sorted(seen) == rows.tolist()
    np.testing.assert_array_equal(torch.cat([batch.labels for batch in batches]).numpy(), seen % 2)
    np.testing.assert_array_equal(torch.cat([batch.tiles for batch in batches]).numpy(), tiles.gather(seen))


def test_order_and_seeds_are_functions_of_the_epoch_whatever_the_residency(tiles: Tiles, rows: np.ndarray) -> None:
    def batches(store: Tiles | DeviceTiles, epoch: int) -> list[tuple[list[int], int]]:
        loader = TileLoader(store, rows, rows % 2, 8, order=shuffled, epoch=lambda: epoch, seed=3)
        return [(batch.rows.tolist(), batch.seed) for batch in loader]

    resident = DeviceTiles(tiles, rows, torch.device("cpu"))
    assert batches(tiles, 2) == batches(tiles, 2) == batches(resident, 2)
    assert batches(tiles, 2) != batches(tiles, 3)
    assert batches(tiles, 2)[1][1] == np.random.SeedSequence([3, 2, 1, 0]).generate_state(1)[0]
    seeds = [seed for epoch in range(4) for _, seed in batches(tiles, epoch)]
    assert len(set(seeds)) == len(seeds)


def test_resident_tiles_are_the_same_tiles(tiles: Tiles, rows: np.ndarray) -> None:
    resident = DeviceTiles(tiles, rows, torch.device("cpu"))
    some = torch.from_numpy(rows[[5, 0, 0, 30]])
    np.testing.assert_array_equal(resident.at(resident.places(some)).numpy(), tiles.gather(some.numpy()))


@pytest.mark.parametrize("processes", [1, 2, 3, 4])
def test_processes_share_every_tile_once(tiles: Tiles, rows: np.ndarray, processes: int) -> None:
    loaders = [TileLoader(tiles, rows, rows % 2, 8, share=(process, processes)) for process in range(processes)]
    seen = [row for loader in loaders for batch in loader for row in batch.rows.tolist()]
    assert sorted(seen) == rows.tolist()
    for loader in loaders:
        assert len(list(loader)) == len(loader)


@pytest.mark.parametrize("processes", [1, 2, 3, 4])
def test_training_processes_make_the_same_number_of_full_steps(tiles: Tiles, rows: np.ndarray, processes: int) -> None:
    loaders = [
        TileLoader(tiles, rows, rows % 2, 8, order=shuffled, share=(process, processes), drop_last=True)
        for process in range(processes)
    ]
    sizes = [[len(batch.rows) for batch in loader] for loader in loaders]
    assert all(one == sizes[0] and set(one) == {8} for one in sizes)
    assert all(len(loader) == len(sizes[0]) for loader in loaders)


def test_fewer_tiles_than_a_batch_are_still_trained_on(tiles: Tiles, rows: np.ndarray) -> None:
    loader = TileLoader(tiles, rows, rows % 2, 64, drop_last=True)
    assert [len(batch.rows) for batch in loader] == [COUNT]


def test_an_iteration_can_be_abandoned(tiles: Tiles, rows: np.ndarray) -> None:
    loader = TileLoader(tiles, rows, rows % 2, 2)
    first = [next(iter(loader)).rows.tolist() for _ in range(3)]
    assert first == [rows[:2].tolist()] * 3


def test_labels_that_are_kept_hold_no_memory_of_single_batches(tiles: Tiles) -> None:
    # One small array a batch, kept by a metric, once made training memory grow by all tiles that were ever gathered.
    loader = TileLoader(tiles, np.arange(len(tiles)), np.zeros(len(tiles)), 4)
    batches = list(loader)
    assert len(batches) > 1
    for values in ([batch.labels for batch in batches], [batch.rows for batch in batches]):
        assert len({value.untyped_storage().data_ptr() for value in values}) == 1
