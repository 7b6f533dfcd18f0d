"""kill -9 at several moments of a parallel search with a pruner: the same trials, none lost, none trained twice."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import optuna
import pytest
from optuna.storages.journal import JournalFileBackend

from histolight import runs
from histolight.reports.curves import read_curves

KILLS = int(os.environ.get("HISTOLIGHT_KILLS", "3"))  # ten take two and a half minutes
RATES = [0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.128]


def start(overrides: list[str], folder: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "histolight", "train", "-m", *overrides]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with (folder / "log").open("ab") as log:
        return subprocess.Popen(command, cwd=folder, stdout=log, stderr=log, env=environment, start_new_session=True)


def lines_of(journal: Path) -> int:
    return journal.read_bytes().count(b"\n") if journal.is_file() else 0


def kill_after(process: subprocess.Popen[bytes], journal: Path, lines: int) -> None:
    """Kill the sweep and its workers as soon as the study has so many more lines, or else let it end."""
    begun = lines_of(journal)
    while process.poll() is None and lines_of(journal) < begun + lines:
        time.sleep(0.002)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@pytest.mark.slow
def test_a_killed_search_ends_with_the_same_trials(small: list[str], tmp_path: Path) -> None:
    rates = ",".join(map(str, RATES))
    parallel = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "logger=csv"]
    search = [*small, *parallel, "name=X", f"optimizer.lr={rates}", "sweep.pruner=asha", "trainer.max_epochs=5"]
    sweep = tmp_path / "outputs/sweeps/X"
    journal = sweep / "optuna.journal"
    for number in range(KILLS):
        kill_after(start(search, tmp_path), journal, 1 + 2 * number)
    assert start(search, tmp_path).wait() == 0, (tmp_path / "log").read_text()

    storage = optuna.storages.JournalStorage(JournalFileBackend(str(journal)))
    trials = [trial for trial in optuna.load_study(study_name="histolight", storage=storage).trials if trial.user_attrs]
    points = {trial.user_attrs["point"]: trial for trial in trials}
    assert len(trials) == len(points) == len(RATES)
    assert {float(trial.params["optimizer.lr"]) for trial in trials} == set(RATES)
    assert sorted(path.name for path in sweep.iterdir() if path.is_dir()) == sorted(points)
    states = Counter(trial.state.name for trial in trials)
    assert states.keys() <= {"COMPLETE", "PRUNED"}
    assert states["COMPLETE"] >= 1
    for name, trial in points.items():
        metrics = runs.read_metrics(sweep / name)
        assert metrics["status"] == {"COMPLETE": "completed", "PRUNED": "pruned"}[trial.state.name]
        epochs = metrics["epochs"]
        assert len(read_curves(sweep / name)["val/auroc"]) == epochs  # none lost, none logged twice
        told = epochs if trial.state.name == "PRUNED" else epochs - 1
        assert sorted(trial.intermediate_values) == list(range(1, told + 1))
