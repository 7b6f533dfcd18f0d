from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from skimage.color import lab2rgb, rgb2lab
from torchstain.numpy.normalizers import NumpyMacenkoNormalizer

from histolight.augment.normalisation import lab_to_rgb, normalise_stain, rgb_to_lab
from histolight.config.compose import compose_config, typed
from histolight.data.datamodule import TileDataModule, to_floats
from histolight.data.loader import Batch
from histolight.data.prepare import prepare
from histolight.data.sources.synthetic import transmit
from histolight.errors import RequestError
from histolight.models.classifier import Classifier

METHODS = ("macenko", "reinhard")


def light_through(amounts: np.ndarray, stains: np.ndarray, glass: np.ndarray) -> np.ndarray:
    """Light (..., 3) through amounts (..., 2) of two stains."""
    return np.moveaxis(transmit(np.moveaxis(amounts, -1, 0), stains, glass), 0, -1)


def slides(count: int, size: int = 48) -> np.ndarray:
    """Tissue of two stains, uint8 (count, size, size, 3): each tile with stains, amounts and light of its own."""
    random = np.random.default_rng(0)
    tiles = []
    for _ in range(count):
        nuclei = random.random((size, size)) < random.uniform(0.2, 0.5)
        haematoxylin = np.where(nuclei, random.gamma(8, 0.1, nuclei.shape), 0.08 * random.random(nuclei.shape))
        eosin = np.where(nuclei, 0.15, random.gamma(6, 0.12, nuclei.shape))
        stains = np.array([[0.62, 0.66, 0.30], [0.09, 0.88, 0.28]]) + random.uniform(-0.05, 0.05, (2, 3))
        amounts = np.stack([haematoxylin, eosin], axis=-1) * random.uniform(0.3, 0.8, 2)
        light = light_through(amounts, stains, random.uniform(0.9, 0.97, 3))
        tiles.append(np.rint(255 * light.clip(0, 1)).astype(np.uint8))
    return np.stack(tiles)


def levels(tiles: torch.Tensor) -> np.ndarray:
    """Floats (N, 3, H, W) as grey levels (N, H, W, 3)."""
    return 255 * tiles.permute(0, 2, 3, 1).double().numpy()


def test_macenko_agrees_with_torchstain() -> None:
    pixels = slides(6)
    found = levels(to_floats(torch.from_numpy(pixels), "macenko"))
    reference = NumpyMacenkoNormalizer()  # its reference is the published one, as ours
    for tile, ours in zip(pixels, found, strict=True):
        theirs = reference.normalize(tile, stains=False)[0]
        off = ours - theirs  # theirs is cut to whole levels
        assert off.min() > -0.1
        assert off.max() < 1.1


def test_reinhard_gives_each_tile_the_reference_in_scikit_images_lab() -> None:
    pixels = slides(4)
    for tile, ours in zip(pixels, levels(to_floats(torch.from_numpy(pixels), "reinhard")), strict=True):
        lab = rgb2lab(tile)
        wanted = (lab - lab.mean((0, 1))) / lab.std((0, 1)) * [18.7, 7.2, 5.8] + [60.0, 22.5, -9.9]
        np.testing.assert_allclose(ours, 255 * lab2rgb(wanted), atol=0.1)


def test_lab_is_scikit_images() -> None:
    tiles = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    tiles[0] *= 0.03  # the straight part of both curves
    lab = rgb_to_lab(tiles)
    np.testing.assert_allclose(lab.permute(0, 2, 3, 1), rgb2lab(tiles.permute(0, 2, 3, 1).double().numpy()), atol=2e-3)
    torch.testing.assert_close(lab_to_rgb(lab), tiles, atol=2e-4, rtol=0)


@pytest.mark.parametrize("method", METHODS)
def test_slides_become_more_alike(method: str) -> None:
    """Tiles of the same amounts under three laboratories' stains differ less afterwards."""
    random = np.random.default_rng(1)
    amounts = np.stack([random.gamma(2, 0.25, (48, 48)), random.gamma(3, 0.15, (48, 48))], axis=-1)
    amounts[:24, :, 0] *= 0.1
    amounts[24:, :, 1] *= 0.3
    laboratories = np.array(
        [
            [[0.65, 0.70, 0.29], [0.07, 0.95, 0.25]],
            [[0.52, 0.74, 0.42], [0.12, 0.80, 0.45]],
            [[0.80, 0.80, 0.40], [0.15, 0.65, 0.20]],
        ]
    )
    pixels = np.stack([255 * light_through(amounts, stains, np.ones(3)) for stains in laboratories])
    before = to_floats(torch.from_numpy(pixels.astype(np.uint8)), "none")
    after = normalise_stain(before, method)
    assert after.std(dim=0).mean() < 0.5 * before.std(dim=0).mean()


@pytest.mark.parametrize("method", METHODS)
def test_a_tile_is_normalised_by_itself_and_nearly_blank_ones_stay(method: str) -> None:
    pixels = torch.from_numpy(slides(4))
    pixels[1] = 255
    pixels[2] = 0
    pixels[3, 2:] = torch.randint(238, 250, (46, 48, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    together = to_floats(pixels, method)
    assert together.isfinite().all()
    assert together.min() >= 0
    assert together.max() <= 1
    before = to_floats(pixels, "none")
    assert not torch.allclose(together[0], before[0], atol=0.02)
    assert torch.equal(together[1], before[1])
    assert torch.equal(together[3], before[3])
    if method == "macenko":
        assert torch.equal(together[2], before[2])
    torch.testing.assert_close(together[:1], to_floats(pixels[:1], method), atol=1e-6, rtol=0)


def test_none_is_the_tile_itself() -> None:
    tiles = torch.rand(2, 3, 8, 8)
    assert normalise_stain(tiles, "none") is tiles


@pytest.mark.parametrize("method", METHODS)
def test_every_part_of_the_data_is_normalised_and_training_tiles_before_they_are_augmented(
    method: str, small: list[str]
) -> None:
    config = typed(compose_config([*small, "augment=none", "augment.brightness=0.3", f"data.stain={method}"]))
    datamodule = TileDataModule(prepare(config.data), config)
    batch = Batch(torch.from_numpy(slides(4)), torch.zeros(4), torch.arange(4), seed=1)
    expected = to_floats(batch.tiles, method)
    flags = {"training": False, "validating": False, "sanity_checking": False}
    for now in ("validating", "testing", "training"):
        datamodule.trainer = SimpleNamespace(**{**flags, now: True})
        seen = datamodule.on_after_batch_transfer(batch, 0).tiles
        if now == "training":
            factors = torch.empty(4).uniform_(0.7, 1.3, generator=torch.Generator().manual_seed(1)).view(4, 1, 1, 1)
            expected = (expected * factors).clamp(0, 1)
        torch.testing.assert_close(seen, expected)
        assert seen.is_contiguous(memory_format=torch.channels_last)
    assert Classifier.from_config(config, 1.0).hparams["stain"] == method


def test_an_unknown_normalisation_is_refused() -> None:
    with pytest.raises(RequestError, match=r"data.stain=macenco is not known: did you mean macenko\?"):
        typed(compose_config(["data.stain=macenco"]))
