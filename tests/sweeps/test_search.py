from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import optuna
import pytest
from omegaconf import DictConfig
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from histolight import files, runs
from histolight.cli import main
from histolight.config.compose import compose_config
from histolight.config.schema import SchedulerConfig
from histolight.errors import HistolightError, InterruptionError, PrunedError, RequestError
from histolight.sweeps import launch, pages, trials
from histolight.sweeps.points import Point
from histolight.sweeps.sweep import SweepResult, plan_sweep, run_sweep

SEARCH = ["name=X", "trainer=cpu", "trainer.max_epochs=9", "scheduler=constant"]
PAIR = ["optimizer.lr=1e-4,2e-4"]
GRID = ["optimizer.lr=1e-4,2e-4,3e-4,4e-4,5e-4,6e-4,7e-4,8e-4,9e-4"]


class Curves:
    """Stands in for the real training: the AUROC grows with the epochs and the learning rate."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self.epochs: Counter[str] = Counter()
        self.faults: dict[tuple[int, int], BaseException] = {}  # by how many began before, and epoch

    def __call__(
        self,
        config: DictConfig,
        point: Point,
        drawn: bool,
        points_per_gpu: int,
        watched: Callable[[Mapping[int, float]], None] | None = None,
    ) -> None:
        number, name = len(self.begun), point.directory.name
        self.begun.append(name)
        aurocs: dict[int, float] = {}
        saved = point.directory / "epochs"
        try:
            with runs.recorded(point.directory):
                for epoch in range(1, config.trainer.max_epochs + 1):
                    if fault := self.faults.pop((number, epoch), None):
                        raise fault
                    if aurocs and watched:
                        watched(aurocs)
                    aurocs[epoch] = 0.5 + epoch / 100 + config.optimizer.lr * (1 + config.seed / 100)
                    if epoch > (int(saved.read_text()) if saved.is_file() else 0):
                        self.epochs[name] += 1
                        saved.write_text(str(epoch))
                runs.update_metrics(point.directory, val={"auroc": {"value": aurocs[epoch], "low": 0, "high": 1}})
        except HistolightError:
            return


@pytest.fixture
def curves(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Curves:
    monkeypatch.chdir(tmp_path)
    fake = Curves()
    monkeypatch.setattr(launch, "train_and_record", fake)
    monkeypatch.setattr(pages, "FEWEST", 1000)
    monkeypatch.setattr(pages, "_draw_pages", lambda _: None)
    return fake


def study() -> optuna.Study:
    journal = JournalFileBackend(f"outputs/sweeps/X/{trials.JOURNAL}")
    return optuna.load_study(study_name=trials.STUDY, storage=optuna.storages.JournalStorage(journal))


def statuses(result: SweepResult) -> Counter[str]:
    return Counter(point.status for point in result.points)


@pytest.mark.slow
def test_tpe_draws_from_intervals_and_goes_on_where_it_stopped(curves: Curves) -> None:
    wanted = [*SEARCH, "sweep=optuna", "model=resnet18,resnet34", "data.batch_size=interval(8,64)"]
    result = run_sweep([*wanted, "sweep.n_trials=3"])
    assert statuses(result) == {"completed": 3}
    shown = r"\d_lr=[\d.e-]+,weight_decay=[\d.e-]+,model=resnet(18|34),batch_size=\d+"
    assert all(re.fullmatch(shown, name) for name in curves.begun)
    for trial in study().trials:
        assert 1e-5 <= trial.params["optimizer.lr"] <= 1e-2
        assert 8 <= trial.params["data.batch_size"] <= 64
        assert trial.value == pytest.approx(0.59 + trial.params["optimizer.lr"])
    run_sweep([*wanted, "sweep.n_trials=3"])
    assert len(curves.begun) == 3
    assert statuses(run_sweep([*wanted, "sweep.n_trials=5"])) == {"completed": 5}
    assert len(set(curves.begun)) == 5


@pytest.mark.slow
def test_an_interrupted_and_a_failed_trial_are_tried_again_first(curves: Curves) -> None:
    wanted = [*SEARCH, "sweep=optuna", "sweep.n_trials=3"]
    curves.faults[1, 4] = KeyboardInterrupt()
    with pytest.raises(InterruptionError, match="1 of 3 points completed"):
        run_sweep(wanted)
    cut_off = curves.begun[1]
    curves.faults[2, 6] = HistolightError("the loss became nan")
    assert statuses(run_sweep(wanted)) == {"completed": 2, "failed": 1}
    assert curves.begun[2] == cut_off
    assert statuses(run_sweep(wanted)) == {"completed": 3}
    assert curves.begun[-1] == cut_off
    assert len(set(curves.begun)) == 3
    assert Counter(trial.state for trial in study().trials) == {TrialState.COMPLETE: 3, TrialState.FAIL: 1}


def test_successive_halving_stops_points_of_a_grid_and_keeps_the_best(
    curves: Curves, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "-m", *SEARCH, *GRID, "sweep.pruner=asha"]) == 0
    printed = capsys.readouterr()
    points = {path.name: runs.read_metrics(path) for path in Path("outputs/sweeps/X").glob("*_lr*")}
    assert len(points) == 9
    pruned = {name: metrics for name, metrics in points.items() if metrics["status"] == "pruned"}
    assert 4 <= len(pruned) <= 8
    assert f"{9 - len(pruned)} completed, {len(pruned)} pruned, 0 failed" in printed.out
    for name, metrics in pruned.items():
        assert metrics["epochs"] == curves.epochs[name]
        assert metrics["epochs"] in (1, 4)
        assert f"successive halving stopped it after epoch {metrics['epochs']} of 9" in metrics["reason"]
    assert sum(curves.epochs.values()) <= 81 / 2
    best = next(metrics for name, metrics in points.items() if "lr=0.0009" in name)
    assert best["status"] == "completed"
    assert [trial.state for trial in study().trials].count(TrialState.PRUNED) == len(pruned)

    before = curves.epochs.total()
    assert main(["train", "-m", *SEARCH, *GRID, "sweep.pruner=asha"]) == 0
    assert curves.epochs.total() == before


def test_of_equal_points_one_goes_on(curves: Curves) -> None:
    equal = [*SEARCH, "optimizer.weight_decay=0,1e-5,1e-4,1e-3", "sweep.sampler=grid", "sweep.pruner=asha"]
    assert statuses(run_sweep(equal)) == {"completed": 1, "pruned": 3}


@pytest.mark.parametrize("pruner", ["median", "hyperband"])
@pytest.mark.slow
def test_the_other_pruners(pruner: str, curves: Curves) -> None:
    result = run_sweep([*SEARCH, *GRID, f"sweep.pruner={pruner}"])
    assert statuses(result).keys() == {"completed", "pruned"}
    assert len(result.points) == 9


def test_a_value_that_is_given_twice_is_one_point(curves: Curves) -> None:
    twice = [*SEARCH, "optimizer.lr=1e-3,0.001,1e-2"]
    assert statuses(run_sweep([*twice, "sweep.pruner=median"])) == {"completed": 2}
    assert statuses(run_sweep([*twice[1:], "name=Y"])) == {"completed": 2}


@pytest.mark.slow
def test_the_order_of_a_grid_is_the_seeds(curves: Curves) -> None:
    run_sweep([*SEARCH, *GRID, "sweep.n_trials=4"])
    first = [trial.params for trial in study().trials]
    run_sweep([*SEARCH[1:], "name=Y", *GRID, "sweep.n_trials=9"])
    second = [name.partition("_")[2] for name in curves.begun[4:]]
    assert [f"lr={float(params['optimizer.lr']):g}" for params in first] == second[:4]
    assert second != sorted(second)


def test_a_trial_killed_anywhere_is_neither_lost_nor_doubled(curves: Curves, monkeypatch: pytest.MonkeyPatch) -> None:
    """Dies once at each call that leaves a trace, as a kill would, and is started again each time."""
    save, attribute, tell = (trials.Sweep, "save"), (optuna.Trial, "set_user_attr"), (optuna.Study, "tell")
    calls = [(*save, True), (*attribute, False), (*attribute, True), (*tell, False), (*tell, True)]
    moment = iter(range(1, 100))
    state = {"left": next(moment)}

    class KilledError(BaseException):
        pass

    def mortal(method: Callable[..., Any], after: bool) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            state["left"] -= 1
            if state["left"] == 0 and not after:
                raise KilledError
            result = method(*arguments, **options)
            if state["left"] == 0:
                raise KilledError
            return result

        return call

    for kind, name, after in calls:
        monkeypatch.setattr(kind, name, mortal(getattr(kind, name), after))
    grid = ["optimizer.lr=1e-4,2e-4,3e-4,4e-4"]
    result = None
    while result is None:
        try:
            result = run_sweep([*SEARCH, *grid, "sweep.pruner=asha"])
        except KilledError:
            state["left"] = next(moment)
    points = [trial.user_attrs["point"] for trial in study().trials if "point" in trial.user_attrs]
    assert sorted(points) == sorted(point.directory.name for point in result.points)
    assert len(result.points) == 4
    assert statuses(result).keys() == {"completed", "pruned"}
    for point in result.points:
        assert curves.epochs[point.directory.name] == (9 if point.status == "completed" else point.metrics["epochs"])


def test_a_line_that_a_kill_cut_short_is_taken_off_the_journal(curves: Curves) -> None:
    run_sweep([*SEARCH, *GRID, "sweep.n_trials=1"])
    with Path("outputs/sweeps/X", trials.JOURNAL).open("a") as journal:
        journal.write('{"op_code": 4, "worker')
    assert statuses(run_sweep([*SEARCH, *GRID, "sweep.n_trials=2"])) == {"completed": 2}


def test_a_worker_of_an_earlier_command_begins_no_further_point(
    curves: Curves, monkeypatch: pytest.MonkeyPatch
) -> None:
    def superseded(config: DictConfig, point: Point, *options: Any) -> None:
        curves(config, point, *options)
        os.utime(files.lock_file(point.directory.parent), ns=(1, 1))  # as the next command's lock does

    monkeypatch.setattr(launch, "train_and_record", superseded)
    assert statuses(run_sweep([*SEARCH, *GRID, "sweep.n_trials=3"])) == {"completed": 1}


def test_a_trial_that_was_killed_before_it_had_a_point_is_given_up_after_the_timeout_too(curves: Curves) -> None:
    late = [*SEARCH, *GRID, "sweep.timeout=1e-9"]
    assert run_sweep(late).points == []
    study().ask()
    assert run_sweep(late).points == []
    assert [trial.state for trial in study().trials] == [TrialState.FAIL]


def test_a_point_that_failed_is_not_trained_again_by_another_trial_that_draws_it(curves: Curves) -> None:
    curves.faults = {(number, 1): HistolightError("the loss became nan") for number in range(9)}
    axes = ["optimizer.lr=1e-3,1e-2", "optimizer.weight_decay=0,1e-5"]
    result = run_sweep([*SEARCH, *axes, "sweep=optuna", "sweep.n_trials=7"])
    assert statuses(result) == {"failed": len(set(curves.begun))}
    assert len(set(curves.begun)) == len(curves.begun) < len(study().trials) == 7


@pytest.mark.slow
def test_no_point_begins_after_the_timeout(curves: Curves) -> None:
    assert run_sweep([*SEARCH, *GRID, "sweep.timeout=1e-9"]).points == []
    assert len(run_sweep([*SEARCH, *GRID, "sweep.timeout=1e9"]).points) == 9


@pytest.mark.slow
def test_leaders_get_equal_further_seeds(curves: Curves) -> None:
    result = run_sweep([*SEARCH, *GRID, "sweep.pruner=asha", "sweep.seeds=3", "sweep.leaders=2", "seed=4"])
    further = [point.directory.name for point in result.points if "seed=" in point.directory.name]
    assert Counter(re.sub(r"^\d+_", "", name) for name in further) == {
        f"lr={rate},seed={seed}": 1 for rate in ("0.0009", "0.0008") for seed in (5, 6, 7)
    }
    for point in result.points:
        chose = point.status == "completed" and point.directory.name not in further
        assert point.metrics.get("chose_from") == (9 if chose else None)
    begun = len(curves.begun)
    run_sweep([*SEARCH, *GRID, "sweep.pruner=asha", "sweep.seeds=3", "sweep.leaders=2", "seed=4"])
    assert len(curves.begun) == begun


@pytest.mark.slow
def test_leaders_of_a_plain_grid(curves: Curves) -> None:
    result = run_sweep([*SEARCH, *GRID, "sweep.seeds=1", "sweep.leaders=1"])
    assert [point.directory.name for point in result.points][-1] == "9_lr=0.0009,seed=1"
    assert statuses(result) == {"completed": 10}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["sweep=optuna", "optimizer.lr=interval(1e-2,1e-4)"], "is empty: give the smaller number first"),
        (["sweep=optuna", "optimizer.lr=tag(log,interval(0,1))"], "a logarithmic interval begins above 0"),
        (["sweep=optuna", "optimizer.lr=tag(lg,interval(1e-4,1))"], "the tag lg is not known"),
        (["sweep=optuna", "optimizer.lr=interval(-1,1e-2)"], "optimizer.lr=-1.0 is out of range"),
        (["sweep=optuna", "data.batch_size=interval(8.5,64)"], "data.batch_size is a whole number"),
        (["sweep=optuna", "model.name=interval(1,2)"], "model.name is no number; list its values"),
        (["sweep=optuna", "optimizer.lr=a,b"], "optimizer.lr=a is of the wrong type"),
        (["sweep.pruner=asha", "optimizer.lr=interval(1e-4,1e-2)"], "a search over an interval is sweep=optuna"),
        ([*PAIR, "sweep.pruner=hyprband"], "sweep.pruner=hyprband is not known: did you mean hyperband"),
        ([*PAIR, "sweep.sampler=random"], "sweep.sampler=random is not known"),
        ([*PAIR, "sweep.n_trials=0"], "sweep.n_trials=0 is out of range"),
        (["sweep.pruner=asha"], "a search needs an axis"),
        ([*PAIR, "sweep.pruner=asha", "trainer.max_epochs=2,3"], "trainer.max_epochs can't be swept with sweep.pruner"),
        ([*PAIR, "sweep.pruner=asha", "seed=0,1"], "seed can't be searched"),
        ([*PAIR, "sweep.seeds=3", "data.fold=0,1"], "give data.fold one value"),
        (
            ["sweep=optuna", "hydra.sweeper.n_trials=5"],
            "hydra.sweeper.n_trials is not a key of Hydra's own sweeper: set sweep.n_trials",
        ),
        ([*PAIR, "sweep=optuna", "hydra/launcher=submitit_local"], "sweep.workers=NUMBER is missing"),
    ],
)
def test_a_wrong_search_is_one_line_and_leaves_nothing(
    overrides: list[str], message: str, curves: Curves, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "-m", "trainer=cpu", *overrides]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert message in error
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_study_of_another_space_and_one_of_the_plugin_are_refused(curves: Curves) -> None:
    run_sweep([*SEARCH, "sweep=optuna", "sweep.n_trials=1"])
    with pytest.raises(
        RequestError, match=r"X holds a search with another space \(optimizer.lr\): choose another name"
    ):
        run_sweep([*SEARCH, "sweep=optuna", "sweep.n_trials=2", "optimizer.lr=interval(1e-3,1e-2)"])
    Path("outputs/sweeps/X/optuna.db").touch()
    with pytest.raises(RequestError, match="X holds a search of Hydra's Optuna plugin"):
        run_sweep([*SEARCH, "sweep=optuna", "sweep.n_trials=2"])
    assert len(curves.begun) == 1


def test_no_point_is_stopped_before_its_schedule_is_past_its_peak() -> None:
    assert trials.first_epoch(SchedulerConfig("one_cycle", pct_start=0.3), 5) == 2
    assert trials.first_epoch(SchedulerConfig("one_cycle", pct_start=0.3), 10) == 3
    assert trials.first_epoch(SchedulerConfig("one_cycle", pct_start=0.3, total_epochs=20), 5) == 5
    assert trials.first_epoch(SchedulerConfig("one_cycle", pct_start=0.07), 100) == 7  # 0.07 x 100 is a bit above it
    assert trials.first_epoch(SchedulerConfig("cosine"), 10) == 1


@pytest.mark.parametrize("pruner", ["asha", "median", "hyperband"])
@pytest.mark.slow
def test_points_are_stopped_once_their_schedule_is_past_its_peak(pruner: str, curves: Curves) -> None:
    result = run_sweep([*SEARCH, *GRID, f"sweep.pruner={pruner}", "scheduler=one_cycle", "scheduler.pct_start=0.4"])
    stopped = [point.metrics["epochs"] for point in result.points if point.status == "pruned"]
    assert stopped
    assert min(stopped) == 4  # of nine


@pytest.mark.parametrize(("fixed", "keys"), [([], ["lr", "weight_decay"]), (["optimizer.weight_decay=1e-5"], ["lr"])])
def test_sweep_optuna_searches_the_decay_too_unless_it_is_given(fixed: list[str], keys: list[str]) -> None:
    plan = plan_sweep(["sweep=optuna", "optimizer.lr=tag(log,interval(1e-5,1e-2))", *fixed])
    assert plan.keys == [f"optimizer.{key}" for key in keys]


def test_the_points_of_sweep_asha_are_those_of_the_grid() -> None:
    grid, asha = (compose_config([f"sweep={name}"]) for name in ("grid", "asha"))
    assert asha.hydra.sweeper.params == grid.hydra.sweeper.params
    assert asha.sweep.pruner == "asha"


def test_real_trainings_are_stopped_continued_and_recorded(
    small: list[str], undrawn: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(pages, "_draw_pages", lambda _: None)
    epochs: list[list[int]] = []

    def report(trial: optuna.Trial, aurocs: Mapping[int, float], search: Any) -> None:
        epochs.append(sorted(aurocs))
        if len(epochs) == 1:
            raise KeyboardInterrupt
        if len(aurocs) == 2:
            raise PrunedError("stopped", 2)

    monkeypatch.setattr(trials, "_report", report)
    wanted = [
        *small,
        "name=X",
        "trainer.max_epochs=3",
        "optimizer.lr=1e-3,1e-2",
        "sweep.pruner=asha",
        "sweep.n_trials=1",
    ]
    with pytest.raises(InterruptionError):
        run_sweep(wanted)
    [point] = run_sweep(wanted).points
    assert epochs == [[1], [1], [1, 2]]
    assert (point.status, point.metrics["epochs"]) == ("pruned", 2)
    assert json.loads((point.directory / "metrics.json").read_text())["reason"] == "stopped"
