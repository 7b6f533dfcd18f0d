"""Points on GPUs, with a stand-in for these: which they take, how much of it, and what if that does not suffice."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from histolight import runs
from histolight.cli import main
from histolight.config.compose import compose_config
from histolight.config.hydra_adapter import Job
from histolight.config.schema import Config
from histolight.data.datamodule import TileDataModule
from histolight.errors import RequestError
from histolight.models.classifier import Classifier
from histolight.ranking.page import notes
from histolight.ranking.ranking import compare_runs
from histolight.sweeps import devices, launch, pages
from histolight.sweeps.points import Point


class StandIn:
    """GPUs as :class:`devices.Gpus` gives them."""

    def __init__(self, count: int) -> None:
        self.number, self.free = count, 1.0
        self.limits: list[float] = []

    def count(self) -> int:
        return self.number

    def memory(self) -> tuple[int, int]:
        return int(80e9 * self.free), int(80e9)

    def limit(self, fraction: float) -> None:
        self.limits.append(fraction)


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> StandIn:
    stand_in = StandIn(2)
    monkeypatch.setattr(devices, "gpus", stand_in)
    monkeypatch.setattr(devices, "_held", None)
    monkeypatch.setattr(devices, "_limited", False)
    return stand_in


def worker(directory: Path, points_per_gpu: int, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Claim a GPU as a new worker process does."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    monkeypatch.setattr(devices, "_held", None)
    monkeypatch.setattr(devices, "_limited", False)
    devices.claim_gpu(directory, points_per_gpu)
    return devices._held


def test_each_worker_takes_the_gpu_that_the_fewest_have(
    gpus: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken, held = [], []
    for _ in range(5):
        held.append(worker(tmp_path, 1, monkeypatch))
        taken.append(os.environ["CUDA_VISIBLE_DEVICES"])
        devices.claim_gpu(tmp_path)  # the next point of the same worker
        assert os.environ["CUDA_VISIBLE_DEVICES"] == taken[-1]
    assert taken == ["3", "5", "3", "5", "3"]
    held[1].release()  # that worker ended
    held.append(worker(tmp_path, 1, monkeypatch))
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "5"
    assert gpus.limits == []


def test_points_that_share_a_gpu_have_a_share_of_its_memory_each(
    gpus: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpus.number = 1
    held = [worker(tmp_path, 4, monkeypatch) for _ in range(2)]
    assert len(held) == 2
    assert gpus.limits == pytest.approx([0.2375, 0.2375])


def test_where_ray_chose_the_gpu_a_worker_keeps_within_its_share_from_its_first_point_on(gpus: StandIn) -> None:
    devices.take_share("0", 1)
    assert gpus.limits == []
    for _ in range(2):  # points of one worker
        devices.take_share("0", 2)
        gpus.free = 0.1  # its own tiles: not waited for
    assert gpus.limits == pytest.approx([0.475])


@pytest.mark.parametrize(
    ("launcher", "limits"),
    [
        ("hydra_plugins.hydra_ray_launcher.ray_launcher.RayLauncher", [0.475]),
        ("hydra_plugins.hydra_joblib_launcher.joblib_launcher.JoblibLauncher", [0.475]),
        ("hydra_plugins.hydra_submitit_launcher.submitit_launcher.SlurmLauncher", []),
    ],
)
def test_a_point_takes_its_share_before_anything_else(
    launcher: str, limits: list[float], gpus: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    monkeypatch.setattr(launch.hydra, "running_job", lambda: Job(tmp_path, tmp_path, launcher))
    with pytest.raises(RequestError, match="max_epochs"):  # what is wrong is seen afterwards
        launch._train(compose_config(["trainer.max_epochs=0"]), Point((), tmp_path), True, 2, None)
    assert gpus.limits == pytest.approx(limits)


def test_a_point_waits_for_a_gpu_that_others_take(
    gpus: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    gpus.number, gpus.free = 1, 0.2

    def others_end(seconds: float) -> None:
        assert gpus.limits == []
        gpus.free += 0.02

    monkeypatch.setattr(devices.time, "sleep", others_end)
    worker(tmp_path, 4, monkeypatch)
    assert gpus.free == pytest.approx(0.24)
    assert gpus.limits == pytest.approx([0.2375])
    [said] = caplog.messages
    assert said.startswith("GPU 3 has 16.0 GB free, and with sweep.points_per_gpu=4 a point may take 19.0 GB: it waits")


def test_the_processes_of_a_sweep_end_with_it() -> None:
    from joblib import Parallel, delayed

    alive = set(Parallel(n_jobs=2)(delayed(os.getpid)() for _ in range(4)))
    assert os.getpid() not in alive
    launch.release(workers=True)
    for process in alive:
        with pytest.raises(ProcessLookupError):
            os.kill(process, 0)


def test_resident_tiles_stay_within_the_share_of_a_point(
    small_config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiles: Any = SimpleNamespace(tiles=SimpleNamespace(image_size=100))
    datamodule, gpu = TileDataModule(tiles, small_config), torch.device("cuda")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (70e9, 80e9))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: 1e9)
    for fraction, most in ((1.0, 35e9), (0.2375, 9e9)):
        monkeypatch.setattr(torch.cuda, "get_per_process_memory_fraction", lambda _, fraction=fraction: fraction)
        assert datamodule._fit(int(most / 3e4) - 1, gpu)
        assert not datamodule._fit(int(most / 3e4) + 1, gpu)


def test_the_launcher_starts_as_many_points_as_the_gpus_take(gpus: StandIn) -> None:
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    config = compose_config(["hydra/launcher=joblib"])
    devices.share_out(config, 3)
    assert config.hydra.launcher.n_jobs == 6
    config = compose_config(["hydra/launcher=joblib", "trainer=cpu"])
    devices.share_out(config, 3)
    assert config.hydra.launcher.n_jobs == -1


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["hydra/launcher=joblib", "hydra.launcher.n_jobs=5", "sweep.points_per_gpu=2"],
            "hydra.launcher.n_jobs=5, but 2 GPUs take 4 points at a time: use hydra.launcher.n_jobs=4",
        ),
        (["sweep.points_per_gpu=2"], "needs points that train side by side: add hydra/launcher=joblib"),
        (["sweep.points_per_gpu=0"], "sweep.points_per_gpu=0 is out of range: it must be at least 1"),
        (["sweep.points_per_gpu=1,2"], "sweep.points_per_gpu can't be swept"),
        (["sweep.point_per_gpu=1"], "sweep.point_per_gpu is not a key: did you mean sweep.points_per_gpu"),
    ],
)
def test_wrong_shares_are_one_line(
    overrides: list[str],
    message: str,
    gpus: StandIn,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    monkeypatch.chdir(tmp_path)
    assert main(["train", "-m", "seed=1,2", *overrides]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert message in error


def test_a_single_run_has_no_keys_of_a_sweep(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "sweep.points_per_gpu=2"]) == 2
    assert capsys.readouterr().err == "histolight: sweep.points_per_gpu is about a sweep: add -m\n"


def test_a_point_that_runs_out_of_memory_is_trained_once_more_with_half_the_batch_and_says_so(
    small: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, undrawn: None
) -> None:
    step = Classifier.training_step

    def limited(self: Classifier, batch, batch_idx: int):
        if len(batch.rows) > 4:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return step(self, batch, batch_idx)

    monkeypatch.setattr(Classifier, "training_step", limited)
    monkeypatch.setattr(pages, "_draw_pages", lambda _: None)
    monkeypatch.chdir(tmp_path)
    assert main(["train", "-m", *small, "name=X", "trainer.max_epochs=1", "data.batch_size=4,8,16"]) == 1
    four, eight, sixteen = (next(Path("outputs/sweeps/X").glob(f"{number}_*")) for number in range(3))
    assert "out_of_memory" not in runs.read_metrics(four)
    metrics, config = runs.read_metrics(eight), runs.read_config(eight / "config.yaml")
    assert metrics["status"] == "completed"
    assert metrics["out_of_memory"] == {"data.batch_size": 8, "trainer.accumulate": 1}
    assert (config["data"]["batch_size"], config["trainer"]["accumulate"]) == (4, 2)
    assert runs.read_metrics(sixteen)["status"] == "failed"
    assert runs.read_metrics(sixteen)["reason"].startswith("out of GPU memory with data.batch_size=8: use")

    ranking = compare_runs([Path("outputs/sweeps/X")])
    assert sorted(row.config["data.batch_size"] for row in ranking.rows) == [4, 8]
    [said] = [note for note in notes(ranking) if note.startswith("Out of memory")]
    assert said.endswith(f"twice trainer.accumulate: {eight.name}.")
