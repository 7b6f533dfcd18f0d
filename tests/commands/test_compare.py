from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from fake_runs import fake_run

from histolight import files
from histolight.commands.compare import main, parse_request
from histolight.errors import RequestError


@pytest.fixture
def sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for number, name in enumerate(("resnet18", "resnet34")):
        fake_run(tmp_path / "my sweep (1)" / f"{number}_{name}", 1.0 + number, model__name=name)
    return tmp_path / "my sweep (1)"


def test_it_prints_the_table_and_writes_csv_markdown_page_and_figures(
    sweep: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([f"runs={sweep}"]) == 0
    printed = capsys.readouterr().out
    (place,) = Path("outputs/compare").iterdir()
    assert place.name.startswith("my-sweep-1-20")
    assert sorted(file.name for file in place.iterdir() if file.name != ".histolight.lock") == [
        "comparison.csv",
        "comparison.json",
        "comparison.md",
        "figures",
        "report.html",
    ]
    assert str(place / "report.html") in printed
    for word in ("resnet34", "validation tiles (random split)", "AUROC", "tiles/s"):
        assert word in printed


def test_hydra_run_dir_chooses_the_folder(sweep: Path) -> None:
    assert main([f"runs={sweep}", "hydra.run.dir=out here"]) == 0
    assert Path("out here/report.html").is_file()
    assert not Path("outputs").exists()


def test_a_sweep_with_its_comparison_inside_can_be_compared_again(sweep: Path) -> None:
    for number in range(2):
        assert main([f"runs={sweep}", f"hydra.run.dir={sweep}/comparison {number}"]) == 0


def test_by_and_among_reach_the_page(sweep: Path) -> None:
    for seed in (0, 1):
        fake_run(sweep / f"2{seed}", 1.0, model__name="resnet34", optimizer__lr=0.01, seed=seed)
    for name in ("resnet18", "resnet34"):
        fake_run(sweep / f"3{name}", 2.0, model__name=name, seed=1)
    assert main([f"runs={sweep}", "by=model.name", "hydra.run.dir=out"]) == 0
    assert "2 points" in Path("out/report.html").read_text()
    assert main([f"runs={sweep}", "among=0_resnet18,1_resnet34", "hydra.run.dir=out2"]) == 0
    assert "were named on the command line" in Path("out2/report.html").read_text()


def test_plan_prints_a_table_and_writes_nothing(sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(Path().rglob("*"))
    assert main([f"plan={sweep}"]) == 0
    printed = capsys.readouterr().out
    assert "tiles for 80 %" in printed
    assert "0.03" in printed
    assert sorted(Path().rglob("*")) == before


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("a/b c", ["a/b c"]),
        ("a=b (1), c", ["a=b (1), c"]),
        ("[a,b]", ["a", "b"]),
        ("[ a b (1) , x~ ]", ["a b (1)", "x~"]),
        ("['a,b',\"o'hara\"]", ["a,b", "o'hara"]),
        ("'a b'", ["a b"]),
        ("[one]", ["one"]),
    ],
)
def test_paths_of_all_kinds_are_read(value: str, expected: list[str]) -> None:
    assert [str(path) for path in parse_request([f"runs={value}"]).runs] == expected


def test_a_path_of_a_list_that_a_comma_cut_is_put_together_where_it_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("0_lr=0.1,seed=0", "1_lr=0.1,seed=1,b=2", "plain"):
        (tmp_path / name).mkdir()
    request = ["runs=[plain,0_lr=0.1,seed=0,missing,0,1_lr=0.1,seed=1,b=2]"]
    expected = ["plain", "0_lr=0.1,seed=0", "missing", "0", "1_lr=0.1,seed=1,b=2"]
    assert [str(path) for path in parse_request(request).runs] == expected
    long = [name * 50 for name in "abcdefgh"]  # joined they are longer than any file system allows
    assert [str(path) for path in parse_request([f"runs=[{','.join(long)}]"]).runs] == long


def test_home_is_expanded() -> None:
    assert parse_request(["runs=[~/a]"]).runs == [Path.home() / "a"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([], "runs= is missing"),
        (["run=x"], "run is not a key of histolight compare: did you mean runs"),
        (["outputs/sweeps/x"], "is not KEY=VALUE: write runs=FOLDER"),
        (["runs="], "runs= is empty"),
        (["runs=[]"], "is empty: give run directories"),
        (["runs=[o'hara,b]"], "quote a path with a quote in it"),
        (["runs=nowhere"], "nowhere is not a folder"),
        (["runs=a,b"], r"a,b is not a folder: .* runs=\[DIR,DIR\]"),
        (["runs=."], "holds no run"),
        (["runs=.", "plan=."], "plan= stands alone"),
        (["plan="], "plan= is empty"),
        (["plan=nowhere"], "nowhere is not a folder"),
        (["runs=.", "by=modelname"], "by=modelname is not a key of the configuration: did you mean model.name"),
    ],
)
def test_a_wrong_request_is_one_line_and_leaves_nothing(
    overrides: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RequestError, match=message) as caught:
        main(overrides)
    assert "\n" not in str(caught.value)
    files.give_back_folders()  # as every door does
    assert list(tmp_path.iterdir()) == []


def test_a_run_directory_is_not_written_into(sweep: Path) -> None:
    with pytest.raises(RequestError, match="holds files already"):
        main([f"runs={sweep}", f"hydra.run.dir={sweep}/0_resnet18"])


@pytest.mark.slow
def test_it_does_without_torch_and_lightning(sweep: Path) -> None:
    code = (
        "import sys; from histolight.commands.compare import main; main(sys.argv[1:]);"
        "sys.exit(any(name in sys.modules for name in ('torch', 'lightning', 'hydra')))"
    )
    done = subprocess.run([sys.executable, "-c", code, f"runs={sweep}"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_an_evaluation_beside_the_runs_is_not_one_of_them(sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from histolight import runs

    evaluation = fake_run(sweep / "evaluation", 3.0)
    runs.update_metrics(evaluation, run=str(sweep / "0_resnet18"))
    assert main([f"runs={sweep}", "hydra.run.dir=out"]) == 0
    assert "2 runs in 2 rows" in capsys.readouterr().out
    with pytest.raises(RequestError, match="evaluation is an evaluation of a run, not a run"):
        main([f"runs={evaluation}", "hydra.run.dir=out2"])
