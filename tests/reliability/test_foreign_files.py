"""Files of others: a folder of decoys is the same byte for byte afterwards, whatever a command does beside it."""

from __future__ import annotations

import json
import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from made_slides import Ellipse, MadeSlide
from odd_names import overrides, write_tiles
from untrained_runs import untrained_run

from histolight import cli, files, runs
from histolight.errors import RequestError
from histolight.sweeps import launch
from histolight.sweeps.points import Point
from histolight.sweeps.sweep import run_sweep
from histolight.training.checkpoints import RunCheckpoint

OneLine = Callable[..., str]
Picture = dict[str, tuple[int, str | bytes]]
NAMES = [
    *(".zsh_history.20240101", ".metrics.json.123", ".val.csv.4711", ".lock", ".nfs0000000000a1", "0", "17"),
    *(
        "slurm-77.out",
        "notes.txt",
        "sweep.json.bak",
        "metrics.json~",
        "best.ckpt.1",
        ".histolight",
        ".histolight.lock~",
    ),
    *(
        ".histolight-notes.tmp",
        ".histolight-12-0123abcd.tmp.bak",
        ".histolight-12-0123abc.tmp",
        "x.histolight-1-0123abcd.tmp",
    ),
    *(".submitit/77/77_0_log.out", "checkpoints/.best.ckpt.777", "checkpoints/mine.ckpt", "predictions/.val.csv.12"),
    *(
        "predictions/mine.csv",
        "figures/mine.png",
        "figures/.histolight-notes",
        "tensorboard/mine.txt",
        "report.html.orig",
    ),
]


def write_decoys(folder: Path) -> list[Path]:
    """Hidden, numbered, linked, read-only, named almost like ours; returns what must not change."""
    elsewhere = folder.resolve().parent / f"elsewhere of {folder.name}"
    elsewhere.mkdir()
    (elsewhere / "precious.txt").write_text("precious")
    for number, name in enumerate(NAMES):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"decoy {number}")
        path.chmod(0o444 if number % 3 == 0 else 0o600)
    for name, target in {
        "link": elsewhere / "precious.txt",
        ".histolight-12-0123abcd.tmp": elsewhere / "precious.txt",
        "checkpoints/.histolight-13-0123abcd.tmp": elsewhere,
        "folder": elsewhere,
        "nowhere.1": folder / "absent",
    }.items():
        (folder / name).symlink_to(target)
    return [folder, elsewhere]


def picture(folders: list[Path], names: Picture | None = None) -> Picture:
    """Every file, link and folder with its mode and content; of those in ``names`` only, where given."""
    found: Picture = {}
    for folder in folders:
        for path in sorted(folder.rglob("*")):
            mode = path.lstat().st_mode
            if stat.S_ISLNK(mode):
                found[str(path)] = (mode, os.readlink(path))
            else:
                found[str(path)] = (mode, path.read_bytes() if path.is_file() else b"")
    return found if names is None else {path: found.get(path, (0, b"gone")) for path in names}


def requests(place: Path) -> dict[str, list[str]]:
    run, data = f"run={place / 'run'}", overrides(place / "tiles", place / "cache")
    return {
        "train": ["train", *data],
        "train -m": ["train", "-m", *data, "seed=1,2"],
        "compare": ["compare", f"runs={place / 'run'}"],
        "evaluate": ["evaluate", run],
        "predict": ["predict", run, "data=folder", f"data.root={place / 'tiles' / '0'}"],
        "explain": ["explain", run],
        "export": ["export", run],
        "explore": ["explore", *data[:4]],
        "bench": ["bench", *data],
    }


COMMANDS = ["train", "train -m", "compare", "evaluate", "predict", "explain", "export", "explore", "bench"]


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("content", ["decoys", "a hidden file", "a link"])
def test_new_work_refuses_a_folder_that_is_not_empty(
    content: str, command: str, place: Path, tmp_path: Path, one_line: OneLine
) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    watched = [folder]
    if content == "decoys":
        watched = write_decoys(folder)
    elif content == "a link":
        (folder / ".link").symlink_to(tmp_path)
    else:
        (folder / ".zsh_history.20240101").write_text("ls")
    before = picture(watched)
    key = "hydra.sweep.dir" if command == "train -m" else "hydra.run.dir"
    line = one_line(*requests(place)[command], f"{key}={folder}")
    assert "folder holds files already (" in line
    assert picture(watched) == before


