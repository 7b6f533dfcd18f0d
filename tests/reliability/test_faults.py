"""Faults of the machine and of the data at work: a clear line, a way on, nothing lost that was complete."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from odd_names import overrides, write_tiles
from PIL import Image

from histolight import api, cli, files
from histolight.config.compose import compose_config, typed
from histolight.config.schema import TrainerConfig
from histolight.data.prepare import load_tiles, prepare
from histolight.data.sources import load_source
from histolight.errors import HistolightError, RequestError
from histolight.models.classifier import Classifier
from histolight.training.trainer import check_tasks

OneLine = Callable[..., str]
pytestmark = pytest.mark.usefixtures("undrawn")


@pytest.fixture
def request_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A training of one epoch on tiles of its own, in the working directory."""
    monkeypatch.chdir(tmp_path)
    write_tiles(tmp_path / "tiles", 40)
    return [*overrides(tmp_path / "tiles", tmp_path / "cache"), "data.test_fraction=0", "trainer.max_epochs=1"]


def test_a_read_only_data_folder_is_only_read(request_here: list[str]) -> None:
    before = {path: path.stat().st_mtime_ns for path in Path("tiles").rglob("*")}
    for path in [Path("tiles"), *before]:
        path.chmod(path.stat().st_mode & ~(stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH))
    api.load_tiles(request_here)
    assert {path: path.stat().st_mtime_ns for path in Path("tiles").rglob("*")} == before


@pytest.mark.parametrize("change", ["deleted", "changed"])
def test_a_tile_that_goes_between_listing_and_packing_is_named(change: str, request_here: list[str]) -> None:
    config = typed(compose_config(request_here)).data
    source = load_source(config)
    tile = Path("tiles/0/tile_020.png")
    if change == "deleted":
        tile.unlink()
    else:
        Image.new("RGB", (32, 32)).save(tile)
    with pytest.raises(HistolightError, match=r"file (missing|changed): 1 \(tile_020\)"):
        load_tiles(source, config)


def test_a_packed_tile_that_is_deleted_or_changed_makes_another_pack(request_here: list[str]) -> None:
    config = typed(compose_config(request_here)).data
    packed = prepare(config)
    tile = Path("tiles/0/tile_020.png")
    Image.new("RGB", (32, 32), (9, 9, 9)).save(tile)
    changed = prepare(config)
    assert changed.fingerprint != packed.fingerprint
    row = changed.table.set_index("id")["row"]["tile_020"]
    assert (changed.tiles.gather(np.array([row])) == 9).all()
    tile.unlink()
    assert "tile_020" not in set(prepare(config).table["id"])


@pytest.mark.parametrize("name", ["tiles.npy", "checksums.npy", "hashes.npy", "contrast.npy", "index.json"])
@pytest.mark.parametrize("damage", ["cut", "flipped"])
def test_a_damaged_pack_says_which_folder_to_delete(
    name: str, damage: str, request_here: list[str], one_line: OneLine
) -> None:
    packed = api.load_tiles(request_here)
    path = packed.pack.folder / name
    content = bytearray(path.read_bytes())
    content[-len(content) // 3] ^= 16
    path.write_bytes(content if damage == "flipped" else content[:-40])
    line = one_line("train", *request_here, "hydra.run.dir=run", status=1)
    assert f"{packed.pack.folder}" in line
    assert "delete this folder to have it made again" in line
    shutil.rmtree(packed.pack.folder)
    assert len(api.load_tiles(request_here).table) == len(packed.table)


@pytest.mark.parametrize("part", ["train", "val"])
def test_logits_that_are_not_numbers_fail_the_run_in_one_line(
    part: str, request_here: list[str], one_line: OneLine, monkeypatch
) -> None:
    original = Classifier.forward

    def not_a_number(self: Classifier, tiles: torch.Tensor) -> torch.Tensor:
        return original(self, tiles) * (torch.nan if self.training == (part == "train") else 1)

    monkeypatch.setattr(Classifier, "forward", not_a_number)
    line = one_line("train", *request_here, "hydra.run.dir=run", status=1)
    assert ("the loss became nan" if part == "train" else "scores are NaN or infinite: the training diverged") in line
    metrics = json.loads(Path("run/metrics.json").read_text())
    assert metrics["status"] == "failed"
    assert "val" not in metrics


@pytest.mark.slow
def test_processes_that_start_together_build_one_pack(request_here: list[str]) -> None:
    code = (
        "import sys; from histolight import api; packed = api.load_tiles(sys.argv[1:]); "
        "print(packed.fingerprint, packed.pack.folder.stat().st_ino)"
    )
    command = [sys.executable, "-c", code, *request_here]
    started = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(8)]
    found = {process.communicate(timeout=240)[0] for process in started}
    assert [process.returncode for process in started] == [0] * 8
    assert len(found) == 1
    assert len([path for path in Path("cache/packs").iterdir() if path.is_dir()]) == 1


