"""The parts of benchmarks/gpu.sh: what a GPU does for a training, measured one by one.

    python benchmarks/gpu.py PART OUT SCRATCH [--rehearse]

Each figure is a row of ``OUT/gpu.csv`` as soon as it is known. The tiles are noise with brighter centres, made here.
``--rehearse`` does the same on the CPU with tiny sizes; its figures mean nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import dataclasses
import gc
import multiprocessing
import os
import subprocess
import sys
import time
import traceback
import xml.etree.ElementTree
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import lightning as L
import torch
from operators import show_profile
from tables import csv_printer
from torch.utils.data import DataLoader, RandomSampler

from histolight import runs
from histolight.config.compose import typed
from histolight.config.request import requested_config
from histolight.config.schema import Config
from histolight.data.datamodule import TileDataModule, compute_features
from histolight.data.loader import Batch
from histolight.data.prepare import PreparedData, prepare
from histolight.hardware import REDUCED, compile_module, prepare_matrix_products, resolve_precision
from histolight.models.classifier import Classifier
from histolight.training import bench
from histolight.training.callbacks import Speed, flops_per_tile
from histolight.training.fit import check_request
from histolight.training.trainer import build_trainer, quiet_lightning

PEAKS = {"H100": 989e12, "H200": 989e12, "A100": 312e12}  # dense bf16 FLOP/s, from the vendor's data sheets
MAKE = f"""
import shutil, sys
from pathlib import Path
sys.path.insert(0, {str(Path(__file__).parent)!r})
from scale import make_kaggle
folder = Path(sys.argv[1])
shutil.rmtree(folder.with_suffix(".partial"), ignore_errors=True)  # of a call that was cut
make_kaggle(folder.with_suffix(".partial"), int(sys.argv[2]))
folder.with_suffix(".partial").rename(folder)
"""
EPOCHS = 5  # of a point of the extrapolated sweep
PROFILED = 5  # steps; the events of one, 13,000 of DenseNet-121, take half a second to add up


@dataclasses.dataclass(frozen=True)
class Sizes:
    """How much is measured, and of which networks."""

    tiles: int = 20480
    small: int = 10240
    sweep: int = 10000
    whole: int = 220025
    batch: int = 64
    large: int = 512
    seconds: float = 10.0
    rounds: int = 2
    compiled: tuple[str, ...] = ("none", "reduce-overhead")
    densenet: str = "densenet121"
    resnet: str = "resnet18"
    transformer: tuple[str, ...] = ("model.name=timm/vit_base_patch16_224", "model.input_size=224")
    device: tuple[str, ...] = ("trainer=gpu",)


REHEARSAL = Sizes(
    *(400, 80, 60, 200, 4, 8, 0.3, 1, ("none",)),
    *("shufflenet_v2_x0_5", "shufflenet_v2_x0_5", ("model.name=timm/test_vit", "model.input_size=160")),
    ("trainer=cpu",),
)


class Measurement:
    """Where the rows go, where the tiles are, and how large everything is."""

    def __init__(self, part: str, out: Path, scratch: Path, sizes: Sizes) -> None:
        self.part, self.out, self.scratch, self.sizes = part, out, scratch, sizes
        self.cuda = sizes.device == ("trainer=gpu",)
        self.device = torch.device("cuda" if self.cuda else "cpu")
        self.name = torch.cuda.get_device_name() if self.cuda else "CPU"
        self.peak = next((peak for name, peak in PEAKS.items() if name in self.name), None)
        machine = f"{self.name}, {os.cpu_count()} cores, torch {torch.__version__}"
        columns = ("part", "measured", "value", "unit", "target")
        self._print = csv_printer(*columns, file=(out / "gpu.csv").open("a", encoding="utf-8"), machine=machine)

    def row(self, measured: str, value: float, unit: str, target: str = "") -> None:
        """Write a figure down, and show it."""
        text = f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"
        self._print(self.part, measured, text, unit, target)
        print(f"{self.part}: {measured}: {text} {unit} {target}", flush=True)

    def overrides(self, tiles: int) -> list[str]:
        """Return those of a training on made tiles, which are made where they are not there yet."""
        root = self.scratch / f"tiles-{tiles}"
        if not root.exists():  # by a process that knows no GPU, for it forks
            subprocess.run([sys.executable, "-c", MAKE, str(root), str(tiles)], check=True)
        data = ["data=kaggle", f"data.root={root}", f"data.cache={self.scratch / 'cache'}"]
        return [*data, "model.weights=null", "scheduler=constant", "logger=csv", *self.sizes.device]

    def request(self, tiles: int, *overrides: str) -> Config:
        """Return the checked configuration of a training."""
        return check_request(typed(requested_config([*self.overrides(tiles), *overrides])))


@contextlib.contextmanager
def attempted(what: str) -> Iterator[None]:
    """Let the other figures be measured where one can't be."""
    try:
        yield
    except Exception:
        print(f"{what} FAILED\n{traceback.format_exc()}", flush=True)
        failed.append(what)
    finally:
        torch.compiler.reset()
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()


