"""Write tiles that overlap as Kaggle's and PCam's do: cut on a grid of 16 pixels from synthetic tissue; class folders.

python benchmarks/overlapping_tiles.py FOLDER
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from PIL import Image

from histolight.config.schema import CENTRE
from histolight.data.sources.synthetic import draw_tiles

SLIDES, REGIONS, MOST = 12, 4, 9  # regions of a slide, and the most tiles that are cut from one
SIZE, GRID, REGION = 96, 16, 208  # pixels


def main(folder: Path) -> None:
    random = np.random.default_rng(0)
    steps = (REGION - SIZE) // GRID + 1
    low = (SIZE - CENTRE) // 2
    for slide in range(SLIDES):
        pixels, tumour = draw_tiles(slide, range(REGIONS), REGION)
        for region in range(REGIONS):
            for place in random.choice(steps * steps, random.integers(1, MOST, endpoint=True), replace=False):
                y, x = (int(step) * GRID for step in divmod(place, steps))
                centre = tumour[region, y + low : y + low + CENTRE, x + low : x + low + CENTRE]
                target = folder / str(int(centre.any())) / f"{slide:02d}_{region}_{y:03d}_{x:03d}.png"
                target.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels[region, y : y + SIZE, x : x + SIZE]).save(target)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
