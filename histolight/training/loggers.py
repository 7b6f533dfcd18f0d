"""Where curves, pictures and final figures go beside the run's own files, by the name in ``logger``."""

from __future__ import annotations

import csv
import dataclasses
import importlib.util
import io
import logging
import os
import re
import socket
import sys
import urllib.request
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import torch
from lightning.pytorch.loggers import CSVLogger, Logger, MLFlowLogger, TensorBoardLogger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only
from PIL import Image
from tensorboard.compat.proto.summary_pb2 import Summary
from torchvision.utils import make_grid

from histolight import files
from histolight.config.schema import Config, LoggerConfig
from histolight.errors import RequestError, system_reason

ANSWER = 5.0  # seconds for which a server is waited for

log = logging.getLogger("histolight")

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
    ``logger.offline=false`` (Weights & Biases) say otherwise. A server that is away neither ends nor delays a training:
    it is tried for :data:`ANSWER` seconds, and a warning says where the curves are kept instead.

    Raises:
        RequestError: A package is missing, or the logger can't be opened.
    """
    check_logger(config.logger)
    name = config.logger.name
    if name == "csv":
        return _csv(directory)
    if name == "tensorboard":
        return _TensorBoard(directory, name="tensorboard", version="", default_hp_metric=False)
    server = _server(config.logger)
    away = _away(server) if server else ""
    if away and name == "mlflow":
        return _kept_here(directory, server, away)
    folder = directory.resolve() / name
    folder.mkdir(exist_ok=True)
    if away:
        log.warning("logger=wandb: %s is away (%s); the curves are kept in %s, for wandb sync", server, away, folder)
        return _wandb(dataclasses.replace(config.logger, offline=True), directory, folder)
    try:
        return (
            _mlflow(config.logger, directory, folder) if name == "mlflow" else _wandb(config.logger, directory, folder)
        )
    except OSError:
        raise
    except Exception as error:  # whatever a server or its client does not like
        reason = " ".join(str(error).split())[:200]
        if name == "mlflow" and server and re.search("Max retries exceeded|timed out", str(error)):
            return _kept_here(directory, server, "it does not answer")
        setting = "logger.uri" if name == "mlflow" else "logger.offline"
        raise RequestError(
            f"logger={name} can't be opened ({reason}): see {setting}, or choose another logger"
        ) from error


def _server(settings: LoggerConfig) -> str:
    """Return the address of a logger's server; empty where everything stays on this machine."""
    if settings.name == "mlflow":
        return settings.uri if settings.uri and re.match("https?://", settings.uri) else ""
    return "" if settings.offline else os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")


def _away(address: str) -> str:
    """Say why nothing answers at an address, or at the proxy on the way there; empty where something does."""
    try:
        host, port = _host_and_port(address)
    except ValueError as error:
        raise RequestError(f"logger.uri={address} is no address: {error}") from error
    proxy = _proxy(urlsplit(address).scheme, f"{host}:{port}")
    try:
        if proxy:
            host, port = _host_and_port(proxy)
        socket.create_connection((host, port), timeout=ANSWER).close()
    except ValueError as error:
        return f"its proxy is no address: {error}"  # which may hold a password
    except OSError as error:
        return f"{f'its proxy {host}:{port}: ' if proxy else ''}{system_reason(error)}"
    return ""


def _host_and_port(address: str) -> tuple[str, int]:
    parts = urlsplit(address if "://" in address else f"http://{address}")
    return parts.hostname or "", parts.port or {"http": 80}.get(parts.scheme, 443)


def _proxy(scheme: str, place: str) -> str:
    """Return the proxy that the environment (HTTP_PROXY, HTTPS_PROXY, ALL_PROXY, NO_PROXY) or the system sets."""
    proxies = urllib.request.getproxies()
    proxy = proxies.get(scheme) or proxies.get("all", "")
    return "" if not proxy or urllib.request.proxy_bypass(place) else proxy


def _kept_here(directory: Path, server: str, reason: str) -> Logger:
    logger = _csv(directory)
    log.warning("logger=mlflow: %s is away (%s); the curves are kept in %s", server, reason, logger.log_dir)
    return logger


class _TensorBoard(TensorBoardLogger):
    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Write the figures of a step as one event: one for each figure would wake the writing thread each time."""
        values = [Summary.Value(tag=name, simple_value=float(value)) for name, value in metrics.items()]
        self.experiment._get_file_writer().add_summary(Summary(value=values), step)


class _Csv(CSVLogger):
    def save(self) -> None:
        with files.named(Path(self.log_dir)):
            super().save()


def _csv(directory: Path) -> CSVLogger:
    """Open ``csv/metrics.csv``; Lightning deletes the one of an interrupted run, which is therefore written anew."""
    logger = _Csv(directory, name="csv", version="")
    if not files.is_main_process():
        return logger
    current = Path(logger.log_dir, "metrics.csv")
    earlier = current.with_name("earlier.csv")
    if current.is_file() and not earlier.is_file():  # where both are there, a kill cut short what follows
        current.replace(earlier)
    if earlier.is_file():
        with files.named(earlier):
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
    options: dict[str, Any] = {
        "experiment_name": settings.project,
        "run_name": directory.name,
        "run_id": _remembered(folder),
    }
    if settings.uri:
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")  # not seven, which take five minutes
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", f"{ANSWER:.0f}")
        logger: MLFlowLogger = _OnServer(directory, tracking_uri=settings.uri, **options)
    else:
        places: dict[str, Any] = {
            "tracking_uri": f"sqlite:///{folder}/mlflow.db",
            "artifact_location": (folder / "artifacts").as_uri(),
        }
        logger = MLFlowLogger(**options, **places)
    _remember(folder, logger.version)  # which opens the run
    if isinstance(logger, _OnServer):
        logger.guard()
    return logger


class _OnServer(MLFlowLogger):
    """MLflow on a server, which may go away while a run trains; its curves are kept in the run directory too."""

    def __init__(self, directory: Path, **options: Any) -> None:
        super().__init__(**options)
        self._kept = _csv(directory)

    def guard(self) -> None:
        """From here on, what the server does not take is left out, after one warning."""
        guarded: Any = _Guarded(self._mlflow_client, f"{self._tracking_uri}", str(self._kept.log_dir))
        self._mlflow_client = guarded

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        self._kept.log_metrics(dict(metrics), step)
        super().log_metrics(metrics, step)

    def log_hyperparams(self, params: Any) -> None:
        self._kept.log_hyperparams(params)
        super().log_hyperparams(params)

    def save(self) -> None:
        self._kept.save()
        super().save()

    def finalize(self, status: str = "success") -> None:
        self._kept.finalize(status)
        super().finalize(status)


class _Guarded:
    """A client whose calls never raise: what failed once is not tried again, and nothing is once the server is away."""

    def __init__(self, client: Any, server: str, kept: str) -> None:
        self._client, self._server, self._kept = client, server, kept
        self._failed: set[str] = set()

    def __getattr__(self, name: str) -> Any:
        def call(*arguments: Any, **options: Any) -> Any:
            if self._client is None or name in self._failed:
                return None
            try:
                return getattr(self._client, name)(*arguments, **options)
            except Exception as error:  # whatever a server or its client does not like
                reason = " ".join(str(error).split())[:200]
                if re.search("Max retries exceeded|timed out|Connection", str(error)):
                    self._client, what = None, "went away"
                else:
                    what = f"does not take {name}"
                    self._failed.add(name)
                log.warning("logger=mlflow: %s %s (%s); curves are kept in %s", self._server, what, reason, self._kept)
                return None

        return call


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