failed: list[str] = []


class EndError(Exception):
    """It was trained for long enough."""


class Until(L.Callback):
    """Measure tiles/s of training, and end it after so many seconds of it; the first steps do not count."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.rate = 0.0
        self._tiles, self._before, self._begun, self._warm = 0, 0.0, 0.0, bench.BURN_IN

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Let the clock run."""
        self._begun = time.perf_counter()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count the batch, and end the training when its time has come."""
        self._tiles += len(batch.rows)
        self._warm -= 1
        seconds = self._before + time.perf_counter() - self._begun
        if self._warm == 0:
            bench.synchronize(pl_module.device)
            self._tiles, self._before, self._begun = 0, 0.0, time.perf_counter()
        elif self._warm < 0 and seconds > self.seconds:
            bench.synchronize(pl_module.device)
            self.rate = self._tiles / (self._before + time.perf_counter() - self._begun)
            raise EndError

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Stop the clock."""
        self._before += time.perf_counter() - self._begun


def training_rate(
    config: Config, data: PreparedData, scratch: Path, seconds: float
) -> tuple[float, L.Trainer, Classifier, TileDataModule]:
    """Train as ``histolight train`` does for some seconds; return tiles/s and what trained."""
    config = dataclasses.replace(config, trainer=dataclasses.replace(config.trainer, max_epochs=10**4))
    trainer = build_trainer(config, scratch / "run", Speed(guards=False), progress=False)
    trainer.callbacks.append(until := Until(seconds))  # type: ignore[attr-defined]  # a list, declared in a connector
    classifier, datamodule = Classifier.from_config(config, 1.0), TileDataModule(data, config)
    if config.trainer.compile != "none":
        compile_module(classifier.backbone, config.trainer.compile, trainer.strategy.root_device)
    with quiet_lightning(), contextlib.suppress(EndError):
        trainer.fit(classifier, datamodule)
    return until.rate, trainer, classifier, datamodule


def measure_tests(measurement: Measurement) -> None:
    """Count the tests that ran on the GPU."""
    suite = next(xml.etree.ElementTree.parse(measurement.out / "tests.xml").iter("testsuite"))
    counts = {name: int(suite.get(name, 0)) for name in ("tests", "failures", "errors", "skipped")}
    bad = counts["failures"] + counts["errors"]
    measurement.row("tests of the mark gpu that pass", counts["tests"] - bad - counts["skipped"], "tests")
    measurement.row("tests of the mark gpu that fail", bad, "tests", "0")


def measure_ready(measurement: Measurement) -> None:
    """Make all tiles, and compile what the first parts need, each network by a process of its own."""
    sizes = measurement.sizes
    cases = [(sizes.densenet, sizes.batch, sizes.small), (sizes.resnet, sizes.large, sizes.tiles)]
    found: dict[str, Future[float]] = {}
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as pool:
        for mode in sizes.compiled:
            for network, batch, tiles in cases if mode != "none" else []:
                names = [f"model.name={network}", f"data.batch_size={batch}", f"trainer.compile={mode}"]
                config = measurement.request(tiles, *names)
                found[f"{network}, batch {batch}, compile {mode}"] = pool.submit(first_step, config, measurement.device)
        for tiles in (sizes.small, sizes.tiles, sizes.whole):
            measurement.overrides(tiles)
        for what, seconds in found.items():
            with attempted(what):
                measurement.row(f"{what}: first step, while the tests run", seconds.result(), "s")


