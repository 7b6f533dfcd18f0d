"""A sweep: many trainings from one command, each a point with a run directory of its own.

Hydra expands the lists and its launchers run the points, one after another or in parallel. What is kept here makes a
sweep one that finishes: a point is known by a hash of its configuration, so that the same command given again skips
what is completed; a point's fault is written into its own ``metrics.json`` and does not stop the others.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import itertools
import logging
import os
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

from filelock import FileLock, Timeout
from hydra import initialize_config_dir
from hydra._internal.callbacks import Callbacks
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.errors import HydraException
from hydra.types import HydraContext
from omegaconf import DictConfig, open_dict
from tqdm import tqdm

from histolight import files, runs
from histolight.config.compose import compose_config, conf_directory, quote_paths, to_yaml, typed
from histolight.errors import HistolightError, InterruptionError, RequestError, command_line
from histolight.interrupts import signals_interrupt
from histolight.process import own_hydra
from histolight.sweeps.points import Point, Sweep, read_index, shown

REFRESH = 0.5  # seconds between two looks at the points


@dataclasses.dataclass(frozen=True)
class SweepResult:
    """A sweep that ran to its end: its name, where it lies, and its points in their order."""

    name: str
    directory: Path
    points: list[Point]


@own_hydra()
def run_sweep(overrides: Sequence[str]) -> SweepResult:
    """Train every point of a sweep that is not completed yet.

    Args:
        overrides: As on the command line: lists and ranges are swept, single values hold for all points.

    Raises:
        RequestError: A point can't be composed, would need several devices at once, or the name is taken.
        InterruptionError: Ctrl-C or SIGTERM; the message says how to continue.
        HistolightError: The launcher itself failed.
    """
    overrides = list(quote_paths(overrides))
    with initialize_config_dir(str(conf_directory()), version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
    fixed, swept = _fixed_and_swept(overrides, OverridesParser.create(config_loader=loader))
    if not any(override.partition("=")[0] == "name" for override in fixed):
        fixed.append(time.strftime("name=%Y-%m-%d_%H-%M-%S"))
    master = compose_config(fixed)
    directory = Path(str(master.hydra.sweep.dir)).expanduser().absolute()
    params = _params(master, fixed)
    with open_dict(master):
        master.hydra.sweep.dir = str(directory)
        master.hydra.sweeper.params = params
    grid = _grid(master, swept)
    keys = [override.key_or_group for override in swept] + list(params)
    configs = [compose_config([*fixed, *values]) for values in grid]
    for config in configs or [master]:
        _refuse_several_devices(config)

    with files.claimed(directory, continued=(directory / "sweep.json").is_file()):
        sweep = Sweep(directory, fixed, keys, configs or [master], bool(configs))
        for values, config in zip(grid, configs, strict=True):
            sweep.point(values, config)
        context = HydraContext(config_loader=loader, callbacks=Callbacks())
        setup: dict[str, Any] = {"hydra_context": context, "task_function": train_point, "config": master}
        total = len(sweep.points) or int(master.hydra.sweeper.n_trials)
        with signals_interrupt(), _live_line(sweep, total):
            try:
                if grid:
                    launcher = _Launcher(Plugins.instance().instantiate_launcher(**setup), sweep)
                    step = master.hydra.sweeper.max_batch_size or len(grid)
                    for first in range(0, len(grid), step):
                        launcher.launch(grid[first : first + step], first)
                else:
                    _search(setup, sweep, [str(override.input_line) for override in swept])
            except KeyboardInterrupt as error:
                raise InterruptionError(_how_to_continue(sweep, total, overrides, master.name)) from error
        return SweepResult(master.name, shown(directory), sweep.points)


def _fixed_and_swept(overrides: list[str], parser: OverridesParser) -> tuple[list[str], list[Override]]:
    """Tell single values from lists, ranges, globs and intervals.

    Raises:
        RequestError: An override can't be read, or its key has no place in a sweep.
    """
    try:
        last = {override.get_key_element(): override for override in parser.parse_overrides(overrides)}
    except HydraException:
        compose_config(overrides)  # says it in our words
        raise
    parsed = list(last.values())  # of a key given twice the last counts, as in Hydra
    swept = [override for override in parsed if override.is_sweep_override()]
    for override in parsed:
        key = override.key_or_group
        if key in ("run", "like"):
            raise RequestError(f"{key}= is about a single run: leave -m out (a sweep is continued by its name=)")
    for override in swept:
        key = override.key_or_group
        if key == "name" or key.startswith("hydra"):
            raise RequestError(f"{key} can't be swept: give one value")
    return [str(override.input_line) for override in parsed if not override.is_sweep_override()], swept


def _params(master: DictConfig, fixed: list[str]) -> dict[str, str]:
    """Return the axes that ``sweep=`` presets, without those that the command line sets to one value."""
    given = {override.partition("=")[0] for override in fixed}
    return {key: value for key, value in (master.hydra.sweeper.params or {}).items() if key not in given}


def _grid(master: DictConfig, swept: list[Override]) -> list[list[str]]:
    """Expand lists and ranges as Hydra's basic sweeper does; empty when another sweeper chooses the points."""
    sweeper = master.hydra.sweeper
    if not sweeper._target_.endswith("BasicSweeper"):
        return []
    params = OverridesParser.create().parse_overrides([f"{key}={value}" for key, value in sweeper.params.items()])
    axes = [*params, *swept]
    for override in axes:
        if override.is_sweep_override() and not override.is_discrete_sweep():
            raise RequestError(f"{override.input_line} is no list of values: a search over an interval is sweep=optuna")
    [batch] = BasicSweeper.split_arguments(axes, None)
    return batch


