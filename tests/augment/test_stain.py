from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import kstest
from skimage.color import hed2rgb, rgb2hed

from histolight.augment import augment_tiles
from histolight.augment.registry import check_augment
from histolight.augment.stain import DARKEST, change_stains
from histolight.config.compose import compose_config, typed
from histolight.config.schema import AugmentConfig
from histolight.data.datamodule import augmented
from histolight.data.loader import Batch
from histolight.errors import RequestError

UNIT = -np.log(1e-6)  # scikit-image divides optical densities by this


def stained(count: int, size: int = 16) -> torch.Tensor:
    """Tiles of which scikit-image finds no amount of a stain below 0, which it would cut off."""
    amounts = np.random.default_rng(0).uniform(0.02, 0.09, (count, size, size, 3))
    return torch.from_numpy(hed2rgb(amounts)).float().permute(0, 3, 1, 2)


def as_numpy(tiles: torch.Tensor) -> np.ndarray:
    return tiles.permute(0, 2, 3, 1).double().numpy()


def test_each_tile_gets_its_own_stains_as_scikit_image_would_make_them() -> None:
    tiles = stained(5)
    random = torch.Generator().manual_seed(0)
    factors = torch.empty(5, 3).uniform_(0.8, 1.2, generator=random)
    offsets = torch.empty(5, 3).uniform_(-0.2, 0.2, generator=random)
    amounts = rgb2hed(as_numpy(tiles)) * factors.numpy()[:, None, None] + offsets.numpy()[:, None, None] / UNIT
    np.testing.assert_allclose(as_numpy(change_stains(tiles, factors, offsets)), hed2rgb(amounts), atol=2e-6)


def test_one_stain_changes_alone() -> None:
    tiles = stained(3)
    factors, offsets = torch.ones(3, 3), torch.zeros(3, 3)
    factors[0, 0], factors[1, 1], offsets[2, 2] = 1.2, 0.8, 0.1
    before, after = rgb2hed(as_numpy(tiles)), rgb2hed(as_numpy(change_stains(tiles, factors, offsets)))
    before[0, ..., 0] *= 1.2
    before[1, ..., 1] *= 0.8
    before[2, ..., 2] += 0.1 / UNIT
    np.testing.assert_allclose(after, before, atol=1e-6)


def test_unchanged_stains_leave_the_tile_but_for_black() -> None:
    tiles = torch.randint(256, (4, 3, 16, 16), generator=torch.Generator().manual_seed(0)) / 255
    tiles[0, :, 0, 0] = 0
    same = change_stains(tiles, torch.ones(4, 3), torch.zeros(4, 3))
    torch.testing.assert_close(same, tiles.clamp_min(DARKEST), atol=1e-6, rtol=0)


def test_stain_jitter_is_drawn_per_tile_and_leaves_its_input_alone() -> None:
    tiles = stained(1).repeat(16, 1, 1, 1)
    before = tiles.clone()
    first, again, other = (
        augment_tiles(tiles, AugmentConfig(stain=0.5), torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(tiles, before)
    assert len({tile.numpy().tobytes() for tile in first}) == 16
    assert first.min() >= 0
    assert first.max() <= 1


def test_a_batch_with_stain_jitter_is_in_channels_last_memory() -> None:
    batch = Batch(torch.full((4, 8, 8, 3), 99, dtype=torch.uint8), torch.ones(4), torch.arange(4), seed=1)
    tiles = augmented(batch, AugmentConfig(stain=0.2), "none").tiles
    assert tiles.shape == (4, 3, 8, 8)
    assert tiles.is_contiguous(memory_format=torch.channels_last)


def test_factors_and_offsets_fill_their_ranges_evenly() -> None:
    first, second = hed2rgb(np.array([[0.03, 0.04, 0.05], [0.06, 0.07, 0.04]])), np.array([[0.03, 0.03, -0.01]])
    tiles = torch.from_numpy(first).float().T.reshape(1, 3, 1, 2).repeat(3000, 1, 1, 1)
    changed = rgb2hed(as_numpy(augment_tiles(tiles, AugmentConfig(stain=0.2), torch.Generator().manual_seed(0))))
    factors = (changed[:, 0, 1] - changed[:, 0, 0]) / second
    offsets = (changed[:, 0, 0] - factors * [0.03, 0.04, 0.05]) * UNIT
    for stain in range(3):
        assert kstest(factors[:, stain], "uniform", (0.8, 0.4)).pvalue > 1e-3
        assert kstest(offsets[:, stain], "uniform", (-0.2, 0.4)).pvalue > 1e-3


def test_the_random_numbers_of_the_other_keys_do_not_depend_on_stain_jitter_being_there() -> None:
    """The stream before stain jitter existed: geometry, then brightness, contrast and saturation."""
    tiles = torch.full((4, 3, 2, 2), 0.4)
    random = torch.Generator().manual_seed(3)
    factors = torch.empty(4).uniform_(0.8, 1.2, generator=random)
    changed = augment_tiles(tiles, AugmentConfig(brightness=0.2), torch.Generator().manual_seed(3))
    torch.testing.assert_close(changed[:, 0, 0, 0], 0.4 * factors)


def test_the_shipped_configuration_jitters_and_bad_strengths_are_refused() -> None:
    config = typed(compose_config(["augment=stain"])).augment
    assert config == AugmentConfig(geometry="dihedral", stain=0.2)
    for wrong in ("-0.1", "1.5", "nan"):
        with pytest.raises(
            RequestError, match=r"augment.stain=\S+ is out of range: it must be at least 0 and at most 1"
        ):
            check_augment(typed(compose_config([f"augment.stain={wrong}"])).augment)
