from __future__ import annotations

import errno
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from histolight import cli, files, runs
from histolight.errors import HistolightError, InterruptionError, RequestError
from histolight.statistics.intervals import Interval


def test_metrics_are_plain_json_without_nan(tmp_path: Path) -> None:
    runs.update_metrics(tmp_path, status="running", val={"auroc": Interval(0.9, math.nan, math.inf, "none", "why")})
    runs.update_metrics(tmp_path, seconds=1.5)
    found = json.loads((tmp_path / "metrics.json").read_text())
    assert found["val"]["auroc"] == {"value": 0.9, "low": None, "high": None, "method": "none", "note": "why"}
    assert (found["status"], found["seconds"]) == ("running", 1.5)


@pytest.mark.parametrize(
    ("error", "status", "reason"),
    [
        (HistolightError("no room"), "failed", "no room"),
        (ValueError("first\nsecond"), "failed", "first"),
        (MemoryError(), "failed", "MemoryError"),
        (InterruptionError("go on with"), "interrupted", "go on with"),
        (KeyboardInterrupt(), "interrupted", "interrupted"),
    ],
)
def test_how_the_work_ended_is_recorded(error: BaseException, status: str, reason: str, tmp_path: Path) -> None:
    with pytest.raises(type(error)), runs.recorded(tmp_path):
        assert runs.read_metrics(tmp_path)["status"] == "running"
        raise error
    found = runs.read_metrics(tmp_path)
    assert (found["status"], found["reason"]) == (status, reason)
    with runs.recorded(tmp_path):
        pass
    assert (runs.read_metrics(tmp_path)["status"], runs.read_metrics(tmp_path)["reason"]) == ("completed", None)


@pytest.mark.parametrize("content", ["", '{"status": "compl', "[]", "{}", pytest.param("[" * 200_000, id="deep")])
def test_a_damaged_record_is_one_line(content: str, tmp_path: Path) -> None:
    (tmp_path / "metrics.json").write_text(content)
    with pytest.raises(RequestError, match=r"metrics.json is damaged"):
        runs.read_metrics(tmp_path)


def test_nothing_is_left_beside_a_file_that_could_not_be_written(tmp_path: Path) -> None:
    (tmp_path / "metrics.json").mkdir()
    with pytest.raises(HistolightError, match="can't be written"):
        files.write_atomically(tmp_path / "metrics.json", "text")
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.json"]


@pytest.mark.parametrize("links", [True, False])
def test_a_second_name_stays_when_the_first_gets_another_file(links: bool, tmp_path: Path, monkeypatch) -> None:
    def refuses(*_: object) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    if not links:
        monkeypatch.setattr(os, "link", refuses)
    best, last = tmp_path / "best.ckpt", tmp_path / "last.ckpt"
    last.write_text("before")
    files.write_atomically(best, "epoch 1")
    for _ in range(2):  # the second time both names are of one file already
        files.link_atomically(last, best)
        assert (last.read_text(), os.path.samefile(last, best)) == ("epoch 1", links)
    files.write_atomically(best, "epoch 2")
    assert last.read_text() == "epoch 1"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best.ckpt", "last.ckpt"]


def test_a_second_name_that_cannot_be_given_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "last.ckpt").mkdir()
    (tmp_path / "best.ckpt").touch()
    with pytest.raises(HistolightError, match=r"last.ckpt can't be written"):
        files.link_atomically(tmp_path / "last.ckpt", tmp_path / "best.ckpt")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best.ckpt", "last.ckpt"]


def test_float32_figures_read_back_exactly(tmp_path: Path) -> None:
    import numpy as np

    table = pd.DataFrame({"id": ["0012", "b"], "logit": np.array([0.1, -1 / 3], dtype=np.float32)})
    files.write_csv(tmp_path / "table.csv", table)
    back = pd.read_csv(tmp_path / "table.csv", dtype={"id": str, "logit": np.float32})
    pd.testing.assert_frame_equal(back, table)


def test_versions_and_commit_are_recorded() -> None:
    found = runs.provenance()
    assert set(runs.PACKAGES) < set(found["versions"])
    assert found["git_commit"] is None or len(found["git_commit"].removesuffix("-dirty")) == 40


