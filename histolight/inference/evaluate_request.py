"""What to evaluate, checked before anything heavy is loaded."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from histolight.config.keys import choice, key_of, new_folder, run_config
from histolight.config.schema import ColumnsConfig, Config, SlideTilesConfig, valid_keys
from histolight.errors import RequestError

KEYS = ("run", "chosen_on", "calibrate", "tta", "adapt", "hydra.run.dir")
OTHER_TILES = (
    "data",
    "data.root",
    "data.groups",
    "data.domain",
    "data.classes",
    "data.limit",
    "data.seed",
    *valid_keys(ColumnsConfig, "data.columns."),
    *valid_keys(SlideTilesConfig, "slides."),
)
TAKEN = (
    *OTHER_TILES,
    "data.image_size",
    "data.mpp",
    "data.mpp_tolerance",
    "data.batch_size",
    "data.cache",
    "trainer",
    "trainer.accelerator",
    "trainer.precision",
    "report.abstain",
    "report.prevalence",
)


@dataclass(frozen=True)
class EvaluateConfig:
    """What to evaluate.

    Attributes:
        run: The run directory.
        config: Its configuration, with the overrides laid over it.
        requested: Those of the given keys that ask for other tiles than the run's own.
        calibrate: ``false``, ``true`` (a temperature) or ``line`` (slope and intercept).
        tta: ``none``, ``flips`` or ``dihedral``.
        directory: Where the evaluation goes.
        chosen_on: An earlier evaluation whose tiles choose threshold and temperature; None is the run's validation.
        adapt: ``none``, or what is fitted to the tiles without their labels: ``prior`` or ``batch_norm``.
    """

    run: Path
    config: Config
    requested: frozenset[str]
    calibrate: str
    tta: str
    directory: Path
    chosen_on: Path | None = None
    adapt: str = "none"


def evaluate_config(
    run: Path,
    overrides: Sequence[str],
    tta: str = "none",
    calibrate: str = "false",
    place: str | None = None,
    chosen_on: Path | None = None,
    adapt: str = "none",
) -> EvaluateConfig:
    """Check what is asked for.

    Args:
        run: The run directory.
        overrides: Other tiles and the device, as on the command line: keys of :data:`TAKEN`.
        tta: ``none``, ``flips`` or ``dihedral``.
        calibrate: ``false``, ``true`` or ``line``.
        place: The folder for the evaluation; None is ``outputs/evaluations/NAME-TIME``.
        chosen_on: An earlier evaluation whose tiles choose threshold and temperature; None is the run's validation.
        adapt: ``none``, ``prior`` or ``batch_norm``.

    Raises:
        RequestError: A key is unknown, the run doesn't exist, keys exclude each other, or the folder holds files.
    """
    config = run_config(run, overrides, KEYS, TAKEN, "evaluate")
    directory = new_folder(place, "evaluations", run.resolve().name)
    given = set(map(key_of, overrides))
    if {"data", "data.root"} & given and "slides.tiles_per_slide" not in given:
        slides = dataclasses.replace(config.data.slides, tiles_per_slide=None)  # drawn tiles train; all are measured
        config = dataclasses.replace(config, data=dataclasses.replace(config.data, slides=slides))
    requested = frozenset(given & set(OTHER_TILES))
    choice({"tta": tta}, "tta", "none", "flips", "dihedral")
    choice({"adapt": adapt}, "adapt", "none", "prior", "batch_norm")
    choice({"calibrate": calibrate}, "calibrate", "false", "true", "line")
    if adapt == "prior" and calibrate != "false":
        raise RequestError("adapt=prior calibrates the scores already: leave calibrate out")
    for key, value in (("chosen_on", chosen_on), ("adapt", None if adapt == "none" else adapt)):
        if value is not None and not requested:
            raise RequestError(f"{key}={value} is for other tiles: give them with data=SOURCE data.root=FOLDER")
    return EvaluateConfig(run, config, requested, calibrate, tta, directory, chosen_on, adapt)
