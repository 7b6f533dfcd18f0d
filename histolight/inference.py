"""A trained network on tiles, without Lightning's Trainer: what evaluate, predict, explain and export share."""

from __future__ import annotations

import pickle
from pathlib import Path

from histolight import runs
from histolight.errors import RequestError
from histolight.models.classifier import Classifier


def load_classifier(directory: Path) -> Classifier:
    """Load the best epoch of a completed run, in evaluation mode, on the CPU.

    Raises:
        RequestError: The folder holds no completed run, or its checkpoint is missing or damaged.
    """
    status = runs.read_metrics(directory)["status"]
    if status != "completed":
        raise RequestError(f"{directory} is {status}, not completed: continue it with histolight train run={directory}")
    path = directory / "checkpoints" / "best.ckpt"
    if not path.is_file():
        raise RequestError(f"{path} is missing: the run can't be used without its best epoch")
    try:
        classifier = Classifier.load_from_checkpoint(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, KeyError, TypeError) as error:
        reason = f"{error} ".splitlines()[0].strip() or type(error).__name__
        raise RequestError(f"{path} can't be read as a checkpoint of histolight ({reason})") from error
    return classifier.eval().requires_grad_(False)