def _refuse_several_devices(config: DictConfig) -> None:
    """Refuse distributed training: Lightning starts its other processes with this command line, -m included."""
    settings = config.trainer
    several = settings.devices.isdigit() and int(settings.devices) > 1
    if settings.strategy == "ddp" or several or settings.num_nodes > 1:
        raise RequestError(
            "a point of a sweep trains on one device: with -m use trainer.devices=1 trainer.strategy=auto, "
            "or train such points one by one, without -m"
        )
    if settings.devices == "auto" and settings.accelerator != "cpu" and "Basic" in config.hydra.launcher._target_:
        import torch

        if torch.cuda.device_count() > 1:
            raise RequestError(
                f"trainer.devices=auto would take all {torch.cuda.device_count()} GPUs for each point: with -m use "
                "hydra/launcher=joblib, which gives each point its own, or trainer.devices=1"
            )


class _Launcher:
    """Stands before one of Hydra's launchers: hands it only the points that are not completed, each with its folder."""

    def __init__(self, launcher: Any, sweep: Sweep) -> None:
        self._launcher = launcher
        self._sweep = sweep

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> list[JobReturn]:
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
            result = JobReturn(overrides=list(point.overrides), status=JobStatus.COMPLETED)
            result.return_value = point.auroc
            results.append(result)
        return results

    def _launch(self, points: list[Point], first: int) -> None:
        self._launcher.launch([point.overrides for point in points], initial_job_idx=first)

    def _find_the_dead(self, points: list[Point], error: Exception, first: int) -> None:
        """Train alone each point whose process died: one killed process takes those beside it along."""
        died = [point for point in points if point.status == "running" and not _is_held(point.directory)]
        if not died and not any(_is_held(point.directory) for point in points):
            raise HistolightError(f"the launcher failed: {type(error).__name__}: {_one_line(error)}") from error
        for point in died:
            try:
                self._launch([point], first)
            except Exception as alone:
                reason = f"its process died ({type(alone).__name__}): killed, or out of memory?"
                runs.update_metrics(point.directory, status="failed", reason=reason)


def _search(setup: dict[str, Any], sweep: Sweep, arguments: list[str]) -> None:
    """Let Hydra's Optuna sweeper choose points until ``n_trials`` of them are completed or have failed just now."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)  # of what its later versions kept as it is
    settings = setup["config"].hydra.sweeper
    sweep.points += [point for point in sweep.known() if point.status == "completed"]
    settings.n_trials -= len(sweep.points)
    if settings.n_trials <= 0:
        return
    sweep.save()  # the search's own files must not come first: without sweep.json the folder would be another's
    _try_again(settings.storage, settings.study_name)
    sweeper = cast(Any, Plugins.instance().instantiate_sweeper(**setup)).sweeper
    sweeper.launcher = _Launcher(sweeper.launcher, sweep)
    try:
        sweeper.sweep(arguments)
    except ValueError:  # Optuna has no best trial when all of them failed
        if any(point.status == "completed" for point in sweep.points):
            raise
    finally:
        logging.getLogger("histolight").disabled = False


def _try_again(storage: str, study_name: str) -> None:
    """Put the failed and the cut-off trials of an earlier command first in Optuna's queue."""
    import optuna

    study = optuna.create_study(study_name=study_name, storage=storage, direction="maximize", load_if_exists=True)
    for trial in study.get_trials(states=(optuna.trial.TrialState.RUNNING,)):
        study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
    chosen = [(trial.state, trial.params or trial.system_attrs.get("fixed_params")) for trial in study.get_trials()]
    settled = [params for state, params in chosen if state != optuna.trial.TrialState.FAIL]
    for _, params in chosen:
        if params and params not in settled:
            study.enqueue_trial(params)
            settled.append(params)


