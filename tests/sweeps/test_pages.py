"""What the points of a sweep share, and their pages, which another process draws."""

from __future__ import annotations

import gc
import os
from pathlib import Path

import pytest

from histolight import files
from histolight.config.compose import compose_config, typed
from histolight.sweeps import launch, pages
from histolight.sweeps.sweep import run_sweep


@pytest.mark.slow
def test_points_leave_their_pages_to_another_process_which_draws_those_too_that_a_kill_prevented(
    small: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    sweep = [*small, "name=X", "trainer.max_epochs=1", "data.val_fraction=0.4", "data.test_fraction=0.2"]
    [alone] = run_sweep([*sweep, "seed=0"], progress=False).points
    drawn = {path.name: path.read_bytes() for path in (alone.directory / "figures").iterdir()}
    assert {"val_roc.png", "test_worst_calls.png", "training_loss.png"} <= drawn.keys()
    for path in (alone.directory / "report.html", *(alone.directory / "figures").iterdir()):
        path.unlink()
    monkeypatch.setattr(pages, "FEWEST", 2)
    for point in run_sweep([*sweep, "seed=0,1"], progress=False).points:
        assert {path.name for path in (point.directory / "figures").iterdir()} == drawn.keys()
        assert "</html>" in (point.directory / "report.html").read_text(encoding="utf-8")
    assert (alone.directory / "figures" / "val_roc.png").read_bytes() == drawn["val_roc.png"]


def test_points_share_their_data_while_one_command_runs_the_sweep(small: list[str], tmp_path: Path) -> None:
    config = typed(compose_config(small)).data
    lock = files.lock_file(tmp_path)
    lock.touch()
    first = launch._prepared(tmp_path, config)
    config.batch_size = 4
    assert launch._prepared(tmp_path, config) is first
    config.seed = 1
    other = launch._prepared(tmp_path, config)
    assert other is not first
    os.utime(lock, ns=(1, 1))  # as another command locks it
    assert launch._prepared(tmp_path, config) is not other
    launch.release()
    assert not launch._shared


@pytest.mark.parametrize("frozen", [False, True])
def test_what_a_caller_has_frozen_stays_frozen_and_nothing_else_does(frozen: bool) -> None:
    """pytest's own imports are frozen by the conftest."""
    gc.unfreeze()
    try:
        if frozen:
            gc.freeze()
        for _ in range(2):  # points
            launch._set_apart()
        assert gc.get_freeze_count() > 0
        launch.release()
        assert (gc.get_freeze_count() > 0) == frozen
    finally:
        gc.freeze()
