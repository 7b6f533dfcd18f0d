"""What Windows does otherwise, as far as it can be simulated here: paths, files in use, narrow encodings."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from histolight import files
from histolight.cli import main
from histolight.config.compose import compose_config, typed
from histolight.errors import command_line

# Windows neither renames nor deletes a file that is open or mapped, nor a folder above one, nor truncates a mapped one.
LOCKING = """
import os, sys
def in_use(path, mapped_only=False):
    path = os.path.realpath(path)
    with open("/proc/self/maps") as maps:
        used = {line.split(maxsplit=5)[5].rstrip() for line in maps if line.count("/")}
    if not mapped_only:
        for number in os.listdir("/proc/self/fd"):
            try:
                used.add(os.readlink(f"/proc/self/fd/{number}"))
            except OSError:
                pass
    return [name for name in used if name == path or name.startswith(path + os.sep)]
def audit(event, arguments):
    if event == "open" and isinstance(arguments[0], str) and arguments[2] & os.O_TRUNC:
        paths, mapped_only = arguments[:1], True
    elif event in ("os.rename", "os.remove", "os.rmdir"):
        paths, mapped_only = [it for it in arguments if isinstance(it, (str, os.PathLike))], False
    else:
        return
    for path in paths:
        if used := in_use(path, mapped_only):
            caller = sys._getframe(1)
            while caller and "filelock" not in caller.f_code.co_filename:
                caller = caller.f_back
            if caller is None:  # filelock has code of its own for Windows
                print("IN USE", event, path, used, file=sys.stderr)
                raise PermissionError(13, "The process cannot access the file, as it is used by a process", str(path))
sys.addaudithook(audit)
import torch
torch.set_num_threads(1)
from histolight.cli import main
small = sys.argv[1:]
with open("held", "w"):
    try:
        os.remove("held")
    except PermissionError:
        print("a file in use is seen")
statuses = [
    main(["train", *small, "logger=tensorboard", "hydra.run.dir=run"]),
    main(["train", "-m", *small, "experiment=linear_probe", "trainer.max_epochs=1", "seed=0,1", "name=seeds"]),
    main(["compare", "runs=outputs/sweeps/seeds", "hydra.run.dir=comparison"]),
    main(["evaluate", "run=run", "hydra.run.dir=evaluation"]),
    main(["predict", "run=run", *small[:2], "hydra.run.dir=predictions"]),
    main(["train", "optimizer.lr=-1", *small, "hydra.run.dir=refused"]),
]
assert statuses == [0, 0, 0, 0, 0, 2], statuses
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="only Linux tells which files are in use")
def test_no_file_in_use_is_renamed_deleted_or_truncated(small: list[str], tmp_path: Path) -> None:
    request = [*small, f"data.cache={tmp_path / 'cache'}", "trainer.max_epochs=1"]
    command = [sys.executable, "-c", LOCKING, *request]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "refused").exists()
    assert "a file in use is seen" in done.stdout
    # A folder that is left as it was found loses its lock, which filelock itself deletes on Windows.
    expected = ("/held'", "/.histolight.lock'")
    lines = [line for line in done.stderr.splitlines() if "IN USE" in line]
    assert [line for line in lines if not any(name in line for name in expected)] == []


@pytest.mark.parametrize(
    "path", [r"C:\Users\me\tiles", r"C:\new tiles\(1)", r"\\server\share\tiles", "D:/tiles", "C:\\tiles\\"]
)
def test_a_path_of_windows_arrives_as_it_was_given(path: str) -> None:
    assert typed(compose_config([f"data.root={path}"])).data.root == path


def test_a_command_is_quoted_as_its_shell_reads_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "name", "nt")
    assert command_line("histolight", "train", r"run=C:\my runs\a").endswith(r'histolight train "run=C:\my runs\a"')


def test_a_file_that_is_read_is_replaced_a_moment_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replace, refused = Path.replace, [PermissionError(13, "The process cannot access the file")]

    def read_by_another(path: Path, target: Path) -> Path:
        if refused:
            raise refused.pop()
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", read_by_another)
    monkeypatch.setattr(os, "name", "nt")
    files.write_atomically(tmp_path / "metrics.json", "{}")
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.json"]


def test_a_lock_that_cannot_be_deleted_while_it_is_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unlink = Path.unlink

    def held(path: Path, missing_ok: bool = False) -> None:
        if path.name == ".histolight.lock":
            raise PermissionError(13, "The process cannot access the file")
        unlink(path, missing_ok)

    monkeypatch.setattr(Path, "unlink", held)
    with files.claimed(tmp_path / "run"):
        pass
    with files.claimed(tmp_path / "run"):  # it was released
        pass


def narrow_terminal(name: str, encoding: str, monkeypatch: pytest.MonkeyPatch) -> io.BytesIO:
    """Put a stream in the place of stdout or stderr that refuses what its encoding lacks; return what arrives."""
    arrived = io.BytesIO()
    monkeypatch.setattr(sys, name, io.TextIOWrapper(arrived, encoding, errors="strict", write_through=True))
    return arrived


@pytest.mark.parametrize("encoding", ["cp1252", "ascii"])
def test_a_terminal_that_lacks_a_character_shows_another(encoding: str, monkeypatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    arrived = narrow_terminal("stderr", encoding, monkeypatch)
    assert main(["explore", "data=folder", "data.root=schwarz-weiß-黒白"]) == 2
    [line] = arrived.getvalue().splitlines()
    assert rb"\u9ed2\u767d" in line


def test_a_command_prints_to_a_narrow_terminal(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    arrived = narrow_terminal("stdout", "cp1252", monkeypatch)
    main(["doctor", "data.cache=黒白"])
    assert rb"\u9ed2\u767d" in arrived.getvalue()


def test_help_needs_no_wide_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    assert capsys.readouterr().out.isascii()
