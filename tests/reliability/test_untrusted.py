"""Files that somebody else made: nothing in them is run, none leads out of its folder, all of their text is escaped."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from odd_names import QUOTE, SCRIPT, overrides
from PIL import Image

from histolight import cli

OneLine = Callable[..., str]
COMMANDS = ["evaluate", "predict", "explain", "export"]


class Malicious:
    """What an attacker pickles: reading it would create the file ``hacked``."""

    def __reduce__(self) -> tuple:
        return (os.system, ("touch hacked",))


def test_the_attack_is_a_real_one(run: Path) -> None:
    torch.save({"state_dict": Malicious()}, "weights.pth")
    torch.load("weights.pth", weights_only=False)
    assert Path("hacked").exists()


@pytest.mark.parametrize("zipped", [True, False])
def test_weights_that_would_run_code_are_refused_by_name(
    zipped: bool, run: Path, place: Path, one_line: OneLine
) -> None:
    torch.save({"a": Malicious()}, "weights.pth", _use_new_zipfile_serialization=zipped)
    request = [*overrides(place / "tiles", place / "cache"), "model.weights=weights.pth", "hydra.run.dir=new"]
    line = one_line("train", *request)
    assert re.search(r"weights.pth can't be read .*\(it asks for (posix|nt).system", line)
    assert not Path("hacked").exists()


@pytest.mark.parametrize("command", COMMANDS)
def test_a_checkpoint_that_would_run_code_is_refused_by_name(
    command: str, run: Path, place: Path, one_line: OneLine
) -> None:
    path = run / "checkpoints" / "best.ckpt"
    checkpoint = torch.load(path, weights_only=True)
    torch.save({**checkpoint, "extra": Malicious()}, path)
    data = ["data=folder", f"data.root={place / 'tiles' / '0'}"] if command == "predict" else []
    assert "best.ckpt can't be read as a checkpoint of histolight (it asks for " in one_line(
        command, f"run={run}", *data, "hydra.run.dir=out"
    )
    assert not Path("hacked").exists()


@pytest.mark.parametrize("name", ["best.ckpt", "last.ckpt"])
def test_a_run_is_not_continued_from_a_checkpoint_that_would_run_code(name: str, run: Path, one_line: OneLine) -> None:
    metrics = json.loads((run / "metrics.json").read_text())
    (run / "metrics.json").write_text(json.dumps({**metrics, "status": "interrupted"}))
    path = run / "checkpoints" / name
    checkpoint = torch.load(path, weights_only=True)
    torch.save({**checkpoint, "extra": Malicious()}, path)
    assert f"{name} can't be read as a checkpoint (it asks for " in one_line("train", f"run={run}")
    torch.save({"state_dict": {}}, path)
    assert f"{name} is not a checkpoint of histolight: delete" in one_line("train", f"run={run}")
    path.write_bytes(path.read_bytes()[:100])
    assert f"{name} can't be read as a checkpoint (" in one_line("train", f"run={run}")
    assert not Path("hacked").exists()


@pytest.mark.parametrize("command", ["train run", "train like", *COMMANDS])
def test_python_in_a_configuration_is_refused(command: str, run: Path, one_line: OneLine) -> None:
    path = run / "config.yaml"
    path.write_text(path.read_text().replace("seed: 0", 'seed: !!python/object/apply:os.system ["touch hacked"]', 1))
    name, _, key = command.partition(" ")
    assert "config.yaml is damaged: it holds the tag tag:yaml.org,2002:python/object/apply:os.system" in one_line(
        name, f"{key or 'run'}={run}"
    )
    assert cli.main(["compare", f"runs={run}", "hydra.run.dir=out"]) == 2
    assert not Path("hacked").exists()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("like: null", "like: ${oc.env:TOKEN}", "like holds an interpolation, ${oc.env:TOKEN}: write the value itself"),
        ("  seed: 0", "  seed: ${oc.env:TOKEN}", "data.seed holds an interpolation"),
        ("like: null", "like: null\n${oc.env:TOKEN}: 1", "${oc.env:TOKEN} holds an interpolation"),
        ("like: null", "like: [[{a: 'b ${oc.env:TOKEN}'}]]", "like.a holds an interpolation"),
        ("like: null", "like: !!binary aGk=", "it holds the tag tag:yaml.org,2002:binary"),
        ("like: null", "like: 2026-11-27", "like=2026-11-27 is neither a word nor a number"),
        ("like: null", "like: &a [*a, *a]", "it holds an alias"),
        ("like: null", "like: " + "[" * 3000, "is damaged: "),
    ],
)
def test_a_configuration_from_elsewhere_is_plain_data(
    old: str, new: str, message: str, run: Path, one_line: OneLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOKEN", "s3cret")
    path = run / "config.yaml"
    path.write_text(path.read_text().replace(old, new, 1))
    for request in (("train", f"like={run}", "hydra.run.dir=out"), ("evaluate", f"run={run}", "hydra.run.dir=out")):
        line = one_line(*request)
        assert message in line
        assert "s3cret" not in line
    assert message in one_line("compare", f"runs={run}", "hydra.run.dir=out")
    assert not Path("out").exists()


class Tags(HTMLParser):
    """What a browser would make of a page: its elements and their attributes."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: set[str] = set()
        self.attributes: set[str] = set()
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.add(tag)
        self.attributes |= {name for name, _ in attrs}


