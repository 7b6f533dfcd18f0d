"""Points on their way through Hydra's launchers, in this process or in another, each with its faults kept to itself."""

from __future__ import annotations

import atexit
import dataclasses
import functools
import gc
import os
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from histolight import files, runs
from histolight.config import hydra_adapter as hydra
from histolight.config.compose import to_yaml, typed
from histolight.config.schema import Config, DataConfig
from histolight.errors import HistolightError, InterruptionError
from histolight.locks import HeldError, Lock
from histolight.sweeps.devices import claim_gpu, take_share
from histolight.sweeps.points import Point, Sweep, read_index

if TYPE_CHECKING:
    from histolight.data.prepare import PreparedData

Watcher = Callable[[Mapping[int, float]], None]
DRAWS_ITSELF = ("mlflow", "wandb")  # loggers that take figures only while the point runs

_apart = False  # whether the garbage collector passes over what the imports made


class PointLauncher:
    """Stands before one of Hydra's launchers: hands it only the points that are not completed, each with its folder."""

    def __init__(self, launcher: Any, sweep: Sweep) -> None:
        self._launcher = launcher
        self._sweep = sweep

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> None:
        """Train a batch of points."""
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
                died_alone(point, alone)


def died_alone(point: Point, error: Exception) -> None:
    """Record that a point's process died though nothing else ran beside it."""
    reason = f"its process died ({type(error).__name__}): killed, or out of memory?"
    runs.update_metrics(point.directory, status="failed", reason=reason)


def train_point(config: DictConfig, drawn: bool = True, points_per_gpu: int = 1) -> None:
    """Train one point: what Hydra's launchers run, in this process or in another.

    Whatever goes wrong is written into the point's ``metrics.json`` and not raised; only an interruption is.

    Args:
        config: The point's configuration, without Hydra's node.
        drawn: Draw the figures and the page, unless another process does.
        points_per_gpu: So many points share a GPU at a time.
    """
    point = Point((), hydra.running_job().directory)
    with Lock(files.lock_file(point.directory)):  # a worker may have outlived the process that started it
        files.clear_leftovers(point.directory)
        if point.status != "completed":
            train_and_record(config, point, drawn, points_per_gpu)


def train_and_record(
    config: DictConfig, point: Point, drawn: bool, points_per_gpu: int, watched: Watcher | None = None
) -> None:
    """Train a point whose folder this process holds; ``watched`` as in :func:`histolight.training.fit.train`.

    Whatever goes wrong is written into the point's ``metrics.json`` and not raised; only an interruption is.
    """
    try:
        with runs.recorded(point.directory):
            files.write_atomically(point.directory / "config.yaml", to_yaml(config))
            try:
                _train(config, point, drawn, points_per_gpu, watched)
            except (HistolightError, KeyboardInterrupt):
                raise
            except BaseException as error:
                files.write_atomically(point.directory / "traceback.txt", traceback.format_exc())
                raise HistolightError(f"{type(error).__name__}: {_one_line(error)}") from error
    except InterruptionError as error:
        raise KeyboardInterrupt from error  # Hydra's launchers go on after any other exception
    except Exception:
        pass
    _free_memory()


def _train(config: DictConfig, point: Point, drawn: bool, points_per_gpu: int, watched: Watcher | None) -> None:
    """Train a point, and once more with half the batch where the first time runs out of memory."""
    from histolight.training.fit import check_request, prepare_data, train
    from histolight.training.memory import halved

    job = hydra.running_job()
    if config.trainer.accelerator != "cpu" and "joblib" in job.launcher:
        claim_gpu(job.sweep.absolute(), points_per_gpu)
    elif config.trainer.accelerator != "cpu" and "hydra_ray" in job.launcher:  # which has chosen the GPU
        take_share(os.environ.get("CUDA_VISIBLE_DEVICES", "0"), points_per_gpu)
    request = check_request(typed(config))
    _set_apart()
    data = prepare_data(request, point.directory, functools.partial(_prepared, job.sweep))
    swept, drawn = read_index(job.sweep)["swept"], drawn or request.logger.name in DRAWS_ITSELF
    options: dict[str, Any] = {"progress": False, "compared": swept, "drawn": drawn, "watched": watched}
    resume = (point.directory / "checkpoints" / "last.ckpt").is_file()
    if "out_of_memory" not in point.metrics:
        try:
            train(request, data, point.directory, resume, **options)
            return
        except HistolightError as error:
            if not _may_be_halved(request, error):
                raise
        _begin_anew(request, point)
        resume = False
    train(halved(request), data, point.directory, resume, **options)


def _may_be_halved(config: Config, error: HistolightError) -> bool:
    from histolight.hardware import is_out_of_memory

    return is_out_of_memory(error.__cause__) and config.data.batch_size > 1


def _begin_anew(config: Config, point: Point) -> None:
    """Clear what a training left that ran out of memory, and note what was asked for."""
    asked = {"data.batch_size": config.data.batch_size, "trainer.accumulate": config.trainer.accumulate}
    runs.clear_attempt(point.directory)
    runs.update_metrics(point.directory, status="running", reason=None, out_of_memory=asked)
    _free_memory()


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
    if config.residency == "memmap":
        _shared[key].resident.clear()
    return _shared[key]


def release(workers: bool = False) -> None:
    """Let go of what the points in this process shared.

    Args:
        workers: End joblib's processes too, which would wait for more to do, each with its place on a GPU.
    """
    global _apart
    if workers:
        from joblib.externals.loky import get_reusable_executor

        get_reusable_executor().shutdown(wait=True)
    _shared.clear()
    _free_memory()
    if _apart:
        gc.unfreeze()
        atexit.unregister(gc.unfreeze)
        _apart = False


def _set_apart() -> None:
    """Let the garbage collector pass over what the imports made, which takes it 0.3 s each time."""
    global _apart
    if not _apart and gc.get_freeze_count() == 0:  # unless the caller has done so; counting takes 0.05 s
        gc.collect()
        gc.freeze()
        _apart = True
        atexit.register(gc.unfreeze)  # some libraries count what is left at the exit


def _free_memory() -> None:
    """Let the next point in this process begin as the first did."""
    torch = sys.modules.get("torch")
    if torch and "torch._dynamo" in sys.modules:
        torch.compiler.reset()
    gc.collect()  # now: CUDA graphs hold memory
    if torch and torch.cuda.is_initialized():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def is_held(directory: Path) -> bool:
    """Say whether a live process works in this folder."""
    if not directory.is_dir():
        return False
    lock = Lock(files.lock_file(directory))
    try:
        lock.acquire(watch=False)
    except HeldError:
        return True
    lock.release()
    return False


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())