def test_a_continued_run_touches_no_file_of_others(run: Path) -> None:
    metrics = json.loads((run / "metrics.json").read_text())
    (run / "metrics.json").write_text(json.dumps({**metrics, "status": "interrupted"}))
    watched, own = [run], picture([run])
    watched = write_decoys(run)
    before = {path: content for path, content in picture(watched).items() if path not in own}
    leftover = run / "checkpoints" / ".histolight-12-89abcdef.tmp"
    leftover.write_text("cut")
    assert cli.main(["train", f"run={run}"]) == 0
    assert picture(watched, before) == before
    assert not leftover.exists()
    assert runs.read_metrics(run)["status"] == "completed"


def test_a_continued_prediction_touches_no_file_of_others(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from histolight.inference import networks

    original = networks.predict_logits

    def cut(*arguments: Any) -> Any:
        yield next(original(*arguments))
        raise KeyboardInterrupt

    command = [*requests(place)["predict"], "data.batch_size=4", f"hydra.run.dir={tmp_path / 'out'}"]
    monkeypatch.setattr(networks, "predict_logits", cut)
    assert cli.main(command) == 1
    monkeypatch.setattr(networks, "predict_logits", original)
    own = picture([tmp_path / "out"])
    watched = write_decoys(tmp_path / "out")
    before = {path: content for path, content in picture(watched).items() if path not in own}
    assert cli.main(command) == 0
    assert (tmp_path / "out" / "predictions.csv").is_file()
    assert picture(watched, before) == before


@pytest.mark.slow
@pytest.mark.parametrize("killed", [False, True], ids=["a slide failed", "a slide was cut off"])
def test_continued_whole_slides_touch_no_file_of_others(
    killed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from histolight.inference import networks

    run = untrained_run(tmp_path / "run", [*overrides(tmp_path, tmp_path / "cache"), "data.mpp=0.972"])
    folder, out = tmp_path / "folder of slides", tmp_path / "out"
    folder.mkdir()
    MadeSlide((600, 500), [Ellipse(300, 250, 280, 230)], mpp=0.972).write(folder / "one.tif", levels=1)
    command = ["predict", f"run={run}", "data=slides", f"data.root={folder}", f"hydra.run.dir={out}"]
    original = networks._record

    def cut(logits: Any) -> bytes:
        raise KeyboardInterrupt

    if killed:
        monkeypatch.setattr(networks, "_record", cut)
    else:
        (folder / "two.svs").write_bytes(b"no slide")
    assert cli.main(command) == 1
    monkeypatch.setattr(networks, "_record", original)
    (folder / "two.svs").unlink(missing_ok=True)
    own = picture([out])
    watched = [folder, *write_decoys(out), *write_decoys(out / "slides" / "one")]
    before = {path: content for path, content in picture(watched).items() if path not in own}
    assert cli.main(command) == 0
    assert (out / "slides" / "one" / "scores.parquet").is_file()
    assert picture(watched, before) == before


def test_an_empty_file_named_like_ours_is_no_prediction_to_continue(
    place: Path, tmp_path: Path, one_line: OneLine
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "predictions.partial").touch()
    (tmp_path / "out" / "predictions.csv").write_text("of another")
    line = one_line(*requests(place)["predict"], f"hydra.run.dir={tmp_path / 'out'}")
    assert "is the beginning of another prediction" in line
    assert (tmp_path / "out" / "predictions.csv").read_text() == "of another"


@pytest.mark.parametrize("damaged", [False, True])
def test_data_and_the_neighbours_of_the_cache_stay_as_they_are(
    damaged: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_tiles(tmp_path / "tiles", 12)
    if damaged:
        (tmp_path / "tiles" / "0" / "bad.png").write_bytes(b"no image")
    (tmp_path / "cache" / "packs").mkdir(parents=True)
    watched = [tmp_path / "tiles", *write_decoys(tmp_path / "cache"), *write_decoys(tmp_path / "cache" / "packs")]
    (tmp_path / "tiles" / ".zsh_history.20240101").write_text("ls")
    before = picture(watched)
    request = ["explore", "data=folder", "data.root=tiles", "data.image_size=32", "data.cache=cache"]
    assert cli.main([*request, "hydra.run.dir=out"]) == (2 if damaged else 0)
    assert picture(watched, before) == before


@pytest.fixture
def untrained(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> set[int]:
    """Sweeps without real trainings; the seeds in it fail."""
    failing: set[int] = set()

    def train(config: Any, point: Point, *_: object) -> None:
        with runs.recorded(point.directory):
            runs.update_metrics(point.directory, val={"auroc": {"value": 0.5, "low": 0, "high": 1}})
        if config.seed in failing:
            runs.update_metrics(point.directory, status="failed", reason="as asked")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(launch, "train_and_record", train)
    return failing


SWEEP = ["name=X", "trainer=cpu", "seed=1,2"]


def test_a_continued_sweep_touches_no_file_of_others(untrained: set[int]) -> None:
    untrained.add(1)
    failed, _ = (point.directory for point in run_sweep(SWEEP).points)
    untrained.clear()
    (failed / "checkpoints").mkdir()
    for name in ("checkpoints/last.ckpt", "traceback.txt"):
        (failed / name).write_text("of the failed attempt")
    own = picture([failed])
    watched = [*write_decoys(failed.parent), *write_decoys(failed)]
    before = {path: content for path, content in picture(watched).items() if path not in own}
    before = {
        path: content
        for path, content in before.items()
        if not path.endswith(("metrics.json", "sweep.json", ".histolight.lock"))
    }
    assert [point.status for point in run_sweep(SWEEP).points] == ["completed", "completed"]
    assert picture(watched, before) == before
    assert not (failed / "checkpoints" / "last.ckpt").exists()


@pytest.mark.parametrize("name", ["../precious", "ABSOLUTE", "a/../../precious", ".", "", "${oc.env:HOME}", 7, None])
def test_a_sweep_that_names_a_folder_elsewhere_is_refused(name: Any, untrained: set[int], tmp_path: Path) -> None:
    untrained.add(1)
    sweep = run_sweep(SWEEP).points[0].directory.parent
    precious = tmp_path / "outputs" / "sweeps" / "precious"
    shutil.copytree(sweep / "0_seed=1", precious)
    (precious / "last.ckpt").write_text("precious")
    before = picture([precious])
    index = json.loads((sweep / "sweep.json").read_text())
    first = next(iter(index["points"]))
    index["points"][first] = str(precious) if name == "ABSOLUTE" else name
    (sweep / "sweep.json").write_text(json.dumps(index))
    with pytest.raises(RequestError, match="sweep.json is damaged: .* is no folder in it"):
        run_sweep(SWEEP)
    assert picture([precious]) == before


def test_a_point_that_is_a_link_or_holds_files_of_others_is_refused(untrained: set[int], tmp_path: Path) -> None:
    untrained.add(1)
    failed, other = (point.directory for point in run_sweep(SWEEP).points)
    shutil.move(failed, tmp_path / "precious")
    failed.symlink_to(tmp_path / "precious")
    before = picture([tmp_path / "precious"])
    with pytest.raises(RequestError, match="0_seed=1 is a link"):
        run_sweep(SWEEP)
    assert picture([tmp_path / "precious"]) == before
    failed.unlink()
    shutil.copytree(tmp_path / "precious", failed)
    assert [point.directory for point in run_sweep(SWEEP).points] == [failed, other]
    (other / "metrics.json").unlink()
    (other / "thesis.tex").write_text("precious")
    with pytest.raises(RequestError, match=r"1_seed=2 holds files already \(thesis.tex\)"):
        run_sweep(SWEEP)
    assert (other / "thesis.tex").read_text() == "precious"


@pytest.mark.parametrize("subdir", ["../${hydra.job.num}", "/elsewhere/${hydra.job.num}"])
def test_points_do_not_leave_their_sweep(subdir: str, untrained: set[int]) -> None:
    with pytest.raises(RequestError, match=r"hydra.sweep.subdir=.* leads out of the sweep"):
        run_sweep([*SWEEP, f"hydra.sweep.subdir='{subdir}'"])


def test_a_checkpoint_of_others_names_no_file_that_is_deleted(tmp_path: Path) -> None:
    checkpoint = RunCheckpoint(tmp_path)
    state = checkpoint.state_dict() | {"best_model_path": "/a/thesis.tex", "kth_best_model_path": "thesis.tex"}
    checkpoint.load_state_dict({**state, "best_k_models": {"/a/thesis.tex": 0.5}})
    assert checkpoint.best_model_path == checkpoint.kth_best_model_path == str(tmp_path / "best.ckpt")
    assert list(checkpoint.best_k_models) == [str(tmp_path / "best.ckpt")]


def test_an_unlucky_start_leaves_no_lock_in_a_folder_of_others(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(RequestError, match="holds files already"), files.claimed(tmp_path):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