@pytest.fixture(scope="session")
def pages(place: Path) -> dict[str, str]:
    """The page of every command, on tiles, slides and folders with odd names."""
    here = place / "pages <script>"
    here.mkdir()
    tiles, slides = place / "tiles", place / "slides.csv"
    run = f"run={place / 'run'}"
    data = [*overrides(tiles, place / "cache")[:4], f"data.groups={slides}"]
    assert cli.main(["explore", *data, f"hydra.run.dir={here / 'explore'}"]) == 0
    assert cli.main(["evaluate", run, "calibrate=true", f"hydra.run.dir={here / 'evaluate'}"]) == 0
    assert cli.main(["explain", run, f"hydra.run.dir={here / 'explain'}"]) == 0
    assert cli.main(["compare", f"runs={place / 'run'}", f"hydra.run.dir={here / 'compare'}"]) == 0
    damaged = here / "damaged"
    for label in "01":
        (damaged / label / "<script>alert(1)<").mkdir(parents=True)
        (damaged / label / "<script>alert(1)<" / f"script>{label}.png").write_bytes(b"no image")
        (damaged / label / f"{QUOTE}{label}.png").write_bytes(b"no image")
        Image.new("RGB", (32, 32), (90, 90, int(label))).save(damaged / label / f"{label}.png")
    request = ["data=folder", f"data.root={damaged}", "data.image_size=32", f"data.cache={place / 'cache'}"]
    assert cli.main(["explore", *request, f"hydra.run.dir={here / 'problems'}"]) == 2
    names = ("explore", "evaluate", "explain", "compare", "problems")
    return {"train": (place / "run" / "report.html").read_text()} | {
        name: (here / name / "report.html").read_text() for name in names
    }


@pytest.mark.parametrize("name", ["train", "explore", "evaluate", "explain", "compare", "problems"])
def test_nothing_from_data_becomes_markup(name: str, pages: dict[str, str]) -> None:
    tags = Tags(pages[name])
    assert "script" not in tags.elements
    assert not [attribute for attribute in tags.attributes if attribute.startswith("on")]
    assert SCRIPT not in pages[name]
    assert f'="{QUOTE}' not in pages[name]


def test_odd_names_are_shown_as_they_are(pages: dict[str, str]) -> None:
    for name in ("train", "evaluate", "problems"):
        assert "&lt;script&gt;alert(1)&lt;/script&gt;" in pages[name]
    assert "&#34;onload=&#34;alert(1)" in pages["problems"]


