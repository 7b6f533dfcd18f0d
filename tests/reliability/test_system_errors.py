"""Whatever the operating system refuses, at whichever file of a command: one line with the true cause and the file."""

from __future__ import annotations

import contextlib
import errno
import io
import itertools
import multiprocessing
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import refusing_system
from pcam_files import PARTS, write_pcam

from histolight import cli

COMMANDS = {
    "evaluate": ["evaluate", "run=RUN", "hydra.run.dir=out"],
    "explain": ["explain", "run=RUN", "hydra.run.dir=out"],
    "compare": ["compare", "runs=RUN", "hydra.run.dir=out"],
    "explore": ["explore", "data=folder", "data.root=TILES", "data.image_size=32", "data.cache=c", "hydra.run.dir=out"],
    "predict": ["predict", "run=RUN", "data=folder", "data.root=TILES/0", "data.cache=c", "hydra.run.dir=out"],
}
SMALL = [
    "data.cache=c",
    "data.image_size=32",
    "data.batch_size=8",
    "model.name=shufflenet_v2_x0_5",
    "model.weights=null",
]
WITH_EACH_CALL = {
    "train": ["data=folder", "data.root=TILES", *SMALL, "trainer=cpu", "trainer.max_epochs=1", "logger=csv"],
    "export": ["run=RUN", "format=wsinfer", "slides.model_mpp=1"],
    "explore": ["data=folder", "data.root=TILES", "data.image_size=32", "data.cache=c"],
    "embed": ["data=folder", "data.root=TILES", *SMALL, "trainer.accelerator=cpu"],
    "bench": ["data=folder", "data.root=TILES", *SMALL[1:], "trainer=cpu"],
}
# Of a command that takes long, or reads what another reads too, what is its own.
ONLY = {
    "train": "^(write|fsync|rename|link) ",  # what it opens is refused by opening alone, below
    "bench": "^mkdir (scratch|tiles|run|checkpoints)|^(open|write|rename) (bench|best)|^write tile$",
    "onnx": "^(open|read|write|fsync|rename|mkdir) (model|out)",
}
# A logger's two files, the pack's folder and the output's: where a folder can't be made, or holds what is made whole.
NAMED_BY_THEIR_FOLDER = ("out/csv", "done.partial.npy", "c/packs", "out can't be written", "out can't be used")
_opened: list[str] = []
_refused: dict[str, int] = {}  # by the end of a path


def _hook(event: str, arguments: tuple[object, ...]) -> None:
    """Refuse to open a file as the system would: Python asks its audit hooks before it asks the system."""
    if event == "open" and isinstance(arguments[0], str | os.PathLike) and (_refused or _opened):
        path = os.fspath(arguments[0])
        if isinstance(path, str):
            _opened.append(path)
            for end, number in _refused.items():
                if path.endswith(end):
                    raise OSError(number, os.strerror(number), path)


@pytest.fixture(scope="module", autouse=True)
def _hooked() -> None:
    sys.addaudithook(_hook)


@pytest.fixture
def refusing() -> Iterator[Callable[[str, int], None]]:
    def refuse(end: str, number: int) -> None:
        _refused[end] = number

    yield refuse
    _refused.clear()
    _opened.clear()


def words(command: str, run: Path, place: Path) -> list[str]:
    return [word.replace("RUN", str(run)).replace("TILES", str(place / "tiles")) for word in COMMANDS[command]]


def kinds_of_files(command: str, run: Path, place: Path) -> list[str]:
    """The files of one undisturbed command, one of each kind, by what their path ends with."""
    _opened.append("")
    assert cli.main(words(command, run, place)) == 0
    here = (str(run), str(place), str(Path.cwd()), "out", "c/")
    found = {}
    for path in _opened:
        own = "/.histolight-" in path or Path(path).is_relative_to("out") or path.startswith(str(Path("out").resolve()))
        if path.startswith(here) and not own and not path.endswith(".lock"):
            found[re.sub(r"\d+", "", Path(path).name)] = "/" + "/".join(Path(path).parts[-2:])
    _opened.clear()
    return [*sorted(found.values()), ".tmp"]  # under such a name everything is written


