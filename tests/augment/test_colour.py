from __future__ import annotations

import numpy as np
import pytest
import torch
from skimage.color import rgb2yiq, yiq2rgb
from torchvision.transforms.v2 import functional as reference

from histolight.augment import augment_tiles
from histolight.augment.colour import change_brightness, change_contrast, change_gamma, change_hue, change_saturation
from histolight.augment.registry import check_augment
from histolight.config.compose import compose_config, typed
from histolight.config.schema import AugmentConfig
from histolight.errors import RequestError


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (change_brightness, reference.adjust_brightness),
        (change_contrast, reference.adjust_contrast),
        (change_saturation, reference.adjust_saturation),
        (change_gamma, reference.adjust_gamma),
    ],
)
def test_each_tile_changes_by_its_own_factor_as_torchvision_would(change, expected) -> None:
    tiles = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    factors = torch.tensor([0.5, 1.0, 1.3, 1.9])
    changed = change(tiles, factors)
    for tile, factor, result in zip(tiles, factors.tolist(), changed, strict=True):
        torch.testing.assert_close(result, expected(tile, factor), atol=1e-5, rtol=0)


def test_each_tile_turns_its_own_colours_and_keeps_its_luma() -> None:
    tiles = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 0.2 + 0.4  # no turn leaves [0, 1]
    turns = torch.tensor([0.0, 0.1, -0.3, 0.5])
    changed = change_hue(tiles, turns)
    torch.testing.assert_close(changed[0], tiles[0])
    for tile, turn, result in zip(tiles, turns.tolist(), changed, strict=True):
        luma, *colour = np.moveaxis(rgb2yiq(tile.permute(1, 2, 0).double().numpy()), -1, 0)
        turned = (colour[0] + 1j * colour[1]) * np.exp(2j * np.pi * turn)
        expected = yiq2rgb(np.stack([luma, turned.real, turned.imag], axis=-1))
        np.testing.assert_allclose(result.permute(1, 2, 0).numpy(), expected, atol=1e-5)


def test_the_same_generator_gives_the_same_tiles_and_another_gives_others() -> None:
    tiles = torch.rand(8, 3, 16, 16)
    config = typed(compose_config(["augment=strong"])).augment
    first, again, other = (augment_tiles(tiles, config, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert first.min() >= 0
    assert first.max() <= 1


def test_none_changes_nothing_and_draws_nothing() -> None:
    tiles = torch.rand(8, 3, 16, 16)
    generator = torch.Generator().manual_seed(0)
    before = generator.get_state()
    assert torch.equal(augment_tiles(tiles, AugmentConfig(), generator), tiles)
    assert torch.equal(generator.get_state(), before)


STRENGTHS = {
    key: value
    for key, value in vars(typed(compose_config(["augment=strong"])).augment).items()
    if key not in ("geometry", "cutmix", "mixup")  # those are tested by themselves
}


@pytest.mark.parametrize("key", STRENGTHS)
def test_each_key_changes_each_tile_in_its_own_way_and_nothing_at_0(key: str) -> None:
    assert STRENGTHS[key] > 0
    tile = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 0.8 + 0.1
    config = AugmentConfig(**{key: STRENGTHS[key]})
    changed = augment_tiles(tile.repeat(16, 1, 1, 1), config, torch.Generator().manual_seed(0))
    assert len({tile.numpy().tobytes() for tile in changed}) > 12  # the least of blurs is none
    assert changed.min() >= 0
    assert changed.max() <= 1
    same = augment_tiles(tile, AugmentConfig(**{key: 1e-7}), torch.Generator().manual_seed(0))
    torch.testing.assert_close(same, tile, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "override",
    ["hue=0.6", "gamma=1", "blur=-1", "blur=6", "noise=-0.1", "noise=inf", "shift=9", "scale=0.3", "scale=-0.1"],
)
def test_bad_strengths_are_refused(override: str) -> None:
    with pytest.raises(
        RequestError, match=r"augment\.\w+=\S+ is out of range: it must be at least 0 and (at most|below) "
    ):
        check_augment(typed(compose_config([f"augment.{override}"])).augment)


def test_factors_stay_within_their_strength() -> None:
    tiles = torch.full((2000, 3, 2, 2), 0.5)
    changed = augment_tiles(tiles, AugmentConfig(brightness=0.2), torch.Generator().manual_seed(0))
    assert 0.4 <= changed.min() < 0.405
    assert 0.595 < changed.max() <= 0.6
