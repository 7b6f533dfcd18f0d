"""A trained network as ONNX: uint8 tiles in, scores out, with all that a user must know in the file."""

from __future__ import annotations

import importlib.util
import json
import logging
import warnings
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from histolight import files
from histolight.data.datamodule import to_floats
from histolight.errors import HistolightError, RequestError, cannot_write
from histolight.models.classifier import Classifier

TOLERANCE = 1e-4  # largest difference in probability that is let through
BATCH = 48  # tiles run through both at once; the rest is a smaller batch, which must work too
FEATURES_TOLERANCE = 1e-3  # largest difference of a feature, in standard deviations of all features
OUTPUTS = ["score", "logit", "features"]
PACKAGES = ("onnx", "onnxscript", "onnxruntime")


def check_packages() -> None:
    """Raise :class:`RequestError` where a package of the extra ``onnx`` is missing."""
    if missing := [name for name in PACKAGES if importlib.util.find_spec(name) is None]:
        raise RequestError(
            f"histolight export needs {', '.join(missing)}: install histolight with its extra, histolight[onnx]"
        )


class TileScorer(nn.Module):
    """A classifier with everything before and behind it, from the pixels of a file to a probability."""

    def __init__(self, classifier: Classifier) -> None:
        super().__init__()
        self.classifier = classifier
        self.outputs = OUTPUTS if classifier.ends_in_head() else OUTPUTS[:2]

    def forward(self, tiles: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Map tiles ``(N, S, S, 3)`` uint8 to scores in [0, 1] and logits, float32 ``(N,)`` each, and features."""
        pixels = to_floats(tiles, self.classifier.stain)
        if "features" not in self.outputs:
            logits = self.classifier(pixels)
            return logits.sigmoid(), logits
        features = self.classifier.features(pixels)
        logits = self.classifier(features)
        return logits.sigmoid(), logits, features


def export_onnx(classifier: Classifier, tiles: npt.NDArray[np.uint8], path: Path, metadata: dict[str, Any]) -> float:
    """Write a network as ONNX; a file that differs from torch on real tiles is not written.

    Its input is ``tiles`` (N, S, S, 3) uint8 with any N of at least 1, its outputs are ``score`` and ``logit``, (N,)
    float32, and ``features`` (N, F) float32, what enters the last layer, where that is one layer on vectors.

    Args:
        classifier: In evaluation mode, on the CPU.
        tiles: ``(M, S, S, 3)`` uint8, M at least 1: real tiles to compare on.
        path: The file.
        metadata: Put into the file: strings as they are, everything else as JSON.

    Returns:
        The largest difference in probability between onnxruntime and torch over the tiles.

    Raises:
        RequestError: A package is missing, or ONNX can't express the network's stain normalisation.
        HistolightError: The network can't be exported, the difference is above 1e-4 (of features above a thousandth of
            their standard deviation), or the file can't be written.
    """
    check_packages()
    if classifier.stain == "macenko":
        raise RequestError(
            "this network was trained with data.stain=macenko, and ONNX has no eigenvectors: export a run with "
            "data.stain=reinhard or none"
        )
    scorer = TileScorer(classifier).eval()
    program = _to_onnx(scorer, torch.zeros(2, *tiles.shape[1:], dtype=torch.uint8))
    for key, value in metadata.items():
        program.model.metadata_props[key] = value if isinstance(value, str) else json.dumps(value)
    try:
        with files.temporary_folder(path.parent) as folder:
            beside = folder / path.name
            program.save(beside, external_data=False)
            difference, of_features = _differences(scorer, beside, tiles)
            if not difference <= TOLERANCE:
                raise HistolightError(
                    f"the exported network differs from torch by {difference:.1e} in probability, above "
                    f"{TOLERANCE:.0e}: nothing was written; another version of torch or onnxruntime may agree"
                )
            if not of_features <= FEATURES_TOLERANCE:
                raise HistolightError(
                    f"the exported features differ from torch's by {of_features:.1e} of their standard deviation, "
                    f"above {FEATURES_TOLERANCE:.0e}: nothing was written; another version of torch may agree"
                )
            weights = folder / f"{path.name}.data"  # where torch puts more than 1.5 GiB, whatever external_data says
            if weights.is_file():
                weights.replace(path.with_name(weights.name))
            beside.replace(path)
    except OSError as error:
        raise HistolightError(cannot_write(path, error, files.ANOTHER_FOLDER)) from error
    return difference


def _to_onnx(scorer: TileScorer, example: torch.Tensor) -> torch.onnx.ONNXProgram:
    """Export a network for any number of tiles, without the exporter's warnings and messages."""
    levels = {name: logging.getLogger(name).level for name in ("torch.onnx", "onnxscript", "onnx_ir")}
    try:
        for name in levels:
            logging.getLogger(name).setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                scorer,
                (example,),
                dynamo=True,
                input_names=["tiles"],
                output_names=scorer.outputs,
                dynamic_shapes={"tiles": {0: torch.export.Dim("batch")}},
                verbose=False,
            )
    except Exception as error:  # whatever the exporter meets in a network that it does not know
        reason = " ".join(str(error).split())[:200]
        raise HistolightError(f"this network can't be written as ONNX ({reason}): export another run") from error
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
    assert program is not None
    return program


