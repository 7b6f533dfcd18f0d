from __future__ import annotations

import pytest
import torch

from histolight.augment.geometry import random_dihedral, random_flips


def symmetries(tile: torch.Tensor) -> list[torch.Tensor]:
    turned = [tile.rot90(turns, (-2, -1)) for turns in range(4)]
    return turned + [tile.flip(-1) for tile in turned]


def which(tile: torch.Tensor, moved: torch.Tensor) -> int:
    found = [index for index, image in enumerate(symmetries(tile)) if torch.equal(image, moved)]
    assert len(found) == 1
    return found[0]


@pytest.mark.parametrize(("change", "count"), [(random_flips, 4), (random_dihedral, 8)])
def test_each_tile_is_moved_by_its_own_symmetry_and_all_are_equally_likely(change, count: int) -> None:
    tile = torch.arange(3 * 8 * 8).view(3, 8, 8)
    moved = change(tile.repeat(4000, 1, 1, 1), torch.Generator().manual_seed(0))
    found = torch.tensor([which(tile, one) for one in moved])
    counts = found.bincount(minlength=8)
    assert (counts > 0).sum() == count
    expected = 4000 / count
    assert (counts[counts > 0] - expected).abs().max() < 5 * expected**0.5


def test_the_centre_stays_the_centre() -> None:
    tiles = torch.zeros(64, 3, 96, 96)
    tiles[:, :, 32:64, 32:64] = 1
    assert torch.equal(random_dihedral(tiles, torch.Generator().manual_seed(1)), tiles)


def test_dtype_and_input_are_left_alone() -> None:
    tiles = torch.randint(256, (16, 3, 8, 8), dtype=torch.uint8)
    before = tiles.clone()
    assert random_dihedral(tiles, torch.Generator().manual_seed(1)).dtype == torch.uint8
    assert torch.equal(tiles, before)
