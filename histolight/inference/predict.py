"""One prediction: the members of an ensemble, their logits on unlabelled tiles, and the tables of it."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from histolight import files, runs
from histolight.config.keys import check_pixel_size, choice, is_count, key_of, new_folder, run_config
from histolight.config.schema import Config, SlidesConfig, tile_mpp
from histolight.errors import RequestError
from histolight.progress import waiting

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

    from histolight.inference.adaptation import Adapted
    from histolight.inference.recognition import Recognised

SLIDES = ("slides.stride", "slides.tissue", "slides.threshold", "slides.model_mpp")
KEYS = ("run", "runs", "best", "tta", "mean", "adapt", "hydra.run.dir", *SLIDES)
TAKEN = (
    "data",
    "data.root",
    "data.image_size",
    "data.mpp",
    "data.mpp_tolerance",
    "data.batch_size",
    "data.cache",
    "trainer",
    "trainer.accelerator",
    "trainer.precision",
)
PARTIAL = "predictions.partial"


@dataclass(frozen=True)
class PredictConfig:
    """What to predict, with what.

    Attributes:
        runs: Run directories, the members of the ensemble.
        config: The configuration of the first one, with the overrides laid over it.
        tta: ``none``, ``flips`` or ``dihedral``.
        mean: ``logit`` or ``probability``.
        directory: Where the prediction goes.
        adapt: ``none``, or what is fitted to the tiles: ``prior`` or ``batch_norm``.
    """

    runs: list[Path]
    config: Config
    tta: str
    mean: str
    directory: Path
    adapt: str = "none"


def members_of(folders: Sequence[Path], best: int | None) -> list[Path]:
    """Choose the members of an ensemble.

    Args:
        folders: Run directories, taken as they are, and sweeps or folders of runs, of which the completed runs count.
        best: Of all these take so many, by validation AUROC; None takes all.

    Raises:
        RequestError: A folder doesn't exist or holds no completed run, or there are fewer than ``best``.
    """
    from histolight.ranking.runs import find_runs

    if best is not None and not is_count(best):
        raise RequestError(f"best={best} is out of range: give a number of runs, such as best=3")
    aurocs: dict[Path, float] = {}
    for folder in folders:
        for run in find_runs(folder):
            begun = run == folder or os.path.isfile(run / "metrics.json")
            metrics: dict[str, Any] = runs.read_metrics(run) if begun else {"status": "not begun"}
            if metrics["status"] == "completed":
                aurocs[run] = metrics["val"]["auroc"]["value"]
            elif run == folder:
                raise runs.unfinished_error(run, metrics)
    if not aurocs:
        raise RequestError(f"{folders[0]} holds no completed run: nothing can predict")
    if best is None:
        return list(aurocs)
    if len(aurocs) < best:
        raise RequestError(f"best={best} are more than the {len(aurocs)} completed runs that there are")
    return sorted(aurocs, key=lambda run: -aurocs[run])[:best]


def predict_config(
    members: Sequence[Path],
    overrides: Sequence[str],
    tta: str = "none",
    mean: str = "logit",
    place: str | None = None,
    adapt: str = "none",
) -> PredictConfig:
    """Check what is asked for before anything heavy is loaded.

    Args:
        members: Run directories, from :func:`members_of`.
        overrides: The tiles and the device, as on the command line: keys of :data:`TAKEN`.
        tta: ``none``, ``flips`` or ``dihedral``.
        mean: ``logit`` or ``probability``.
        place: The folder for the prediction; None is ``outputs/predictions/NAME-TIME``.
        adapt: ``none``, ``prior`` or ``batch_norm``.

    Raises:
        RequestError: A key is unknown, a run doesn't exist, keys exclude each other, or the folder holds files.
    """
    from histolight.config.compose import saved_config
    from histolight.data.sources import check_source

    if reports := [key for key in map(key_of, overrides) if key.startswith("report.")]:
        raise RequestError(
            f"{reports[0]}= has no place in histolight predict, which gives scores, not calls: a run's metrics.json "
            "has the threshold and the band of no call (abstention)"
        )
    config = run_config(members[0], overrides, KEYS, TAKEN, "predict")
    for other in members[1:] if config.data.mpp is not None else []:
        check_pixel_size(config.data, tile_mpp(saved_config(other).data), other)
    kind = check_source(config.data)
    choice({"tta": tta}, "tta", "none", "flips", "dihedral")
    choice({"mean": mean}, "mean", "logit", "probability")
    choice({"adapt": adapt}, "adapt", "none", "prior", "batch_norm")
    if adapt != "none" and (len(members) > 1 or kind.whole_slides):
        what = "whole slides" if kind.whole_slides else f"an ensemble, and these are {len(members)} runs"
        raise RequestError(f"adapt={adapt} fits one network to tiles, not {what}: leave adapt out")
    if kind.unlabelled_apart and "data.root" not in map(key_of, overrides):
        raise RequestError("data.root= is missing: give the folder with what is to be predicted, data.root=FOLDER")
    # The limit was the training's: a prediction is of all tiles.
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, limit=None))
    name = members[0].resolve().name + (f" and {len(members) - 1} more" if len(members) > 1 else "")
    return PredictConfig(list(members), config, tta, mean, new_folder(place, "predictions", name, PARTIAL), adapt)


def slides_options(request: PredictConfig, values: Mapping[str, str]) -> SlidesConfig | None:
    """Read the keys ``slides.*`` of a prediction of whole slides; None is one of tiles.

    Raises:
        RequestError: A value is wrong, or there are such keys, but no slides.
    """
    from histolight.config.compose import typed_section
    from histolight.data.sources import find_kind

    if find_kind(request.config.data.source).whole_slides:
        return typed_section(SlidesConfig, values, "slides.")
    if own := [key for key in values if key in SLIDES]:
        raise RequestError(f"{own[0]}= is for whole slides: add data=slides data.root=FOLDER")
    return None


def predict(request: PredictConfig, progress: bool = True) -> list[Path]:
    """Score the tiles and write ``predictions.csv``; an interrupted prediction goes on where it was.

    Args:
        request: From :func:`predict_config`.
        progress: Say on stderr how many tiles and networks there are.

    Returns:
        The tables that were written, ``predictions.csv`` first.

    Raises:
        RequestError: A run is not completed, the tiles are missing, damaged or of another size, or the network can't be
            adapted to them.
        HistolightError: Out of memory, logits that are not finite, or a file can't be written.
    """
    from histolight.data.prepare import load_tiles
    from histolight.data.sources import load_source
    from histolight.inference.recognition import recognise

    with waiting("starting PyTorch"):
        from histolight.inference import adaptation, networks

    data, settings, directory = request.config.data, request.config.trainer, request.directory
    classifiers = networks.load_classifiers(request.runs, data.image_size)
    precision = networks.inference_precision(settings, networks.inference_device(settings))
    packed, adapted = load_tiles(load_source(data, labelled=False), data), None
    adaptation.check_adaptable(request.adapt, len(packed.table))
    if request.adapt != "none":  # now: all tiles are scored before a prior is fitted
        labelled = runs.read_predictions(request.runs[0] / "predictions" / "val.csv")
    if request.adapt == "batch_norm":
        adapted = adaptation.adapt_to_tiles(classifiers[0], packed, labelled, settings, data.batch_size)
    # Members that were trained on the same split know the same tiles.
    by_split = {(run / "splits.csv").read_bytes(): run for run in request.runs if (run / "splits.csv").is_file()}
    known = [recognise(run, packed) for run in by_split.values()]
    if progress:
        ensemble = f"{len(classifiers)} network{'s' * (len(classifiers) > 1)}"
        count = len(networks.SYMMETRIES[request.tta])
        views = f"tta={request.tta} ({count} view{'s' * (count > 1)})"
        print(f"{len(packed.table):,} tiles, {ensemble}, {views}; writing {directory}", file=sys.stderr)
        print("\n".join(dict.fromkeys(recognised.sentence for recognised in known)), file=sys.stderr)
    with files.claimed(directory, continued=(directory / PARTIAL).is_file()):
        header = networks.request_header(request.runs, packed.fingerprint, data.batch_size, request.tta, precision)
        if adapted is not None:  # a prior is fitted later, to the same logits
            header = json.dumps(json.loads(header) | {"adapt": adapted.how}).encode() + b"\n"
        rows, partial = packed.table["row"].to_numpy(), directory / PARTIAL
        logits = networks.resumable_logits(
            partial, header, classifiers, packed.pack.tiles, rows, settings, data.batch_size, request.tta
        )
        if request.adapt == "prior":
            table = packed.table.assign(logit=logits[:, 0])
            try:
                adapted = adaptation.adapt_prior(table, labelled)
            except RequestError as error:
                raise RequestError(f"{error} (hydra.run.dir={directory} keeps the scores)") from None
        if progress and adapted is not None:
            print(stamp(adapted, request.tta), file=sys.stderr)
        computed = {name: value for name, value in json.loads(header).items() if name != "adapt"}
        written = write_predictions(packed.table, logits, request, computed, known, adapted)
        partial.unlink()
    return written


def stamp(adapted: Adapted, tta: str) -> str:
    """Say how the network was fitted to the tiles, and where its calibration is that of other views."""
    return adapted.sentence + f"; calibrated on scores without tta={tta}" * (adapted.how == "prior" and tta != "none")


def write_predictions(
    table: pd.DataFrame,
    logits: np.ndarray,
    request: PredictConfig,
    computed: dict[str, Any],
    known: Sequence[Recognised] = (),
    adapted: Adapted | None = None,
) -> list[Path]:
    """Write ``predictions.csv``, Kaggle's ``submission.csv`` where its tiles were predicted, and ``prediction.json``.

    Args:
        table: The tiles; ``order`` in it is their place in ``sample_submission.csv``.
        logits: float32 (N, members).
        request: What was asked for.
        computed: What decided the logits, from :func:`histolight.inference.networks.request_header`.
        known: Which tiles trained or chose the runs; ``recognised.csv`` lists them.
        adapted: How the network was fitted to the tiles.

    Returns:
        The tables.
    """
    import pandas as pd
    from scipy.special import expit

    from histolight.inference.networks import mean_logits

    mean = mean_logits(logits, request.mean)
    predictions = table[["id"]].assign(logit=mean, score=expit(mean))
    if len(request.runs) > 1:
        columns = {f"score_{number}": expit(logits[:, number - 1]) for number in range(1, len(request.runs) + 1)}
        predictions = predictions.assign(**columns)
    if adapted is not None:
        predictions = adapted.table(predictions)
    if "order" in table:
        predictions = predictions.iloc[table["order"].argsort()]
    written = [request.directory / "predictions.csv"]
    files.write_csv(written[0], predictions)
    if "order" in table:
        written.append(request.directory / "submission.csv")
        files.write_csv(written[1], predictions[["id", "score"]].rename(columns={"score": "label"}))
    if any(len(recognised.table) for recognised in known):
        listed = pd.concat([recognised.table for recognised in known]).drop_duplicates()
        files.write_csv(request.directory / "recognised.csv", listed)
    about = {
        "recognised": [recognised.sentence for recognised in known],
        "runs": [str(run.resolve()) for run in request.runs],
        "mean": request.mean,
        "data": {"source": request.config.data.source, "root": str(Path(request.config.data.root or "").resolve())},
        **computed,
        "adapted": adapted and {**vars(adapted), "sentence": stamp(adapted, request.tta)},
        **runs.provenance(),
    }
    files.write_atomically(request.directory / "prediction.json", json.dumps(about, indent=2) + "\n")
    return written
