from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock
from omegaconf import DictConfig

from histolight import files, runs
from histolight.cli import main
from histolight.config import hydra_adapter
from histolight.config.compose import compose_config
from histolight.errors import HistolightError, InterruptionError, RequestError
from histolight.sweeps import launch, pages
from histolight.sweeps.points import LONGEST_FOLDER, Point, folder_name
from histolight.sweeps.sweep import SweepResult, plan_sweep, run_sweep

CPU = "trainer=cpu"


class Trainings:
    """Stands in for the real training: notes what was trained, and fails or stops where it is told to."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.faults: dict[int, BaseException] = {}

    def __call__(self, config: DictConfig, point: Point, drawn: bool, points_per_gpu: int, watched: Any = None) -> None:
        self.names.append(point.directory.name)
        try:
            with runs.recorded(point.directory):
                if config.seed in self.faults:
                    raise self.faults[config.seed]
                runs.update_metrics(point.directory, val={"auroc": {"value": config.seed / 10, "low": 0, "high": 1}})
        except HistolightError:
            return

    def take(self) -> list[str]:
        names, self.names = self.names, []
        return names


@pytest.fixture
def trainings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Trainings:
    monkeypatch.chdir(tmp_path)
    fake = Trainings()
    monkeypatch.setattr(launch, "train_and_record", fake)
    monkeypatch.setattr(pages, "FEWEST", 1000)
    monkeypatch.setattr(pages, "_draw_pages", lambda _: None)
    return fake


def statuses(result: SweepResult) -> dict[str, str]:
    return {point.directory.name: point.status for point in result.points}


def test_points_are_named_by_number_and_swept_keys_and_lie_under_the_name(trainings: Trainings) -> None:
    result = run_sweep(["name=X", CPU, "seed=1,2", "model=resnet18,resnet34"])
    assert result.directory == Path("outputs/sweeps/X")
    assert trainings.take() == [
        "0_seed=1,model=resnet18",
        "1_seed=1,model=resnet34",
        "2_seed=2,model=resnet18",
        "3_seed=2,model=resnet34",
    ]
    assert [point.auroc for point in result.points] == [0.1, 0.1, 0.2, 0.2]


def test_a_sweep_without_a_name_is_named_by_its_time(trainings: Trainings) -> None:
    result = run_sweep([CPU, "seed=1,2"])
    assert re.fullmatch(r"\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d", result.name)
    assert result.directory == Path("outputs/sweeps") / result.name
    assert len(trainings.take()) == 2


def test_each_command_marks_when_it_began(trainings: Trainings) -> None:
    lock = files.lock_file(run_sweep(["name=X", CPU, "seed=1"]).directory)
    os.utime(lock, ns=(1, 1))
    run_sweep(["name=X", CPU, "seed=1"])
    assert lock.stat().st_mtime_ns > 1


def test_folder_names_are_safe_and_bounded() -> None:
    assert folder_name(0, [], []) == "0"
    assert folder_name(1, ["data.root='/tiles (1)/a:b'"], ["data.root"]) == "1_root=-tiles-1-a-b"
    assert folder_name(2, ["optimizer.lr=0.000123456789"], ["optimizer.lr"]) == "2_lr=0.000123457"
    both = ["scheduler.name=cosine", "optimizer.name=sgd"]
    assert folder_name(3, both, ["scheduler.name", "optimizer.name"]) == "3_scheduler.name=cosine,optimizer.name=sgd"
    assert len(folder_name(4, ["model.name=" + "ü" * 300], ["model.name"]).encode()) <= LONGEST_FOLDER


def test_the_grid_is_the_one_of_the_design_and_a_given_key_replaces_its_axis(trainings: Trainings) -> None:
    params = compose_config(["sweep=grid"]).hydra.sweeper.params
    assert {key: [float(value) for value in values.split(",")] for key, values in params.items()} == {
        "optimizer.lr": [1e-4, 3e-4, 1e-3],
        "optimizer.weight_decay": [0, 1e-5, 1e-4],
        "data.batch_size": [32, 64, 128],
    }
    run_sweep(["sweep=grid", CPU, "optimizer.weight_decay=0", "data.batch_size=8,16"])
    assert trainings.take() == [
        "0_lr=0.0001,batch_size=8",
        "1_lr=0.0001,batch_size=16",
        "2_lr=0.0003,batch_size=8",
        "3_lr=0.0003,batch_size=16",
        "4_lr=0.001,batch_size=8",
        "5_lr=0.001,batch_size=16",
    ]


def test_ranges_globs_and_repeated_points(trainings: Trainings) -> None:
    assert len(run_sweep([CPU, "seed=range(0,3)"]).points) == 3
    trainings.take()
    run_sweep(["name=glob", CPU, "model=glob(resnet*)"])
    assert trainings.take() == ["0_model=resnet18", "1_model=resnet34"]
    run_sweep(["name=twice", CPU, "optimizer.lr=1e-3,0.001"])
    assert trainings.take() == ["0_lr=0.001"]
    run_sweep(["name=last", CPU, "seed=1,2", "seed=3"])
    assert trainings.take() == ["0"]


def test_points_that_fail_alike_are_one_line_and_none_is_compared(
    trainings: Trainings, capsys: pytest.CaptureFixture[str]
) -> None:
    trainings.faults |= dict.fromkeys((1, 2, 3), HistolightError("no weights")) | {4: HistolightError("no memory")}
    assert main(["train", "-m", "name=X", CPU, "seed=1,2,3,4"]) == 1
    said = capsys.readouterr().out.splitlines()
    assert said[1:3] == ["failed       0_seed=1 and 2 more: no weights", "failed       3_seed=4: no memory"]
    assert not any(line.startswith(("compare", "TensorBoard")) for line in said)


def test_the_command_line_reports_and_returns_1_when_a_point_failed(
    trainings: Trainings, capsys: pytest.CaptureFixture[str]
) -> None:
    trainings.faults[2] = HistolightError("the loss became nan")
    assert main(["train", "-m", "name=X", CPU, "seed=1,2,3", "augment=none,flips"]) == 1
    printed = capsys.readouterr()
    assert "outputs/sweeps/X: 4 completed, 2 failed" in printed.out
    assert "failed       2_seed=2,augment=none and 1 more: the loss became nan" in printed.out
    assert "best         4_seed=3,augment=none: val AUROC 0.3000" in printed.out
    assert "tensorboard --logdir outputs/sweeps/X" in printed.out
    assert "histolight compare runs=outputs/sweeps/X" in printed.out
    assert "X: 6 of 6 points done, best AUROC 0.3000 (4_seed=3,augment=none), 2 failed" in printed.err
    assert (printed.err.count("X: 0 of 6"), printed.err.count("X: 6 of 6")) == (1, 1)

    trainings.faults.clear()
    trainings.take()
    assert main(["train", "-m", "name=X", CPU, "seed=1,2,3", "augment=none,flips"]) == 0
    assert trainings.take() == ["2_seed=2,augment=none", "3_seed=2,augment=flips"]
    assert main(["train", "-m", "name=X", CPU, "seed=1,2,3", "augment=none,flips"]) == 0
    assert trainings.take() == []


def test_of_repeats_of_one_configuration_none_is_the_best(
    trainings: Trainings, capsys: pytest.CaptureFixture[str]
) -> None:
    trainings.faults[2] = HistolightError("the loss became nan")
    assert main(["train", "-m", "name=X", CPU, "seed=1,2,3"]) == 1
    printed = capsys.readouterr()
    assert "failed       1_seed=2: the loss became nan" in printed.out
    assert "best" not in printed.out + printed.err
    assert "mean         val AUROC 0.2000 of 2 trainings of one configuration (0.1000 to 0.3000)" in printed.out
    assert "X: 3 of 3 points done, mean AUROC 0.2000, 1 failed" in printed.err


def test_a_failed_point_starts_afresh_and_a_cut_off_one_keeps_its_files(trainings: Trainings) -> None:
    trainings.faults[1] = HistolightError("out of memory")
    result = run_sweep(["name=X", CPU, "seed=1,2"])
    failed, completed = (point.directory for point in result.points)
    (failed / "checkpoints").mkdir()
    (failed / "checkpoints" / "last.ckpt").touch()
    (completed / "old").touch()
    runs.update_metrics(completed, status="running")  # as SIGKILL leaves it
    trainings.faults.clear()
    run_sweep(["name=X", CPU, "seed=1,2"])
    assert trainings.take() == ["0_seed=1", "1_seed=2"] * 2
    assert not (failed / "checkpoints" / "last.ckpt").exists()
    assert (completed / "old").exists()


def test_points_are_matched_by_configuration_never_by_number(trainings: Trainings, tmp_path: Path) -> None:
    tiles = "data=folder"
    (tmp_path / "tiles").mkdir()
    run_sweep(["name=X", CPU, tiles, "data.root=tiles", "optimizer.lr=1e-3,1e-2"])
    assert trainings.take() == ["0_lr=0.001", "1_lr=0.01"]
    again = ["name=X", CPU, tiles, f"data.root={tmp_path}/tiles", "data.cache=elsewhere", "data.residency=memmap"]
    run_sweep([*again, "optimizer.lr=0.01,3e-3,0.001"])
    assert trainings.take() == ["2_lr=0.003"]
    run_sweep([*again, "seed=0,1", "optimizer.lr=1e-3"])  # one more axis keeps what is done, too
    assert trainings.take() == ["3_seed=1"]
    assert len(json.loads((tmp_path / "outputs/sweeps/X/sweep.json").read_text())["points"]) == 4


def test_keys_of_the_machine_are_axes_where_they_are_swept(trainings: Trainings) -> None:
    run_sweep(["name=X", CPU, "data.residency=device,memmap"])
    assert trainings.take() == ["0_residency=device", "1_residency=memmap"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["optimizer.lr=1e-3,abc"], "optimizer.lr=abc is of the wrong type: it must be a number"),
        (["optimizer.lrr=1,2"], "optimizer.lrr is not a key: did you mean optimizer.lr"),
        (["model=resnet18,resnet20"], "model=resnet20 is not known: did you mean resnet"),
        (["seed=1,2", "data.limit=abc"], "data.limit=abc is of the wrong type"),
        (["optimizer.lr=${nothing}", "seed=1,2"], "nothing"),
        (
            ["optimizer.lr=interval(0,1)"],
            "optimizer.lr=interval(0,1) is no list of values: a search over an interval is sweep=optuna",
        ),
        (["name=a,b"], "name can't be swept"),
        (["hydra.launcher.n_jobs=1,2"], "hydra.launcher.n_jobs can't be swept"),
        (["run=somewhere"], "leave -m out"),
        (["like=somewhere", "seed=1,2"], "leave -m out"),
        (["hydra/launcher=nothing", "seed=1,2"], "hydra/launcher=nothing is a plugin that is not installed"),
        (["trainer.devices=2", "seed=1,2"], "a point of a sweep trains on one device"),
        (["trainer.devices=1,2"], "a point of a sweep trains on one device"),
        (["trainer=cpu,ddp"], "a point of a sweep trains on one device"),
        (["seed=1,2", "hydra.sweep.subdir=same"], "two points the folder same"),
    ],
)
def test_what_cannot_be_composed_refuses_the_whole_sweep_and_leaves_nothing(
    overrides: list[str], message: str, trainings: Trainings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "-m", CPU, *overrides]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert message in error
    assert trainings.take() == []
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_all_gpus_for_each_point_are_refused_unless_joblib_shares_them_out(
    trainings: Trainings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(RequestError, match="all 2 GPUs for each point.*hydra/launcher=joblib"):
        plan_sweep(["seed=1,2", "trainer.devices=auto"])
    assert len(plan_sweep(["seed=1,2", "trainer.devices=auto", "hydra/launcher=joblib"]).configs) == 2
    run_sweep(["seed=1,2", "trainer.devices=1"])
    run_sweep(["seed=1,2", CPU])
    assert len(trainings.take()) == 4


def test_a_name_that_is_taken_is_refused(trainings: Trainings, tmp_path: Path) -> None:
    run_sweep(["name=X", CPU, "seed=1,2", "trainer.max_epochs=5", "trainer.clip=1"])
    with pytest.raises(
        RequestError, match="holds a sweep with trainer.clip=1.0, not null; trainer.max_epochs=5, not 3: choose"
    ):
        run_sweep(["name=X", CPU, "seed=1,2", "trainer.max_epochs=3"])
    run_sweep(["name=Y", CPU, "seed=1,2", "trainer.max_epochs=3"])
    with (
        FileLock(tmp_path / "outputs/sweeps/X/.histolight.lock"),
        pytest.raises(RequestError, match="outputs/sweeps/X is in use by another process"),
    ):
        run_sweep(["name=X", CPU, "seed=1,2"])
    (tmp_path / "outputs/sweeps/X/sweep.json").write_text('{"base": ')
    with pytest.raises(RequestError, match="sweep.json is damaged"):
        run_sweep(["name=X", CPU, "seed=1,2"])
    with pytest.raises(RequestError, match="holds files already"):
        run_sweep(["hydra.sweep.dir=outputs", CPU, "seed=1,2"])
    assert len(trainings.take()) == 4


def test_folders_of_hydra_can_be_overridden(trainings: Trainings, tmp_path: Path) -> None:
    overrides = [CPU, "seed=1,2", "hydra.sweep.dir=my (sweep)", "hydra.sweep.subdir=run/${hydra.job.num}"]
    assert statuses(run_sweep(overrides)) == {"0": "completed", "1": "completed"}
    assert (tmp_path / "my (sweep)" / "run" / "1" / "metrics.json").is_file()
    trainings.take()
    run_sweep([*overrides, "optimizer.momentum=0.9"])
    assert trainings.take() == []


def test_an_interruption_stops_the_sweep_and_says_how_to_continue(trainings: Trainings) -> None:
    trainings.faults[2] = KeyboardInterrupt()
    with pytest.raises(InterruptionError, match=r"1 of 3 points completed.*train -m name=X trainer=cpu seed=1,2,3$"):
        run_sweep(["name=X", CPU, "seed=1,2,3"])
    assert trainings.take() == ["0_seed=1", "1_seed=2"]
    trainings.faults.clear()
    result = run_sweep(["name=X", CPU, "seed=1,2,3"])
    assert trainings.take() == ["1_seed=2", "2_seed=3"]
    assert set(statuses(result).values()) == {"completed"}


class DyingLauncher:
    """Like joblib when a worker is killed: it raises, and the points begun with that worker have no result."""

    def __init__(self, deadly: str, train: Callable[[Path], None]) -> None:
        self.deadly, self.train, self.batches = deadly, train, 0

    def launch(self, overrides: list[tuple[str, ...]], initial_job_idx: int) -> None:
        self.batches += 1
        places = [[item.partition("=")[2].strip("'") for item in point[-2:]] for point in overrides]
        begun = [Path(*place) for place in places][:2]
        for directory in begun:
            runs.update_metrics(directory, status="running", reason=None)
        if any(self.deadly in directory.name for directory in begun):
            raise RuntimeError("a worker was killed")
        for directory in (Path(*place) for place in places):
            self.train(directory)


def test_a_killed_worker_costs_its_own_point_only(
    trainings: Trainings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def train(directory: Path) -> None:
        runs.update_metrics(directory, status="completed", val={"auroc": {"value": 0.5}})

    launcher = DyingLauncher("seed=2", train)
    monkeypatch.setattr(hydra_adapter, "build_launcher", lambda *_: launcher)
    result = run_sweep(["name=X", CPU, "seed=1,2,3,4"])
    assert list(statuses(result).values()) == ["completed", "failed", "completed", "completed"]
    assert "its process died (RuntimeError)" in result.points[1].metrics["reason"]


def test_a_launcher_that_cannot_start_is_one_line(trainings: Trainings, monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken:
        def launch(self, overrides: Any, initial_job_idx: int) -> None:
            raise FileNotFoundError("no sbatch here\non this machine")

    monkeypatch.setattr(hydra_adapter, "build_launcher", lambda *_: Broken())
    with pytest.raises(HistolightError, match="^the launcher failed: FileNotFoundError: no sbatch here on this"):
        run_sweep(["name=X", CPU, "seed=1,2"])


@pytest.mark.parametrize(
    ("fault", "reason", "traceback"),
    [
        (RuntimeError("first line\nsecond line"), "RuntimeError: first line second line", True),
        (MemoryError(), "MemoryError: ", True),
        (SystemExit(3), "SystemExit: 3", True),
        (HistolightError("the loss became nan"), "the loss became nan", False),
        (torch.OutOfMemoryError("CUDA out of memory"), "CUDA out of memory", True),
    ],
)
def test_any_fault_fails_its_point_only_and_is_recorded(
    fault: BaseException, reason: str, traceback: bool, small: list[str], tmp_path: Path, monkeypatch
) -> None:
    def train(config: Any, data: Any, directory: Path, resume: bool, **options: Any) -> None:
        if config.seed == 1:
            raise fault
        with runs.recorded(directory):
            runs.update_metrics(directory, val={"auroc": {"value": 0.5}})

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(pages, "_draw_pages", lambda _: None)
    monkeypatch.setattr("histolight.training.fit.train", train)
    result = run_sweep([*small, "name=X", "seed=1,2"])
    failed, completed = result.points
    assert (failed.status, completed.status) == ("failed", "completed")
    assert reason in failed.metrics["reason"]
    assert "\n" not in failed.metrics["reason"]
    assert (failed.directory / "config.yaml").is_file()
    assert (failed.directory / "traceback.txt").exists() == traceback


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["model.name=alexnet", "optimizer.lr=1e-3,1e-4"], "can't work on 32x32 tiles: add model.input_size=64"),
        (["model.weights=missing.pth", "seed=1,2"], "model.weights=missing.pth is not a file"),
        (["model.weights=missing.pth", "seed=1,2", "hydra/launcher=joblib"], "model.weights=missing.pth is not a file"),
        (["data.root=/nowhere", "seed=1,2", "hydra/launcher=joblib"], "data.root=/nowhere is not a folder"),
        (["data.root=/nowhere", "sweep=asha", "sweep.n_trials=2"], "data.root=/nowhere is not a folder"),
        (["data.root=/nowhere", "sweep=optuna", "hydra/launcher=joblib"], "data.root=/nowhere is not a folder"),
        (["model.weights=a.pth,a.pth", "sweep=optuna"], "model.weights=a.pth is not a file"),
    ],
)
def test_one_fault_of_all_points_refuses_the_sweep_before_any_work(
    words: list[str], reason: str, small: list[str], tmp_path: Path, trainings: Trainings
) -> None:
    with pytest.raises(RequestError, match=reason):
        run_sweep([*small, "name=X", *words])
    assert not (tmp_path / "outputs").exists()
    if "input_size" in reason:
        assert len(run_sweep([*small, "name=X", *words, reason.rpartition(" ")[2]]).points) == 2


@pytest.mark.parametrize(
    ("axis", "reason"),
    [
        ("data.root={root},/nowhere", "data.root=/nowhere is not a folder"),
        ("data.fold=0,9", "data.fold=9 is out of range"),
        ("model.weights=null,missing.pth", "model.weights=missing.pth is not a file"),
        ("model.name=resnet18,resnet20", "model.name=resnet20 is not known"),
    ],
)
def test_a_wrong_value_fails_its_point_only(
    axis: str, reason: str, small: list[str], tile_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def train(config: Any, data: Any, directory: Path, resume: bool, **options: Any) -> None:
        with runs.recorded(directory):
            runs.update_metrics(directory, val={"auroc": {"value": 0.5}})

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(pages, "_draw_pages", lambda _: None)
    monkeypatch.setattr("histolight.training.fit.train", train)
    axis = axis.format(root=tile_folder)
    key = axis.partition("=")[0]
    fixed = [override for override in small if not override.startswith((f"{key}=",))]
    result = run_sweep([*fixed, "name=X", axis])
    assert list(statuses(result).values()) == ["completed", "failed"]
    assert reason in result.points[1].metrics["reason"]
