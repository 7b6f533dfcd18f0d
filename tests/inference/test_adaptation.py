"""A network fitted to unlabelled tiles: by formulas written out, and by PyTorch's own function."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from memory_packs import memory_pack
from scipy.special import expit, logit
from sklearn.linear_model import LogisticRegression
from torch import nn

from histolight.config.schema import TrainerConfig
from histolight.data.prepare import PackedTiles
from histolight.errors import RequestError
from histolight.inference.adaptation import (
    BATCH,
    Adapted,
    adapt_batch_norm,
    adapt_prior,
    adapt_to_tiles,
    check_adaptable,
)
from histolight.models.classifier import Classifier

SIZE = 32
CPU = TrainerConfig(accelerator="cpu")


def predicted(count: int, share: float, seed: int = 0) -> pd.DataFrame:
    """Predictions of a network that is half as sure as it should be, and off by 0.7."""
    random = np.random.default_rng(seed)
    label = (random.random(count) < share).astype(int)
    true = 4 * random.normal(np.where(label, 1.0, -1.0), 1 / np.sqrt(2))  # log odds of two normals, both as frequent
    values = (0.5 * true + 0.7).astype(np.float32)
    return pd.DataFrame({"label": label, "logit": values, "score": expit(values), "cluster": None})


class Brightness(nn.Module):
    """The logit grows with the light of a tile behind batch normalisation."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3)
        self.norm.running_mean += 0.5
        self.norm.running_var *= 0.01

    def forward(self, tiles: torch.Tensor) -> torch.Tensor:
        return self.norm(tiles).mean((1, 2, 3))[:, None]


def network(backbone: nn.Module) -> Classifier:
    model = {"name": "shufflenet_v2_x0_5", "weights": None, "normalize": "none"}
    classifier = Classifier(model=model, optimizer={}, scheduler={}, loss={}, image_size=SIZE)
    classifier.backbone = backbone
    return classifier.eval().requires_grad_(False)


def lit(count: int, share: float) -> tuple[PackedTiles, np.ndarray]:
    """Tiles in memory of which a share is bright; and their pixels."""
    random = np.random.default_rng(1)
    bright = random.permutation(np.arange(count) < share * count)
    light = random.normal(np.where(bright, 0.8, 0.2), 0.05)[:, None, None, None]
    pixels = (255 * (light + random.normal(0, 0.05, (count, SIZE, SIZE, 3)))).clip(0, 255).astype(np.uint8)
    table = pd.DataFrame({"id": np.arange(count).astype(str), "row": np.arange(count), "cluster": None})
    return PackedTiles(table, memory_pack(pixels), ""), pixels


@pytest.mark.parametrize("share", [0.1, 0.5])
def test_the_prior_is_estimated_behind_a_calibration_and_shifts_the_scores(share: float) -> None:
    labelled, tiles = predicted(1000, 0.3), predicted(800, share, seed=1)
    adapted = adapt_prior(tiles, labelled)
    line = LogisticRegression(C=np.inf, tol=1e-10).fit(labelled[["logit"]].to_numpy(np.float64), labelled["label"])
    calibrated = line.coef_[0, 0] * tiles["logit"].to_numpy(np.float64) + line.intercept_[0]
    before = labelled["label"].mean()
    prevalence = 0.5
    for _ in range(3000):  # expectation maximisation
        prevalence = expit(calibrated + logit(prevalence) - logit(before)).mean()
    assert prevalence == pytest.approx(share, abs=0.05)
    assert (adapted.how, adapted.tiles, adapted.prevalence) == ("prior", 800, pytest.approx(prevalence, rel=1e-3))
    assert (
        adapted.sentence == f"adapted to 800 unlabelled tiles (the prior, {adapted.prevalence:.1%} tumour by estimate)"
    )
    found = adapted.table(tiles)
    np.testing.assert_allclose(found["logit"], calibrated + logit(prevalence) - logit(before), atol=1e-2)
    np.testing.assert_allclose(found["score"], expit(found["logit"]), rtol=1e-6)
    assert found["logit"].dtype == np.float32
    for threshold in (0.2, 0.6):  # the calls stay
        assert ((found["score"] > adapted.score(threshold)) == (tiles["score"] > threshold)).all()


