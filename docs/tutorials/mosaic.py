"""Lay the synthetic tiles of a slide that a run has not seen side by side, tumour to the right, as one picture.

python docs/tutorials/mosaic.py RUN FOLDER
"""

from __future__ import annotations

import sys
from pathlib import Path

from PIL import Image

import histolight
from histolight.runs import read_splits


def main(run: Path, folder: Path) -> None:
    """Write ``FOLDER/mosaic.png``."""
    tiles = histolight.load_tiles()
    parts = tiles.table["id"].map(read_splits(run)["split"])
    slides = tiles.table[parts == "test"].groupby("group")
    _, slide = min(slides, key=lambda item: abs(item[1]["label"].mean() - 0.4))
    side = int(len(slide) ** 0.5)
    rows = slide.sort_values("label")["row"].to_numpy()[: side * side]
    pixels = tiles.pack.tiles.gather(rows).reshape(side, side, 96, 96, 3)
    folder.mkdir(parents=True, exist_ok=True)
    mosaic = pixels.transpose(1, 2, 0, 3, 4).reshape(side * 96, side * 96, 3)  # columns from left to right
    Image.fromarray(mosaic).save(folder / "mosaic.png")
    print(f"{folder / 'mosaic.png'}: {side * side} tiles of the slide {slide['group'].iloc[0]}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
