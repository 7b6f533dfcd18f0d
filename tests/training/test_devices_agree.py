"""What must hold on a GPU whatever the precision, the residency and the interruptions; rehearsed on the CPU."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from histolight.cli import main
from histolight.config.compose import compose_config, typed
from histolight.data.prepare import prepare
from histolight.errors import InterruptionError
from histolight.models.classifier import Classifier
from histolight.training.fit import check_request, train

pytestmark = pytest.mark.usefixtures("undrawn")


@pytest.fixture(params=[pytest.param("cpu", marks=pytest.mark.slow), pytest.param("gpu", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> Iterator[str]:
    yield request.param
    torch.use_deterministic_algorithms(False)  # Lightning leaves it as it was asked for


class Steps:
    """Losses, tiles and their places as the network sees them, step by step; ``cut`` interrupts such a step."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.tiles: list[torch.Tensor] = []
        self.rows: list[list[int]] = []
        self.devices: set[str] = set()
        self.cut: tuple[int, int] | None = None


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> Steps:
    seen, original = Steps(), Classifier.training_step

    def watch(self: Classifier, batch: Any, batch_idx: int) -> torch.Tensor:
        if (self.current_epoch, batch_idx) == seen.cut:
            raise KeyboardInterrupt
        loss = original(self, batch, batch_idx)
        seen.losses.append(float(loss.detach()))
        seen.tiles.append(batch.tiles.cpu())
        seen.rows.append(batch.rows.tolist())
        seen.devices.add(batch.tiles.device.type)
        return loss

    monkeypatch.setattr(Classifier, "training_step", watch)
    return seen


def trained(overrides: list[str], directory: Path, steps: Steps, resume: bool = False) -> dict[str, Any]:
    """Train, with the steps of this training alone in ``steps``, and behind those before where it is continued."""
    if not resume:
        steps.losses, steps.tiles, steps.rows = [], [], []
    config = check_request(typed(compose_config(overrides)))
    return train(config, prepare(config.data), directory, resume)


def test_half_precision_has_the_losses_of_full_precision(
    device: str, small: list[str], tmp_path: Path, steps: Steps
) -> None:
    overrides = [*small, "model.name=resnet18", f"trainer={device}", "logger=csv", "trainer.max_epochs=3"]
    overrides += ["optimizer=sgd", "optimizer.lr=0.003", "data.batch_size=24", "scheduler=constant"]
    curves = {}
    for precision in ("32-true", "bf16-mixed"):
        trained([*overrides, f"trainer.precision={precision}"], tmp_path / precision, steps)
        curves[precision] = steps.losses
        logged = pd.read_csv(tmp_path / precision / "csv" / "metrics.csv")["train/loss"].dropna()
        last = steps.losses[len(steps.losses) // 3 - 1 :: len(steps.losses) // 3]
        assert set(np.float32(last)) <= set(np.float32(logged))  # that of each epoch's last step is always there
    assert steps.devices == {"cuda" if device == "gpu" else "cpu"}
    assert len(curves["32-true"]) == 6
    np.testing.assert_allclose(curves["bf16-mixed"], curves["32-true"], rtol=0.05, atol=0.05)
    assert curves["bf16-mixed"] != curves["32-true"]


def test_resident_streamed_and_continued_trainings_see_the_same_tiles(
    device: str, small: list[str], tmp_path: Path, steps: Steps
) -> None:
    overrides = [*small, "augment=strong", "augment.cutmix=0.5", "model.dropout=0.3", "trainer.ema=0.9"]
    overrides += [f"trainer={device}", "trainer.deterministic=true", "trainer.max_epochs=3"]
    seen = {}
    for residency in ("device", "memmap"):
        found = trained([*overrides, f"data.residency={residency}"], tmp_path / residency, steps)
        seen[residency] = steps.rows, steps.tiles, steps.losses, found["val"]
    steps.cut = (1, 2)
    with pytest.raises(InterruptionError):
        trained([*overrides, "data.residency=device"], tmp_path / "continued", steps)
    each = len(seen["device"][0]) // 3
    assert len(steps.rows) == each + 2
    steps.cut, steps.rows, steps.tiles, steps.losses = None, steps.rows[:each], steps.tiles[:each], steps.losses[:each]
    found = trained([*overrides, "data.residency=device"], tmp_path / "continued", steps, resume=True)
    seen["continued"] = steps.rows, steps.tiles, steps.losses, found["val"]
    for other in ("memmap", "continued"):
        assert seen[other][0] == seen["device"][0]
        assert all(torch.equal(*pair) for pair in zip(seen[other][1], seen["device"][1], strict=True))
        assert seen[other][2:] == seen["device"][2:]


def test_deterministic_trainings_are_the_same_bit_for_bit(
    device: str, small: list[str], tmp_path: Path, steps: Steps
) -> None:
    overrides = [*small, "model.name=densenet121", f"trainer={device}", "trainer.deterministic=true"]
    losses, weights = [], []
    for name in ("first", "second"):
        trained([*overrides, "trainer.max_epochs=1"], tmp_path / name, steps)
        losses.append(steps.losses)
        kept = torch.load(tmp_path / name / "checkpoints" / "last.ckpt", weights_only=True, map_location="cpu")
        weights.append(kept["state_dict"])
    assert losses[0] == losses[1]
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())


