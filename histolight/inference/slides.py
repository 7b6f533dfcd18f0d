"""Whole slides through one run or an ensemble: the networks on one side, the room ``slides`` on the other."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.special import expit, logit
from tqdm import tqdm

from histolight import files, runs
from histolight.config.schema import SlidesConfig
from histolight.errors import RequestError
from histolight.heatmaps.page import SlideReport, names_of_files, write_report
from histolight.heatmaps.score import Batches, Predict, SlideSettings, score_slides, slides_table
from histolight.inference import networks
from histolight.inference.predict import PARTIAL, PredictConfig
from histolight.models.classifier import Classifier
from histolight.slides.grid import check_stride
from histolight.slides.reader import check_packages, list_slides
from histolight.slides.tissue import find_masks


def predict_slides(
    request: PredictConfig, options: SlidesConfig, progress: bool = True
) -> tuple[list[Path], dict[str, str]]:
    """Score whole slides; an interrupted prediction goes on where it was.

    Args:
        request: From :func:`histolight.inference.predict.predict_config`, with ``data=slides``.
        options: The keys ``slides.*``.
        progress: Say on stderr how many slides and networks there are.

    Returns:
        ``slides.csv`` and ``report.html``; and for each file that could not be scored, by name, what is wrong with it.

    Raises:
        RequestError: A package is missing, a run is not completed, nobody knows its pixel size, or there are no slides.
        HistolightError: Out of memory, logits that are not finite, or a file can't be written.
    """
    check_packages()
    data, directory = request.config.data, request.directory
    slides, problems, others = list_slides(Path(data.root or "").expanduser().absolute())
    classifiers = networks.load_classifiers(request.runs, data.image_size)
    settings = _settings(request, options, classifiers)
    device = networks.inference_device(request.config.trainer)
    precision = networks.inference_precision(request.config.trainer, device)
    identity = json.loads(networks.request_header(request.runs, "slides", data.batch_size, request.tta, precision))
    identity["mean"] = request.mean
    header = json.dumps(identity | vars(settings) | {"root": data.root}).encode() + b"\n"
    if progress:
        print(
            f"{len(slides):,} slide{'s' * (len(slides) != 1)}, "
            f"{len(classifiers)} network{'s' * (len(classifiers) > 1)}, tta={request.tta}, "
            f"{settings.model_mpp:g} µm a pixel, a tile every {settings.stride} pixels; writing {directory}",
            file=sys.stderr,
        )
    if progress and others:
        print(f"left out     {names_of_files(others)}: no slides", file=sys.stderr)
    with files.claimed(directory, continued=(directory / PARTIAL).is_file()):
        _begin(directory / PARTIAL, header)
        predict = _predictor(classifiers, request, settings.batch_size)
        rows, failed = score_slides(slides, settings, directory, predict, identity)
        problems |= failed
        files.write_csv(directory / "slides.csv", slides_table(rows, problems))
        about = {"runs": [str(run.resolve()) for run in request.runs], **identity, **vars(settings)}
        about |= {"root": str(Path(data.root or "").absolute()), **runs.provenance()}
        files.write_atomically(directory / "prediction.json", json.dumps(about, indent=2) + "\n")
        names = [run.resolve().name for run in request.runs]
        specificity = _specificity(request.runs, options.threshold)
        write_report(SlideReport(names, request.tta, settings, rows, problems, others, specificity), directory)
        if not problems:  # else the same command goes on with those that were mended
            (directory / PARTIAL).unlink()
    return [directory / "slides.csv", directory / "report.html"], problems


def _specificity(members: Sequence[Path], threshold: float | None) -> dict[str, Any] | None:
    """The specificity of one run at its own threshold, on its test part where it has one; else None."""
    if threshold is not None or len(members) > 1:
        return None
    metrics = runs.completed_metrics(members[0])
    measured = metrics.get("test_at_threshold") or metrics.get("val_at_threshold") or {}
    return measured.get("specificity")


def _settings(request: PredictConfig, options: SlidesConfig, classifiers: Sequence[Classifier]) -> SlideSettings:
    data, tissue = request.config.data, find_masks(options.tissue)
    check_stride(options.stride, data.image_size)
    threshold = options.threshold
    if threshold is None:
        chosen = np.array([runs.completed_metrics(run)["threshold"] for run in request.runs])
        threshold = float(chosen[0]) if len(chosen) == 1 else float(expit(logit(chosen.clip(1e-6, 1 - 1e-6)).mean()))
    mpp = options.model_mpp or _model_mpp(request.runs, classifiers, data.mpp_tolerance)
    return SlideSettings(
        mpp=data.mpp,
        mpp_tolerance=data.mpp_tolerance,
        model_mpp=mpp,
        tile=data.image_size,
        stride=options.stride,
        tissue=tissue,
        threshold=threshold,
        batch_size=data.batch_size,
    )


def _model_mpp(members: Sequence[Path], classifiers: Sequence[Classifier], tolerance: float) -> float:
    """Say at which pixel size the networks see tissue; all members of an ensemble see the same tiles."""
    sizes = {run: classifier.mpp for run, classifier in zip(members, classifiers, strict=True)}
    for run, size in sizes.items():
        if size is None:
            raise RequestError(
                f"{run} does not say at which pixel size its tiles were cut (no data.mpp when it was trained): give "
                "slides.model_mpp=MICRONS, 0.972 for Kaggle's and PatchCamelyon's tiles"
            )
    known = [size for size in sizes.values() if size is not None]
    if max(known) / min(known) - 1 > tolerance:
        raise RequestError(
            f"the members were trained at {min(known):g} to {max(known):g} µm a pixel: an ensemble needs one pixel size"
        )
    return math.exp(sum(map(math.log, known)) / len(known)) if len(set(known)) > 1 else known[0]


def _begin(partial: Path, header: bytes) -> None:
    """Mark the folder as one to go on with; refuse one that was begun with another request."""
    if partial.is_file() and partial.read_bytes() != header:
        raise RequestError(
            f"{partial} is the beginning of another prediction (other runs, slides, data.mpp or other options): choose "
            "another folder with hydra.run.dir=FOLDER (directory=FOLDER in Python)"
        )
    files.write_atomically(partial, header.decode())


def _predictor(classifiers: Sequence[Classifier], request: PredictConfig, batch_size: int) -> Predict:
    score = networks.tile_scorer(classifiers, request.config.trainer, request.tta)

    def predict(path: Path, header: bytes, count: int, batches: Batches, title: str) -> np.ndarray:
        def logits(first: int) -> Iterator[np.ndarray]:
            with tqdm(total=count, initial=first * batch_size, desc=title, unit="tile", disable=None) as bar:
                for tiles in batches(first):
                    yield score(torch.from_numpy(tiles))
                    bar.update(len(tiles))

        shape = (count, len(classifiers))
        return networks.mean_logits(networks.resumed(path, header, shape, batch_size, logits), request.mean)

    return predict