def test_a_run_that_cannot_be_read_is_not_called_damaged(run: Path, place: Path, one_line, refusing) -> None:
    for name, number in zip(
        ["metrics.json", "config.yaml", "splits.csv", "predictions/val.csv", "checkpoints/best.ckpt"],
        itertools.cycle([errno.EACCES, errno.EIO, errno.ESTALE, 524]),
        strict=False,
    ):
        refusing(name, number)
        line = one_line("evaluate", f"run={run}", "hydra.run.dir=out")
        _refused.clear()
        assert name in line
        assert f"can't be read: {os.strerror(number)}" in line
        assert "damaged" not in line
        assert not Path("out").exists()


def test_a_pack_whose_reading_would_block_is_not_called_damaged(place: Path, tmp_path, monkeypatch, one_line) -> None:
    """Python takes it for the end of the file."""
    monkeypatch.chdir(tmp_path)

    class Blocked(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            return None  # type: ignore[return-value]

    def end(*_: object, **__: object) -> np.ndarray:
        raise EOFError("No data left in file")

    data = [f"data.root={place / 'tiles'}", f"data.cache={place / 'cache'}", "data.image_size=32"]
    request = ["explore", "data=folder", *data]
    monkeypatch.setattr(np, "load", end)
    assert "damaged (No data left in file)" in one_line(*request, "hydra.run.dir=out", status=1)
    monkeypatch.setattr("histolight.files.open", lambda *_, **__: Blocked(), raising=False)
    line = one_line(*request, "hydra.run.dir=out", status=1)
    assert "checksums.npy can't be read: Resource temporarily unavailable" in line


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_every_number_at_every_file(command: str, run: Path, place: Path, refusing, capsys) -> None:
    numbers = itertools.cycle(refusing_system.NUMBERS)
    names = kinds_of_files(command, run, place)
    own_pack = next((place / "cache" / "packs").glob("*[!k]")).name
    assert any(name.endswith("metrics.json") for name in names) or command in ("explore",)
    for end in names:
        for folder in ("out", "c"):
            shutil.rmtree(folder, ignore_errors=True)
        number = next(numbers)
        refusing(end, number)
        capsys.readouterr()
        status = cli.main(words(command, run, place))
        shown = capsys.readouterr().err
        _refused.clear()
        assert "Traceback" not in shown
        own = Path(end).parent.name == own_pack or "overlaps were not looked for" in shown
        if status == 0 and command == "predict" and own:
            continue  # the run's own tiles, with which those to predict are only compared
        lines = [line for line in shown.splitlines() if line.startswith("histolight: ")]
        assert status in (1, 2), (end, number, status, shown)
        assert len(lines) == 1, (end, number, status, shown)
        assert os.strerror(number) in lines[0], (end, lines)
        assert Path(end).name in lines[0] or "packs" in lines[0] or end == ".tmp", (end, lines)
        assert not re.search("damaged|download", lines[0]), (end, lines)


@pytest.fixture(scope="session")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = refusing_system.build(tmp_path_factory.mktemp("shim"))
    if found is None:
        pytest.skip("gcc is not here")
    return found


def check_tries(command: str, place: Path, here: Path, shim: Path, only: str, more: list[str] | None = None) -> int:
    """Try a command with each call refused at each kind of file; of those that ``only`` matches, return the number."""
    words = [
        word.replace("RUN", str(place / "run")).replace("TILES", str(place / "tiles"))
        for word in more or WITH_EACH_CALL[command]
    ]
    tries = refusing_system.tries(shim, [command, *words, "hydra.run.dir=out"], here, place, only)
    for tried in tries:
        shown, reason = tried["shown"], os.strerror(tried["number"])
        lines = [line for line in shown.splitlines() if line.startswith("histolight: ")]
        assert "Traceback" not in shown, tried
        assert tried["half"] == [], tried
        if tried["status"] == 0:  # as good without: a copy for a link, a lock's file for messages; others are warned of
            assert tried["call"] == "link" or tried["file"].endswith(".lock") or reason in shown, tried
            continue
        assert len(lines) == 1, tried
        assert reason in lines[0], tried
        aside = tried["file"].startswith(".histolight-") and "out/" in lines[0]  # a passing name in the output's folder
        assert tried["file"] in lines[0] or aside or any(part in lines[0] for part in NAMED_BY_THEIR_FOLDER), tried
        assert not re.search("damaged|download", lines[0]), tried
        assert command != "bench" or "data.cache" not in lines[0], tried
    return len(tries)


@pytest.mark.slow
@pytest.mark.parametrize("command", WITH_EACH_CALL)
def test_every_call_at_every_file(command: str, place: Path, tmp_path: Path, shim: Path) -> None:
    # Where stat, unlink or close is refused, a command may do without what it looked up or tidied away; a download may
    # not, and they are refused below.
    only = ONLY.get(command, "^(open|read|write|fsync|rename|mkdir) ")
    assert check_tries(command, place, tmp_path, shim, only) > (5 if command == "bench" else 15)


@pytest.mark.slow
def test_every_call_at_the_file_of_an_export(place: Path, tmp_path: Path, shim: Path) -> None:
    pytest.importorskip("onnxscript")
    assert check_tries("export", place, tmp_path, shim, ONLY["onnx"], ["run=RUN"]) > 5


@pytest.mark.slow
def test_the_doctor_says_what_it_cannot_read(place: Path, tmp_path: Path, shim: Path, monkeypatch) -> None:
    shutil.copytree(place / "cache", tmp_path / "kept")
    for variable, file in (("TORCH_HOME", "hub/checkpoints/w.pth"), ("HF_HOME", "hub/models--a--b/f")):
        monkeypatch.setenv(variable, str(tmp_path / variable))
        (tmp_path / variable / file).parent.mkdir(parents=True)
        (tmp_path / variable / file).write_text("x")
    only = r"^open |^stat .*(\.\w+|/f)$"
    tries = refusing_system.tries(shim, ["doctor", "data.cache=kept"], tmp_path, tmp_path, only)
    assert len(tries) > 150
    for tried in tries:
        [line, remedy, *_] = [*tried["shown"][tried["shown"].index("caches") :].split("can't be read: ", 1), ""]
        assert line.endswith(f"{tried['file']} "), tried
        assert remedy.startswith(f"{os.strerror(tried['number'])}\n{'':<13}-> make it readable for you"), tried


@pytest.mark.slow
def test_every_number_at_every_call_of_a_download(tmp_path: Path, shim: Path) -> None:
    served = tmp_path / "served"
    served.mkdir()
    for name in ("x.h5.gz", "y.h5.gz"):
        (served / name).write_bytes(np.random.default_rng(0).bytes(3000))
    tries = refusing_system.tries(shim, ["download", "pcam", "out"], tmp_path, served)
    assert len(tries) > 100
    for tried in tries:
        lines = [line for line in tried["shown"].splitlines() if line.startswith("histolight: ")]
        assert "Traceback" not in tried["shown"], tried
        assert tried["half"] == [], tried
        if tried["status"] == 0:  # the lock's is for messages
            assert ".lock" in tried["file"], tried
            continue
        assert len(lines) == 1, tried
        assert tried["file"] in lines[0], tried
        assert os.strerror(tried["number"]) in lines[0], tried
        assert "broke off" not in lines[0], tried


needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")


def ask_as_another_user(requests: list[list[str]], said: Path) -> None:
    with said.open("w") as file, contextlib.redirect_stderr(file):
        os.setuid(12345)
        for words in requests:
            given = any(word.startswith("hydra.run.dir=") for word in words)
            print(cli.main(words if given else [*words, "hydra.run.dir=/tmp/nowhere/out"]), file=file)


@needs_root
def test_the_run_of_another_user(run: Path, tmp_path: Path) -> None:
    """A colleague's runs, umask 077: every command names the file."""
    import histolight.commands.compare
    import histolight.commands.evaluate
    import histolight.commands.train
    import histolight.inference.evaluate
    import histolight.ranking.runs  # noqa: F401  # the other user may not read the installed packages

    for folder in (tmp_path, *tmp_path.parents):
        if folder.stat().st_mode & 0o055 != 0o055 and "pytest" in str(folder):
            folder.chmod(folder.stat().st_mode | 0o055)
    closed = {"without-metrics": "metrics.json", "without-configuration": "config.yaml", "closed": ""}
    for name, file in closed.items():
        shutil.copytree(run, tmp_path / name)
        (tmp_path / name / file).chmod(0o600 if file else 0o700)
    requests = [
        [command, f"{key}={name}"] for name in closed for command, key in (("evaluate", "run"), ("compare", "runs"))
    ]
    (tmp_path / "made").mkdir()
    (tmp_path / "made").chmod(0o777)
    more = [["train", "hydra.run.dir=closed/new"], ["predict", "runs=[closed,closed]"]]
    more += [["compare", "runs=.", "hydra.run.dir=made/out"]]
    arguments = ([*requests, *more], tmp_path / "said")
    child = multiprocessing.get_context("fork").Process(target=ask_as_another_user, args=arguments)
    child.start()
    child.join(120)
    exitcode = child.exitcode
    child.kill()  # one that hangs
    assert exitcode == 0
    lines = (tmp_path / "said").read_text().splitlines()
    said = [line for line in lines if line.startswith("histolight: ")]
    *said, new, ensemble = said
    assert "closed/new can't be used (Permission denied): choose another folder with hydra.run.dir=FOLDER" in new
    assert "closed/metrics.json can't be read: Permission denied" in ensemble
    assert "closed/metrics.json can't be read: Permission denied" in Path("made/out/comparison.json").read_text()
    assert len(said) == len(requests), lines
    for line, (_, name) in zip(said, (words[1].split("=") for words in requests), strict=True):
        assert "can't be read: Permission denied" in line
        assert f"{name}/{closed[name] or 'metrics.json'}" in line
    assert not any("damaged" in line or "Traceback" in line for line in lines)


def pcam(folder: Path) -> Path:
    tiles = np.random.default_rng(0).integers(0, 256, (8, 96, 96, 3), dtype=np.uint8)
    return write_pcam(folder, dict.fromkeys(PARTS, (tiles, np.arange(8) % 2)))


def test_an_h5_file_that_another_program_writes_is_not_called_damaged(tmp_path, monkeypatch, one_line) -> None:
    monkeypatch.chdir(tmp_path)
    root = pcam(tmp_path / "data")
    name = root / "camelyonpatch_level_2_split_train_x.h5"
    code = "import sys, time, h5py; f = h5py.File(sys.argv[1], 'r+'); print('open', flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", code, str(name)], stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        writer.stdout.readline()
        request = ["explore", "data=pcam", f"data.root={root}", "data.cache=cache", "hydra.run.dir=out"]
        line = one_line(*request)
        writer.kill()
    assert f"{name} can't be read: another program has it open for writing" in line
    assert "HDF5_USE_FILE_LOCKING=FALSE" in line
    assert "download" not in line


@pytest.mark.parametrize("name", ["split_train_x.h5", "split_valid_y.h5"])
def test_an_h5_file_that_cannot_be_opened_is_named(name, tmp_path, monkeypatch, one_line, refusing) -> None:
    monkeypatch.chdir(tmp_path)
    root = pcam(tmp_path / "data")
    refusing(name, errno.EACCES)
    line = one_line("explore", "data=pcam", f"data.root={root}", "data.cache=cache", "hydra.run.dir=out")
    assert f"{name} can't be read: Permission denied" in line
    assert "download" not in line


def test_a_packed_h5_file_that_cannot_be_opened_is_named(tmp_path, monkeypatch, one_line, refusing) -> None:
    import gzip

    monkeypatch.chdir(tmp_path)
    root = pcam(tmp_path / "data")
    plain = root / "camelyonpatch_level_2_split_train_x.h5"
    packed = plain.with_name(f"{plain.name}.gz")
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    plain.unlink()
    refusing(packed.name, errno.EACCES)
    line = one_line("explore", "data=pcam", f"data.root={root}", "data.cache=cache", "hydra.run.dir=out")
    assert f"{packed} can't be read: Permission denied" in line
