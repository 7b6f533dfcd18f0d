from __future__ import annotations

import pytest
import torch
from torchvision.transforms.v2 import functional as reference

from histolight.augment import augment_tiles
from histolight.augment.scanner import add_noise, blur_tiles
from histolight.config.schema import AugmentConfig


def test_each_tile_is_blurred_by_its_own_width_as_torchvision_would() -> None:
    tiles = torch.rand(4, 3, 20, 24, generator=torch.Generator().manual_seed(0))
    sigmas = torch.tensor([0.0, 0.4, 1.0, 1.5])
    blurred = blur_tiles(tiles, sigmas, 1.5)
    assert torch.equal(blurred[0], tiles[0])
    for tile, sigma, result in zip(tiles[1:], sigmas[1:].tolist(), blurred[1:], strict=True):
        torch.testing.assert_close(result, reference.gaussian_blur(tile, 11, sigma), atol=1e-6, rtol=0)


def test_each_tile_has_noise_of_its_own_size() -> None:
    tiles = torch.full((3, 3, 64, 64), 0.5)
    noise = add_noise(tiles, torch.tensor([0.0, 0.02, 0.1]), torch.Generator().manual_seed(0)) - tiles
    assert torch.equal(noise[0], torch.zeros(3, 64, 64))
    assert noise[1].std().item() == pytest.approx(0.02, rel=0.03)
    assert noise[2].std().item() == pytest.approx(0.1, rel=0.03)
    assert noise[1:].mean(dim=(1, 2, 3)).abs().max() < 0.005
    assert abs(torch.corrcoef(noise[1:].flatten(1))[0, 1]) < 0.05


def test_noise_is_drawn_up_to_its_strength() -> None:
    tiles = torch.full((500, 3, 16, 16), 0.5)
    noisy = augment_tiles(tiles, AugmentConfig(noise=0.1), torch.Generator().manual_seed(0))
    deviations = noisy.std(dim=(1, 2, 3))
    assert deviations.min() < 0.003
    assert 0.095 < deviations.max() < 0.108
    assert deviations.mean().item() == pytest.approx(0.05, rel=0.1)
