"""A loss that is not finite stops a training at once; weights are averaged without asking the device."""

from __future__ import annotations

import io
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from histolight.config.compose import compose_config, typed
from histolight.config.schema import Config
from histolight.data.prepare import prepare
from histolight.errors import HistolightError
from histolight.models.classifier import Classifier
from histolight.training import callbacks
from histolight.training.callbacks import AveragedWeights, Speed
from histolight.training.fit import check_request, train


class Logged:
    """A logger that keeps what it is given."""

    def __init__(self) -> None:
        self.points: list[tuple[int, float]] = []

    def log_metrics(self, figures: dict[str, float], step: int) -> None:
        assert set(figures) == {"train/loss", "learning_rate", "speed/tiles_per_second", "speed/data_wait_seconds"}
        self.points.append((step, figures["train/loss"]))


@pytest.fixture
def classifier(small_config: Config) -> Classifier:
    return Classifier.from_config(small_config, 1.0)


def steps(speed: Speed, classifier: Classifier, losses: list[float], processes: int = 1) -> Logged:
    """Call what Lightning calls after each step of an epoch."""
    logger, batch = Logged(), SimpleNamespace(rows=range(8))
    optimizers = [SimpleNamespace(param_groups=[{"lr": 0.1}])]
    trainer: Any = SimpleNamespace(
        world_size=processes, num_training_batches=len(losses), current_epoch=2, logger=logger, optimizers=optimizers
    )
    speed.on_train_epoch_start(trainer, classifier)
    for number, loss in enumerate(losses):
        classifier.loss, trainer.global_step = torch.tensor(loss), number + 1
        speed.on_train_batch_end(trainer, classifier, None, batch, number)  # type: ignore[arg-type]
    return logger


def test_a_loss_that_is_not_finite_stops_at_its_step(classifier: Classifier) -> None:
    taken = [0.5] * 4 + [float("nan")] + [0.5] * 20
    speed = Speed()
    with pytest.raises(HistolightError, match="the loss became nan in epoch 3, step 5: try a lower optimizer.lr"):
        steps(speed, classifier, taken)
    assert speed._tiles_of_epoch == 5 * 8
    steps(Speed(guards=False), classifier, taken)


def test_processes_that_share_a_training_stop_at_the_same_step(classifier: Classifier) -> None:
    speed = Speed()
    with pytest.raises(HistolightError, match="step 5:"):
        steps(speed, classifier, [0.5] * 4 + [float("inf")] * 20, processes=2)
    assert speed._tiles_of_epoch == 11 * 8 * 2


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_the_bar_counts_epochs_from_1_and_those_beside_it_leave_nothing(
    small: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, undrawn: None
) -> None:
    terminal = Terminal()
    monkeypatch.setattr("sys.stdout", terminal)
    config = check_request(typed(compose_config([*small, "data.test_fraction=0.2", "trainer.max_epochs=1"])))
    train(config, prepare(config.data), tmp_path / "run")
    drawn = [frame.strip() for frame in re.split(r"[\r\n]|\x1b\[A", terminal.getvalue()) if frame.strip()]
    bars = {frame.partition(":")[0] for frame in drawn}
    assert bars == {"Training", "Epoch 1 of 1", "Validation", "Test"}
    assert {frame for frame in drawn if "0/?" in frame} == {drawn[0]}  # before the first epoch
    assert drawn[-1].startswith("Test: 100%")
    assert re.search(r"\r +\r$", terminal.getvalue())  # and blanks over it


class Late:
    """A CUDA event that has come to pass when it is asked for the third time."""

    waited = 0

    def __init__(self) -> None:
        self.asked = 0

    def query(self) -> bool:
        self.asked += 1
        return self.asked > 2

    def synchronize(self) -> None:
        Late.waited += self.asked <= 2


def test_losses_of_a_gpu_are_read_when_they_have_arrived(classifier: Classifier, monkeypatch) -> None:
    monkeypatch.setattr(callbacks, "_sent", lambda loss: (loss.clone(), Late()))
    monkeypatch.setattr(Late, "waited", 0)
    speed = Speed()
    with pytest.raises(HistolightError, match="step 5:"):
        steps(speed, classifier, [0.5] * 4 + [float("nan")] + [0.5] * 40)
    assert speed._tiles_of_epoch > 5 * 8
    assert Late.waited == 0
    logger = steps(Speed(), classifier, [float(number) for number in range(25)])
    assert logger.points == [(1, 0.0), (11, 10.0), (21, 20.0), (25, 24.0)]
    assert Late.waited > 0  # at the end of the epoch


def test_the_rate_is_that_of_tiles_computed_on_not_of_steps_begun(classifier: Classifier, monkeypatch) -> None:
    clock = [0.0]

    class Slow(Late):
        def query(self) -> bool:
            return False

        def synchronize(self) -> None:
            clock[0] += 2.0

    monkeypatch.setattr(callbacks, "_sent", lambda loss: (loss.clone(), Slow()))
    monkeypatch.setattr(callbacks.time, "perf_counter", lambda: clock[0])
    speed = Speed()
    steps(speed, classifier, [0.5] * 25)
    assert speed.rate == speed.tiles_per_second == 8 / 2.0


@pytest.mark.parametrize(
    ("decay", "start", "expected"), [(0.75, 0.0, 0.25 * 0.75**2), (None, 0.0, 1.5), (None, 0.25, 2.0)]
)
def test_the_average_is_that_of_the_steps(
    decay: float | None, start: float, expected: float, classifier: Classifier
) -> None:
    average = AveragedWeights(decay, start)
    root = SimpleNamespace(root_device=torch.device("cpu"))
    trainer: Any = SimpleNamespace(strategy=root, estimated_stepping_batches=4, global_step=0)
    average.setup(trainer, classifier, "fit")
    assert average._average_model is not None
    kept = average._average_model.module.backbone.fc.weight
    for step in range(4):
        with torch.no_grad():
            classifier.backbone.fc.weight.fill_([0.0, 1.0, 2.0, 3.0][step] if decay is None else float(step == 1))
        trainer.global_step = step + 1
        for _ in range(2):  # accumulated batches take no step of their own
            average.on_train_batch_end(trainer, classifier, None, None, step)
    assert kept.unique().tolist() == pytest.approx([expected])
    checkpoint: dict[str, Any] = {"state_dict": classifier.state_dict()}
    average.on_save_checkpoint(trainer, classifier, checkpoint)
    again = AveragedWeights(decay, start)
    again.setup(trainer, classifier, "fit")
    again.on_load_checkpoint(trainer, classifier, checkpoint)
    assert again._count == average._count == (4 if start == 0 else 3)


def test_the_average_lies_where_the_training_computes(classifier: Classifier) -> None:
    average = AveragedWeights(0.9)
    trainer: Any = SimpleNamespace(strategy=SimpleNamespace(root_device=torch.device("meta")))
    average.setup(trainer, classifier, "fit")  # before Lightning moves the network there
    assert average._average_model is not None
    assert {values.device.type for values in average._average_model.parameters()} == {"meta"}
    assert {values.device.type for values in classifier.parameters()} == {"cpu"}
