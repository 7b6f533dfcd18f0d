from __future__ import annotations

import doctest
import re
from pathlib import Path

import pandas as pd
import pytest
from fake_runs import fake_run
from odd_names import NAMES, overrides, write_tiles
from untrained_runs import untrained_run

import histolight
from histolight.cli import COMMANDS
from histolight.errors import RequestError

PAGE = Path(__file__).resolve().parents[1] / "docs" / "api.md"


@pytest.mark.slow
def test_the_examples_of_the_page_run_and_print_nothing(tmp_path, monkeypatch, capfd) -> None:
    pytest.importorskip("onnxscript")
    monkeypatch.chdir(tmp_path)
    result = doctest.testfile(
        str(PAGE), module_relative=False, optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    )
    printed = capfd.readouterr()
    assert result.failed == 0, printed.out
    assert result.attempted > 20
    assert printed.out == ""
    assert "epoch" not in printed.err
    assert "points done" not in printed.err


def test_the_api_is_what_the_page_says_and_every_function_stands_there() -> None:
    text = PAGE.read_text(encoding="utf-8")
    functions = [name for name in histolight.__all__ if name[0].islower()]
    assert functions == [
        "compare", "embed", "evaluate", "explain", "export", "load_run", "load_tiles", "predict", "sweep", "train"
    ]  # fmt: skip
    assert all(f"histolight.{name}(" in text for name in functions)
    without = {name for name in COMMANDS if not hasattr(histolight, name)}
    [named] = re.findall(r"; ([^;.]*) are commands only", " ".join(text.split()))
    assert without == set(re.findall(r"`(.*?)`", named))


def test_a_notebook_completes_the_names_of_the_api() -> None:
    assert {*histolight.__all__, "__doc__"} <= set(dir(histolight))


def test_a_wrong_request_is_the_commands_line(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RequestError, match="optimizer.lrr is not a key: did you mean optimizer.lr"):
        histolight.train({"optimizer": {"lrr": 1}})
    with pytest.raises(RequestError, match="nowhere"):
        histolight.evaluate("nowhere")
    with pytest.raises(RequestError, match="best=0 is out of range"):
        histolight.predict("nowhere", best=0)
    tiles = write_tiles(tmp_path / "tiles")
    run = untrained_run(tmp_path / "run", overrides(tiles, tmp_path / "cache"))
    for wrong in ({"tta": "all"}, {"mean": "x"}):
        with pytest.raises(RequestError, match=f"{next(iter(wrong))}=.* is not known: valid"):
            histolight.predict(run, [f"data.root={tiles / '0'}"], directory=tmp_path / "out", **wrong)
    with pytest.raises(RequestError, match="tta=all is not known: valid: dihedral, flips, none"):
        histolight.evaluate(run, tta="all", directory=tmp_path / "out")
    with pytest.raises(RequestError, match="part=tset is not known: did you mean test"):
        histolight.explain(run, part="tset", directory=tmp_path / "out")
    with pytest.raises(RequestError, match="seed=1,2 is several values: .*, in Python histolight.sweep"):
        histolight.train({"seed": [1, 2]})
    with pytest.raises(RequestError, match=r"holds files already .*: choose another folder .*directory=FOLDER in Pyt"):
        histolight.export(run, directory=run)
    with pytest.raises(RequestError, match=r"holds files already .*: choose another folder with hydra.run.dir=FOLDER$"):
        histolight.train({"hydra.run.dir": str(tiles)})
    assert {path.name for path in tmp_path.iterdir()} == {"tiles", "run"}


@pytest.mark.parametrize("function", [histolight.evaluate, histolight.explain, histolight.export, histolight.load_run])
def test_several_runs_are_not_taken_for_the_first_one(function) -> None:
    with pytest.raises(RequestError, match="is one folder or Run, not 2: several can be predicted and compared"):
        function(["one", histolight.Run(Path("other"))])


def test_several_evaluations_choose_no_threshold() -> None:
    with pytest.raises(RequestError, match="chosen_on is one folder or Run, not 2"):
        histolight.evaluate("run", chosen_on=["one", "other"])


@pytest.mark.parametrize("function", [histolight.compare, histolight.evaluate, histolight.load_run, histolight.predict])
@pytest.mark.parametrize(
    ("runs", "said"),
    [(3, "int is neither"), (None, "NoneType is neither"), ([Path("a"), 3], "int is neither"), ([], "is empty")],
)
def test_what_is_no_run_is_refused(function, runs, said, tmp_path) -> None:
    with pytest.raises(RequestError, match=said):
        function(runs)
    run = untrained_run(tmp_path / "run", [])
    assert histolight.load_run([run]).metrics["status"] == "completed"


