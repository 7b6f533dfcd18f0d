"""What the input path, the training step and a whole epoch cost on this machine, measured in one run on the same tiles.

Every rate is the median of three rounds, and the rates of a ratio take turns, so that other work on the machine slows
both.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import math
import os
import platform
import shutil
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, RandomSampler
from torchvision import transforms

from histolight import files, runs
from histolight.config.compose import typed
from histolight.config.request import requested_config
from histolight.config.schema import AugmentConfig, Config
from histolight.data.datamodule import TileDataModule, augmented
from histolight.data.loader import Batch
from histolight.data.pack import open_pack
from histolight.data.prepare import PreparedData, prepare
from histolight.data.sources import load_source
from histolight.errors import HistolightError
from histolight.hardware import REDUCED, compile_module, resolve_precision
from histolight.models.classifier import Classifier
from histolight.models.losses import binary_loss, positive_weight
from histolight.models.optimizers import build_optimizer, parameter_groups
from histolight.training.callbacks import Speed, anonymous_memory_mb, peak_memory_mb
from histolight.training.fit import check_request
from histolight.training.trainer import build_trainer, quiet_lightning

ROUNDS = 3
SECONDS = 2.0  # of each timed stage, but for an epoch and a validation
LONGEST_STEP = 10.0  # seconds of bare steps between two epochs
BURN_IN = 5  # steps or batches before a clock starts
FILES = 2000  # tiles that the notebook's loader reads

Figures = dict[str, dict[str, Any]]


def bench(overrides: Sequence[str], directory: Path) -> Figures:
    """Measure everything.

    Args:
        overrides: A training's configuration, as on the command line.
        directory: Where the pack and the training go while it lasts; nothing of them stays.

    Returns:
        ``tiles_per_second``, ``ratios``, ``memory_mb`` (1e6 bytes), ``seconds`` and ``machine``; None is what can't be
        measured here.

    Raises:
        HistolightError: As training.
    """
    config = check_request(typed(requested_config(overrides)))
    scratch = directory / "scratch"
    config = dataclasses.replace(
        config,
        data=dataclasses.replace(config.data, cache=str(scratch)),
        scheduler=dataclasses.replace(config.scheduler, total_epochs=None),
        trainer=dataclasses.replace(config.trainer, max_epochs=ROUNDS + 1, patience=None),  # the first warms up
    )
    try:
        with _peak_anonymous_memory() as anonymous:
            seconds = {"pack": _seconds_to_pack(config)}
            data = prepare(config.data)
            trainer = build_trainer(config, scratch / "run", speed := Speed(), progress=False)
            rates = _input_rates(config, data, trainer, scratch / "tiles")
            rates |= training_rates(config, data, trainer, speed)
        seconds |= _seconds_to_start(overrides, scratch)
    except HistolightError as error:
        if "data.cache=FOLDER" in str(error):  # here the pack lies in the output's folder
            raise HistolightError(str(error).replace("data.cache=FOLDER", "hydra.run.dir=FOLDER")) from error
        raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return {
        "tiles_per_second": rates,
        "ratios": {
            "input_over_notebook": rates["input_flips"] / rates["notebook"],
            "epoch_over_step": rates["epoch"] / rates["step"],
        },
        "memory_mb": {
            "anonymous": max(anonymous, default=None),
            "gpu": peak_memory_mb() if torch.cuda.is_initialized() else None,
        },
        "seconds": seconds,
        "machine": _machine(config, data, trainer.strategy.root_device),
    }


def first_batch(overrides: Sequence[str], directory: str) -> None:
    """Do what a training does until its first batch is on the device, with a pack that is there already."""
    config = check_request(typed(requested_config(overrides)))
    data = prepare(dataclasses.replace(config.data, cache=directory))
    datamodule = TileDataModule(data, config)
    datamodule.trainer = build_trainer(config, Path(directory, "first_batch"), Speed(), progress=False)
    next(_input(datamodule, config.augment))


class NotebookTiles(Dataset[torch.Tensor]):
    """The data set of the notebook: a file is opened, decoded and flipped for each tile, in Python.

    Args:
        paths: Image files.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = paths
        self.transform = transforms.Compose(
            [transforms.RandomHorizontalFlip(), transforms.RandomVerticalFlip(), transforms.ToTensor()]
        )

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.transform(Image.open(self.paths[index]))


