from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from histolight.cli import COMMANDS, main

ROOT = Path(__file__).resolve().parents[1]


def run(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        check=False,
    )


ASKED = [["--help"], [], ["train", "--help"], ["train", "--cfg", "job"], ["--version"], ["compare", "--help"]]


def test_asking_does_not_import_torch(tmp_path: Path) -> None:
    code = (
        "import sys; from histolight.cli import main\n"
        f"for arguments in {ASKED}:\n"
        "    print('asked:', arguments); assert main(arguments) == 0\n"
        "    assert not {'torch', 'pandas'} & sys.modules.keys(), arguments"
    )
    result = run("-c", code, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    answers = result.stdout.split("asked:")[1:]
    assert len(answers) == len(ASKED)
    assert all(len(answer.splitlines()) > 1 for answer in answers)
    assert not list(tmp_path.iterdir())


def test_the_configuration_can_be_printed_and_read_back(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--cfg", "job", "optimizer.lr=3e-4"]) == 0
    from omegaconf import OmegaConf

    printed = OmegaConf.create(capsys.readouterr().out)
    assert printed.optimizer.lr == 3e-4
    assert "hydra" not in printed


def test_help_lists_groups_and_keys(capsys: pytest.CaptureFixture[str]) -> None:
    main(["train", "--help"])
    text = capsys.readouterr().out
    assert "densenet121" in text
    assert "optimizer.weight_decay" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trian"], "trian is not a command: did you mean train?"),
        (["train", "optimizer.lrr=1"], "did you mean optimizer.lr"),
        (["train", "model.name=densnet121"], "did you mean densenet121"),
        (["train", "--cfgg"], "--cfgg is not an option"),
        (["train", "--epochs", "3"], "keys are KEY=VALUE: see histolight train --help"),
        (["train", "lr=1e-3"], "lr is not a key: did you mean optimizer.lr?"),
        (["train", "epochs=3"], "epochs is not a key: did you mean trainer.max_epochs?"),
        (["train", "data.limit=1e3"], "data.limit=1e3 is of the wrong type"),
        (["train", "data.root=tiles"], "data=synthetic has no folder, and data.root is given"),
        (["train", "--cfg", "jobb"], "--cfg takes job, hydra or all"),
    ],
)
def test_a_wrong_request_is_one_line_and_status_2(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert len(captured.err.strip().splitlines()) == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("command", sorted(COMMANDS.keys() - {"train"}))
def test_only_train_sweeps(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "-m", "seed=0,1"]) == 2
    assert f"-m sweeps over trainings: histolight {command} takes no -m" in capsys.readouterr().err


def test_it_runs_as_a_module_from_any_folder(tmp_path: Path) -> None:
    result = run("-m", "histolight", "train", "--cfg", "job", "data=kaggle", "data.root=a b", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "root: a b" in result.stdout


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("uv") is None, reason="uv builds the wheel")
def test_a_wheel_brings_its_configuration_and_its_templates(tmp_path: Path) -> None:
    """The wheel is built from the sdist, which therefore has all that it needs."""
    subprocess.run(["uv", "build", "--out-dir", str(tmp_path), str(ROOT)], check=True, capture_output=True)
    with tarfile.open(next(tmp_path.glob("*.tar.gz"))) as archive:
        packed = {name.partition("/")[2] for name in archive.getnames()}
    assert {"tests/conftest.py", "conf/config.yaml", "docs/api.md", "benchmarks/tables.py", "CITATION.cff"} <= packed
    wheel = next(tmp_path.glob("*.whl"))
    site = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
        assert not [name for name in archive.namelist() if name.startswith(("tests/", "conf/"))]
    code = (
        "from histolight import cli; from histolight.config import compose; print(compose.conf_directory()); "
        "cli.main(['train', '--cfg', 'job']); "
        "from histolight.reports import page; print(page.__file__, page.render_page('a title', [], [], ''))"
    )
    result = run("-c", code, cwd=tmp_path, PYTHONPATH=str(site))
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith(str(site / "histolight" / "conf"))
    assert "name: resnet18" in result.stdout
    assert str(site / "histolight" / "reports" / "page.py") in result.stdout
    assert "<h1>a title</h1>" in result.stdout
    assert "--accent:" in result.stdout


def test_a_request_that_is_seen_to_be_wrong_is_refused_before_pytorch_is_imported(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    requests = {
        "train data=kaggle data.root=nowhere": "data.root=nowhere is not a folder",
        "train data=kaggle data.root=empty": "train_labels.csv is missing",
        "train data=pcam data.root=empty": "lacks camelyonpatch_level_2_split_test_x.h5",
        "train data=folder data.root=empty data.groups=slides.csv": "slides.csv is not a file",
        "train data=folder data.root=empty data.split=split.csv": "split.csv is not a file",
        "train model.weights=weights.pth": "model.weights=weights.pth is not a file",
        "train run=nowhere": "nowhere is not a folder",
        "bench data=kaggle data.root=nowhere": "data.root=nowhere is not a folder",
        "explore data=kaggle data.root=nowhere": "data.root=nowhere is not a folder",
        "embed data=kaggle data.root=nowhere": "data.root=nowhere is not a folder",
        "explain run=nowhere": "nowhere is not a folder",
        "export run=nowhere": "nowhere is not a folder",
        "evaluate run=nowhere": "nowhere is not a folder",
        "predict run=nowhere data=kaggle data.root=empty": "nowhere is not a folder",
    }
    program = (
        "import sys; from histolight.cli import main\n"
        "print(*[main(words.split()) for words in sys.argv[1:]], 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program, *requests], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout.split() == ["2"] * len(requests) + ["False"]
    for line, message in zip(done.stderr.splitlines(), requests.values(), strict=True):
        assert message in line
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]
