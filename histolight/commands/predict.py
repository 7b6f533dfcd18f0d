"""``histolight predict``: scores for unlabelled tiles, from one run or an ensemble."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from histolight import files, runs
from histolight.config.keys import choice, new_folder, own_keys, read_path, read_paths, run_config
from histolight.config.schema import Config
from histolight.errors import InterruptionError, RequestError, command_line

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

KEYS = ("run", "runs", "best", "tta", "mean", "hydra.run.dir")
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
USAGE = """\
keys (KEY=VALUE):
  run=DIR            the run; or an ensemble:
  runs=[DIR,DIR]     runs, sweeps or folders of runs; of a sweep all completed runs
  best=K             of these the K with the highest validation AUROC
  data=kaggle data.root=DIR
                     Kaggle's test folder: submission.csv, in the order of sample_submission.csv
  data=folder data.root=DIR
                     any folder of images: predictions.csv (pcam: the test part)
  tta=none           flips and dihedral average the logits of 4 and 8 views of each tile
  mean=logit         how an ensemble is averaged; or mean=probability
  data.batch_size=N data.cache=DIR trainer.accelerator=cpu trainer.precision=32-true
  hydra.run.dir=DIR  where the prediction goes, and goes on after an interruption; outputs/predictions/NAME-TIME