def first_step(config: Config, device: torch.device) -> float:
    """Compile a network as a training does, which leaves it in the compiler's cache; return the seconds it takes."""
    prepare_matrix_products()
    size, count = config.data.image_size, config.data.batch_size
    tiles = torch.zeros(count, 3, size, size, device=device).contiguous(memory_format=torch.channels_last)
    labels = torch.zeros(count, device=device)
    begun = time.perf_counter()
    next(bench.bare_steps(config, Batch(tiles, labels, labels.long(), 0), 1.0, device))
    bench.synchronize(device)
    return time.perf_counter() - begun


def measure_steps(measurement: Measurement) -> None:
    """Measure the epoch against the bare step, for two networks, two sizes of batches, with and without compiling."""
    sizes = measurement.sizes
    bench.ROUNDS = sizes.rounds
    first = [(sizes.densenet, sizes.batch), (sizes.resnet, sizes.large)]
    second = [(sizes.resnet, sizes.batch), (sizes.densenet, sizes.large)]
    # What must still be compiled comes last.
    order = [("none", first), ("reduce-overhead", first), ("none", second), ("reduce-overhead", second)]
    cases = [(*case, mode) for mode, cases in order if mode in sizes.compiled for case in cases]
    for network, batch, mode in cases:
        what = f"{network}, batch {batch}, compile {mode}"
        with attempted(what):
            tiles = sizes.small if batch == sizes.batch else sizes.tiles
            names = [f"model.name={network}", f"data.batch_size={batch}", f"trainer.compile={mode}"]
            config = measurement.request(tiles, *names, f"trainer.max_epochs={sizes.rounds + 1}")
            data = prepare(config.data)
            trainer = build_trainer(config, measurement.scratch / "run", speed := Speed(guards=False), progress=False)
            rates = bench.training_rates(config, data, trainer, speed)
            target = "≥ 25000" if (network, batch, mode) == ("resnet18", sizes.large, sizes.compiled[-1]) else ""
            measurement.row(f"{what}: bare step", rates["step"], "tiles/s")
            measurement.row(f"{what}: epoch", rates["epoch"], "tiles/s", target)
            measurement.row(f"{what}: validation", rates["validation"], "tiles/s")
            measurement.row(f"{what}: epoch ÷ bare step", rates["epoch"] / rates["step"], "ratio", "≥ 0.97")
            if measurement.cuda:
                measurement.row(f"{what}: memory", torch.cuda.max_memory_allocated() / 1e6, "MB")
            if measurement.peak:
                operations = 3 * flops_per_tile(Classifier.from_config(config, 1.0))  # backwards is twice forwards
                share = 100 * rates["epoch"] * operations / measurement.peak
                measurement.row(f"{what}: share of the peak", share, "% of the bf16 peak")


def train_steps(config: Config, loader: DataLoader, device: torch.device, usual: bool) -> Iterator[torch.Tensor]:
    """Train for ever on what a loader gives, in one of two plain loops; random labels, which cost the same.

    The notebook's is float32, eager, NCHW. The usual one is what scripts of timm and Lightning do: half precision,
    channels_last, a fused optimizer.
    """
    classifier = Classifier.from_config(config, 1.0)
    layout = torch.channels_last if usual else torch.contiguous_format
    classifier.to(device, memory_format=layout).train()
    optimizer = torch.optim.Adam(classifier.parameters(), config.optimizer.lr, fused=usual)
    criterion = torch.nn.BCEWithLogitsLoss()
    half = REDUCED.get(resolve_precision(config.trainer.precision, config.trainer.accelerator))
    scaler = torch.amp.GradScaler(device.type, enabled=usual and half is torch.float16)
    for batch in loader:
        tiles = batch.to(device, non_blocking=usual, memory_format=layout)
        labels = torch.randint(2, (len(tiles),), device=device).float()
        optimizer.zero_grad()
        with torch.autocast(device.type, half, enabled=usual and half is not None):
            loss = criterion(classifier(tiles), labels)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        if not usual:
            loss.item()  # the notebook adds up the loss of each step
        yield tiles