def rate(batches: Iterator[Any], device: torch.device, seconds: float, burn_in: int = BURN_IN) -> float:
    """Count how many tiles a second an endless iterator of batches delivers, once it has delivered ``burn_in``."""
    for _ in range(burn_in):
        next(batches)
    synchronize(device)
    tiles, begun = 0, time.perf_counter()
    while tiles == 0 or time.perf_counter() - begun < seconds:
        tiles += len(next(batches))
    synchronize(device)
    return tiles / (time.perf_counter() - begun)


def _input_rates(config: Config, data: PreparedData, trainer: L.Trainer, folder: Path) -> dict[str, float]:
    """Measure the notebook's loader and histolight's, each up to float tiles on the device."""
    device, paths = trainer.strategy.root_device, tile_files(data, folder)
    datamodule = TileDataModule(data, config)
    datamodule.trainer = trainer
    steps = len(datamodule.train_dataloader())  # a whole pass first: it verifies the tiles' checksums

    def notebook(workers: int) -> float:
        sampler = RandomSampler(tiles := NotebookTiles(paths), replacement=True, num_samples=2**40)
        loader = DataLoader(tiles, config.data.batch_size, sampler=sampler, num_workers=workers)
        return rate((batch.to(device) for batch in loader), device, SECONDS)

    def histolight_input(geometry: str) -> float:
        return rate(_input(datamodule, AugmentConfig(geometry=geometry)), device, SECONDS, steps)

    cores = os.cpu_count() or 1
    return _medians(
        {
            "notebook": lambda: notebook(0),
            "input_flips": lambda: histolight_input("flips"),
            "notebook_workers": lambda: notebook(cores),
            "input_dihedral": lambda: histolight_input("dihedral"),
        }
    )


def _medians(measures: dict[str, Callable[[], float]]) -> dict[str, float]:
    rounds = [{name: measure() for name, measure in measures.items()} for _ in range(ROUNDS)]
    return {name: statistics.median(rates[name] for rates in rounds) for name in measures}


def _input(datamodule: TileDataModule, augment: AugmentConfig) -> Iterator[torch.Tensor]:
    """Deliver augmented training tiles on the device, epoch after epoch."""
    loader = datamodule.train_dataloader()
    assert datamodule.trainer is not None
    device = datamodule.trainer.strategy.root_device
    while True:
        for batch in loader:
            on_device = batch._replace(tiles=batch.tiles.to(device, non_blocking=True))
            yield augmented(on_device, augment, datamodule.config.data.stain).tiles


def tile_files(data: PreparedData, folder: Path) -> list[Path]:
    """Write tiles as the notebook has them, an uncompressed TIFF each."""
    tiles = data.part("train").sample(frac=1, random_state=0)[:FILES]
    folder.mkdir(parents=True)
    paths = [folder / f"{row}.tif" for row in tiles["row"]]
    for path, row in zip(paths, tiles["row"], strict=True):
        with files.named(path):
            Image.fromarray(data.tiles.gather(np.array([row]))[0]).save(path)
    return paths


def training_rates(config: Config, data: PreparedData, trainer: L.Trainer, speed: Speed) -> dict[str, float]:
    """Train with Lightning as ``histolight train`` does; after each epoch but the last measure the bare step."""
    L.seed_everything(config.seed, verbose=False)
    device = trainer.strategy.root_device
    weight = positive_weight(config.loss.pos_weight, data.part("train")["label"].to_numpy())
    datamodule = TileDataModule(data, config)
    datamodule.trainer = trainer
    batch: Batch = next(iter(datamodule.train_dataloader()))
    batch = batch._replace(tiles=batch.tiles.to(device), labels=batch.labels.to(device))
    steps = bare_steps(config, augmented(batch, config.augment, config.data.stain), weight, device)

    classifier = Classifier.from_config(config, weight)
    if config.trainer.compile != "none":
        compile_module(classifier.backbone, config.trainer.compile, device)
    watch = _Watch(speed, lambda seconds: rate(steps, device, seconds))
    trainer.callbacks.append(watch)  # type: ignore[attr-defined]  # a list, declared in a connector
    with quiet_lightning():
        trainer.fit(classifier, datamodule)
    watched = {"step": watch.step, "epoch": watch.epoch, "validation": watch.validation}
    return {name: statistics.median(rates) for name, rates in watched.items()}


