from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.ndimage import affine_transform

from histolight.augment import augment_tiles
from histolight.augment.geometry import random_dihedral, random_flips, shift_and_scale
from histolight.config.compose import compose_config, typed
from histolight.config.schema import AugmentConfig


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


def test_each_tile_is_shifted_and_scaled_by_itself_as_scipy_would() -> None:
    tiles = torch.rand(4, 3, 24, 24, generator=torch.Generator().manual_seed(0))
    shifts = torch.tensor([[0.0, 0.0], [3.0, -2.0], [0.0, 0.0], [-1.5, 4.25]])
    factors = torch.tensor([1.0, 1.0, 1.2, 0.9])
    for tile, (right, down), factor, moved in zip(
        tiles.numpy(), shifts.tolist(), factors.tolist(), shift_and_scale(tiles, shifts, factors), strict=True
    ):
        offset = 11.5 - (11.5 + np.array([down, right])) / factor
        expected = [affine_transform(channel, np.eye(2) / factor, offset, order=1, mode="reflect") for channel in tile]
        np.testing.assert_allclose(moved.numpy(), expected, atol=1e-4)


def test_shift_and_scale_keep_the_centre_within_a_few_pixels() -> None:
    """A dot in the middle stays within ``shift``; one in a corner of the centre, 16 away, within 16 x scale more."""
    config = typed(compose_config(["augment=none", "augment.shift=4", "augment.scale=0.1"])).augment
    row = torch.arange(96) + 0.0
    for place, most in ((48, 4), (64, 4 + 1.65)):
        tiles = torch.zeros(200, 1, 96, 96)
        tiles[:, :, place, place] = 1
        moved = augment_tiles(tiles, config, torch.Generator().manual_seed(0))[:, 0]
        down = (moved.sum(2) * row).sum(1) / moved.sum((1, 2)) - place
        right = (moved.sum(1) * row).sum(1) / moved.sum((1, 2)) - place
        for off in (down, right):
            assert most * 0.8 < off.abs().max() <= most + 0.5  # bilinear weights move a dot's mean by a part of a pixel


def test_shift_alone_leaves_the_scale_and_scale_alone_leaves_the_middle() -> None:
    tiles = torch.rand(1, 3, 33, 33).repeat(50, 1, 1, 1)
    scaled = augment_tiles(tiles, AugmentConfig(scale=0.25), torch.Generator().manual_seed(0))
    torch.testing.assert_close(scaled[:, :, 16, 16], tiles[:, :, 16, 16])
    flat = torch.linspace(0, 1, 33).expand(50, 3, 33, 33)
    shifted = augment_tiles(flat, AugmentConfig(shift=4), torch.Generator().manual_seed(0))
    slope = shifted[..., 8:25].diff(dim=-1)
    torch.testing.assert_close(slope, torch.full_like(slope, 1 / 32), atol=1e-5, rtol=0)
