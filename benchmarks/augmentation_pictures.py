"""Draw docs/images/augmentation.png: what each key of conf/augment and data.stain does to synthetic tiles.

python benchmarks/augmentation_pictures.py
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image

from histolight.config.compose import compose_config, typed
from histolight.config.schema import AugmentConfig, DataConfig
from histolight.data.datamodule import augmented, to_floats
from histolight.data.loader import Batch
from histolight.data.sources import load_source

PATH = Path(__file__).resolve().parent.parent / "docs" / "images" / "augmentation.png"
ROWS = (105, 655, 1210, 1432)  # tiles of four slides
CENTRE = 32


def main() -> int:
    read_tile = load_source(DataConfig()).read_tile
    pixels = torch.from_numpy(np.stack([read_tile(row) for row in ROWS]))
    count, size = pixels.shape[:2]
    batch = Batch(pixels, torch.arange(count).remainder(2).float(), torch.arange(count), seed=5)
    strong = typed(compose_config(["augment=strong"])).augment
    strengths = {key: value for key, value in vars(strong).items() if value} | {"cutmix": 1.0, "mixup": 1.0}
    shown = [("as they are", to_floats(pixels, "none"), batch.labels)]
    for key, value in strengths.items():
        changed = augmented(batch, AugmentConfig(**{key: value}), "none")
        shown.append((f"{key}={value}", changed.tiles, changed.labels))
    shown.append(("augment=strong", augmented(batch, strong, "none").tiles, batch.labels))
    shown += [(f"data.stain={method}", to_floats(pixels, method), batch.labels) for method in ("macenko", "reinhard")]

    figure = Figure(figsize=(count * 0.85 + 1.6, len(shown) * 0.85), dpi=72)
    axes = figure.subplots(len(shown), count, gridspec_kw={"wspace": 0.04, "hspace": 0.04})
    for row, (name, tiles, labels) in zip(axes, shown, strict=True):
        row[0].set_ylabel(name, rotation=0, ha="right", va="center", fontsize=9)
        for cell, tile, label in zip(row, tiles, labels.tolist(), strict=True):
            cell.imshow(tile.permute(1, 2, 0).numpy())
            corner = (size - CENTRE) / 2 - 0.5
            cell.add_patch(Rectangle((corner, corner), CENTRE, CENTRE, fill=False, edgecolor="white", linewidth=0.5))
            cell.set(xticks=[], yticks=[])
            if label not in (0, 1):
                cell.text(3, 90, f"{label:.2f}", fontsize=7, bbox={"facecolor": "white", "pad": 1, "linewidth": 0})
    figure.subplots_adjust(left=1.55 / figure.get_figwidth(), right=0.995, bottom=0.003, top=0.997)
    PATH.parent.mkdir(exist_ok=True)
    figure.savefig(PATH)
    with Image.open(PATH) as image:  # a palette takes a third of the bytes
        image.convert("RGB").quantize(80, dither=Image.Dither.NONE).save(PATH, optimize=True)
    print(f"{PATH} ({PATH.stat().st_size / 1e3:.0f} kB)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