def test_full_shared_memory_does_not_matter(request_here: list[str], monkeypatch) -> None:
    """No process of ours shares tiles through /dev/shm: loaders are threads."""
    from multiprocessing import shared_memory

    from torch.utils.data import dataloader

    def refuse(*arguments: object, **options: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shared_memory, "SharedMemory", refuse)
    monkeypatch.setattr(dataloader, "_MultiProcessingDataLoaderIter", refuse)
    before = {path.name for path in Path("/dev/shm").iterdir()} if Path("/dev/shm").is_dir() else set()
    assert cli.main(["train", *request_here, "hydra.run.dir=run"]) == 0
    assert not before or {path.name for path in Path("/dev/shm").iterdir()} <= before


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="mounting a small disk needs root")
def test_a_real_full_disk_is_one_line_and_the_run_goes_on(request_here: list[str], one_line: OneLine) -> None:
    disk = Path("disk")
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", disk], capture_output=True, check=False)
    if mounted.returncode != 0:
        pytest.skip("no file system can be mounted here")
    try:
        line = one_line("train", *request_here, "hydra.run.dir=disk/run", status=1)
        assert "can't be written (No space left on device): make room" in line
        assert not list(disk.rglob("*.ckpt"))
        subprocess.run(["mount", "-o", "remount,size=100m", disk], check=True)
        assert cli.main(["train", "run=disk/run"]) == 0
    finally:
        subprocess.run(["umount", disk], check=True)


def test_sigterm_while_packing_is_a_line_and_not_a_silent_end(
    request_here: list[str], capsys: pytest.CaptureFixture[str], monkeypatch
) -> None:
    import histolight.data.prepare

    def stopped(*arguments: object) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        threading.Event().wait(10)

    monkeypatch.setattr(histolight.data.prepare, "open_pack", stopped)
    before = signal.getsignal(signal.SIGTERM)
    assert cli.main(["train", *request_here, "hydra.run.dir=run"]) == 1
    assert "histolight: interrupted: the same command does it again" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGTERM) == before
    assert not Path("run").exists()


def test_a_run_that_was_killed_before_it_had_a_configuration_begins_again(request_here: list[str]) -> None:
    Path("run").mkdir()
    Path("run/metrics.json").write_text('{"status": "running", "reason": null}')
    leftover = Path("run/.histolight-12345-0123abcd.tmp")
    leftover.write_text("cut")
    assert cli.main(["train", *request_here, "hydra.run.dir=run"]) == 0
    assert not leftover.exists()


@pytest.mark.parametrize(
    ("variables", "devices", "refused"),
    [
        ({"SLURM_NTASKS": "2", "SLURM_PROCID": "1"}, "1", True),
        ({"SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "2"}, "1", True),
        ({"SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "2"}, "2", False),
        ({"SLURM_NTASKS": "2", "SLURM_JOB_NAME": "interactive"}, "1", False),
        ({"SLURM_NTASKS": "1"}, "1", False),
    ],
)
def test_tasks_of_slurm_that_would_share_a_training_are_refused_before_it(
    variables: dict[str, str], devices: str, refused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(RequestError, match="SLURM starts 2 tasks here") if refused else contextlib.nullcontext():
        check_tasks(TrainerConfig(devices=devices))


@pytest.mark.parametrize("name", files.RANKS)
def test_a_rank_of_another_program_is_unset_as_the_message_says(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the first process of a training writes: a training by itself would leave nothing, without a word."""
    monkeypatch.setenv(name, "1")
    with pytest.raises(RequestError, match=f"{name}=1 in the environment says .*: unset {name}$"):
        check_tasks(TrainerConfig(devices="1"))
    check_tasks(TrainerConfig(devices="2"))
    monkeypatch.delenv(name)
    check_tasks(TrainerConfig(devices="1"))


def test_a_job_that_slurm_requeues_goes_on_with_the_same_command(
    place: Path, tmp_path: Path, one_line: OneLine, monkeypatch
) -> None:
    """There is no SLURM here: its variables, its signal and a scontrol that notes what it is asked for stand in."""
    monkeypatch.chdir(tmp_path)
    scontrol = tmp_path / "bin" / "scontrol"
    scontrol.parent.mkdir()
    scontrol.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/asked\n')
    scontrol.chmod(0o755)
    monkeypatch.setenv("PATH", f"{scontrol.parent}:{os.environ['PATH']}")
    variables = {"JOB_ID": 77, "NTASKS": 1, "PROCID": 0, "LOCALID": 0, "NODEID": 0, "NODELIST": "localhost"}
    for name, value in (variables | {"JOB_NAME": "tiles"}).items():
        monkeypatch.setenv(f"SLURM_{name}", str(value))
    original = Classifier.training_step

    def ending(self: Classifier, batch, batch_idx: int):
        if self.trainer.current_epoch == 1 and batch_idx == 2:
            os.kill(os.getpid(), signal.SIGUSR1)
        return original(self, batch, batch_idx)

    monkeypatch.setattr(Classifier, "training_step", ending)
    request = [*overrides(place / "tiles", place / "cache"), f"data.groups={place / 'slides.csv'}"]
    command = ["train", *request, "trainer.accumulate=2", "hydra.run.dir=run"]
    assert "interrupted in epoch 2: continue with histolight train run=run" in one_line(*command, status=1)
    assert (tmp_path / "asked").read_text() == "requeue 77\n"
    monkeypatch.setattr(Classifier, "training_step", original)
    assert "run holds a run: continue it with run=run" in one_line(*command)
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert cli.main(command) == 0
    for name in ("predictions/val.csv", "predictions/test.csv", "splits.csv"):
        assert Path("run", name).read_bytes() == (place / "run" / name).read_bytes()
    assert "is completed: nothing to continue" in one_line(*command)
