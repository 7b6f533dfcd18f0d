from __future__ import annotations

import pytest
import torch
from torchvision.transforms.v2 import functional as reference

from histolight.augment import augment_tiles
from histolight.augment.colour import change_brightness, change_contrast, change_saturation
from histolight.config import AugmentConfig


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (change_brightness, reference.adjust_brightness),
        (change_contrast, reference.adjust_contrast),
        (change_saturation, reference.adjust_saturation),
    ],
)
def test_each_tile_changes_by_its_own_factor_as_torchvision_would(change, expected) -> None:
    tiles = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    factors = torch.tensor([0.5, 1.0, 1.3, 1.9])
    changed = change(tiles, factors)
    for tile, factor, result in zip(tiles, factors.tolist(), changed, strict=True):
        torch.testing.assert_close(result, expected(tile, factor), atol=1e-5, rtol=0)


def test_the_same_generator_gives_the_same_tiles_and_another_gives_others() -> None:
    tiles = torch.rand(8, 3, 16, 16)
    config = AugmentConfig(geometry="dihedral", brightness=0.2, contrast=0.2, saturation=0.2)
    first, again, other = (augment_tiles(tiles, config, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert first.min() >= 0
    assert first.max() <= 1


def test_none_changes_nothing() -> None:
    tiles = torch.rand(8, 3, 16, 16)
    assert torch.equal(augment_tiles(tiles, AugmentConfig(), torch.Generator()), tiles)


def test_factors_stay_within_their_strength() -> None:
    tiles = torch.full((2000, 3, 2, 2), 0.5)
    changed = augment_tiles(tiles, AugmentConfig(brightness=0.2), torch.Generator().manual_seed(0))
    assert 0.4 <= changed.min() < 0.405
    assert 0.595 < changed.max() <= 0.6
