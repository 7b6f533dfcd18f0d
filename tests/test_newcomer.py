"""CONTRIBUTING's map: a kind of data, an augmentation and a network are each added by one file and its YAML."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
[SEPIA] = re.findall(r"(?ms)^```python\n(.*?)^```", (REPOSITORY / "CONTRIBUTING.md").read_text())
ADDED = {
    "conf/data/stripes.yaml": "source: stripes\n",
    "histolight/data/sources/stripes.py": """
import numpy as np
import pandas as pd

from histolight.data.sources import Kind
from histolight.data.table import Source, fingerprint


def load(config):
    labels = np.arange(60, dtype=np.int8) % 2
    tiles = np.random.default_rng(0).integers(0, 99, (60, config.image_size, config.image_size, 3), dtype=np.uint8)
    tiles[labels == 1, ::2] += 100
    table = pd.DataFrame({"id": [f"{row:02d}" for row in range(60)], "label": labels, "group": None, "split": None})
    table = table.assign(row=np.arange(60))
    return Source(table, "stripes", fingerprint("stripes", config.image_size, []), lambda row: tiles[row])


KIND = Kind(load, needs_root=False, artificial=True)
""",
    "conf/augment/sepia.yaml": "geometry: flips\nsepia: 0.5\n",
    "histolight/augment/sepia.py": SEPIA.replace("    brown =", '    print("sepia", sepia, len(tiles))\n    brown ='),
    "conf/model/tiny.yaml": "name: tiny\nweights: null\n",
    "histolight/models/backbones/tiny.py": """
from torch import nn

from histolight.models.backbones.family import IMAGENET, Backbone, Family


class Tiny(Family):
    pretrained = None

    def names(self, name):
        return ["tiny"]

    def build(self, config, image_size):
        network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 1))
        return Backbone(network, "4", *IMAGENET, pooled="2")


FAMILY = Tiny()
""",
}


def histolight(place: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "histolight", *words],
        cwd=place,
        env={**os.environ, "PYTHONPATH": str(place), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("checkout")
    for folder in ("histolight", "conf"):
        shutil.copytree(REPOSITORY / folder, place / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for path, text in ADDED.items():
        (place / path).write_text(text.lstrip())
    return place


@pytest.mark.slow
def test_a_source_an_augmentation_and_a_network_are_each_added_in_one_place(copy: Path) -> None:
    words = ["data=stripes", "augment=sepia", "augment.sepia=0.25", "model=tiny", "model.pooling=centre", "trainer=cpu"]
    words += ["trainer.max_epochs=1", "data.image_size=32", "data.cache=cache", "data.batch_size=16"]
    trained = histolight(copy, "train", *words, "hydra.run.dir=run")
    assert trained.returncode == 0, trained.stderr
    assert trained.stdout.count("sepia 0.25 16") == 3
    assert json.loads((copy / "run/metrics.json").read_text())["tiles"]["val"] == {"0": 6, "1": 6}
    assert "name: tiny" in (copy / "run/config.yaml").read_text()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("augment.sepia=2", "augment.sepia=2.0 is out of range: it must be at least 0 and at most 1"),
        ("data.source=strips", "data.source=strips is not known: did you mean stripes?"),
        ("model.name=tiney", "model.name=tiney is not known: did you mean tiny"),
        ("augment.sepai=1", "augment.sepai is not a key: did you mean augment.sepia"),
    ],
)
def test_what_was_added_is_checked_and_named(copy: Path, word: str, message: str) -> None:
    refused = histolight(copy, "train", "model=tiny", "trainer=cpu", word, "hydra.run.dir=refused")
    assert refused.returncode == 2
    assert message in refused.stderr