"""


@dataclass(frozen=True)
class PredictConfig:
    """What to predict, with what.

    Attributes:
        runs: Run directories, the members of the ensemble.
        config: The configuration of the first one, with the overrides laid over it.
        tta: ``none``, ``flips`` or ``dihedral``.
        mean: ``logit`` or ``probability``.
        directory: Where the prediction goes.
    """

    runs: list[Path]
    config: Config
    tta: str
    mean: str
    directory: Path


def main(overrides: list[str], multirun: bool = False) -> int:
    """Run the command; return the exit status."""
    if multirun:
        raise RequestError("-m sweeps over trainings: use it with histolight train, and predict with what it made")
    request = parse_request(overrides)
    from histolight.data.prepare import load_tiles
    from histolight.data.sources import load_source
    from histolight.inference import networks as inference  # imports torch

    data, settings, directory = request.config.data, request.config.trainer, request.directory
    classifiers = inference.load_classifiers(request.runs, data.image_size)
    precision = inference.inference_precision(settings, inference.inference_device(settings))
    with inference.first_problem():
        packed = load_tiles(load_source(data, labelled=False), data)
    views = len(inference.SYMMETRIES[request.tta])
    networks = f"{len(classifiers)} network{'s' if len(classifiers) > 1 else ''}"
    print(
        f"{len(packed.table):,} tiles, {networks}, tta={request.tta} ({views} views); writing {directory}",
        file=sys.stderr,
    )
    with files.claimed(directory):
        header = inference.request_header(request.runs, packed.fingerprint, data.batch_size, request.tta, precision)
        try:
            logits = inference.resumable_logits(
                directory / PARTIAL,
                header,
                classifiers,
                packed.pack.tiles,
                packed.table["row"].to_numpy(),
                settings,
                data.batch_size,
                request.tta,
            )
        except KeyboardInterrupt as error:
            words = [word for word in overrides if not word.startswith("hydra.run.dir=")]
            again = command_line("histolight", "predict", *words, f"hydra.run.dir={directory}")
            raise InterruptionError(f"interrupted: continue with {again}") from error
        written = write_predictions(packed.table, logits, request, json.loads(header))
        (directory / PARTIAL).unlink()
    print("\n".join(f"{path.suffix[1:]:<12} {path}" for path in written))
    return 0


def parse_request(overrides: Sequence[str]) -> PredictConfig:
    """Read the command line.

    Raises:
        RequestError: A key is unknown or missing, a run doesn't exist, or the folder is taken.
    """
    values, others = own_keys(overrides, KEYS)
    if ("run" in values) == ("runs" in values):
        what = "are both given" if "run" in values else "are missing"
        raise RequestError(f"run= and runs= {what}: histolight predict run=DIR, or an ensemble, runs=[DIR,DIR]")
    tta = choice(values, "tta", "none", "flips", "dihedral")
    mean = choice(values, "mean", "logit", "probability")
    if "run" in values and "best" in values:
        raise RequestError("best= chooses among several runs: use it with runs=")
    members = members_of(read_paths("runs", values["runs"]), values.get("best")) if "runs" in values else []
    members = members or [read_path(values["run"])]
    config = run_config(members[0], others, KEYS, TAKEN, "predict")
    given = {override.partition("=")[0] for override in others}
    if config.data.source == "folder" and "data.root" not in given:
        raise RequestError("data.root= is missing: give the folder with the tiles to predict, data.root=FOLDER")
    # The limit was the training's: a prediction is of all tiles.
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, limit=None))
    name = members[0].resolve().name + (f" and {len(members) - 1} more" if len(members) > 1 else "")
    return PredictConfig(
        members, config, tta, mean, new_folder(values.get("hydra.run.dir"), "predictions", name, PARTIAL)
    )


def members_of(folders: Sequence[Path], best: str | None) -> list[Path]:
    """Choose the members of an ensemble.

    Args:
        folders: Run directories, taken as they are, and sweeps or folders of runs, of which the completed runs count.
        best: Of all these take so many, by validation AUROC; None takes all.

    Raises:
        RequestError: A folder doesn't exist or holds no completed run, or there are fewer than ``best``.
    """
    from histolight.ranking.runs import find_runs

    if best is not None and not (best.isdecimal() and int(best) > 0):
        raise RequestError(f"best={best} is not known: give a number of runs, such as best=3")
    aurocs: dict[Path, float] = {}
    for folder in folders:
        for run in find_runs(folder):
            begun = (run / "metrics.json").is_file()
            metrics: dict[str, Any] = runs.read_metrics(run) if begun else {"status": "not begun"}
            if metrics["status"] == "completed":
                aurocs[run] = metrics["val"]["auroc"]["value"]
            elif run == folder:
                raise RequestError(
                    f"{run} is {metrics['status']}, not completed: continue it with histolight train run={run}"
                )
    if not aurocs:
        raise RequestError(f"{folders[0]} holds no completed run: nothing can predict")
    if best is None:
        return list(aurocs)
    if len(aurocs) < int(best):
        raise RequestError(f"best={best} are more than the {len(aurocs)} completed runs that there are")
    return sorted(aurocs, key=lambda run: -aurocs[run])[: int(best)]


def write_predictions(
    table: pd.DataFrame, logits: np.ndarray, request: PredictConfig, computed: dict[str, Any]
) -> list[Path]:
    """Write ``predictions.csv``, Kaggle's ``submission.csv`` where its tiles were predicted, and ``prediction.json``.

    Args:
        table: The tiles; ``order`` in it is their place in ``sample_submission.csv``.
        logits: float32 (N, members).
        request: What was asked for.
        computed: What decided the logits, from :func:`histolight.inference.networks.request_header`.

    Returns:
        The tables.
    """
    from scipy.special import expit

    from histolight.inference.networks import mean_logits

    mean = mean_logits(logits, request.mean)
    predictions = table[["id"]].assign(logit=mean, score=expit(mean))
    if len(request.runs) > 1:
        columns = {f"score_{number}": expit(logits[:, number - 1]) for number in range(1, len(request.runs) + 1)}
        predictions = predictions.assign(**columns)
    if "order" in table:
        predictions = predictions.iloc[table["order"].argsort()]
    written = [request.directory / "predictions.csv"]
    files.write_csv(written[0], predictions)
    if "order" in table:
        written.append(request.directory / "submission.csv")
        files.write_csv(written[1], predictions[["id", "score"]].rename(columns={"score": "label"}))
    about = {
        "runs": [str(run.resolve()) for run in request.runs],
        "mean": request.mean,
        "data": {"source": request.config.data.source, "root": str(Path(request.config.data.root or "").resolve())},
        **computed,
        **runs.provenance(),
    }
    files.write_atomically(request.directory / "prediction.json", json.dumps(about, indent=2) + "\n")
    return written