def describe(classifier: Classifier, run: str, metrics: dict[str, Any]) -> dict[str, Any]:
    """Collect what a user of the file must know.

    Args:
        classifier: The network.
        run: The run's name.
        metrics: What its ``metrics.json`` holds.
    """
    parts = [part for part in ("val", "test") if part in metrics]
    return {
        "model": classifier.model_config.name,
        **({"backbone": backbone} if (backbone := classifier.model_config.card) else {}),
        "classes": ["benign", "tumour"],
        "meaning": "score: probability that the centre 32x32 pixels hold tumour",
        "image_size": classifier.image_size,
        "mpp": classifier.mpp,
        "mean": classifier.mean.flatten().tolist(),
        "std": classifier.std.flatten().tolist(),
        "normalisation": "inside: give uint8 RGB tiles",
        "stain": classifier.stain,
        "threshold": metrics["threshold"],
        "run": run,
        "split": metrics["split"],
        "auroc": {part: metrics[part]["auroc"] for part in parts},
        "data_fingerprint": metrics["data_fingerprint"],
        "versions": {name: version(name) for name in ("histolight", "torch", *PACKAGES)},
        "exported": f"{date.today():%Y-%m-%d}",
        "use": "research only; not a medical device, not for diagnosis",
    }


def _differences(scorer: TileScorer, path: Path, tiles: npt.NDArray[np.uint8]) -> tuple[float, float]:
    """Largest difference in probability, and of features, over batches and a tile alone; NaN where one is no number."""
    import onnxruntime

    try:
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    except Exception as error:  # of its own kinds, whatever the reason
        files.unblocked(path.read_bytes(), path)  # what the system refuses is its error
        reason = " ".join(str(error).split())[:200]
        raise HistolightError(f"onnxruntime can't run this network ({reason}): export another run") from error
    batches = [tiles[start : start + BATCH] for start in range(0, len(tiles), BATCH)]
    found = [0.0, 0.0]
    for batch in (tiles[:1], *batches):
        with torch.inference_mode():
            expected = dict(zip(scorer.outputs, scorer(torch.from_numpy(batch)), strict=True))
        given = dict(zip(scorer.outputs, session.run(scorer.outputs, {"tiles": batch}), strict=True))
        found[0] = np.maximum(found[0], np.abs(given["score"] - expected["score"].numpy()).max())
        if "features" in given:
            features = expected["features"].numpy()
            apart = np.abs(given["features"] - features).max() / max(features.std(), np.finfo(np.float32).tiny)
            found[1] = np.maximum(found[1], apart)
    return float(found[0]), float(found[1])
