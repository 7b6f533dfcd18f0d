from __future__ import annotations

import gc
import logging
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from histolight.config.compose import compose_config, typed
from histolight.config.schema import Config

SHARED = Path(__file__).resolve().parents[2] / "shared"
os.environ.pop("UV_RUN_RECURSION_DEPTH", None)  # commands are printed as for a shell without uv, however pytest began
torch.set_num_threads(1)  # the tests' networks are small, and pytest-xdist runs a process on each core
SIZE = 32  # pixels of the tests' tiles


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not torch.cuda.is_available():
        for item in items:
            if "gpu" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="no CUDA device here"))


def pytest_collection_finish() -> None:
    """Let the garbage collector pass over what the imports made: each sweep has it look at everything, for 0.4 s."""
    gc.collect()
    gc.freeze()


def pytest_unconfigure() -> None:
    gc.unfreeze()


@pytest.fixture(autouse=True)
def no_handler_is_left() -> Iterator[None]:
    """Take away the root logger's handler, which a sweep's job log of Hydra binds to the stream of the test."""
    yield
    root = logging.getLogger()
    for handler in [handler for handler in root.handlers if type(handler) is logging.StreamHandler]:
        root.removeHandler(handler)


def _shared(*parts: str) -> Path:
    path = SHARED.joinpath(*parts)
    if not path.exists():
        pytest.skip(f"{'/'.join(parts)} is not on this machine")
    return path


@pytest.fixture(scope="session")
def real_tiles() -> Path:
    """Kaggle's layout with 4,000 real tiles."""
    return _shared("data", "histopathologic-cancer-detection")


@pytest.fixture(scope="session")
def real_parquet() -> Path:
    """PCam tiles as on the Hugging Face hub: 19,171 of its training part, 2,907 of its validation part."""
    return _shared("data", "pcam-parquet")


@pytest.fixture(scope="session")
def real_slides() -> Path:
    """A real SVS, a real OME-TIFF, and ``mosaics`` of lymph node."""
    return _shared("slides")


@pytest.fixture(scope="session")
def mobilenet_weights() -> Path:
    """ImageNet weights of torchvision's mobilenet_v2, without its head."""
    return _shared("weights", "mobilenet_v2-imagenet-backbone.pth")


@pytest.fixture(scope="session")
def timm_weights() -> Path:
    """ImageNet weights of timm's tf_efficientnet_lite0."""
    return _shared("weights", "tf_efficientnet_lite0-imagenet.pth")


@pytest.fixture(scope="session")
def tile_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Class folders with 60 tiles of 32x32: noise, with a darker centre in class 1. Easy, but not at once."""
    root = tmp_path_factory.mktemp("tiles")
    random = np.random.default_rng(0)
    for number in range(60):
        label = number % 2
        tile = random.normal(170, 40, (SIZE, SIZE, 3))
        tile[8:24, 8:24] -= 45 * label
        folder = root / str(label)
        folder.mkdir(exist_ok=True)
        Image.fromarray(tile.clip(0, 255).astype(np.uint8)).save(folder / f"tile_{number:03d}.png")
    return root


@pytest.fixture(scope="session")
def small(tile_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Overrides that shrink the real configuration to a training of a second or two."""
    return [
        "data=folder",
        f"data.root={tile_folder}",
        f"data.cache={tmp_path_factory.mktemp('cache')}",
        f"data.image_size={SIZE}",
        "data.batch_size=8",
        "model=resnet18",
        "model.name=shufflenet_v2_x0_5",  # 342,817 parameters: its checkpoints are small too
        "model.weights=null",
        "trainer=cpu",
        "trainer.max_epochs=2",
    ]


@pytest.fixture(scope="session")
def small_config(small: list[str]) -> Config:
    return typed(compose_config(small))


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Train and evaluate without figures and page, which take longer than a training of seconds."""
    monkeypatch.setattr("histolight.reports.measure.draw_part", lambda *_: {})
    monkeypatch.setattr("histolight.inference.evaluate.write_run_report", lambda _: None)
    monkeypatch.setattr("histolight.training.fit.write_run_report", lambda _: None)
