"""Make the pictures of docs/slides.md: a made slide with ink on it, scored by the colour of the tiles' centres.

python benchmarks/slides_pictures.py
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from scipy.special import logit
from tables import ROOT

sys.path.insert(0, str(ROOT / "tests"))
from made_slides import SIDE, Ellipse, MadeSlide, tumour_share

from histolight.heatmaps.score import Batches, SlideSettings, score_slides

WIDTH = 460  # pixels of a picture
MADE = MadeSlide(
    (6144, 4608),
    [Ellipse(2300, 2300, 1900, 1700), Ellipse(4900, 2700, 800, 1300)],
    [Ellipse(1500, 1900, 600, 500), Ellipse(2900, 2900, 500, 700), Ellipse(4900, 3200, 300, 250)],
)


def predict(path: Path, header: bytes, count: int, batches: Batches, title: str) -> np.ndarray:
    """Stand in for the networks; uncertain as they are, by a noise that is always the same."""
    path.write_bytes(header)
    shares = np.concatenate([tumour_share(tiles) for tiles in batches(0)])
    return (logit(shares) / 3 + np.random.default_rng(0).normal(0, 0.7, count)).astype(np.float32)


def main() -> None:
    rows = [
        np.concatenate([MADE.pixels(x, y, SIDE, SIDE) for x in range(0, MADE.size[0], SIDE)], axis=1)
        for y in range(0, MADE.size[1], SIDE)
    ]
    slide = Image.fromarray(np.concatenate(rows))
    draw = ImageDraw.Draw(slide)
    draw.line([(700, 600), (2300, 350), (3900, 500)], fill=(40, 60, 170), width=90)
    draw.line([(5700, 700), (5900, 2000)], fill=(30, 120, 60), width=90)
    settings = SlideSettings(MADE.mpp, 0.1, 0.972, 96, 32, "otsu", 0.5, 64)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        slide.save(folder / "made.png")
        score_slides([folder / "made.png"], settings, folder, predict, {})
        for kind in ("heatmap", "tissue"):
            with Image.open(folder / "slides" / "made" / f"{kind}.png") as picture:
                picture.thumbnail((WIDTH, 2 * WIDTH))
                target = ROOT / "docs" / "images" / f"slides_{kind}.jpg"
                picture.convert("RGB").save(target, quality=80, optimize=True)


if __name__ == "__main__":
    main()
