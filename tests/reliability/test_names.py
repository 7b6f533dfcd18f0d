"""Names that a reader may trip over: folders, weights and slides go through every figure, page, table and file name."""

from __future__ import annotations

import csv
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from fake_runs import fake_run
from odd_names import overrides
from PIL import Image

from histolight import cli, files
from histolight.config.compose import compose_config, quoted
from histolight.config.keys import new_folder
from histolight.errors import RequestError
from histolight.reports.figures import figure_text
from histolight.reports.page import Cell, Table, as_markdown, as_text
from histolight.reports.parts import save_figure
from histolight.sweeps.points import folder_name

NAMES = [
    r"a $\frac$ b",
    r"$x_{",
    "a % # & < > ' \" ~ ^ | ` * [b](c)",
    "two\nlines",
    "tile 🧫 slide",
    "=1+1",
    "l" * 200,
    "back\\slash\\",
    "{a: ?}",
]


class Text(HTMLParser):
    """What a browser shows of a page, and its elements."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.shown = ""
        self.elements: set[str] = set()
        self.feed(page)

    def handle_data(self, data: str) -> None:
        self.shown += data

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.add(tag)


def test_a_comparison_of_runs_with_every_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    sweep = tmp_path / NAMES[0]
    for number, name in enumerate(NAMES):
        fake_run(sweep / f"{number} {name}"[:200], model__weights=f"/weights/{name}", shift=1 + number / 9)
    fake_run(sweep / "twice", model__weights=f"/weights/{NAMES[0]}", model__dropout=0.5)
    out = Path("out " + NAMES[2].replace("/", ""))
    assert cli.main(["compare", f"runs={sweep}", f"hydra.run.dir={out}"]) == 0
    page = Text((out / "report.html").read_text())
    for name in NAMES[:3]:
        assert name in page.shown
    assert not page.elements & {"b", "script"}
    figures = [path for path in out.rglob("*.png") if Image.open(path).size[0] > 100]
    assert len(figures) >= 3
    with open(out / "comparison.csv", newline="") as file:
        found = {row["model.weights"] for row in csv.DictReader(file)}
    assert found == {f"/weights/{name}" for name in NAMES}
    for line in (out / "comparison.md").read_text().splitlines():
        assert not re.search(r"(?<!\\)[$`<]", line)


def test_keys_of_a_foreign_configuration_lead_no_figure_out_of_its_folder(tmp_path: Path) -> None:
    for number in range(3):
        run = fake_run(tmp_path / "runs" / str(number), shift=1 + number / 5)
        text = (run / "config.yaml").read_text()
        (run / "config.yaml").write_text(f"{text}a/../../../../escaped: {number}\n")
    assert cli.main(["compare", f"runs={tmp_path / 'runs'}", f"hydra.run.dir={tmp_path / 'out'}"]) == 0
    assert not [path for path in tmp_path.rglob("*escaped*") if path.parent != tmp_path / "out" / "figures"]


@pytest.mark.parametrize("name", ["a $\\frac$ b % # & < > ' \" {c} \\ é", "line\nbreak 🧫", "l" * 200])
@pytest.mark.slow
def test_every_command_works_in_and_on_folders_of_odd_names(
    name: str, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run = shutil.copytree(place / "run", tmp_path / name)
    tiles = shutil.copytree(place / "tiles", tmp_path / "tiles" / name)
    data = ["data=folder", f"data.root={tiles}", "data.image_size=32", f"data.cache={tmp_path / 'cache' / name}"]
    assert cli.main(["explore", *data, f"hydra.run.dir=explored/{name}"]) == 0
    assert cli.main(["predict", f"run={run}", "data=folder", f"data.root={tiles / '0'}"]) == 0
    assert cli.main(["evaluate", f"run={run}"]) == 0
    assert cli.main(["explain", f"run={run}", f"hydra.run.dir=explained/{name}"]) == 0
    assert cli.main(["export", f"run={run}", f"hydra.run.dir=exported/{name}"]) == 0
    for kind in ("predictions", "evaluations"):
        (made,) = Path("outputs", kind).iterdir()
        assert re.fullmatch(r"[\w.-]{1,200}", made.name)
    shown = " ".join(Text(next(Path("outputs/evaluations").glob("*/report.html")).read_text()).shown.split())
    assert " ".join(str(run).split()) in shown


@pytest.mark.slow
def test_a_training_and_a_sweep_in_a_folder_of_an_odd_name(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    name = "a $\\frac$ b % # & < > ' \" {c} \\ 🧫"
    request = [*overrides(place / "tiles", tmp_path / f"cache {name}")[:-1], "trainer.max_epochs=1"]
    assert cli.main(["train", *request, f"hydra.run.dir={name}/run"]) == 0
    assert cli.main(["train", "-m", *request, "seed=1,2", f"hydra.sweep.dir={name}/sweep"]) == 0
    assert len(list((tmp_path / name / "sweep").glob("*/report.html"))) == 2


@pytest.mark.parametrize("name", [*NAMES, "it's", '"', "a\\'b", "a\\\\", "\\"])
def test_a_quoted_path_is_what_hydra_reads(name: str) -> None:
    assert compose_config([f"data.root={quoted(name)}"]).data.root == name


@pytest.mark.parametrize("name", NAMES)
def test_names_become_file_names(name: str) -> None:
    for made in (files.file_name(name), folder_name(1, [f"model.weights={name}"], ["model.weights"])):
        assert re.fullmatch(r"[\w.,=+-]{1,120}", made)
        assert not made.startswith(".")
    assert len(new_folder(None, "evaluations", name).name.encode()) < 200


@pytest.mark.parametrize("name", NAMES)
def test_names_become_text_of_figures(name: str, tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 5), layout="constrained")
    axes = figure.add_subplot(xscale="log")
    axes.plot([1, 100], [0, 1], label=figure_text(name))
    axes.legend()
    axes.set_title(figure_text(name))
    axes.set_yticks([0, 1], [figure_text(name)] * 2)
    assert np.frombuffer(save_figure(figure, tmp_path / "figure.png"), np.uint8).any()
    assert not [str(warning.message) for warning in recwarn if not issubclass(warning.category, DeprecationWarning)]


@pytest.mark.parametrize("name", NAMES)
def test_names_become_cells_of_tables(name: str, tmp_path: Path) -> None:
    table = Table(["name"], [[Cell(name)]], words=1)
    assert len(as_markdown(table).splitlines()) == 3
    assert len(as_text(table).splitlines()) == 2
    files.write_csv(tmp_path / "table.csv", pd.DataFrame({"name": [name, "a\rb"]}))
    back = pd.read_csv(tmp_path / "table.csv", keep_default_na=False)
    assert back["name"].tolist() == [name, "a\rb"]


def test_an_interpolation_in_a_path_of_a_run_is_refused_by_name(tmp_path: Path, monkeypatch) -> None:
    from histolight.config.compose import saved_config

    monkeypatch.setenv("TOKEN", "s3cret")
    run = fake_run(tmp_path / "run")
    text = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(text.replace("like: null", "like: ${oc.env:TOKEN}"))
    with pytest.raises(RequestError, match=r"like holds an interpolation, \$\{oc.env:TOKEN\}") as caught:
        saved_config(run)
    assert "s3cret" not in str(caught.value)
