"""Tiles, slides and runs with names that a reader may trip over."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

SIZE = 32
SCRIPT = "<script>alert(1)</script>"  # of a tile: script>.png in the folder <script>alert(1)<
QUOTE = '"onload="alert(1)'
NAMES = ["NA", "null", "nan", "None", "=1+1", "@SUM(A1)", SCRIPT, QUOTE, "a&b"]


def write_tiles(root: Path, count: int = 60, seed: int = 0) -> Path:
    """Class folders of noise with a darker centre in class 1; the first tiles of each class have the odd names."""
    random = np.random.default_rng(seed)
    for number in range(count):
        label, place = number % 2, number // 2
        tile = random.normal(170, 40, (SIZE, SIZE, 3))
        tile[8:24, 8:24] -= 45 * label
        name = f"{NAMES[place]}{'b' * label}" if place < len(NAMES) else f"tile_{number:03d}"
        path = root / str(label) / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(tile.clip(0, 255).astype(np.uint8)).save(path)
    return root


def overrides(root: Path, cache: Path) -> list[str]:
    return [
        *("data=folder", f"data.root={root}", f"data.cache={cache}", f"data.image_size={SIZE}", "data.batch_size=8"),
        *("data.test_fraction=0.2", "model.name=shufflenet_v2_x0_5", "model.weights=null", "trainer=cpu"),
        *("trainer.max_epochs=2", "logger=csv"),
    ]


def write_slides(path: Path, root: Path) -> Path:
    """Slides whose names are as odd as those of the tiles."""
    ids = sorted("/".join(file.relative_to(root).parts[1:]).removesuffix(".png") for file in root.rglob("*.png"))
    slides = [NAMES[place % len(NAMES)] + "x" for place in range(len(ids))]
    pd.DataFrame({"id": ids, "slide": slides}).to_csv(path, index=False)
    return path
