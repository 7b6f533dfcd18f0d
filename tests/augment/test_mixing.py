from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import kstest

from histolight.augment.mixing import mix_tiles, random_boxes
from histolight.config.compose import compose_config, typed
from histolight.config.schema import AugmentConfig, Config
from histolight.data.datamodule import augmented
from histolight.data.loader import Batch
from histolight.errors import RequestError


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def numbered(count: int, size: int) -> torch.Tensor:
    """Tiles of one value each: the tile's own number."""
    return torch.arange(float(count)).view(-1, 1, 1, 1).repeat(1, 3, size, size)


def test_cutmix_mixes_labels_by_the_pixels_replaced_in_the_centre_alone() -> None:
    count, size = 400, 64
    labels = torch.rand(count, generator=seeded())
    tiles, mixed = mix_tiles(numbered(count, size), labels, 1.0, 0.0, seeded())
    untouched = 0
    for number, (tile, label) in enumerate(zip(tiles[:, 0].numpy(), mixed.tolist(), strict=True)):
        assert len(np.unique(tile)) <= 2
        foreign = tile != number
        rows, columns = foreign.any(1).nonzero()[0], foreign.any(0).nonzero()[0]
        if len(rows):  # one box
            assert foreign.sum() == (rows[-1] - rows[0] + 1) * (columns[-1] - columns[0] + 1)
        partner = int(tile[foreign][0]) if foreign.any() else number
        share = foreign[16:48, 16:48].sum() / 32**2
        assert label == pytest.approx(float((1 - share) * labels[number] + share * labels[partner]), abs=1e-5)
        if foreign.any() and share == 0:
            untouched += 1
            assert label == labels[number]
    assert untouched > 10


def test_cutmix_cuts_with_its_probability() -> None:
    tiles, _ = mix_tiles(numbered(4000, 32), torch.zeros(4000), 0.3, 0.0, seeded())
    changed = (tiles != numbered(4000, 32)).flatten(1).any(1).float().mean().item()
    assert 0.25 < changed < 0.31  # a few boxes hold no pixel


def test_boxes_are_those_of_cutmix() -> None:
    boxes = random_boxes(4000, 64, seeded()).numpy()
    random = np.random.default_rng(0)
    edge = 64 * np.sqrt(random.random(4000))
    middle = random.uniform(0, 64, (2, 4000))
    expected = np.prod((middle + edge / 2).clip(0, 64) - (middle - edge / 2).clip(0, 64), axis=0)
    assert boxes.sum(axis=(1, 2)).mean() == pytest.approx(expected.mean(), rel=0.05)
    assert np.abs(boxes.mean(axis=0) - boxes.mean(axis=0).T).max() < 0.05


@pytest.mark.parametrize("parameter", [0.2, 1.0])
def test_mixup_blends_tile_and_label_by_one_share_from_the_beta_distribution(parameter: float) -> None:
    count = 4000
    tiles, labels = mix_tiles(numbered(count, 32), torch.arange(float(count)), 0.0, parameter, seeded())
    values = tiles.flatten(1)
    assert torch.equal(values.amin(1), values.amax(1))
    torch.testing.assert_close(labels, values[:, 0], atol=0.01, rtol=0)  # of numbers up to 4,000
    partners = torch.randperm(count, generator=seeded())
    own = torch.arange(float(count))
    far = (partners - own).abs() > 100
    shares = ((labels - own) / (partners - own))[far].clamp(0, 1)
    assert kstest(shares.numpy(), "beta", (parameter, parameter)).pvalue > 1e-3


def test_tiles_that_are_not_cut_are_blended_where_both_are_asked_for() -> None:
    tiles, _ = mix_tiles(numbered(2000, 32), torch.zeros(2000), 0.5, 1.0, seeded())
    whole = (tiles == tiles.round()).flatten(1).all(1).float().mean().item()
    assert 0.4 < whole < 0.6


def test_nothing_is_mixed_and_nothing_drawn_at_0() -> None:
    tiles, labels, generator = numbered(8, 32), torch.rand(8), seeded()
    before = generator.get_state()
    same = mix_tiles(tiles, labels, 0.0, 0.0, generator)
    assert same[0] is tiles
    assert same[1] is labels
    assert torch.equal(generator.get_state(), before)


def test_a_batch_is_mixed_as_its_seed_says_and_a_uniform_label_stays() -> None:
    tiles = torch.randint(256, (16, 64, 64, 3), dtype=torch.uint8, generator=seeded())
    augment = AugmentConfig(geometry="dihedral", cutmix=0.5, mixup=0.2)
    half = torch.arange(16).remainder(2).float()
    first, again, other = (augmented(Batch(tiles, half, torch.arange(16), seed), augment, "none") for seed in (1, 1, 2))
    assert torch.equal(first.tiles, again.tiles)
    assert torch.equal(first.labels, again.labels)
    assert not torch.equal(first.labels, other.labels)
    assert 0 <= first.labels.min() < first.labels.max() <= 1
    assert first.tiles.is_contiguous(memory_format=torch.channels_last)
    ones = augmented(Batch(tiles, torch.ones(16), torch.arange(16), 1), augment, "none")
    torch.testing.assert_close(ones.labels, torch.ones(16))


def test_a_training_with_mixed_labels_gives_its_auroc_and_leaves_validation_labels_alone(
    small_config: Config, tmp_path: Path
) -> None:
    from histolight.data.datamodule import TileDataModule
    from histolight.data.prepare import prepare
    from histolight.models.classifier import Classifier
    from histolight.training.callbacks import Speed
    from histolight.training.trainer import build_trainer

    config = dataclasses.replace(
        small_config,
        data=dataclasses.replace(small_config.data, augment_val=True, limit=24),
        model=dataclasses.replace(small_config.model, name="shufflenet_v2_x0_5"),
        augment=AugmentConfig(cutmix=0.5, mixup=0.4),
        trainer=dataclasses.replace(small_config.trainer, max_epochs=1),
    )
    seen: dict[str, torch.Tensor] = {}

    class Watching(Classifier):
        def training_step(self, batch, batch_idx):
            seen.setdefault("train", batch.labels.clone())
            return super().training_step(batch, batch_idx)

        def validation_step(self, batch, batch_idx):
            seen.setdefault("val", batch.labels.clone())
            super().validation_step(batch, batch_idx)

    trainer = build_trainer(config, tmp_path, Speed(), progress=False)
    trainer.fit(Watching.from_config(config, 1.0), TileDataModule(prepare(config.data), config))
    assert ((seen["train"] > 0) & (seen["train"] < 1)).any()
    assert set(seen["val"].tolist()) <= {0.0, 1.0}
    assert 0 <= trainer.logged_metrics["train/auroc"] <= 1


@pytest.mark.parametrize(("key", "value"), [("cutmix", "1.1"), ("cutmix", "-1"), ("mixup", "-0.2"), ("mixup", "inf")])
def test_bad_strengths_are_refused(key: str, value: str) -> None:
    with pytest.raises(RequestError, match=rf"augment\.{key}=\S+ is out of range: it must be at least 0 and at most"):
        typed(compose_config([f"augment.{key}={value}"]))
