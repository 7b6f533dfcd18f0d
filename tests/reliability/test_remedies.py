"""Every remedy that a message names is tried in the situation that prints it, and works."""

from __future__ import annotations

import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from histolight import cli, runs
from histolight.config.compose import compose_config, saved_config, to_yaml
from histolight.config.request import training_request
from histolight.errors import RequestError
from histolight.sweeps.sweep import plan_sweep

Said = Callable[..., str]


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Said:
    """Run a command that must be refused, in an empty working directory, and return its line."""
    monkeypatch.chdir(tmp_path)

    def refused(*words: str) -> str:
        capsys.readouterr()
        assert cli.main(list(words)) == 2
        [line] = [line for line in capsys.readouterr().err.splitlines() if line.startswith("histolight: ")]
        return line

    return refused


@pytest.mark.slow
def test_a_sweep_that_cannot_be_written_names_the_folder_of_a_sweep(said: Said, small: list[str], undrawn) -> None:
    Path("outputs").write_text("a file in the place of the folder")
    request = ["train", "-m", *small, "trainer.max_epochs=1", "seed=0,1", "name=s"]
    line = said(*request)
    assert "(Not a directory): choose another folder with hydra.sweep.dir=FOLDER" in line
    assert "that of a sweep is hydra.sweep.dir=FOLDER" in said(*request, "hydra.run.dir=ok")
    assert cli.main([*request, "hydra.sweep.dir=ok"]) == 0
    assert len(list(Path("ok").glob("*/report.html")) + list(Path("ok").glob("*/metrics.json"))) >= 2


def test_a_run_that_cannot_be_written_names_the_folder_of_a_run(said: Said, small: list[str]) -> None:
    Path("outputs").write_text("a file in the place of the folder")
    assert "(Not a directory): choose another folder with hydra.run.dir=FOLDER" in said("train", *small)
    assert "that of a run is hydra.run.dir=FOLDER" in said("train", *small, "hydra.sweep.dir=ok")
    assert training_request([*small, "hydra.run.dir=ok"])[1] == Path("ok")


def test_a_foreign_run_that_cannot_be_continued_is_a_pattern_for_a_new_one(said: Said, place: Path) -> None:
    shutil.copytree(place / "run", "theirs")
    runs.update_metrics(Path("theirs"), status="interrupted")
    Path("theirs", ".histolight.lock").unlink(missing_ok=True)
    Path("theirs", ".histolight.lock").mkdir()  # stands for a folder in which no file can be made
    line = said("train", "run=theirs")
    found = re.search(r"theirs can't be written \(.*\): make it writable for you, or use (.*)", line)
    assert found is not None
    remedy = [word.replace("FOLDER", "ok") for word in shlex.split(found[1])]
    assert remedy == ["like=theirs", "hydra.run.dir=ok"]
    config, directory, resume = training_request(remedy)
    assert (config.data.root, directory, resume) == (str(place / "tiles"), Path("ok"), False)


def test_a_run_whose_tiles_are_others_now_is_a_pattern_for_a_new_one(said: Said, place: Path) -> None:
    shutil.copytree(place / "run", "cut")
    runs.update_metrics(Path("cut"), status="interrupted", data_fingerprint="of other tiles")
    found = re.search(r"restore them, or start a new run with (like=\S+)$", said("train", "run=cut"))
    assert found is not None
    config, directory, resume = training_request([found[1], "hydra.run.dir=new"])
    assert (config.data.root, directory, resume) == (str(place / "tiles"), Path("new"), False)


@pytest.mark.usefixtures("undrawn")
def test_an_interrupted_run_whose_tiles_moved_goes_on_where_they_are(said: Said, place: Path) -> None:
    shutil.copytree(place / "run", "cut")
    runs.update_metrics(Path("cut"), status="interrupted")
    config = saved_config(Path("cut"))
    Path("cut", "config.yaml").write_text(to_yaml(config).replace(f"root: {config.data.root}", "root: /gone"))
    assert "data.root=/gone is not a folder; give the one that holds the tiles: data.root=" in said("train", "run=cut")
    tiles = shutil.copytree(place / "tiles", "moved <tiles>")
    assert cli.main(["train", "run=cut", f"data.root={tiles}"]) == 0
    assert saved_config(Path("cut")).data.root == str(Path(tiles).absolute())
    assert Path("cut/predictions/val.csv").read_bytes() == (place / "run/predictions/val.csv").read_bytes()
    runs.update_metrics(Path("cut"), status="interrupted")
    next(Path(tiles).rglob("*.png")).unlink()
    assert "are no longer those that cut began with" in said("train", "run=cut")


def test_a_run_whose_epochs_were_edited_is_a_pattern_for_a_new_one(said: Said, place: Path) -> None:
    """The schedule of a run that has begun can't be stretched: PyTorch's error would be a traceback after an epoch."""
    shutil.copytree(place / "run", "longer")
    runs.update_metrics(Path("longer"), status="interrupted")
    config = Path("longer", "config.yaml").read_text()
    Path("longer", "config.yaml").write_text(config.replace("max_epochs: 2", "max_epochs: 6"))
    line = said("train", "run=longer")
    assert "was begun with a schedule of 2 epochs, and its config.yaml asks for 6: write 2 there again, or" in line
    words = [*line.rpartition("start a new run with ")[2].split(), "hydra.run.dir=new"]
    assert training_request(words)[0].trainer.max_epochs == 6
    Path("longer", "config.yaml").write_text(config)
    assert cli.main(["train", "run=longer"]) == 0