def test_a_comparison_is_not_predicted() -> None:
    comparison = histolight.Comparison([], [], [], "tiles", "random", "", [], pd.DataFrame())
    with pytest.raises(RequestError, match="folders: Comparison is neither a folder nor a Run"):
        histolight.predict(comparison)


@pytest.mark.parametrize("function", [histolight.train, histolight.sweep, histolight.embed, histolight.load_tiles])
@pytest.mark.parametrize("wrong", [None, 3, "seed=0", histolight.Run(Path("run"))])
def test_what_are_no_overrides_is_refused(function, wrong) -> None:
    with pytest.raises(RequestError, match=r"overrides=.* can't be read: give a list of strings, a dictionary"):
        function(wrong)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (lambda run: histolight.explain(run, tiles="two"), "tiles=two is out of range: it is a whole number"),
        (lambda run: histolight.explain(run, part=None), "part=None is not known: valid: test, val"),
        (lambda run: histolight.predict(run, best=2.5), "best=2.5 is out of range: give a number of runs"),
        (lambda run: histolight.evaluate(run, tta=["flips"]), r"tta=\['flips'\] is not known: did you mean flips"),
        (lambda run: histolight.compare(run, by=["model.name"]), r"by=\['model.name'\] is not a key .* model.name"),
        (lambda run: histolight.compare(run, among=3), "among: int is neither a folder nor a Run"),
    ],
)
def test_a_value_of_another_type_is_refused(wrong, said, tmp_path) -> None:
    run = untrained_run(tmp_path / "run", [])
    with pytest.raises(RequestError, match=said):
        wrong(run)


@pytest.mark.parametrize(
    ("function", "word", "call"),
    [
        (histolight.predict, "tta=dihedral", "predict(…, tta=…)"),
        (histolight.predict, "best=2", "predict(…, best=…)"),
        (histolight.predict, "+mean=probability", "predict(…, mean=…)"),
        (histolight.predict, "adapt=prior", "predict(…, adapt=…)"),
        (histolight.predict, "run=x", "predict(RUN, …)"),
        (histolight.evaluate, "hydra.run.dir=x", "evaluate(…, directory=…)"),
        (histolight.evaluate, "calibrate=true", "evaluate(…, calibrate=…)"),
        (histolight.evaluate, "tta=flips", "evaluate(…, tta=…)"),
        (histolight.explain, "tiles=2", "explain(…, tiles=…)"),
        (histolight.export, "hydra.run.dir=x", "export(…, directory=…)"),
    ],
)
def test_what_is_an_argument_is_no_override(function, word, call, tmp_path) -> None:
    run = untrained_run(tmp_path / "run", [])
    with pytest.raises(RequestError, match=re.escape(f"is no override from Python: use histolight.{call}")):
        function(run, [word])


def test_the_folder_of_features_is_an_argument_and_no_override() -> None:
    with pytest.raises(RequestError, match=re.escape("use histolight.embed(…, directory=…)")):
        histolight.embed({"hydra.run.dir": "x"})


def test_rows_are_named_beforehand_by_their_runs(tmp_path: Path) -> None:
    one, two, _ = (fake_run(tmp_path / name, model__name=name) for name in ("resnet18", "resnet34", "resnet50"))
    comparison = histolight.compare(tmp_path, among=[one, histolight.Run(two)])
    assert sorted(row["row"] for row in comparison.rows) == ["resnet18", "resnet34"]
    for host in "abc":
        fake_run(tmp_path / "weights" / host, model__weights=f"https://{host}/x.pth")
    named = ["weights https://a/x.pth", "weights https://b/x.pth"]
    assert sorted(row["row"] for row in histolight.compare(tmp_path / "weights", among=named).rows) == named


def test_a_prediction_has_every_tile_under_its_own_name(tmp_path: Path) -> None:
    tiles = write_tiles(tmp_path / "tiles")
    run = untrained_run(tmp_path / "run", overrides(tiles, tmp_path / "cache"))
    found = histolight.predict(run, [f"data.root={tiles / '0'}"], directory=tmp_path / "out")
    assert {"NA", "null", "nan", "None"} < set(NAMES) & set(found.table["id"])
    assert found.table["id"].notna().all()
    assert pd.api.types.is_float_dtype(found.table["logit"])
