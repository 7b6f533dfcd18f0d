"""The learning rate finder, in front of a real training of seconds."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from histolight.config.compose import compose_config, typed
from histolight.data.prepare import prepare
from histolight.errors import InterruptionError, RequestError
from histolight.models.classifier import Classifier
from histolight.runs import read_metrics
from histolight.training.fit import check_request, train
from histolight.training.learning_rates import steepest

pytestmark = pytest.mark.usefixtures("undrawn")


def run(overrides: list[str], directory: Path) -> bytes:
    config = check_request(typed(compose_config([*overrides, "trainer.max_epochs=1"])))
    train(config, prepare(config.data), directory)
    return (directory / "predictions/val.csv").read_bytes()


@pytest.mark.slow
def test_the_curve_is_drawn_and_logged_and_the_training_is_none_the_worse(
    small: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    overrides = [*small, "logger=csv", "optimizer.backbone_lr_factor=0.1"]
    plain = run(overrides, tmp_path / "plain")
    assert run([*overrides, "trainer.find_lr=true"], tmp_path / "found") == plain
    assert "the learning rate finder suggests " in capsys.readouterr().err
    curve = pd.read_csv(tmp_path / "found/csv/metrics.csv")[["lr_finder/learning_rate", "lr_finder/loss"]].dropna()
    rates, losses = curve.to_numpy().T
    assert len(rates) > 20
    assert rates[0] == pytest.approx(1e-6)
    np.testing.assert_allclose(np.diff(np.log(rates[1:])), math.log(1e6) / 100, rtol=0.05)  # evenly on a log axis
    assert np.isfinite(losses).all()
    first = pd.read_csv(tmp_path / "found/csv/metrics.csv")["train/loss"].dropna().iloc[0]
    assert losses[0] == pytest.approx(first, rel=1e-5)  # the same weights on the same tiles
    with Image.open(tmp_path / "found/figures/lr_finder.png") as picture:
        assert picture.size == (720, 480)
    kept = {path.relative_to(tmp_path / "found").parts[0] for path in (tmp_path / "found").rglob("*")}
    assert not [name for name in kept if name.startswith(".find_lr")]


def test_an_interruption_says_how_to_continue(small: list[str], tmp_path: Path, monkeypatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Classifier, "training_step", interrupt)
    with pytest.raises(InterruptionError, match="interrupted: continue with histolight train run="):
        run([*small, "trainer.find_lr=true"], tmp_path / "run")
    assert read_metrics(tmp_path / "run")["status"] == "interrupted"


def test_nothing_is_suggested_where_the_loss_only_rises() -> None:
    rates = np.geomspace(1e-6, 1, 50)
    assert steepest(rates, np.linspace(0, 1, 50)) is None
    assert steepest(rates[:5], np.linspace(1, 0, 5)) is None
    falls = np.where(rates < 1e-2, 1.0, 0.5)
    assert steepest(rates, falls) == pytest.approx(1e-2, rel=0.5)


def test_processes_that_share_a_training_find_no_rate(small: list[str], tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("lightning.Trainer.world_size", 2)
    with pytest.raises(RequestError, match="trainer.find_lr needs a single process"):
        run([*small, "trainer.find_lr=true"], tmp_path / "run")
