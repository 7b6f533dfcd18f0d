"""``histolight export``: a trained network as one ONNX file, or as WSInfer and QuPath read it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from histolight.config.compose import typed_section
from histolight.config.keys import choice, read_run_and_folder
from histolight.config.schema import SlidesConfig
from histolight.errors import RequestError

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np

    from histolight.inference.finished import FinishedPart
    from histolight.models.classifier import Classifier

KEYS = ("run", "format", "slides.model_mpp", "hydra.run.dir")
COMPARED = 256  # tiles on which the exported network and torch are compared
USAGE = """\
keys (KEY=VALUE):
  run=DIR            a completed run
  format=onnx        model.onnx; or wsinfer: torchscript_model.pt and config.json for WSInfer and its QuPath extension
  slides.model_mpp=MICRONS
                     with format=wsinfer: pixel size of the tiles, where the run does not say it
  hydra.run.dir=DIR  where they go; outputs/export/NAME-TIME unless given
"""


def main(overrides: list[str], multirun: bool = False) -> int:
    """Run the command; return the exit status."""
    run, directory, values = read_run_and_folder("export", overrides, KEYS, multirun)
    kind = choice(values, "format", "onnx", "wsinfer")
    options = typed_section(SlidesConfig, values, "slides.")
    if kind == "onnx" and options.model_mpp is not None:
        raise RequestError("slides.model_mpp= is for format=wsinfer: ONNX needs no pixel size")
    import numpy as np

    from histolight import files
    from histolight.inference.export import check_packages
    from histolight.inference.finished import read_part
    from histolight.inference.networks import load_classifier

    if kind == "onnx":
        check_packages()
    classifier = load_classifier(run)
    found = read_part(run, "val")
    rows = np.random.default_rng(found.config.data.seed).permutation(found.predictions["row"].to_numpy())[:COMPARED]
    tiles = found.tiles.gather(rows)
    with files.claimed(directory):
        if kind == "onnx":
            lines = _write_onnx(classifier, tiles, directory, run, found)
        else:
            lines = _write_wsinfer(classifier, tiles, directory, options.model_mpp)
    print("\n".join(lines))
    return 0


def _write_onnx(
    classifier: Classifier, tiles: np.ndarray, directory: Path, run: Path, found: FinishedPart
) -> list[str]:
    from histolight.inference.export import describe, export_onnx

    path = directory / "model.onnx"
    difference = export_onnx(classifier, tiles, path, describe(classifier, run.resolve().name, found.metrics))
    return [
        f"parity       {len(tiles)} validation tiles: score differs from torch by at most {difference:.1e}",
        f"input        tiles (N, {classifier.image_size}, {classifier.image_size}, 3) uint8, RGB, any N",
        "output       score (N,), the probability of tumour in the centre; logit (N,)",
        f"model        {path} ({path.stat().st_size / 1e6:.1f} MB)",
    ]


def _write_wsinfer(classifier: Classifier, tiles: np.ndarray, directory: Path, mpp: float | None) -> list[str]:
    from histolight.inference.wsinfer import NAMES, export_wsinfer

    difference = export_wsinfer(classifier, tiles, directory, mpp)
    return [
        f"parity       {len(tiles)} validation tiles: score differs from torch by at most {difference:.1e}",
        f"model        {directory / NAMES[0]} ({(directory / NAMES[0]).stat().st_size / 1e6:.1f} MB), {NAMES[1]}",
        "use          wsinfer run --model-path … --config …; QuPath: put the folder among WSInfer's own models",
    ]
