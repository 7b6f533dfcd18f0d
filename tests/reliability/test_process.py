"""The process of a caller: each function of the Python API gives it back as it was, however the function ends."""

from __future__ import annotations

import contextlib
import logging
import os
import random
import signal
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.version import VersionBase
from odd_names import overrides, write_tiles
from omegaconf import OmegaConf
from omegaconf.basecontainer import BaseContainer
from PIL import ImageFile

import histolight
from histolight.errors import DataError, HistolightError, InterruptionError, RequestError
from histolight.models.classifier import Classifier
from histolight.process import unchanged

CASE_18 = """
from hydra import compose, initialize_config_dir
import histolight
initialize_config_dir("{folder}/mine", version_base=None)
before = compose("config")
tiles = histolight.load_tiles({overrides})
assert compose("config") == before and len(tiles.table) == 60
"""
CASE_18_MAIN = """
import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
import histolight

@hydra.main(config_path="mine", config_name="config", version_base="1.4")
def main(config):
    before = HydraConfig.get()
    assert GlobalHydra.instance().is_initialized()
    histolight.load_tiles({overrides})
    assert GlobalHydra.instance().is_initialized() and HydraConfig.get() is before
    assert hydra.compose("config").mine == 1
    print("the end")

main()
"""


def picture() -> dict[str, Any]:
    """What a caller could miss: all of it comparable."""
    loggers = [logging.root, *(it for it in logging.root.manager.loggerDict.values() if isinstance(it, logging.Logger))]
    return {
        "loggers": {
            it.name: (it.level, it.disabled, it.propagate, list(it.handlers), list(it.filters)) for it in loggers
        },
        "handlers": {id(h): (h.level, h.formatter, list(h.filters)) for it in loggers for h in it.handlers},
        "logging disabled": logging.root.manager.disable,
        "warnings": (list(warnings.filters), warnings.showwarning),
        "hydra": GlobalHydra.instance().hydra,
        "hydra's job": HydraConfig.instance().cfg,
        "hydra's version": VersionBase.instance().getbase(),
        "resolvers": set(BaseContainer._resolvers),
        "environment": dict(os.environ),
        "folder": os.getcwd(),
        "signals": {number: signal.getsignal(number) for number in signal.valid_signals()},
        "threads": set(threading.enumerate()),
        "random": random.getstate(),
        "numpy": str(np.random.get_state()),
        "torch": torch.get_rng_state().tolist(),
        "flags": (
            torch.get_float32_matmul_precision(),
            torch.backends.cudnn.benchmark,
            torch.backends.cudnn.deterministic,
            torch.backends.cudnn.enabled,
            torch.backends.cuda.matmul.allow_tf32,
            torch.are_deterministic_algorithms_enabled(),
            torch.is_deterministic_algorithms_warn_only_enabled(),
            torch.get_default_dtype(),
            torch.get_num_threads(),
            torch.is_grad_enabled(),
        ),
        "matplotlib": {name: dict.__getitem__(matplotlib.rcParams, name) for name in matplotlib.rcParams},
        "numpy's errors": np.geterr(),
        "streams": (sys.stdout, sys.stderr, sys.excepthook, threading.excepthook),
    }


class Lines(logging.Handler):
    """Collects records, and notes when it is closed."""

    def __init__(self) -> None:
        super().__init__()
        self.closed = False

    def emit(self, record: logging.LogRecord) -> None:
        """Take no notice."""

    def close(self) -> None:
        """Note it."""
        self.closed = True
        super().close()


