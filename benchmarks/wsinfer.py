"""Export a run for WSInfer, let WSInfer score a slide, and compare with the run itself and with `histolight predict`.

    python benchmarks/wsinfer.py RUN SVS WSINFER/bin/python > benchmarks/wsinfer.csv

Printed: the largest difference in score from the run's own network on the same pixels, and the correlation with the
nearest tile of `histolight predict`, which lies up to half a stride away.

WSInfer is installed beside, in an environment of its own: ``uv venv WSINFER && uv pip install --python WSINFER
wsinfer==0.6.1 "zarr<3" "tiffslide<3" "tifffile<2025" openslide-python openslide-bin``. Its functions are called, not
its command, which asks the network for its list of models before it reads its arguments.
"""

from __future__ import annotations

import argparse
import contextlib
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import openslide
import pandas as pd
import torch
from PIL import Image
from tables import csv_printer

from histolight.commands.export import main as export
from histolight.commands.predict import main as predict
from histolight.data.datamodule import to_floats
from histolight.inference.networks import load_classifier

WSINFER = """\
import json, sys
from wsinfer.modellib.models import LocalModelTorchScript
from wsinfer.modellib.run_inference import run_inference
from wsinfer.patchlib import segment_and_patch_directory_of_slides
from wsinfer_zoo.client import ModelConfiguration

model, slides, results = sys.argv[1:]
config = ModelConfiguration.from_dict(json.load(open(f"{model}/config.json")))
segment_and_patch_directory_of_slides(
    wsi_dir=slides, save_dir=results, patch_size_px=config.patch_size_pixels, patch_spacing_um_px=config.spacing_um_px,
    thumbsize=(2048, 2048), median_filter_size=7, binary_threshold=7, closing_kernel_size=6,
    min_object_size_um2=200**2, min_hole_size_um2=190**2, overlap=0.0,
)
print(run_inference(slides, results, LocalModelTorchScript(config, f"{model}/torchscript_model.pt"), num_workers=0))
"""


def own_scores(run: Path, slide: Path, places: pd.DataFrame) -> np.ndarray:
    """Score the places that WSInfer chose with the run's own network, on tiles cut and resized as WSInfer does."""
    classifier = load_classifier(run)
    size = classifier.image_size
    with openslide.OpenSlide(str(slide)) as file:
        tiles = [
            file.read_region((place.minx, place.miny), 0, (place.width, place.height))
            .convert("RGB")
            .resize((size, size), Image.Resampling.BILINEAR)
            for place in places.itertuples()
        ]
    with torch.inference_mode():
        return classifier(to_floats(torch.from_numpy(np.stack(tiles)), "none")).sigmoid().numpy()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("slide", type=Path)
    parser.add_argument("python", help="the Python of an environment with wsinfer")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, contextlib.redirect_stdout(sys.stderr):
        folder = Path(name)
        (folder / "slides").mkdir()
        shutil.copy(arguments.slide, folder / "slides")
        export([f"run={arguments.run}", "format=wsinfer", f"hydra.run.dir={folder / 'model'}"])
        words = [folder / "model", folder / "slides", folder / "results"]
        subprocess.run([arguments.python, "-c", WSINFER, *map(str, words)], check=True, stdout=sys.stderr)
        (csv,) = (folder / "results" / "model-outputs-csv").glob("*.csv")
        table = pd.read_csv(csv)
        same_pixels = np.abs(own_scores(arguments.run, arguments.slide, table) - table["prob_tumour"]).max()
        request = [f"run={arguments.run}", "data=slides", f"data.root={folder / 'slides'}", "slides.tissue=none"]
        predict([*request, f"hydra.run.dir={folder / 'map'}"])
        (parquet,) = (folder / "map").glob("slides/*/scores.parquet")
        scores = pd.read_parquet(parquet)
    centre = table[["minx", "miny"]].to_numpy() + table[["width", "height"]].to_numpy() / 2
    distance = np.hypot(*(scores[["x", "y"]].to_numpy()[None] - centre[:, None]).transpose(2, 0, 1))
    nearest = scores["score"].to_numpy()[distance.argmin(axis=1)]
    correlation = np.corrcoef(nearest, table["prob_tumour"])[0, 1]
    print_row = csv_printer("slide", "tiles", "largest_difference", "correlation")
    print_row(arguments.slide.name, len(table), f"{same_pixels:.1e}", f"{correlation:.3f}")


if __name__ == "__main__":
    main()