@pytest.mark.gpu
def test_out_of_gpu_memory_is_one_line(
    small: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    total = torch.cuda.mem_get_info()[1]
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + 500e6) / total)
    try:
        assert main(["train", *small, "model.name=resnet18", "model.input_size=512", "data.batch_size=40",
                     "trainer=gpu"]) == 1  # fmt: skip
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
        torch.cuda.empty_cache()
    [said] = [line for line in capsys.readouterr().err.splitlines() if line.startswith("histolight:")]
    assert "out of GPU memory with data.batch_size=40: use data.batch_size=20 trainer.accumulate=2" in said


WORKER = """
import sys, time
from pathlib import Path
import torch
from histolight.sweeps.devices import claim_gpu
folder, name, amount = Path(sys.argv[1]), sys.argv[2], float(sys.argv[3])
claim_gpu(folder, 2)
total = torch.cuda.mem_get_info()[1]
kept = torch.empty(int(amount * total), dtype=torch.uint8, device="cuda")
try:
    torch.empty(int(0.5 * total), dtype=torch.uint8, device="cuda")
    (folder / f"{name}-unlimited").touch()
except torch.OutOfMemoryError:
    (folder / f"{name}-limited").touch()
while not (folder / f"{name}-end").exists():
    time.sleep(0.1)
"""


@pytest.mark.gpu
def test_two_points_share_the_gpu_and_a_third_waits(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}
    environment["CUDA_VISIBLE_DEVICES"] = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    names = ["first", "second", "third"]

    def begin(name: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", WORKER, str(tmp_path), name, "0.28"]
        return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)

    def appears(name: str, seconds: float) -> bool:
        end = time.monotonic() + seconds
        while time.monotonic() < end and not (tmp_path / name).exists():
            time.sleep(0.1)
        return (tmp_path / name).exists()

    workers = {name: begin(name) for name in names[:2]}
    try:
        assert appears("first-limited", 60)
        assert appears("second-limited", 60)  # at the same time: the first holds its part still
        workers["third"] = begin("third")
        assert not appears("third-limited", 15)
        (tmp_path / "first-end").touch()
        assert appears("third-limited", 60)
        for name in names[1:]:
            (tmp_path / f"{name}-end").touch()
        errors = {name: worker.communicate(timeout=60)[1] for name, worker in workers.items()}
    finally:
        for worker in workers.values():
            worker.kill()
    assert not list(tmp_path.glob("*-unlimited"))
    assert "with sweep.points_per_gpu=2 a point may take" in errors["third"]
