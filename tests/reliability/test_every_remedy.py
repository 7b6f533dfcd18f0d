"""No message of the package names a remedy that no test has tried, but for those that are listed with the reason."""

from __future__ import annotations

import importlib
import os
import re
import shutil
from pathlib import Path

import prose_remedies
import pytest
import remedies
from remedies import PACKAGE, messages
from untrained_runs import untrained_run

from histolight import cli
from histolight.config.compose import compose_config, typed
from histolight.config.request import training_request
from histolight.data.prepare import prepare
from histolight.errors import HistolightError
from histolight.models.classifier import Classifier
from histolight.ranking.runs import find_runs
from histolight.runs import update_metrics
from histolight.sweeps.sweep import plan_sweep
from histolight.training.fit import check_request

TEXTS = list(messages())
TRIED = remedies.TRIED + prose_remedies.TRIED
TRIED_BY = remedies.TRIED_BY | prose_remedies.TRIED_BY
UNTRIED = remedies.UNTRIED | prose_remedies.UNTRIED
PARTS = [part for part, *_ in TRIED] + list(TRIED_BY) + list(UNTRIED)


@pytest.fixture(scope="module")
def here(tile_folder: Path, small: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the requests name in capital letters."""
    here = tmp_path_factory.mktemp("remedies")
    shutil.copytree(tile_folder, here / "ABOVE" / "TILES")
    (here / "TILES").symlink_to(here / "ABOVE" / "TILES")
    for folder, name in (("0", "left"), ("1", "right")):
        shutil.copytree(tile_folder / folder, here / "NAMED" / name)
    ids = sorted(path.stem for path in tile_folder.rglob("*.png"))
    rows = [f"{one},{'north' if place % 4 < 2 else 'south'}" for place, one in enumerate(ids)]
    (here / "DOMAINS").write_text("\n".join(["id,centre", *rows]) + "\n")
    parts = [f"{one},{('train', 'val')[place % 4 < 2]}" for place, one in enumerate(ids)]
    (here / "PARTS").write_text("\n".join(["id,split", *parts]) + "\n")
    (here / "WRONG").write_text("\n".join(["id,split", *parts[1:], f"{ids[0]},learning"]) + "\n")
    (here / "GROUPS").write_text("\n".join(["id,slide", *(f"{one},{one[-2]}" for one in ids)]) + "\n")
    classes = {path.stem: path.parent.name for path in tile_folder.rglob("*.png")}
    (here / "LABELS").write_text("\n".join(["id,label", *(f"{one},{classes[one]}" for one in ids)]) + "\n")
    for patient in "ab":
        shutil.copytree(tile_folder / "0", here / "ONE" / patient / "0")
    untrained_run(here / "RUN", small)
    for name in ("RUN2", "RUN3", "o'hara"):
        shutil.copytree(here / "RUN", here / name)
    shutil.copytree(here / "RUN", here / "EVALUATION")
    update_metrics(here / "EVALUATION", run=str(here / "RUN"))
    return here


def ask(request: str) -> None:
    """Do what comes before the work of a request."""
    command, *words = request.split(" ")
    multirun = "-m" in words
    words = [word for word in words if word != "-m"]
    if command == "tiles":
        cache = [] if any(word.startswith("data.cache=") for word in words) else ["data.cache=cache"]
        prepare(typed(compose_config([*words, *cache])).data)
    elif command == "network":
        Classifier.from_config(typed(compose_config([*words, "model.weights=null"])), 1.0)
    elif command == "runs":
        find_runs(Path(words[0]))
    elif command == "train" and multirun:
        plan_sweep(words)
    elif multirun:
        cli._run([command, "-m", *words])
    elif command == "train":
        config, _, _ = training_request(words)
        check_request(config)
    else:
        module = importlib.import_module(f"histolight.commands.{command}")
        getattr(module, "parse_request", module.main)(words)


@pytest.mark.parametrize(("part", "request_", "remedy"), TRIED)
def test_the_remedy_that_a_message_names_works(
    part: str, request_: str, remedy: str, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(here)
    monkeypatch.setattr(os, "environ", dict(os.environ))
    with pytest.raises(HistolightError) as caught:
        ask(request_)
    pieces = [re.escape(piece) for piece in re.split(r"\{\}", part)]
    assert re.search(".*".join(pieces), str(caught.value))
    ask(remedy)
    shutil.rmtree("new", ignore_errors=True)


def test_every_message_that_names_a_remedy_is_tried_or_listed() -> None:
    assert len(TEXTS) > 250
    forgotten = [f"{path}: {text}" for path, text in TEXTS if not any(part in text for part in PARTS)]
    assert forgotten == []


@pytest.mark.parametrize("part", PARTS)
def test_what_is_listed_is_still_a_message(part: str) -> None:
    assert any(part in text for _, text in TEXTS)


@pytest.mark.parametrize("name", sorted(set(TRIED_BY.values())))
def test_the_tests_that_are_named_are_there(name: str) -> None:
    path, _, test = name.partition("::")
    assert re.search(rf"^def {test}\(", (PACKAGE.parent / "tests" / path).read_text(), re.MULTILINE)
