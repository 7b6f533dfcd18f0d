"""Where curves, pictures and final figures go beside the run's own files, by the name in ``logger``."""

from __future__ import annotations

import csv
import importlib.util
import io
import logging
import os
import sys
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch.loggers import CSVLogger, Logger, MLFlowLogger, TensorBoardLogger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only
from PIL import Image
from torchvision.utils import make_grid

from histolight import files
from histolight.config.schema import Config, LoggerConfig
from histolight.errors import RequestError

PACKAGES = {"mlflow": ("mlflow", "sqlalchemy", "alembic"), "wandb": ("wandb",)}


def check_logger(config: LoggerConfig) -> None:
    """Raise :class:`RequestError` where a package of the logger's extra is missing."""
    missing = [name for name in PACKAGES.get(config.name, ()) if importlib.util.find_spec(name) is None]
    if missing:
        raise RequestError(
            f"logger={config.name} needs {', '.join(missing)}: install histolight with its extra, "
            f"histolight[{config.name}]"
        )


def build_logger(config: Config, directory: Path) -> Logger:
    """Build the logger of a run; a continued run goes on where it was.

    Everything is written inside the run directory, and no network is touched, unless ``logger.uri`` (MLflow) or
    ``logger.offline=false`` (Weights & Biases) say otherwise.

    Raises:
        RequestError: A package is missing, or the logger can't be opened.
    """
    check_logger(config.logger)
    name = config.logger.name
    if name == "csv":
        return _csv(directory)
    if name == "tensorboard":
        return TensorBoardLogger(directory, name="tensorboard", version="", default_hp_metric=False)
    folder = directory.resolve() / name
    folder.mkdir(exist_ok=True)
    try:
        return (
            _mlflow(config.logger, directory, folder) if name == "mlflow" else _wandb(config.logger, directory, folder)
        )
    except OSError:
        raise
    except Exception as error:  # whatever a server or its client does not like
        reason = " ".join(str(error).split())[:200]
        setting = "logger.uri" if name == "mlflow" else "logger.offline"
        raise RequestError(
            f"logger={name} can't be opened ({reason}): see {setting}, or choose another logger"
        ) from error


def _csv(directory: Path) -> Logger:
    """Open ``csv/metrics.csv``; Lightning deletes the one of an interrupted run, which is therefore written anew."""
    logger = CSVLogger(directory, name="csv", version="")
    if not files.is_main_process():
        return logger
    current = Path(logger.log_dir, "metrics.csv")
    earlier = current.with_name("earlier.csv")
    if current.is_file() and not earlier.is_file():  # where both are there, a kill cut short what follows
        current.replace(earlier)
    if earlier.is_file():
        logger.experiment.metrics = _whole_rows(earlier)
        logger.experiment.save()
        earlier.unlink()
    return logger


def _whole_rows(path: Path) -> list[dict[str, Any]]:
    """Read the rows as they are written, but for one that a kill cut short."""
    text = path.read_text(encoding="utf-8")
    return list(csv.DictReader(io.StringIO(text[: text.rfind("\n") + 1])))


def _mlflow(settings: LoggerConfig, directory: Path, folder: Path) -> Logger:
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    logger = MLFlowLogger(
        experiment_name=settings.project,
        run_name=directory.name,
        tracking_uri=settings.uri or f"sqlite:///{folder}/mlflow.db",
        artifact_location=None if settings.uri else (folder / "artifacts").as_uri(),
        run_id=_remembered(folder),
    )
    _remember(folder, logger.version)  # which opens the run
    return logger


def _wandb(settings: LoggerConfig, directory: Path, folder: Path) -> Logger:
    import wandb

    if settings.offline:
        os.environ["WANDB_ERROR_REPORTING"] = "false"
    os.environ["WANDB_CACHE_DIR"] = str(folder / "cache")
    run_id = _remembered(folder) or uuid.uuid4().hex[:8]
    logger = WandbLogger(
        project=settings.project,
        name=directory.name,
        save_dir=directory,
        id=run_id,
        resume="allow",
        mode="offline" if settings.offline else "online",
        settings=wandb.Settings(silent=True, console="off"),
    )
    _ = logger.experiment  # opens the run
    _remember(folder, run_id)
    return logger


def _remembered(folder: Path) -> str | None:
    path = folder / "run_id"
    return path.read_text(encoding="utf-8").strip() if path.is_file() else None


def _remember(folder: Path, run_id: str | int | None) -> None:
    files.write_atomically(folder / "run_id", f"{run_id}\n")


@contextmanager
def closed_at_the_end() -> Iterator[list[Logger]]:
    """End what the yielded loggers keep open in this process: files, threads, the run of Weights & Biases."""
    opened: list[Logger] = []
    failed = True
    try:
        yield opened
        failed = False
    finally:
        for logger in opened:
            if isinstance(logger, TensorBoardLogger) and logger._experiment is not None:
                logger._experiment.close()
        if "wandb" in sys.modules and (run := sys.modules["wandb"].run) is not None:
            run.finish(exit_code=int(failed))


@rank_zero_only
def log_picture(logger: Logger | None, name: str, png: bytes, step: int) -> None:
    """Log a figure as it was saved; ``csv`` has no place for one."""
    if isinstance(logger, TensorBoardLogger | MLFlowLogger | WandbLogger):
        _log_picture(logger, name, Image.open(io.BytesIO(png)).convert("RGB"), step)


@rank_zero_only
def log_tiles(logger: Logger | None, name: str, tiles: torch.Tensor, step: int) -> None:
    """Log tiles, ``(N, 3, S, S)`` floats in [0, 1]; ``csv`` has no place for them."""
    tiles = tiles.float().cpu()
    if isinstance(logger, TensorBoardLogger):
        logger.experiment.add_images(name, tiles, step)
    elif isinstance(logger, MLFlowLogger | WandbLogger):
        grid = make_grid(tiles).clamp(0, 1).mul(255).byte().permute(1, 2, 0).numpy()
        _log_picture(logger, name, Image.fromarray(grid), step)


def _log_picture(
    logger: TensorBoardLogger | MLFlowLogger | WandbLogger, name: str, picture: Image.Image, step: int
) -> None:
    if isinstance(logger, TensorBoardLogger):
        logger.experiment.add_image(name, np.asarray(picture), step, dataformats="HWC")
    elif isinstance(logger, WandbLogger):
        logger.log_image(name, [picture], step)
    else:
        logger.experiment.log_image(logger.run_id, picture, artifact_file=f"{name}.png")


@rank_zero_only
def log_final(
    logger: Logger | None, hyperparameters: Mapping[str, Any], figures: Mapping[str, float], step: int
) -> None:
    """Log the hyperparameters once, flat, with the final figures.

    Without the latter TensorBoard's HPARAMS tab shows ``hp_metric = -1``.
    """
    if isinstance(logger, TensorBoardLogger):
        logger.log_hyperparams(dict(hyperparameters), dict(figures), step=step)
    elif logger is not None:
        logger.log_hyperparams(dict(hyperparameters))
        logger.log_metrics(dict(figures), step)
    if logger is not None:
        logger.save()
