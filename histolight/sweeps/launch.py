"""Points on their way through Hydra's launchers, in this process or in another, each with its faults kept to itself."""

from __future__ import annotations

import atexit
import contextlib
import dataclasses
import functools
import gc
import itertools
import logging
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout
from omegaconf import DictConfig

from histolight import files, runs
from histolight.config import hydra_adapter as hydra
from histolight.config.compose import to_yaml, typed
from histolight.config.schema import DataConfig
from histolight.errors import HistolightError, InterruptionError
from histolight.sweeps.points import Point, Sweep, read_index

if TYPE_CHECKING:
    from histolight.data.prepare import PreparedData

DRAWS_ITSELF = ("mlflow", "wandb")  # loggers that take figures only while the point runs


class PointLauncher:
    """Stands before one of Hydra's launchers: hands it only the points that are not completed, each with its folder."""

    def __init__(self, launcher: Any, sweep: Sweep) -> None:
        self._launcher = launcher
        self._sweep = sweep

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> list[Any]:
        """Train a batch of points; returns their validation AUROCs, None for a failed one."""
        points = [self._sweep.point(values) for values in job_overrides]
        self._sweep.save()
        todo = list({point.directory: point for point in points if point.status != "completed"}.values())
        for point in todo:
            self._sweep.ready(point)
        while todo:
            try:
                self._launch(todo, initial_job_idx)
            except Exception as error:
                self._find_the_dead(todo, error, initial_job_idx)
            else:
                for point in todo:
                    if point.status not in ("completed", "failed"):
                        runs.update_metrics(point.directory, status="failed", reason="it left no result: disk full?")
            todo = [point for point in todo if point.status not in ("completed", "failed")]
        results = []
        for point in points:
            results.append(hydra.completed(point.overrides, point.auroc))
        return results

    def _launch(self, points: list[Point], first: int) -> None:
        self._launcher.launch([point.overrides for point in points], initial_job_idx=first)

    def _find_the_dead(self, points: list[Point], error: Exception, first: int) -> None:
        """Train alone each point whose process died: one killed process takes those beside it along."""
        died = [point for point in points if point.status == "running" and not is_held(point.directory)]
        if not died and not any(is_held(point.directory) for point in points):
            raise HistolightError(f"the launcher failed: {type(error).__name__}: {_one_line(error)}") from error
        for point in died:
            try:
                self._launch([point], first)
            except Exception as alone:
                reason = f"its process died ({type(alone).__name__}): killed, or out of memory?"
                runs.update_metrics(point.directory, status="failed", reason=reason)


def train_point(config: DictConfig, drawn: bool = True) -> float | None:
    """Train one point: what Hydra's launchers run, in this process or in another.

    Whatever goes wrong is written into the point's ``metrics.json`` and not raised; only an interruption is.

    Args:
        config: The point's configuration, without Hydra's node.
        drawn: Draw the figures and the page, unless another process does.

    Returns:
        The validation AUROC, which a search maximises; None when the point failed.
    """
    logging.getLogger("histolight").disabled = False  # Optuna's storage disables every logger that is there before it
    job = hydra.running_job()
    point = Point((), job.directory)
    if "joblib" in job.launcher:
        claim_gpu(job.sweep.absolute())
    with FileLock(files.lock_file(point.directory)):  # a worker may have outlived the process that started it
        files.clear_leftovers(point.directory)
        if point.status != "completed":
            _train_and_record(config, point, drawn)
    _free_memory()
    return point.auroc


def _train_and_record(config: DictConfig, point: Point, drawn: bool) -> None:
    from histolight.training.fit import check_request, prepare_data, train

    try:
        with runs.recorded(point.directory):
            files.write_atomically(point.directory / "config.yaml", to_yaml(config))
            try:
                resume = (point.directory / "checkpoints" / "last.ckpt").is_file()
                request = check_request(typed(config))
                _set_apart()
                sweep = hydra.running_job().sweep
                data = prepare_data(request, point.directory, functools.partial(_prepared, sweep))
                swept = read_index(sweep)["swept"]
                drawn |= request.logger.name in DRAWS_ITSELF
                train(request, data, point.directory, resume, progress=False, compared=swept, drawn=drawn)
            except (HistolightError, KeyboardInterrupt):
                raise
            except BaseException as error:
                files.write_atomically(point.directory / "traceback.txt", traceback.format_exc())
                raise HistolightError(f"{type(error).__name__}: {_one_line(error)}") from error
    except InterruptionError as error:
        raise KeyboardInterrupt from error  # Hydra's launchers go on after any other exception
    except Exception:
        return


_shared: dict[tuple[int, str], PreparedData] = {}  # the data of the point before in this process


def _prepared(sweep: Path, config: DataConfig) -> PreparedData:
    """Prepare the data of a point, or share those of the one before, for as long as one command runs the sweep."""
    from histolight.data.prepare import prepare

    begun = files.lock_file(sweep).stat().st_mtime_ns  # each command touches it
    told_apart = dataclasses.replace(config, batch_size=1, shots=None, residency="auto", sampler="shuffle")
    key = begun, repr(told_apart)
    if key not in _shared:
        _shared.clear()
        _shared[key] = prepare(config)
    return _shared[key]


def release() -> None:
    """Let go of what the points in this process shared."""
    _shared.clear()
    gc.unfreeze()
    _free_memory()


def _set_apart() -> None:
    """Let the garbage collector pass over what the imports made, which takes it 0.3 s each time."""
    if gc.get_freeze_count() == 0:
        gc.collect()
        gc.freeze()
        atexit.register(gc.unfreeze)  # some libraries count what is left at the exit


def _free_memory() -> None:
    """Let the next point in this process begin as the first did."""
    gc.collect()
    if torch := sys.modules.get("torch"):
        if "torch._dynamo" in sys.modules:
            torch.compiler.reset()
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()


_gpu_lock: FileLock | None = None  # held until this worker process ends


def claim_gpu(directory: Path) -> None:
    """Take a GPU for this worker process, the one that the fewest others have taken; with one GPU all share it."""
    global _gpu_lock
    import torch

    if _gpu_lock is not None or torch.cuda.device_count() < 2:
        return
    visible = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(torch.cuda.device_count())))
    for share, gpu in ((share, gpu) for share in itertools.count() for gpu in visible.split(",")):
        lock = FileLock(directory / f".histolight-gpu-{gpu}-{share}.lock")
        with contextlib.suppress(Timeout):
            lock.acquire(timeout=0)
            _gpu_lock = lock
            os.environ["CUDA_VISIBLE_DEVICES"] = gpu  # in time: CUDA reads it once, at its first use
            return


def is_held(directory: Path) -> bool:
    """Say whether a live process works in this folder."""
    if not directory.is_dir():
        return False
    try:
        with FileLock(files.lock_file(directory), timeout=0):
            return False
    except Timeout:
        return True


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())