def test_statistics_leave_logits_and_thresholds_as_they_are() -> None:
    adapted, tiles = Adapted("batch_norm", 1234), predicted(9, 0.5)
    assert adapted.sentence == "adapted to 1,234 unlabelled tiles (batch-norm statistics)"
    assert adapted.table(tiles) is tiles
    assert adapted.score(0.3) == 0.3


def test_a_hundred_tiles_are_needed_and_both_classes() -> None:
    check_adaptable("none", 1)
    check_adaptable("prior", 100)
    with pytest.raises(RequestError, match="adapt=prior needs at least 100 tiles, and there are 99"):
        check_adaptable("prior", 99)
    with pytest.raises(RequestError, match="adapt=prior needs at least 100 tiles, and there are 99"):
        adapt_prior(predicted(99, 0.5), predicted(500, 0.5))
    with pytest.raises(
        RequestError, match=r"can't tell whether these 400 tiles hold both classes \(estimate: 0.\d% tum"
    ):
        adapt_prior(predicted(400, 0.0), predicted(500, 0.5))


@pytest.mark.parametrize(("count", "used"), [(2 * BATCH + 60, 2 * BATCH), (110, 110)])
def test_statistics_are_the_mean_over_whole_batches_in_random_order(count: int, used: int) -> None:
    packed, pixels = lit(count, 0.5)
    rows = np.arange(count)[5:] if count > BATCH else np.arange(count)
    found, expected = network(Brightness()), network(Brightness())
    assert adapt_batch_norm(found, packed.pack.tiles, rows, CPU) == Adapted("batch_norm", used)
    assert not any(module.training for module in found.modules())
    order = np.random.default_rng(0).permutation(rows)[:used]
    floats = torch.from_numpy(pixels[order]).permute(0, 3, 1, 2) / 255
    torch.optim.swa_utils.update_bn(floats.split(BATCH), expected)
    assert used == len(floats)
    for name in ("running_mean", "running_var"):
        value = getattr(found.backbone.norm, name)
        torch.testing.assert_close(value, getattr(expected.backbone.norm, name), rtol=1e-4, atol=1e-6)
    assert found.backbone.norm.running_var.min() > 0.05  # both kinds of tiles in every batch


@pytest.mark.parametrize("layer", [nn.Flatten(), nn.BatchNorm2d(3, track_running_stats=False)])
def test_a_network_that_keeps_no_statistics_is_refused(layer: nn.Module) -> None:
    tiles = lit(2, 0.5)[0].pack.tiles
    with pytest.raises(RequestError, match="needs a network with batch normalisation, and this one has none"):
        adapt_batch_norm(network(layer), tiles, np.arange(2), CPU)


@pytest.mark.parametrize(("share", "warned"), [(0.4, False), (0.7, True), (0.0, None)])
def test_a_sample_of_the_tiles_shows_both_classes_first(share: float, warned: bool | None, caplog) -> None:
    caplog.set_level("WARNING", "histolight")
    packed, _ = lit(600, share)
    labelled = predicted(1000, 0.5)
    classifier = network(Brightness())
    if warned is None:
        with pytest.raises(RequestError, match="adapt=batch_norm can't tell whether these 500 tiles hold both classes"):
            adapt_to_tiles(classifier, packed, labelled, CPU, 64)
        assert classifier.backbone.norm.running_mean.tolist() == [0.5] * 3  # nothing was replaced
        return
    assert adapt_to_tiles(classifier, packed, labelled, CPU, 64).tiles == 4 * BATCH
    assert (f"by estimate {share:.0%} of these tiles are tumour, and 47% of validation's" in caplog.text) == warned
    mean = 0.2 + 0.6 * share
    assert classifier.backbone.norm.running_mean.tolist() == pytest.approx([mean] * 3, abs=0.02)