def test_a_run_that_its_configuration_ended_has_a_folder_that_can_be_cleared(
    said: Said, small: list[str], undrawn
) -> None:
    wrong = [*small, "hydra.run.dir=r", "trainer.max_epochs=1", "data.batch_size=48"]  # all training tiles: one step
    assert "one_cycle with scheduler.pct_start=0.3 can't rise and fall over 1 step:" in said("train", *wrong)
    assert "or scheduler=constant): delete it, choose another hydra.run.dir, or" in said(
        "train", *small, "hydra.run.dir=r"
    )
    line = said("explain", "run=r")
    assert (
        "once that is mended continue it with histolight train run=r, or change its configuration with like=r" in line
    )
    assert cli.main(["train", "like=r", "scheduler=constant", "hydra.run.dir=other"]) == 0
    shutil.rmtree("r")
    assert training_request([*small, "hydra.run.dir=r"])[1] == Path("r")


def test_a_path_with_a_comma_is_quoted_as_the_message_says() -> None:
    with pytest.raises(RequestError) as caught:
        compose_config(["data=folder", "data.root=/a,b (1)"])
    found = re.search(r"if the comma is part of it, (.*)$", str(caught.value))
    assert found is not None
    assert compose_config(["data=folder", *shlex.split(found[1])]).data.root == "/a,b (1)"


def test_several_values_are_swept_as_the_message_says() -> None:
    with pytest.raises(RequestError, match="sweep over them with `histolight train -m`"):
        compose_config(["optimizer.lr=1e-4,3e-4"])
    assert len(plan_sweep(["optimizer.lr=1e-4,3e-4"]).configs) == 2


@pytest.mark.parametrize(
    ("word", "remedy"),
    [
        ("optimizer.lr=0,001", r"a decimal fraction has a point, (optimizer.lr=0\.001)$"),
        ("optimizer.lr=[1e-4, 3e-4]", r"swept with histolight train -m (optimizer.lr=1e-4,3e-4)$"),
        (
            "trainer.devices=0,1",
            "with `histolight train -m`, in Python histolight.sweep()$",
        ),  # no text with a comma is one of its choices
    ],
)
def test_a_number_with_a_comma_and_a_list_name_what_can_be_meant(word: str, remedy: str) -> None:
    with pytest.raises(RequestError) as caught:
        compose_config([word])
    found = re.search(remedy, str(caught.value))
    assert found is not None
    if found[1]:
        assert len(plan_sweep([found[1]]).configs) == 1 + found[1].count(",")


@pytest.mark.parametrize(
    "words",
    [["optimizer.lr=1e-4,", "3e-4"], ["model=resnet18,", "resnet34,", "densenet121"], ["model.name=vgg11,", "vgg13"]],
)
def test_values_with_a_space_behind_the_comma_are_joined_as_the_message_says(words: list[str]) -> None:
    for compose in (compose_config, plan_sweep):
        with pytest.raises(RequestError) as caught:
            compose(words)
        found = re.search(r"histolight train -m (.*)$", str(caught.value))
        assert found is not None
        assert len(plan_sweep(shlex.split(found[1])).configs) == len(words)


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (["optimizer.lr", "=", "1e-4"], "optimizer.lr=1e-4"),
        (["optimizer.lr", "=1e-4", "seed=3"], "optimizer.lr=1e-4"),
        (["optimizer.lr = 1e-4"], "optimizer.lr=1e-4"),
        (["data=folder", "data.root = my tiles"], "data.root=my tiles"),
    ],
)
def test_spaces_about_an_equals_sign_are_left_out_as_the_message_says(words: list[str], meant: str) -> None:
    with pytest.raises(RequestError) as caught:
        compose_config(words)
    found = re.search(r"write it without spaces, (.*)$", str(caught.value))
    assert found is not None
    assert shlex.split(found[1]) == [meant]
    compose_config([meant])


@pytest.mark.parametrize("word", ["model.kwargs.x=a(b", "model.kwargs.x=it's", 'model.kwargs.x=a"(b'])
def test_special_characters_are_quoted_as_the_message_says(word: str) -> None:
    with pytest.raises(RequestError) as caught:
        compose_config([word])
    found = re.search(r"quote its special characters, (.*)$", str(caught.value))
    assert found is not None
    assert compose_config(shlex.split(found[1])).model.kwargs.x == word.partition("=")[2]


def test_what_there_is_of_hydra_is_shown_as_the_message_says(said: Said, capsys: pytest.CaptureFixture[str]) -> None:
    assert "histolight train --cfg hydra shows what there is" in said("train", "hydra.run.dirr=x")
    assert cli.main(["train", "--cfg", "hydra"]) == 0
    assert "run:\n  dir: " in capsys.readouterr().out