def measure_loops(measurement: Measurement) -> None:
    """Measure the epoch against the notebook's loop and the usual path, each on files with a worker a core."""
    sizes, device = measurement.sizes, measurement.device
    names = [f"model.name={sizes.densenet}", f"data.batch_size={sizes.batch}"]
    config = measurement.request(sizes.small, *names)
    data, workers = prepare(config.data), min(os.cpu_count() or 1, 16)
    tiles = bench.NotebookTiles(bench.tile_files(data, measurement.scratch / "files"))
    rates: dict[str, float] = {}
    for name, usual in (("the notebook's loop", False), ("the usual path", True)):
        with attempted(name):
            loader = DataLoader(
                tiles,
                config.data.batch_size,
                sampler=RandomSampler(tiles, replacement=True, num_samples=2**40),
                num_workers=workers,
                pin_memory=usual and measurement.cuda,
                persistent_workers=usual,
                prefetch_factor=4 if usual else None,
            )
            rates[name] = bench.rate(train_steps(config, loader, device, usual), device, 2 * sizes.seconds)
            measurement.row(f"{name}, {workers} workers", rates[name], "tiles/s")
    for mode in sizes.compiled:
        with attempted(f"histolight, compile {mode}"):
            config = measurement.request(sizes.small, *names, f"trainer.compile={mode}")
            found, *_ = training_rate(config, data, measurement.scratch, sizes.seconds)
            measurement.row(f"histolight, compile {mode}", found, "tiles/s")
            for (name, other), target in zip(rates.items(), ("≥ 5", "≥ 1.5"), strict=False):
                measurement.row(f"histolight, compile {mode} ÷ {name}", found / other, "ratio", target)


def measure_whole(measurement: Measurement) -> None:
    """Measure what as many tiles as Kaggle's cost: packing, loading into the GPU's memory, an epoch."""
    sizes, names = measurement.sizes, [f"model.name={measurement.sizes.densenet}"]
    config = measurement.request(sizes.whole, *names)
    with timed(measurement, f"pack {sizes.whole} tiles, overlaps and split"):
        data = prepare(config.data)
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, residency="device"))
    datamodule = TileDataModule(data, config)
    datamodule.trainer = build_trainer(config, measurement.scratch / "run", Speed(), progress=False)
    with timed(measurement, f"load {sizes.whole} tiles into the device's memory"):
        datamodule.train_dataloader()
        bench.synchronize(measurement.device)
    cases = [(sizes.large, "none"), (sizes.batch, "none"), (sizes.large, "reduce-overhead")]
    for batch, mode in [case for case in cases if case[1] in sizes.compiled]:
        what = f"batch {batch}, compile {mode}"
        with attempted(what):
            changed = [*names, f"data.batch_size={batch}", f"trainer.compile={mode}", "data.residency=device"]
            config = measurement.request(sizes.whole, *changed)
            found, trainer, classifier, datamodule = training_rate(config, data, measurement.scratch, sizes.seconds / 2)
            measurement.row(f"{what}: training", found, "tiles/s")
            begun = time.perf_counter()
            with quiet_lightning():
                trainer.validate(classifier, datamodule, verbose=False)
            seconds = time.perf_counter() - begun
            measurement.row(f"{what}: validation with its figures", seconds, "s")
            epoch = len(data.part("train")) / found + seconds
            measurement.row(f"{what}: an epoch", epoch, "s")
            measurement.row(f"{what}: ten epochs, extrapolated", 10 * epoch, "s", "≤ 180")


@contextlib.contextmanager
def timed(measurement: Measurement, what: str) -> Iterator[None]:
    """Write down how long something took."""
    begun = time.perf_counter()
    yield
    measurement.row(what, time.perf_counter() - begun, "s")


