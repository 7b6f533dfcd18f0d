"""Take the pictures of pages in the documentation: the top of a page, as headless Chromium shows it.

python benchmarks/pictures.py outputs/tour/run/report.html docs/images/run.png
python benchmarks/pictures.py outputs/tour/comparison/report.html docs/images/comparison.png 1000

A third argument is the window's height, a fourth the picture's width, a fifth the first row of the page that it shows.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

WIDTH, HEIGHT = 1280, 1400  # of the window in pixels
COLOURS = 128  # of the picture that is kept, so that it stays small
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--hide-scrollbars",
]


def main(page: Path, picture: Path, height: int = HEIGHT, width: int = WIDTH, top: int = 0) -> int:
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        raise SystemExit("there is no Chromium here: install it")
    with tempfile.TemporaryDirectory() as folder:
        shot = Path(folder, "shot.png")
        window = [f"--window-size={WIDTH},{height}", f"--screenshot={shot}", f"--user-data-dir={folder}/profile"]
        subprocess.run(
            [browser, *FLAGS, *window, page.resolve().as_uri()], check=True, capture_output=True, timeout=120
        )
        with Image.open(shot) as whole:
            image = whole.crop((0, top, WIDTH, height))
            image.thumbnail((width, height))
            image.convert("RGB").quantize(COLOURS).save(picture, optimize=True)
    print(f"{picture}: {picture.stat().st_size / 1000:.0f} kB")
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2]), *map(int, sys.argv[3:])))
