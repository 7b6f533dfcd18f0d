from __future__ import annotations

import re

import pytest
import torch

from histolight.augment import augment_tiles
from histolight.augment.registry import Augmentation, augmentations, check_augment
from histolight.config.schema import AugmentConfig, augmentation_keys
from histolight.errors import RequestError


def test_every_key_of_conf_is_registered_once_and_a_tile_is_cut_then_stained_then_lit_then_scanned() -> None:
    keys = [key for registered in augmentations() for key in registered.limits]
    assert sorted(keys) == sorted(augmentation_keys())
    assert keys == ["shift", "scale", "stain", "brightness", "contrast", "saturation", "hue", "gamma", "blur", "noise"]


@pytest.mark.parametrize(
    ("strength", "message"),
    [
        ({"gamma": 1.0}, "augment.gamma=1.0 is out of range: it must be at least 0 and below 1"),
        ({"shift": 8.5}, "augment.shift=8.5 is out of range"),
        ({"noise": -0.1}, "augment.noise=-0.1 is out of range"),
        ({"hue": float("nan")}, "augment.hue=nan is out of range"),
    ],
)
def test_a_strength_out_of_its_range_is_refused(strength: dict[str, float], message: str) -> None:
    check_augment(AugmentConfig())
    with pytest.raises(RequestError, match=re.escape(message)):
        check_augment(AugmentConfig(**strength))


def test_a_key_of_conf_that_nothing_registers_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("histolight.augment.registry.augmentation_keys", lambda: ["brightnes"])
    with pytest.raises(RequestError, match="augment.brightnes is a key of conf/augment that nothing registers: did"):
        check_augment(AugmentConfig())


def test_what_is_registered_is_called_with_its_strength_and_only_above_0(monkeypatch: pytest.MonkeyPatch) -> None:
    def darken(tiles, draw, blur):
        return tiles * (1 - blur) * draw(1, 1).view(-1, 1, 1, 1)

    monkeypatch.setattr("histolight.augment.augmentations", lambda: [Augmentation(darken, "lit", {"blur": {}})])
    tiles = torch.full((2, 3, 32, 32), 0.8)
    generator = torch.Generator().manual_seed(0)
    torch.testing.assert_close(augment_tiles(tiles, AugmentConfig(blur=0.25), generator), tiles * 0.75)
    before = generator.get_state()
    assert torch.equal(augment_tiles(tiles, AugmentConfig(noise=0.5), generator), tiles)
    assert torch.equal(generator.get_state(), before)  # nothing was drawn