def measure_sweep(measurement: Measurement) -> None:
    """Measure six points of the grid three at a time on the GPU and one after another; extrapolate to all 27."""
    sizes = measurement.sizes
    fixed = [*measurement.overrides(sizes.sweep), f"model.name={sizes.densenet}", "trainer.max_epochs=1"]
    rates, batches = ["1e-4", "1e-3"], [sizes.batch // 2, sizes.batch, 2 * sizes.batch]
    grid = [f"optimizer.lr={','.join(rates)}", f"data.batch_size={','.join(map(str, batches))}"]
    prepare(typed(requested_config(fixed)).data)
    three = [[grid[0], f"data.batch_size={batch}"] for batch in batches]
    cases = [(3, "three at a time, three sweeps", three), (1, "one after another", [grid])]
    if find_spec("hydra_plugins") and find_spec("hydra_plugins.hydra_joblib_launcher"):
        shared = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=3", "sweep.points_per_gpu=3"]
        cases.append((3, "three at a time, hydra/launcher=joblib", [[*grid, *shared]]))
    for case, (at_a_time, name, commands) in enumerate(cases):
        with attempted(name):
            folders = [measurement.scratch / f"sweep-{case}-{number}" for number in range(len(commands))]
            begun = time.perf_counter()
            processes = [
                subprocess.Popen(
                    [sys.executable, "-m", "histolight", "train", "-m", *fixed, *points, f"hydra.sweep.dir={folder}"]
                )
                for points, folder in zip(commands, folders, strict=True)
            ]
            statuses = [process.wait() for process in processes]
            wall = time.perf_counter() - begun
            points = [runs.read_metrics(path.parent) for folder in folders for path in folder.glob("*/metrics.json")]
            complete = [point for point in points if point["status"] == "completed"]
            if len(complete) != len(rates) * len(batches) or any(statuses):
                raise RuntimeError(f"{len(complete)} points are complete: {[point.get('reason') for point in points]}")
            seconds = sum(point["seconds"] for point in complete) / len(complete)
            measurement.row(f"{name}: 6 points of one epoch", wall, "s")
            measurement.row(f"{name}: training of a point", seconds, "s")
            extrapolated = 27 * (wall / 6 + (EPOCHS - 1) * seconds / at_a_time)
            target = "≤ 600" if at_a_time == 3 else ""
            measurement.row(f"{name}: 27 points of {EPOCHS} epochs, extrapolated", extrapolated, "s", target)


def measure_features(measurement: Measurement) -> None:
    """Measure a pass of a vision transformer at its own size, in half precision, whose features are kept nowhere."""
    sizes = measurement.sizes
    config = measurement.request(sizes.small, *sizes.transformer, f"data.batch_size={4 * sizes.batch}")
    data = prepare(config.data)
    classifier = Classifier.from_config(config, 1.0).eval().requires_grad_(False)
    operations = flops_per_tile(classifier)
    trainer = build_trainer(config, measurement.scratch / "run", Speed(), progress=False)
    rows, precision = data.table["row"].to_numpy(), trainer.precision_plugin.forward_context
    classifier.to(measurement.device)

    def batches() -> Iterator[torch.Tensor]:
        while True:
            yield from compute_features(
                classifier.features, data.tiles, rows, config.data, measurement.device, precision
            )

    found = bench.rate(batches(), measurement.device, sizes.seconds / 2)
    measurement.row(f"features of {config.model.name} at {config.model.input_size} px", found, "tiles/s")
    if measurement.peak:
        share = 100 * found * operations / measurement.peak
        measurement.row("share of the peak", share, "% of the bf16 peak")


def measure_profile(measurement: Measurement) -> None:
    """Profile the training, not compiled, whose epoch is slowest against its bare step: the kernels, and the gaps."""
    sizes = measurement.sizes
    with (measurement.out / "gpu.csv").open(encoding="utf-8", newline="") as file:
        ratios = {row["measured"]: float(row["value"]) for row in csv.DictReader(file) if row["part"] == "steps"}
    ratios = {what: value for what, value in ratios.items() if what.endswith("compile none: epoch ÷ bare step")}
    default = f"{sizes.densenet}, batch {sizes.batch}, compile none: "
    slowest = min(ratios, key=ratios.__getitem__, default=default)
    network, batch, mode = slowest.partition(":")[0].split(", ")
    names = [f"model.name={network}", f"data.batch_size={batch.split()[1]}", f"trainer.compile={mode.split()[1]}"]
    print(f"profile of {slowest}")
    show_profile([*measurement.overrides(sizes.tiles), *names], PROFILED)


PARTS: dict[str, Callable[[Measurement], None]] = {
    "ready": measure_ready,
    "tests": measure_tests,
    "steps": measure_steps,
    "loops": measure_loops,
    "whole": measure_whole,
    "sweep": measure_sweep,
    "features": measure_features,
    "profile": measure_profile,
}


def main() -> int:
    """Measure one part; return 1 where some of it could not be."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("out", type=Path, help="folder of gpu.csv")
    parser.add_argument("scratch", type=Path, help="folder of tiles, packs and runs")
    parser.add_argument("--rehearse", action="store_true", help="on the CPU, with tiny sizes")
    options = parser.parse_args()
    sizes = REHEARSAL if options.rehearse else Sizes()
    PARTS[options.part](Measurement(options.part, options.out, options.scratch, sizes))
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