def bare_steps(config: Config, batch: Batch, weight: float, device: torch.device) -> Iterator[torch.Tensor]:
    """Train on one batch for ever, in plain PyTorch: what Lightning and the input path are measured against."""
    classifier = Classifier.from_config(config, weight).to(device)
    if config.trainer.compile != "none":
        compile_module(classifier.backbone, config.trainer.compile, device)
    trained = [parameter for parameter in classifier.parameters() if parameter.requires_grad]
    groups = parameter_groups(classifier.backbone, classifier.head, config.optimizer)
    optimizer = build_optimizer(groups, config.optimizer)
    half = REDUCED.get(resolve_precision(config.trainer.precision, config.trainer.accelerator))
    scaler = torch.amp.GradScaler(device.type, enabled=half is torch.float16)
    for number in itertools.count(1):
        # Without the cache, as in Lightning: where it is compiled, another setting would be compiled anew.
        with torch.autocast(device.type, half, cache_enabled=False) if half else contextlib.nullcontext():
            logits = classifier(batch.tiles)
        loss = binary_loss(logits, batch.labels, weight, config.loss.label_smoothing)
        scaler.scale(loss / config.trainer.accumulate).backward()
        if number % config.trainer.accumulate == 0:
            if config.trainer.clip is not None:
                scaler.unscale_(optimizer)
                torch.nn.utils.clip_grad_norm_(trained, config.trainer.clip)
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
        yield batch.tiles


class _Watch(L.Callback):
    """Note the tiles/s of each epoch and each validation after the first, and measure the bare step in between."""

    def __init__(self, speed: Speed, step_rate: Callable[[float], float]) -> None:
        self.speed, self.step_rate = speed, step_rate
        self.step: list[float] = []
        self.epoch: list[float] = []
        self.validation: list[float] = []
        self._begun = 0.0
        self._counted = (0, 0.0)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        synchronize(pl_module.device)
        self._begun = time.perf_counter()

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        synchronize(pl_module.device)
        if trainer.current_epoch > 0:
            assert isinstance(pl_module, Classifier)
            assert pl_module.predictions is not None
            self.validation.append(len(pl_module.predictions[0]) / (time.perf_counter() - self._begun))

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        tiles, seconds = self.speed.tiles - self._counted[0], self.speed.seconds - self._counted[1]
        self._counted = (self.speed.tiles, self.speed.seconds)
        print(f"epoch {trainer.current_epoch + 1} of {ROUNDS + 1}: {tiles / seconds:,.0f} tiles/s", file=sys.stderr)
        if trainer.current_epoch > 0:
            self.epoch.append(tiles / seconds)
        if trainer.current_epoch < ROUNDS:
            self.step.append(self.step_rate(min(seconds, LONGEST_STEP)))


def _seconds_to_pack(config: Config) -> float:
    source, begun = load_source(config.data), time.perf_counter()
    open_pack(source, Path(str(config.data.cache)), config.data.image_size)
    return time.perf_counter() - begun


def _seconds_to_start(overrides: Sequence[str], scratch: Path) -> dict[str, float]:
    code = "import sys; from histolight.training.bench import first_batch; first_batch(sys.argv[2:], sys.argv[1])"
    commands = {
        "help": ["-m", "histolight", "--help"],
        "cfg_job": ["-m", "histolight", "train", *overrides, "--cfg", "job"],
        "first_batch": ["-c", code, str(scratch), *overrides],
    }

    def seconds(command: list[str]) -> float:
        begun = time.perf_counter()
        subprocess.run([sys.executable, *command], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        return time.perf_counter() - begun

    return _medians({name: functools.partial(seconds, command) for name, command in commands.items()})


@contextlib.contextmanager
def _peak_anonymous_memory() -> Iterator[list[float]]:
    """Read this process's anonymous memory twenty times a second into the list that is returned."""
    readings: list[float] = []
    stop = threading.Event()

    def read() -> None:
        while not stop.wait(0.05):
            readings.append(anonymous_memory_mb())

    thread = threading.Thread(target=read, daemon=True)
    if not math.isnan(anonymous_memory_mb()):
        thread.start()
    try:
        yield readings
    finally:
        stop.set()


def _machine(config: Config, data: PreparedData, device: torch.device) -> dict[str, Any]:
    """Say where and on what it was measured."""
    return {
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        "platform": platform.platform(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "device": device.type,
        "model": config.model.name,
        "source": config.data.source,
        "tiles": len(data.part("train")),
        "image_size": config.data.image_size,
        "batch_size": config.data.batch_size,
        "precision": resolve_precision(config.trainer.precision, config.trainer.accelerator),
        "compile": config.trainer.compile,
        "git_commit": runs.provenance()["git_commit"],
    }


def _cpu() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def synchronize(device: torch.device) -> None:
    """Wait for what the device has been given to do."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
