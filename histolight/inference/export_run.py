"""The export of a finished run, in one of the formats, compared with torch on its validation tiles."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from histolight import files
from histolight.config.schema import Config
from histolight.inference.export import check_packages, describe, export_onnx
from histolight.inference.finished import read_part
from histolight.inference.networks import load_classifier
from histolight.inference.wsinfer import NAMES, export_wsinfer

COMPARED = 256  # tiles on which the exported network and torch are compared


@dataclass(frozen=True)
class Export:
    """An exported network.

    Attributes:
        path: The file with the network.
        difference: Largest difference between its scores and torch's.
        tiles: Number of validation tiles on which the two were compared.
        image_size: Height and width of its input in pixels.
    """

    path: Path
    difference: float
    tiles: int
    image_size: int


def export_run(run: Path, config: Config, directory: Path, kind: str = "onnx", mpp: float | None = None) -> Export:
    """Write the network of a completed run for other programs.

    Args:
        run: The run directory.
        config: Its configuration, or one that says where its tiles lie by now.
        directory: An unused folder.
        kind: ``onnx`` is ``model.onnx``; ``wsinfer`` is TorchScript and ``config.json`` for WSInfer and QuPath.
        mpp: With ``wsinfer`` the pixel size of the tiles in microns, where the run does not say it.

    Raises:
        RequestError: Packages are missing, the run is not completed, its tiles are no longer those of its training, or
            the pixel size is unknown.
        HistolightError: The export failed, or its scores differ.
    """
    if kind == "onnx":
        check_packages()
    classifier = load_classifier(run)
    finished = read_part(run, config, "val")
    random = np.random.default_rng(finished.config.data.seed)
    tiles = finished.tiles.gather(random.permutation(finished.predictions["row"].to_numpy())[:COMPARED])
    with files.claimed(directory):
        if kind == "onnx":
            path = directory / "model.onnx"
            metadata = describe(classifier, run.resolve().name, finished.metrics)
            difference = export_onnx(classifier, tiles, path, metadata)
        else:
            path = directory / NAMES[0]
            difference = export_wsinfer(classifier, tiles, directory, mpp)
    return Export(path, difference, len(tiles), classifier.image_size)
