"""The last layer trained on features that are computed once: the same training as without, at less cost."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from lightning import seed_everything
from torch.nn.functional import binary_cross_entropy_with_logits
from torchvision.models import ResNet

from histolight.config.compose import compose_config, typed
from histolight.config.schema import AugmentConfig
from histolight.data.loader import Batch
from histolight.data.prepare import prepare
from histolight.errors import InterruptionError
from histolight.models.classifier import Classifier
from histolight.training.fit import check_request, train

pytestmark = pytest.mark.usefixtures("undrawn")

Outcome = tuple[list[float], list[torch.Tensor], int]  # loss of each step, logits of each validation, tiles computed

PROBE = ["model.name=resnet18", "model.freeze=backbone", "augment=none", "optimizer.lr=0.03"]


@pytest.fixture
def probe(small: list[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Outcome]:
    """Train the last layer of a tiny network, with features computed once or in every epoch, and watch."""

    def run(directory: Path, *overrides: str, cached: bool = True, resume: bool = False) -> Outcome:
        losses: list[float] = []
        validated: list[torch.Tensor] = []
        computed = 0
        step, measure, forward = Classifier.training_step, Classifier._measure, ResNet._forward_impl

        def watched_step(self: Classifier, batch: Batch, batch_idx: int) -> torch.Tensor:
            loss = step(self, batch, batch_idx)
            assert batch.tiles.ndim == (2 if cached else 4)
            losses.append(loss.item())
            return loss

        def watched_measure(self: Classifier, part: str) -> None:
            measure(self, part)
            if self.trainer.state.fn == "fit":
                assert self.predictions is not None
                validated.append(self.predictions[1])

        def watched_forward(self: ResNet, tiles: torch.Tensor) -> torch.Tensor:
            nonlocal computed
            computed += len(tiles)
            return forward(self, tiles)

        config = check_request(typed(compose_config([*small, *PROBE, *overrides])))
        with monkeypatch.context() as patch:
            patch.setattr(Classifier, "training_step", watched_step)
            patch.setattr(Classifier, "_measure", watched_measure)
            patch.setattr(ResNet, "_forward_impl", watched_forward)
            if not cached:
                patch.setattr(Classifier, "ends_in_head", lambda self: False)
            train(config, prepare(config.data), directory, resume)
        return losses, validated, computed

    return run


@pytest.mark.parametrize(
    "overrides",
    [
        ("model.dropout=0.3", "data.test_fraction=0.2", "data.stain=macenko"),
        ("model.name=timm/test_resnet", "trainer.ema=0.5", "data.sampler=balanced", "loss.pos_weight=null"),
    ],
)
def test_features_computed_once_change_nothing(overrides: tuple[str, ...], probe, tmp_path: Path) -> None:
    folders = [tmp_path / "once", tmp_path / "always"]
    once, always = (probe(folder, *overrides, cached=folder.name == "once") for folder in folders)
    assert len(once[0]) == len(always[0]) >= 8
    if "data.test_fraction=0.2" in overrides:
        # 36 tiles train, 12 validate and do so again at the best epoch, 12 test; 6 only show how the network works.
        assert (once[2], always[2]) == (36 + 12 + 12 + 12 + 6, 2 * (32 + 12) + 12 + 12 + 2)
    torch.testing.assert_close(once[0], always[0], rtol=0, atol=1e-4)
    assert len(once[1]) == len(always[1]) == 2
    torch.testing.assert_close(once[1], always[1], rtol=0, atol=1e-4)
    assert (once[1][1] - once[1][0]).abs().max() > 0.01  # it learns something
    states = [torch.load(folder / "checkpoints/last.ckpt", weights_only=True)["state_dict"] for folder in folders]
    torch.testing.assert_close(*states, rtol=0, atol=1e-4)
    for part in ("val", "test") if "data.test_fraction=0.2" in overrides else ("val",):
        tables = [pd.read_csv(folder / "predictions" / f"{part}.csv") for folder in folders]
        pd.testing.assert_frame_equal(*tables, rtol=0, atol=1e-4)


def test_a_probe_is_the_plain_loop_of_pytorch_bit_for_bit(probe, small: list[str], tmp_path: Path) -> None:
    losses, validated, _ = probe(tmp_path / "run", "model.dropout=0.3", "optimizer=adamw", "model.weights=null")
    config = check_request(
        typed(compose_config([*small, *PROBE, "model.dropout=0.3", "optimizer=adamw", "model.weights=null"]))
    )
    data = prepare(config.data)
    train_part, val_part = data.part("train"), data.part("val")
    labels = torch.tensor(train_part["label"].to_numpy(), dtype=torch.float32)
    seed_everything(config.seed)
    balanced = float((labels == 0).sum() / (labels == 1).sum())
    classifier = Classifier.from_config(config, balanced).train()

    def features(part: pd.DataFrame) -> torch.Tensor:
        tiles = torch.from_numpy(data.tiles.gather(part["row"].to_numpy())).permute(0, 3, 1, 2).float() / 255
        with torch.no_grad():
            tiles = tiles.contiguous(memory_format=torch.channels_last)
            return torch.cat([classifier.features(some) for some in tiles.split(config.data.batch_size)])

    head = classifier.backbone.get_submodule(classifier.head)
    size, epochs, lr = config.data.batch_size, config.trainer.max_epochs, config.optimizer.lr
    decay = config.optimizer.weight_decay
    groups = [
        {"params": [it for it in head.parameters() if it.ndim == n], "weight_decay": decay * (n == 2)} for n in (2, 1)
    ]
    optimizer = torch.optim.AdamW(groups, lr=lr, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, epochs * (len(labels) // size))
    inputs, expected = features(train_part), []
    for epoch in range(epochs):
        order = torch.from_numpy(np.random.default_rng([config.seed, epoch]).permutation(len(labels)))
        for step, rows in enumerate(order.split(size)[: len(labels) // size]):
            torch.manual_seed(int(np.random.SeedSequence([config.seed, epoch, step, 0]).generate_state(1)[0]))
            logits = head(inputs[rows]).squeeze(1)
            loss = binary_cross_entropy_with_logits(logits, labels[rows], pos_weight=torch.tensor(balanced))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            expected.append(loss.item())
    assert losses == expected
    head.eval()
    assert torch.equal(validated[-1], head(features(val_part)).squeeze(1).detach())


@pytest.mark.parametrize(
    ("cached", "patience", "saved"),
    [(True, "null", [1, 1, 3, 4]), (False, "null", [1, 2, 3, 4]), (True, "1", [1, 2])],
)
def test_epochs_on_features_are_saved_where_they_are_the_best_or_the_last_and_now_and_then(
    cached: bool, patience: str, saved: list[int], probe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[int] = []
    validated, began = Classifier.on_validation_epoch_end, Classifier.on_train_epoch_start

    def worse_and_worse(self: Classifier) -> None:
        validated(self)
        if self.trainer.state.fn == "fit":
            self.log("val/auroc", 0.9 - 0.1 * self.trainer.current_epoch)

    def look() -> None:
        last = torch.load(tmp_path / "run/checkpoints/last.ckpt", weights_only=True)
        found.append(last["epoch"] + 1)

    def watched(self: Classifier) -> None:
        if self.trainer.current_epoch:
            look()
        began(self)

    monkeypatch.setattr("histolight.training.checkpoints.SPARED", 3)
    monkeypatch.setattr(Classifier, "on_validation_epoch_end", worse_and_worse)
    monkeypatch.setattr(Classifier, "on_train_epoch_start", watched)
    overrides = ["trainer.max_epochs=4", f"trainer.patience={patience}", "model.name=shufflenet_v2_x0_5"]
    probe(tmp_path / "run", *overrides, cached=cached)
    look()
    assert found == saved


@pytest.mark.slow
def test_an_interrupted_probe_continues_to_the_same_result(probe, tmp_path: Path, monkeypatch) -> None:
    whole = probe(tmp_path / "whole")
    original = Classifier.on_train_epoch_end

    def interrupt(self: Classifier) -> None:
        if self.trainer.current_epoch == 1:
            raise KeyboardInterrupt
        original(self)

    with monkeypatch.context() as patch:
        patch.setattr(Classifier, "on_train_epoch_end", interrupt)
        with pytest.raises(InterruptionError):
            probe(tmp_path / "cut")
    continued = probe(tmp_path / "cut", resume=True)
    assert torch.equal(continued[1][-1], whole[1][-1])
    files = [(tmp_path / name / "predictions/val.csv").read_bytes() for name in ("cut", "whole")]
    assert files[0] == files[1]


@pytest.mark.parametrize(
    ("name", "overrides", "expected"),
    [
        ("resnet18", {"dropout": 0.5}, True),
        ("vgg11", {}, True),
        ("swin_t", {}, True),
        ("timm/test_vit", {}, True),
        ("squeezenet1_1", {}, False),  # a convolution, averaged afterwards
    ],
)
def test_the_last_layer_alone_makes_the_logit_or_nothing_is_kept(name: str, overrides: dict, expected: bool) -> None:
    classifier = Classifier(
        {"name": name, "weights": None, "freeze": "backbone", **overrides}, {}, {}, {}, image_size=64
    )
    assert classifier.ends_in_head() is expected
    assert classifier.backbone.get_submodule(classifier.head).training


def test_tiles_that_change_go_through_the_backbone_each_time(probe, tmp_path: Path) -> None:
    _, _, computed = probe(tmp_path / "run", "augment=flips", cached=False)
    assert computed == 2 * (48 + 12) + 12 + 2


def test_the_experiment_trains_the_last_layer_of_any_network() -> None:
    config = typed(compose_config(["experiment=linear_probe", "data.root=x", "data=pcam", "model=mobilenet_v2"]))
    assert (config.model.freeze, config.augment, config.model.name) == (
        "backbone",
        AugmentConfig("none"),
        "mobilenet_v2",
    )