def test_links_of_tiles_are_followed_and_none_can_hang(tmp_path: Path, monkeypatch, one_line: OneLine) -> None:
    from odd_names import write_tiles

    monkeypatch.chdir(tmp_path)
    write_tiles(Path("elsewhere"), 12)
    Path("linked").symlink_to("elsewhere")
    request = ["data=folder", "data.root=linked", "data.image_size=32", "data.cache=cache"]
    assert cli.main(["explore", *request, "hydra.run.dir=out"]) == 0
    folder = Path("elsewhere/0")
    (folder / "secret.png").symlink_to("/etc/passwd")
    (folder / "loop.png").symlink_to("loop.png")
    (folder / "zero.png").symlink_to("/dev/zero")
    os.mkfifo("pipe")
    (folder / "pipe.png").symlink_to(Path("pipe").resolve())
    (folder / "up").symlink_to(Path("elsewhere").resolve())
    line = one_line("explore", *request, "hydra.run.dir=refused")
    assert "not an image: 1 (secret)" in line
    assert "file missing: 3 (loop, pipe, zero)" in line
    listed = Path("refused/data_problems.csv").read_text()
    assert "root:" not in listed


def test_a_list_of_labels_that_is_a_pipe_is_refused(tmp_path: Path, one_line: OneLine) -> None:
    (tmp_path / "train").mkdir()
    os.mkfifo(tmp_path / "train_labels.csv")
    assert "train_labels.csv is not a file" in one_line("train", "data=kaggle", f"data.root={tmp_path}")


AUDITED = """
import os, sys
def audit(event, arguments):
    if event in ("socket.connect", "socket.bind") and getattr(arguments[0], "family", None) != 1:
        print("AUDIT network", event, arguments[1:], file=sys.stderr)
    if event in ("socket.getaddrinfo", "socket.gethostbyname", "urllib.Request", "http.client.connect"):
        print("AUDIT network", event, arguments, file=sys.stderr)
    if event == "open" and isinstance(arguments[0], str) and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
        print("AUDIT file", os.path.abspath(arguments[0]), file=sys.stderr)
    if event in ("os.rename", "os.mkdir", "os.symlink", "os.link"):
        path = os.fspath(arguments[0 if event == "os.mkdir" else 1])
        print("AUDIT file", os.path.abspath(path), file=sys.stderr)
sys.addaudithook(audit)
import torch
torch.set_num_threads(1)
from histolight.cli import main
status = main(["train", *sys.argv[1:], "hydra.run.dir=out"])
sys.exit(status or main(["predict", "run=out", "data=folder", "data.root=tiles/0", "hydra.run.dir=predicted"]))
"""


@pytest.mark.slow
def test_nothing_touches_the_network_or_writes_outside_output_and_cache(place: Path, tmp_path: Path) -> None:
    (tmp_path / "tiles").symlink_to(place / "tiles")
    request = overrides(Path("tiles"), tmp_path / "cache")
    request = [*request[:-1], "trainer.max_epochs=1", "data.test_fraction=0"]  # with TensorBoard
    command = [sys.executable, "-c", AUDITED, *request]
    (tmp_path / "temporary").mkdir()
    environment = {**os.environ, "TMPDIR": str(tmp_path / "temporary")}
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr
    seen = [line.split(maxsplit=2)[1:] for line in done.stderr.splitlines() if line.startswith("AUDIT")]
    assert [found for kind, found in seen if kind == "network"] == []
    files = {found for kind, found in seen if kind == "file"}
    assert f"{tmp_path}/out/predictions/val.csv" in files
    allowed = [str(tmp_path / name) for name in ("out", "cache", "predicted", "temporary")]
    # Bytecode, what matplotlib (its list of fonts) and PyTorch (its compiler) keep for themselves, and coverage.py.
    allowed += ["/dev/", "/proc/", *filter(None, [sys.pycache_prefix])]
    of_libraries = ("__pycache__", "/.coverage.", "/matplotlib", "/torchinductor_")
    outside = {path for path in files if not path.startswith(tuple(allowed))}
    assert [path for path in outside if not any(name in path for name in of_libraries)] == []