def test_a_git_that_takes_too_long_ends_no_run(monkeypatch) -> None:
    def too_long(command: list[str], **options: object) -> None:
        raise subprocess.TimeoutExpired(command, 10)

    monkeypatch.setattr(subprocess, "run", too_long)
    assert runs.provenance()["git_commit"] is None


def test_a_claimed_folder_is_held_and_an_unused_one_goes_again(tmp_path: Path) -> None:
    directory = tmp_path / "outputs" / "runs" / "a"
    with (
        files.claimed(directory),
        pytest.raises(RequestError, match="runs/a is in use by another process"),
        files.claimed(directory),
    ):
        pass
    assert not list(tmp_path.iterdir())
    with files.claimed(directory):
        (directory / "metrics.json").write_text("{}")
    with files.claimed(directory, continued=True):
        pass
    assert (directory / "metrics.json").is_file()
    with pytest.raises(RequestError, match=r"holds files already \(metrics.json\)"), files.claimed(directory):
        pass


def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    refused = pytest.raises(RequestError, match=r"file/run can't be used .*: choose another folder")
    with refused, files.claimed(tmp_path / "file" / "run"):
        pass


TAKE = "import sys; from pathlib import Path; from histolight.files import take_folder; print(take_folder(Path('o/x')))"


def test_folders_that_are_named_at_the_same_time_are_different_ones(tmp_path: Path) -> None:
    command = [sys.executable, "-c", TAKE]
    root = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    started = [subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True, env=root) for _ in range(5)]
    names = sorted(process.communicate()[0].strip() for process in started)
    assert names == ["o/x", "o/x-2", "o/x-3", "o/x-4", "o/x-5"]


def test_a_folder_that_was_named_goes_again_where_the_request_is_refused(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    for words in (["explore", "data=folder", "data.root=nowhere"], ["train", "data=folder", "data.root=nowhere"]):
        assert cli.main(words) == 2
    assert cli.main(["train", "-m", "data=folder", "data.classes=[a]", "seed=0,1"]) in (1, 2)
    assert list(tmp_path.glob("outputs/runs/*")) == list(tmp_path.glob("outputs/explore/*")) == []


@pytest.mark.slow
def test_runs_sweeps_and_predictions_that_start_together_all_run(small: list[str], tmp_path: Path) -> None:
    """Three of each, of which several begin within one second."""
    request = [*small, "trainer.max_epochs=1"]
    module = [sys.executable, "-m", "histolight"]
    root = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), "OMP_NUM_THREADS": "1"}

    def together(*commands: list[str]) -> None:
        started = [
            subprocess.Popen([*module, *words], cwd=tmp_path, env=root, stderr=subprocess.PIPE, text=True)
            for words in commands
        ]
        errors = [process.communicate()[1] for process in started]
        assert [process.returncode for process in started] == [0] * len(commands), errors

    together(*(["train", *request, f"seed={seed}"] for seed in (1, 2)), ["train", "-m", *request, "seed=3,4"])
    [run, _] = sorted(tmp_path.glob("outputs/runs/*"))
    tiles = small[1]
    together(*(["predict", f"run={run}", "data=folder", tiles, f"tta={tta}"] for tta in ("none", "flips")))
    assert len(list(tmp_path.glob("outputs/predictions/*/predictions.csv"))) == 2


@pytest.mark.skipif(os.name == "nt", reason="links need rights there")
def test_a_link_that_leads_nowhere_is_named_where_a_folder_of_ours_would_lie_below_it(tmp_path: Path) -> None:
    (tmp_path / "outputs").symlink_to(tmp_path / "gone" / "disk")
    for below in ("runs/a", "a"):
        with pytest.raises(RequestError, match="outputs is a link that leads nowhere: choose another folder with"):
            files.take_folder(tmp_path / "outputs" / below)


def test_a_sweep_is_no_run(tmp_path: Path) -> None:
    (tmp_path / "sweep.json").write_text("{}")
    with pytest.raises(RequestError, match="is not a run directory, but a sweep: give one of its runs"):
        runs.read_metrics(tmp_path)
