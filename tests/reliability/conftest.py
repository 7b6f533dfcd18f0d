"""One completed run with names that a reader may trip over, and copies of it to damage."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from odd_names import overrides, write_slides, write_tiles

from histolight import cli


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiles, their slides, a cache and a completed run, in one folder."""
    place = tmp_path_factory.mktemp("place")
    write_tiles(place / "tiles")
    slides = write_slides(place / "slides.csv", place / "tiles")
    request = [*overrides(place / "tiles", place / "cache"), f"data.groups={slides}", "trainer.accumulate=2"]
    assert cli.main(["train", *request, f"hydra.run.dir={place / 'run'}"]) == 0
    return place


@pytest.fixture
def run(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the run, in the working directory, whose name is as odd."""
    monkeypatch.chdir(tmp_path)
    return shutil.copytree(place / "run", tmp_path / "run <b>")


@pytest.fixture
def one_line(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run a command that must fail, and return the one line that says why."""

    def failed(*arguments: str, status: int = 2) -> str:
        capsys.readouterr()
        assert cli.main(list(arguments)) == status
        lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("histolight: ")]
        assert len(lines) == 1
        return lines[0]

    return failed
