from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import plugin_data_pb2

from histolight.cli import main

SWEEP = ["name=X", "optimizer.lr=1e-3,1e-2", "data.fold=0,9", "trainer.max_epochs=3"]  # there are 5 folds


# Stops itself at the first step of the second epoch of one of the points, as if it had been sent the signal then.
STOPPED = """
import os, signal, sys
import torch
from histolight.cli import main
from histolight.models.classifier import Classifier
torch.set_num_threads(1)
name, rate = sys.argv[1:3]
step = Classifier.training_step
def stopped(self, batch, batch_idx):
    if self.trainer.current_epoch == 1 and batch_idx == 0 and self.hparams.optimizer["lr"] == float(rate):
        os.kill(os.getpid(), getattr(signal, name))
    return step(self, batch, batch_idx)
Classifier.training_step = stopped
sys.exit(main(["train", "-m", *sys.argv[3:]]))
"""


def stopped_by(name: str, rate: float, overrides: Sequence[str], folder: Path) -> subprocess.CompletedProcess[str]:
    """Sweep in a process of its own, which a signal stops in the second epoch of the point with that rate."""
    command = [sys.executable, "-c", STOPPED, name, str(rate), *overrides]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=600, check=False)


def metrics(point: Path) -> dict[str, Any]:
    return json.loads((point / "metrics.json").read_text())


def hyperparameters(folder: Path) -> tuple[dict[str, Any], dict[str, float]]:
    """Read what TensorBoard's HPARAMS tab shows of a run: its hyperparameters, and the last value of each metric."""
    events = EventAccumulator(str(folder)).Reload()
    shown = {}
    for content in events.PluginTagToContent("hparams").values():
        data = plugin_data_pb2.HParamsPluginData.FromString(content)
        for name, value in data.session_start_info.hparams.items():
            shown[name] = getattr(value, value.WhichOneof("kind"))
    return shown, {tag: events.Scalars(tag)[-1].value for tag in events.Tags()["scalars"]}


@pytest.mark.slow
def test_a_sweep_killed_half_way_and_started_again_ends_with_every_point_and_one_recorded_failure_each(
    small: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    sweep = tmp_path / "outputs" / "sweeps" / "X"
    first, second = sweep / "0_lr=0.001,fold=0", sweep / "2_lr=0.01,fold=0"
    assert stopped_by("SIGKILL", 1e-2, [*small, *SWEEP], tmp_path).returncode == -signal.SIGKILL
    assert metrics(first)["status"] == "completed"
    assert metrics(second)["status"] == "running"
    finished = (first / "metrics.json").stat().st_mtime_ns

    assert main(["train", "-m", *small, *SWEEP]) == 1
    printed = capsys.readouterr()
    assert "outputs/sweeps/X: 2 completed, 2 failed" in printed.out
    assert printed.out.count("fold=9 and 1 more: data.fold=9 is out of range") == 1
    assert "X: 4 of 4 points done" in printed.err
    assert (first / "metrics.json").stat().st_mtime_ns == finished
    assert [metrics(point)["status"] for point in sorted(sweep.glob("*_*"))] == ["completed", "failed"] * 2
    assert metrics(second)["epochs"] == 3

    # Resumed, not begun again: as good as trained in one go.
    assert main(["train", "-m", *small, *SWEEP[1:], "data.fold=0", "optimizer.lr=1e-2", "name=straight"]) == 0
    straight = tmp_path / "outputs" / "sweeps" / "straight" / "0"
    scores = [pd.read_csv(point / "predictions" / "val.csv")["score"] for point in (second, straight)]
    pd.testing.assert_series_equal(*scores, atol=1e-4)

    for point, rate in ((first, 1e-3), (second, 1e-2)):
        shown, final = hyperparameters(point / "tensorboard")
        assert shown == {"optimizer.lr": rate, "data.fold": 0}
        assert final["final/val_auroc"] == pytest.approx(metrics(point)["val"]["auroc"]["value"])
        assert "hp_metric" not in final


@pytest.mark.slow
def test_sigterm_stops_the_sweep_and_says_how_to_continue(small: list[str], tmp_path: Path) -> None:
    done = stopped_by("SIGTERM", 1e-3, [*small, "name=X", "seed=0,1", "trainer.max_epochs=9"], tmp_path)
    assert done.returncode == 1
    assert "histolight: interrupted with 0 of 2 points completed: continue with histolight train -m" in done.stderr
    point = tmp_path / "outputs" / "sweeps" / "X" / "0_seed=0"
    assert "Traceback" not in done.stderr
    assert metrics(point)["status"] == "interrupted"
    assert not (point.parent / "1_seed=1").exists()


TWO_POINTS = ["trainer.max_epochs=1", "optimizer.lr=1e-3,1e-2"]


@pytest.fixture(scope="module")
def serial(small: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("serial")
    assert main(["train", "-m", *small, *TWO_POINTS, f"hydra.sweep.dir={folder / 'sweep'}"]) == 0
    return folder / "sweep"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("plugin", "launcher"),
    [
        ("hydra_joblib_launcher", ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]),
        ("hydra_submitit_launcher", ["hydra/launcher=submitit_local", "hydra.launcher.timeout_min=10"]),
        ("hydra_ray_launcher", ["hydra/launcher=ray", "+hydra.launcher.ray.init.num_cpus=2"]),
    ],
)
def test_a_parallel_sweep_gives_what_the_serial_one_gives(
    plugin: str,
    launcher: list[str],
    small: list[str],
    serial: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip(f"hydra_plugins.{plugin}")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    capfd.readouterr()
    cache = f"data.cache={tmp_path / 'cache'}"
    assert main(["train", "-m", *small, cache, *TWO_POINTS, "hydra.sweep.dir=sweep", *launcher]) == 0
    logs = "".join(path.read_text() for path in tmp_path.rglob("*_log.err"))  # submitit's
    if "ray" not in plugin:  # whose workers' output comes through, or not, as it pleases
        assert (capfd.readouterr().err + logs).count("packing:   0%") == 1  # however many began together
    for name in ("0_lr=0.001", "1_lr=0.01"):
        here, there = (pd.read_csv(folder / name / "predictions" / "val.csv") for folder in (Path("sweep"), serial))
        pd.testing.assert_frame_equal(here, there, atol=1e-4)
        assert metrics(Path("sweep") / name)["val"]["auroc"] == metrics(serial / name)["val"]["auroc"]


@pytest.mark.gpu
@pytest.mark.parametrize(
    "launcher", [[], ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "sweep.points_per_gpu=2"]]
)
def test_a_sweep_on_the_gpu(
    launcher: list[str], small: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if launcher:
        pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    monkeypatch.chdir(tmp_path)
    points = ["name=X", "trainer=gpu", "optimizer.lr=1e-3,1e-2", "data.batch_size=8,16", *launcher]
    assert main(["train", "-m", *small, *points]) == 0
    found = [metrics(point) for point in sorted((tmp_path / "outputs" / "sweeps" / "X").glob("*_*"))]
    assert [figures["status"] for figures in found] == ["completed"] * 4
    peaks = [figures["peak_memory_mb"] for figures in found]
    # No point carries the memory of those before it; the first ones of a batch size try cuDNN's algorithms too.
    assert all(later < 1.5 * before for before, later in zip(peaks[:2], peaks[2:], strict=True))
