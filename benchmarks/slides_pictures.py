"""Make the pictures of docs/slides.md: a made slide with ink on it, and three annotated ones.

The first is scored by the colour of the tiles' centres; of the others it shows where the tiles lie.

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
from made_slides import SIDE, Ellipse, MadeSlide, annotate, tumour_share

from histolight import cli
from histolight.heatmaps.score import Batches, SlideSettings, score_slides

WIDTH, WIDE = 460, 920  # pixels of a picture
MADE = MadeSlide(
    (6144, 4608),
    [Ellipse(2300, 2300, 1900, 1700), Ellipse(4900, 2700, 800, 1300)],
    [Ellipse(1500, 1900, 600, 500), Ellipse(2900, 2900, 500, 700), Ellipse(4900, 3200, 300, 250)],
)

ANNOTATED = [
    MadeSlide((2400, 2000), [Ellipse(1150, 1000, 950, 800)], [Ellipse(900, 800, 350, 300)], seed=1),
    MadeSlide((2400, 2000), [Ellipse(1300, 1050, 800, 850)], [Ellipse(1500, 1300, 300, 420)], seed=2),
    MadeSlide((2400, 2000), [Ellipse(1200, 950, 1000, 700)], [Ellipse(1950, 950, 350, 260)], seed=3),
]


def predict(path: Path, header: bytes, count: int, batches: Batches, title: str) -> np.ndarray:
    """Stand in for the networks; uncertain as they are, by a noise that is always the same."""
    path.write_bytes(header)
    shares = np.concatenate([tumour_share(tiles) for tiles in batches(0)])
    return (logit(shares) / 3 + np.random.default_rng(0).normal(0, 0.7, count)).astype(np.float32)


def keep(picture: Path, name: str, width: int) -> None:
    """Keep a picture for the documentation, small."""
    with Image.open(picture) as image:
        image.thumbnail((width, 2 * width))
        image.convert("RGB").save(ROOT / "docs" / "images" / f"{name}.jpg", quality=80, optimize=True)


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
            keep(folder / "slides" / "made" / f"{kind}.png", f"slides_{kind}", WIDTH)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "slides").mkdir()
        for number, made in enumerate(ANNOTATED, 1):
            made.write(folder / "slides" / f"slide_{number}.tif", levels=1)
            annotate(folder / "slides" / f"slide_{number}.geojson", made.tumours[0])
        places = [f"data.root={folder}/slides", f"data.cache={folder}/cache", f"hydra.run.dir={folder}/page"]
        cli.main(["explore", "data=slides", "slides.tiles_per_slide=300", *places])
        keep(folder / "page" / "figures" / "places.png", "slides_annotated", WIDE)


if __name__ == "__main__":
    main()