def train_point(config: DictConfig) -> float | None:
    """Train one point: what Hydra's launchers run, in this process or in another.

    Whatever goes wrong is written into the point's ``metrics.json`` and not raised; only an interruption is.

    Args:
        config: The point's configuration, without Hydra's node.

    Returns:
        The validation AUROC, which a search maximises; None when the point failed.
    """
    logging.getLogger("histolight").disabled = False  # Optuna's storage disables every logger that is there before it
    hydra = HydraConfig.get()
    point = Point((), Path(hydra.runtime.output_dir))
    if "joblib" in hydra.launcher._target_:
        claim_gpu(Path(hydra.sweep.dir).absolute())
    with FileLock(files.lock_file(point.directory)):  # a worker may have outlived the process that started it
        files.clear_leftovers(point.directory)
        if point.status != "completed":
            _train_and_record(config, point)
    _free_memory()
    return point.auroc


def _train_and_record(config: DictConfig, point: Point) -> None:
    from histolight.training.fit import check_request, prepare_data, train

    try:
        with runs.recorded(point.directory):
            files.write_atomically(point.directory / "config.yaml", to_yaml(config))
            try:
                resume = (point.directory / "checkpoints" / "last.ckpt").is_file()
                request = check_request(typed(config))
                _free_memory()
                data = prepare_data(request, point.directory)
                swept = read_index(Path(HydraConfig.get().sweep.dir))["swept"]
                train(request, data, point.directory, resume, progress=False, compared=swept)
            except (HistolightError, KeyboardInterrupt):
                raise
            except BaseException as error:
                files.write_atomically(point.directory / "traceback.txt", traceback.format_exc())
                raise HistolightError(f"{type(error).__name__}: {_one_line(error)}") from error
    except InterruptionError as error:
        raise KeyboardInterrupt from error  # Hydra's launchers go on after any other exception
    except Exception:
        return


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


def _is_held(directory: Path) -> bool:
    """Say whether a live process works in this folder."""
    if not directory.is_dir():
        return False
    try:
        with FileLock(files.lock_file(directory), timeout=0):
            return False
    except Timeout:
        return True


@contextlib.contextmanager
def _live_line(sweep: Sweep, total: int) -> Iterator[None]:
    """Say on stderr how many points are done, the best so far and the time left, from the points' own files."""
    done: dict[Path, tuple[str, float | None]] = {}

    def look() -> None:
        for point in list(sweep.points):
            if point.directory not in done and (status := point.status) in ("completed", "failed"):
                done[point.directory] = (status, point.auroc)

    def show(bar: Any) -> None:
        best = max(((auroc, path.name) for path, (_, auroc) in done.items() if auroc is not None), default=None)
        failed = sum(status == "failed" for status, _ in done.values())
        words = ([f"best AUROC {best[0]:.4f} ({best[1]})"] if best else []) + ([f"{failed} failed"] if failed else [])
        bar.n = len(done)
        bar.set_postfix_str(", ".join(words))

    for point in sweep.points:
        if point.status == "completed":
            done[point.directory] = ("completed", point.auroc)
    form = "{desc}: {n_fmt} of {total_fmt} points done{postfix}, {elapsed} elapsed, {remaining} left"
    ended = threading.Event()
    with tqdm(total=total, initial=len(done), desc=sweep.directory.name, bar_format=form, file=sys.stderr) as bar:

        def watch() -> None:
            while not ended.wait(REFRESH):
                before = len(done)
                look()
                if len(done) != before or sys.stderr.isatty():
                    show(bar)

        show(bar)
        thread = threading.Thread(target=watch, daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()
            look()
            show(bar)


def _how_to_continue(sweep: Sweep, total: int, overrides: list[str], name: str) -> str:
    """Mark what was cut off, and give the command that goes on."""
    for point in sweep.points:
        if point.status == "running" and not _is_held(point.directory):
            runs.update_metrics(point.directory, status="interrupted", reason="interrupted with its sweep")
    done = sum(point.status == "completed" for point in sweep.points)
    named = overrides if f"name={name}" in overrides else [*overrides, f"name={name}"]
    command = command_line("histolight", "train", "-m", *named)
    return f"interrupted with {done} of {total} points completed: continue with {command}"


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())
