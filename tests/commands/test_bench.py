from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from histolight.cli import main
from histolight.training import bench

STARTS = ("help", "cfg_job", "first_batch")


@pytest.fixture(scope="module")
def measured(small: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One bench of a small training, each stage as short as can be."""
    folder = tmp_path_factory.mktemp("bench")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bench, "SECONDS", 0.02)
        patch.setattr(bench, "LONGEST_STEP", 0.02)
        patch.setattr(bench, "BURN_IN", 1)
        patch.setattr(bench, "ROUNDS", 1)
        patch.setattr(bench, "_seconds_to_start", lambda *_: dict.fromkeys(STARTS, 1.0))
        assert main(["bench", *small, f"hydra.run.dir={folder / 'out'}"]) == 0
    return folder / "out"


def test_it_writes_every_figure_and_leaves_nothing_else(measured: Path) -> None:
    assert {path.name for path in measured.iterdir()} <= {"bench.json", ".histolight.lock"}
    figures = json.loads((measured / "bench.json").read_text())
    assert list(figures) == ["tiles_per_second", "ratios", "memory_mb", "seconds", "machine"]
    rates, ratios = figures["tiles_per_second"], figures["ratios"]
    assert all(value > 0 for value in (rates | ratios | figures["seconds"]).values())
    assert ratios["input_over_notebook"] == rates["input_flips"] / rates["notebook"]
    assert ratios["epoch_over_step"] == rates["epoch"] / rates["step"]
    assert figures["memory_mb"]["gpu"] is None
    assert figures["machine"]["tiles"] == 48


@pytest.mark.slow
def test_each_start_of_a_process_is_timed(small: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "ROUNDS", 1)
    seconds = bench._seconds_to_start(small, tmp_path)
    assert tuple(seconds) == STARTS
    assert min(seconds.values()) > 0


def test_an_earlier_bench_is_compared(measured: Path, tmp_path: Path) -> None:
    from histolight.commands.bench import read_figures, table

    now = read_figures(measured / "bench.json")
    before = json.loads(json.dumps(now))
    before["tiles_per_second"]["epoch"] = now["tiles_per_second"]["epoch"] / 2
    before["machine"]["batch_size"] = 32
    lines = table(now, before).splitlines()
    assert next(line for line in lines if "(d) an epoch" in line).split()[-1] == "+100.0%"
    assert next(line for line in lines if "(c) the bare step" in line).split()[-1] == "+0.0%"
    assert next(line for line in lines if "GPU at its peak" in line).split()[-3:] == ["-", "-", "-"]
    assert "measured under other circumstances before: batch_size" in lines


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["against=nothing.json"], "against=nothing.json can't be read"),
        (["trainer.devices=2"], "histolight bench measures one device"),
        (["trainer=ddp"], "histolight bench measures one device"),
        (["run=somewhere"], "to take that of a run use like=DIR"),
        (["-m", "seed=1,2"], "histolight bench takes no -m"),
        (["optimizer.lr=-1"], "optimizer.lr=-1"),
    ],
)
def test_a_wrong_request_is_one_line(
    overrides: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["bench", *overrides]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.strip().splitlines()) == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"tiles_per_second": {"notebook": "fast"}}'])
def test_a_damaged_earlier_bench_is_one_line(text: str, tmp_path: Path, capsys) -> None:
    (tmp_path / "bench.json").write_text(text)
    assert main(["bench", f"against={tmp_path / 'bench.json'}"]) == 2
    assert "is not a whole bench.json" in capsys.readouterr().err


def test_the_notebooks_loader_reads_the_same_pixels_as_ours(tmp_path: Path) -> None:
    tile = np.random.default_rng(0).integers(0, 256, (96, 96, 3), dtype=np.uint8)
    Image.fromarray(tile).save(tmp_path / "tile.tif")
    torch.manual_seed(0)
    seen = {
        bench.NotebookTiles([tmp_path / "tile.tif"])[0].mul(255).round().byte().numpy().tobytes() for _ in range(40)
    }
    flips = [tile, tile[::-1], tile[:, ::-1], tile[::-1, ::-1]]
    assert seen == {np.ascontiguousarray(view.transpose(2, 0, 1)).tobytes() for view in flips}