@pytest.fixture
def callers_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Lines]:
    """A caller who has set everything to something of his own."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "config.yaml").write_text("mine: 1\n")
    handler = Lines()
    logging.getLogger("lightning.pytorch").setLevel(logging.INFO)
    logging.getLogger().addHandler(handler)
    before = torch.get_float32_matmul_precision(), GlobalHydra.instance().hydra
    torch.set_float32_matmul_precision("medium")
    torch.backends.cudnn.benchmark = False
    monkeypatch.setenv("PL_GLOBAL_SEED", "77")
    earlier = signal.signal(signal.SIGTERM, lambda *_: None)
    with matplotlib.rc_context({"figure.dpi": 77}), initialize_config_dir(str(tmp_path / "mine"), version_base="1.4"):
        yield handler
    signal.signal(signal.SIGTERM, earlier)
    torch.set_float32_matmul_precision(before[0])
    logging.getLogger().removeHandler(handler)
    GlobalHydra.instance().hydra = before[1]


def failing(self: Classifier, *arguments: Any) -> Any:
    raise ValueError("a bug")


def interrupted(self: Classifier, *arguments: Any) -> Any:
    raise KeyboardInterrupt


def functions(place: Path) -> dict[str, Callable[[], Any]]:
    data = overrides(place / "tiles", place / "cache")
    short = [*data[:-1], "trainer.max_epochs=1", "data.test_fraction=0", "trainer.deterministic=true"]
    return {
        "train": lambda: histolight.train([*short, "hydra.run.dir=run"]),
        "sweep": lambda: histolight.sweep([*short, "seed=1,2", "name=X"]),
        "compare": lambda: histolight.compare(place / "run"),
        "load_run": lambda: histolight.load_run(place / "run"),
        "classifier": lambda: histolight.load_run(place / "run").classifier(),
        "predictions": lambda: histolight.load_run(place / "run").predictions(),
        "config": lambda: histolight.load_run(place / "run").config,
        "load_tiles": lambda: histolight.load_tiles([*data, "data.cache=new"]),
        "embed": lambda: histolight.embed(
            [*data, f"model.weights={place / 'run' / 'checkpoints' / 'best.ckpt'}"], directory="features"
        ),
        "evaluate": lambda: histolight.evaluate(place / "run", directory="evaluation"),
        "predict": lambda: histolight.predict(
            place / "run", ["data=folder", f"data.root={place / 'tiles' / '0'}"], directory="prediction"
        ),
        "explain": lambda: histolight.explain(place / "run", tiles=1, directory="explanation"),
        "export": lambda: histolight.export(place / "run", directory="export"),
    }


def test_every_function_of_the_api_is_looked_at(place: Path) -> None:
    assert {name for name in histolight.__all__ if name[0].islower()} <= set(functions(place))


@pytest.mark.parametrize(
    "name",
    [
        "train",
        "sweep",
        "compare",
        "load_run",
        "classifier",
        "predictions",
        "config",
        "load_tiles",
        "embed",
        "evaluate",
        "predict",
        "explain",
        pytest.param("export", marks=pytest.mark.slow),
    ],
)
def test_the_process_is_as_it_was(name: str, place: Path, callers_settings: Lines) -> None:
    before = picture()
    functions(place)[name]()
    after = picture()
    after["loggers"] = {logger: after["loggers"][logger] for logger in before["loggers"]}  # imports make more
    for what, content in before.items():
        assert after[what] == content, what
    assert not callers_settings.closed
    assert compose("config") == OmegaConf.create({"mine": 1})


@pytest.mark.parametrize(
    ("name", "fault", "error"),
    [
        ("train", failing, ValueError),
        ("train", interrupted, InterruptionError),
        ("sweep", interrupted, InterruptionError),
    ],
)
def test_the_process_is_as_it_was_after_a_fault(
    name: str, fault: Any, error: type[Exception], place: Path, callers_settings: Lines, monkeypatch
) -> None:
    monkeypatch.setattr(Classifier, "training_step", fault)
    before = picture()
    with pytest.raises(error):
        functions(place)[name]()
    after = picture()
    after["loggers"] = {logger: after["loggers"][logger] for logger in before["loggers"]}
    for what, content in before.items():
        assert after[what] == content, what


@pytest.mark.parametrize("request_", [["model=no"], ["data=folder", "data.root=/nowhere"], ["like=/nowhere"]])
def test_the_process_is_as_it_was_after_a_wrong_request(request_: list[str], callers_settings: Lines) -> None:
    before = picture()
    with pytest.raises(RequestError):
        histolight.train(request_)
    for call in (histolight.load_tiles, histolight.sweep):  # to which not all of these requests are wrong
        with contextlib.suppress(HistolightError):
            call(request_ if call is histolight.load_tiles else [*request_, "seed=1,2"])
    after = picture()
    after["loggers"] = {logger: after["loggers"][logger] for logger in before["loggers"]}
    for what, content in before.items():
        assert after[what] == content, what


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_what_a_caller_has_set_in_pytorch_does_not_reach_a_call(mode: Callable[[], Any]) -> None:
    with mode(), torch.device("meta"), torch.autocast("cpu", torch.bfloat16):
        torch.set_default_dtype(torch.float64)
        try:
            with unchanged():
                weights = torch.ones(2, 2, requires_grad=True)
                product = weights @ weights
                product.sum().backward()
                assert weights.grad is not None
                assert weights.grad.tolist() == [[4.0, 4.0], [4.0, 4.0]]
                assert {weights.dtype, product.dtype, weights.grad.dtype} == {torch.float32}
            after = torch.ones(2, 2)
            assert (after.dtype, after.device.type, after.requires_grad) == (torch.float64, "meta", False)
            assert torch.is_autocast_enabled("cpu")
            assert not torch.is_grad_enabled()
        finally:
            torch.set_default_dtype(torch.float32)


def test_a_caller_who_lets_pillow_fill_up_images_gets_no_cut_tiles(tmp_path: Path, monkeypatch) -> None:
    data = overrides(write_tiles(tmp_path / "tiles", count=8), tmp_path / "cache")
    cut = next((tmp_path / "tiles").rglob("*.png"))
    cut.write_bytes(cut.read_bytes()[:-400])
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    with pytest.raises(DataError, match="damaged image: 1"):
        histolight.load_tiles(data)
    assert ImageFile.LOAD_TRUNCATED_IMAGES


def test_a_caller_without_streams_is_served(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", None)
    with unchanged():
        print("nowhere", file=sys.stderr)
        assert not sys.stdout.isatty()
    assert sys.stdout is None
    assert sys.stderr is None


@pytest.mark.skipif(os.name == "nt", reason="needs a shell that closes streams")
def test_a_command_without_streams_ends_with_its_status(tmp_path: Path) -> None:
    """What it opens first would be file 1 and 2, into which libraries print."""
    words = f"'{sys.executable}' -m histolight train data=folder data.root=nowhere"
    assert subprocess.run(["sh", "-c", f"{words} >&- 2>&-"], cwd=tmp_path, check=False).returncode == 2
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("script", [CASE_18, CASE_18_MAIN])
def test_a_caller_with_hydra_of_its_own(script: str, place: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "config.yaml").write_text("mine: 1\n")
    data = overrides(place / "tiles", tmp_path / "cache")
    (tmp_path / "nb.py").write_text(script.format(folder=tmp_path, overrides=data))
    done = subprocess.run([sys.executable, "nb.py"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert ("the end" in done.stdout) == ("main()" in script)
