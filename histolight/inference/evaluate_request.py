"""What to evaluate, checked before anything heavy is loaded."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from histolight.config.keys import new_folder, run_config
from histolight.config.schema import ColumnsConfig, Config, SlideTilesConfig, valid_keys

KEYS = ("run", "calibrate", "tta", "hydra.run.dir")
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
)


@dataclass(frozen=True)
class EvaluateConfig:
    """What to evaluate.

    Attributes:
        run: The run directory.
        config: Its configuration, with the overrides laid over it.
        requested: Those of the given keys that ask for other tiles than the run's own.
        calibrate: Whether to fit a temperature.
        tta: ``none``, ``flips`` or ``dihedral``.
        directory: Where the evaluation goes.
    """

    run: Path
    config: Config
    requested: frozenset[str]
    calibrate: bool
    tta: str
    directory: Path


def evaluate_config(
    run: Path, overrides: Sequence[str], tta: str = "none", calibrate: bool = False, place: str | None = None
) -> EvaluateConfig:
    """Check what is asked for.

    Args:
        run: The run directory.
        overrides: Other tiles and the device, as on the command line: keys of :data:`TAKEN`.
        tta: ``none``, ``flips`` or ``dihedral``.
        calibrate: Whether to fit a temperature.
        place: The folder for the evaluation; None is ``outputs/evaluations/NAME-TIME``.

    Raises:
        RequestError: A key is unknown, the run doesn't exist, or the folder holds files.
    """
    config = run_config(run, overrides, KEYS, TAKEN, "evaluate")
    directory = new_folder(place, "evaluations", run.resolve().name)
    given = {override.partition("=")[0] for override in overrides}
    if {"data", "data.root"} & given and "slides.tiles_per_slide" not in given:
        slides = dataclasses.replace(config.data.slides, tiles_per_slide=None)  # drawn tiles train; all are measured
        config = dataclasses.replace(config, data=dataclasses.replace(config.data, slides=slides))
    return EvaluateConfig(run, config, frozenset(given & set(OTHER_TILES)), calibrate, tta, directory)
