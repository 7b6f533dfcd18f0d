"""A trained network as WSInfer and its QuPath extension read one: TorchScript and ``config.json``, side by side."""

from __future__ import annotations

import io
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from histolight import files
from histolight.data.datamodule import to_floats
from histolight.errors import HistolightError, RequestError, cannot_write
from histolight.inference.export import BATCH, TOLERANCE
from histolight.models.classifier import Classifier, enlarge

NAMES = ("torchscript_model.pt", "config.json")


class TwoLogits(nn.Module):
    """A classifier's network with a logit for each class: WSInfer takes their softmax, which is then the score.

    The classifier itself can't be traced: a LightningModule has properties that only a Trainer can answer.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, classifier: Classifier) -> None:
        super().__init__()
        self.backbone = classifier.backbone
        self.register_buffer("mean", classifier.mean)
        self.register_buffer("std", classifier.std)
        self.input_size, self.interpolation = classifier.input_size, classifier.model_config.interpolation

    def forward(self, tiles: torch.Tensor) -> torch.Tensor:
        """Map tiles ``(N, 3, S, S)``, floats in [0, 1], to logits of benign, which is 0, and tumour, ``(N, 2)``."""
        if tiles.shape[-1] != self.input_size:
            tiles = enlarge(tiles, self.input_size, self.interpolation)
        logits = self.backbone((tiles - self.mean) / self.std).squeeze(1)
        return torch.stack([torch.zeros_like(logits), logits], 1)


def wsinfer_config(classifier: Classifier, mpp: float) -> dict[str, Any]:
    """Describe the network in the fields of WSInfer's ``config.json``.

    Args:
        classifier: The network. It normalises its tiles itself: the transforms end with values in [0, 1].
        mpp: Microns per pixel of the tiles that it was trained on.
    """
    return {
        "spec_version": "1.0",
        "architecture": classifier.model_config.name,
        "num_classes": 2,
        "class_names": ["benign", "tumour"],
        "name": "histolight",
        "patch_size_pixels": classifier.image_size,
        "spacing_um_px": mpp,
        "transform": [{"name": "Resize", "arguments": {"size": classifier.image_size}}, {"name": "ToTensor"}],
    }


def export_wsinfer(classifier: Classifier, tiles: npt.NDArray[np.uint8], directory: Path, mpp: float | None) -> float:
    """Write ``torchscript_model.pt`` and ``config.json``; a model that differs from torch on real tiles is not written.

    Args:
        classifier: In evaluation mode, on the CPU.
        tiles: ``(M, S, S, 3)`` uint8, M at least 1: real tiles to compare on.
        directory: Where to.
        mpp: Microns per pixel of the tiles that it was trained on; None takes what the network knows.

    Returns:
        The largest difference in probability over the tiles.

    Raises:
        RequestError: The pixel size is unknown, or the network normalises stains, which the format can't express.
        HistolightError: The network can't be traced, the difference is above 1e-4, or the files can't be written.
    """
    mpp = mpp or classifier.mpp
    if mpp is None:
        raise RequestError(
            "this run does not say at which pixel size its tiles were cut, and WSInfer must know: give "
            "slides.model_mpp=MICRONS, 0.972 for Kaggle's and PatchCamelyon's tiles"
        )
    if classifier.stain != "none":
        raise RequestError(
            f"this network was trained with data.stain={classifier.stain}, which WSInfer's format can't express: "
            "export a run with data.stain=none"
        )
    model = TwoLogits(classifier).eval()
    size = classifier.image_size
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # torch.jit is on its way out, and what QuPath reads
            traced = torch.jit.trace(model, torch.zeros(2, 3, size, size), check_trace=False)
    except Exception as error:  # whatever the tracer meets in a network that it does not know
        reason = " ".join(str(error).split())[:200]
        raise HistolightError(f"this network can't be written as TorchScript ({reason}): export another run") from error
    try:
        with files.temporary_folder(directory) as folder:
            beside, content = folder / NAMES[0], io.BytesIO()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                torch.jit.save(traced, content)  # not to a path: a full disk ends the process in PyTorch's own code
            with files.named(beside):
                beside.write_bytes(content.getvalue())
            difference = _difference(classifier, beside, tiles)
            if not difference <= TOLERANCE:
                raise HistolightError(
                    f"the exported network differs from torch by {difference:.1e} in probability, above "
                    f"{TOLERANCE:.0e}: nothing was written; another version of torch may agree"
                )
            beside.replace(directory / NAMES[0])
    except OSError as error:
        raise HistolightError(cannot_write(error.filename or directory, error, files.ANOTHER_FOLDER)) from error
    files.write_atomically(directory / NAMES[1], json.dumps(wsinfer_config(classifier, mpp), indent=2) + "\n")
    return difference


def _difference(classifier: Classifier, path: Path, tiles: npt.NDArray[np.uint8]) -> float:
    """Largest difference in probability, over batches and over a tile alone; NaN where one side is not a number."""
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")
        with files.named(path):
            loaded = torch.jit.load(io.BytesIO(files.unblocked(path.read_bytes(), path)), map_location="cpu")
        largest = torch.zeros(())
        for batch in (tiles[:1], *(tiles[start : start + BATCH] for start in range(0, len(tiles), BATCH))):
            values = to_floats(torch.from_numpy(batch), "none")
            scores = loaded(values.contiguous()).softmax(1)[:, 1]
            largest = torch.maximum(largest, (scores - classifier(values).sigmoid()).abs().max())
    return float(largest)
