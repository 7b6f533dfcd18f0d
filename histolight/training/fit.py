"""One training from prepared data to a finished run directory."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import torch

from histolight import files, runs
from histolight.augment.registry import check_augment
from histolight.config.checks import absolute_paths
from histolight.config.compose import to_yaml
from histolight.config.schema import AugmentConfig, Config, DataConfig, LoggerConfig
from histolight.data.datamodule import TileDataModule
from histolight.data.prepare import PreparedData, few_shots, prepare
from histolight.data.sources import check_source
from histolight.data.table import describe_split
from histolight.errors import (
    NO_ROOM,
    DataError,
    HistolightError,
    InterruptionError,
    RequestError,
    command_line,
    system_reason,
)
from histolight.hardware import compile_module, is_out_of_memory, quick_look_for_gpus
from histolight.models.backbones import check_name, resolve_model
from histolight.models.classifier import Classifier
from histolight.models.lora import check_frozen
from histolight.models.losses import positive_weight
from histolight.progress import waiting
from histolight.reports import measure
from histolight.reports.run_page import write_run_report
from histolight.statistics.decisions import choose_band
from histolight.statistics.metrics import best_threshold
from histolight.training import loggers
from histolight.training.callbacks import Speed, flops_per_tile, peak_memory_mb
from histolight.training.continuing import check_continuable
from histolight.training.kept_features import kept_features
from histolight.training.learning_rates import range_test, show_learning_rates
from histolight.training.memory import out_of_memory
from histolight.training.probes import check_probe, fit_probe
from histolight.training.trainer import build_trainer, check_tasks, quiet_lightning

log = logging.getLogger("histolight")


def check_request(config: Config) -> Config:
    """Refuse what can't be trained before any work starts; resolve ``auto`` where only the configuration decides.

    Raises:
        RequestError: The data's kind or folder, the network, its weights file or the device doesn't exist, or the
            classes are balanced twice.
    """
    kind = check_source(config.data)
    weights = config.model.weights
    if weights == "auto":
        weights = None if kind.artificial else check_name(config.model.name).pretrained or "imagenet"
    if config.data.sampler == "balanced" and config.loss.pos_weight == "balanced":
        raise RequestError("data.sampler=balanced and loss.pos_weight=balanced count twice: add loss.pos_weight=null")
    check_augment(config.augment)
    check_probe(config)
    model = resolve_model(dataclasses.replace(config.model, weights=weights), config.data.image_size)
    check_frozen(model)
    loggers.check_logger(config.logger)
    check_tasks(config.trainer)
    if config.trainer.accelerator == "gpu" and not (torch.cuda.is_available() or torch.backends.mps.is_available()):
        raise RequestError("trainer.accelerator=gpu, but PyTorch sees no GPU here: use trainer=cpu or trainer=auto")
    if config.trainer.precision == "16-mixed" and (
        config.trainer.accelerator == "cpu" or not (torch.cuda.is_available() or torch.backends.mps.is_available())
    ):
        raise RequestError("trainer.precision=16-mixed needs a GPU: use trainer.precision=auto")
    devices, gpus = config.trainer.devices, torch.cuda.device_count()
    if config.trainer.accelerator != "cpu" and devices.isdigit() and 0 < gpus < int(devices):
        raise RequestError(f"trainer.devices={devices}, but there are {gpus} GPUs here")
    return dataclasses.replace(config, data=absolute_paths(config.data), model=model)


def prepare_data(
    config: Config, directory: Path, prepared: Callable[[DataConfig], PreparedData] = prepare
) -> PreparedData:
    """Prepare the data of a run; damaged data are listed in the run directory.

    Args:
        config: From :func:`check_request`.
        directory: The run directory.
        prepared: Prepares the data, or gives what was prepared before.

    Raises:
        HistolightError: As :func:`histolight.data.prepare.prepare`.
    """
    try:
        return few_shots(prepared(config.data), config.data.shots, config.seed)
    except DataError as error:
        with runs.recorded(directory):
            files.write_atomically(directory / "config.yaml", to_yaml(config))
            path = directory / "data_problems.csv"
            files.write_csv(path, error.problems)
            raise DataError(f"{error}; all of them: {path}", error.problems) from error


def train(
    config: Config,
    data: PreparedData,
    directory: Path,
    resume: bool = False,
    progress: bool = True,
    compared: Collection[str] | None = None,
    drawn: bool = True,
    watched: Callable[[Mapping[int, float]], None] | None = None,
) -> dict[str, Any]:
    """Train, choose the best epoch by validation AUROC, measure it, and write the run directory.

    Args:
        config: From :func:`check_request`.
        data: From :func:`prepare_data`.
        directory: The run directory; ``config.yaml`` in it says how to continue.
        resume: Continue from ``checkpoints/last.ckpt`` where there is one.
        progress: Show how far it is.
        compared: The keys that a sweep varies, to be the columns of TensorBoard's HPARAMS table; None is all keys.
        drawn: Draw the figures and write the page; a sweep may do so later, from the files.
        watched: Takes the validation AUROCs so far, by epoch, before each further epoch; a search ends the training
            with a :class:`PrunedError`.

    Returns:
        What ``metrics.json`` holds; of several processes that share the training only the main one returns it.

    Raises:
        HistolightError: The training failed: out of memory, a loss that is not finite, a full disk.
    """
    if resume:
        check_continuable(config, data, directory)
    with runs.recorded(directory), _faults_in_one_line(config, directory), loggers.closed_at_the_end() as opened:
        _write_beginning(config, data, directory)
        training = build(config, data, directory, progress, watched)
        opened += training.trainer.loggers
        checkpoint = training.last_checkpoint() if resume else None
        find_learning_rate(training, checkpoint, progress)
        with _interruption_names_its_epoch(training):
            cost = fit(training, checkpoint)
            figures = measure_parts(training, drawn)
        record(training, figures, cost, compared)
        if drawn:
            report(directory)
    return runs.read_metrics(directory) if files.is_main_process() else {}


@dataclass(frozen=True)
class Training:
    """What trains together.

    Attributes:
        config: The configuration.
        data: The tiles and their parts.
        directory: The run directory.
        classifier: The network with its loss and optimizer.
        datamodule: Gives it the tiles.
        trainer: Lightning's.
        speed: Measures time and memory while it trains.
        flops: Floating-point operations of one tile's way forward.
    """

    config: Config
    data: PreparedData
    directory: Path
    classifier: Classifier
    datamodule: TileDataModule
    trainer: L.Trainer
    speed: Speed
    flops: int

    def last_checkpoint(self) -> str | None:
        """Return where to continue from; None begins with the first epoch."""
        last = self.directory / "checkpoints" / "last.ckpt"
        return str(last) if last.is_file() else None


def build(
    config: Config,
    data: PreparedData,
    directory: Path,
    progress: bool,
    watched: Callable[[Mapping[int, float]], None] | None = None,
) -> Training:
    """Build network, trainer and data module from the seed; the arguments are those of :func:`train`.

    Raises:
        RequestError: Several processes would train, and what is asked for needs one.
    """
    L.seed_everything(config.seed, verbose=False)
    train_labels = data.part("train")["label"].to_numpy()
    classifier = Classifier.from_config(config, positive_weight(config.loss.pos_weight, train_labels))
    flops = flops_per_tile(classifier)
    speed = Speed()
    trainer = build_trainer(config, directory, speed, progress, watched)
    # Each epoch would compute the same features again.
    still = config.model.freeze == "backbone" and config.augment == AugmentConfig("none")
    once = still and trainer.world_size == 1 and classifier.ends_in_head()
    shared = once and config.model.weights is not None  # features of random weights are of no use to other runs
    kept = kept_features(classifier, config, data.tiles, trainer.precision) if shared else None
    datamodule = TileDataModule(data, config, classifier.features if once else None, kept)
    if config.model.freeze_epochs and trainer.world_size > 1:  # DDP waits for gradients of what is frozen
        raise RequestError("model.freeze_epochs needs a single process: use trainer.devices=1 or freeze_epochs=0")
    if config.trainer.find_lr and trainer.world_size > 1:
        raise RequestError("trainer.find_lr needs a single process: use trainer.devices=1 or trainer.find_lr=false")
    return Training(config, data, directory, classifier, datamodule, trainer, speed, flops)


def find_learning_rate(training: Training, checkpoint: str | None, progress: bool) -> None:
    """Draw the loss at rising learning rates where ``trainer.find_lr`` asks for it and the training begins."""
    config, directory = training.config, training.directory
    if not config.trainer.find_lr or checkpoint is not None:
        return
    with files.temporary_folder(directory) as folder, quiet_lightning():
        apart = dataclasses.replace(config, logger=LoggerConfig("csv"))
        trainer = build_trainer(apart, folder, Speed(guards=False), progress=False)
        rates, losses = range_test(trainer, training.classifier, TileDataModule(training.data, config))
    show_learning_rates(rates, losses, config.optimizer.lr, training.trainer.logger, directory, progress)


def fit(training: Training, checkpoint: str | None) -> dict[str, Any]:
    """Train to the last epoch; return what it cost, as ``metrics.json`` holds it."""
    trainer, speed, classifier = training.trainer, training.speed, training.classifier
    if training.config.model.probe != "none":
        return fit_probe(training)
    if (mode := training.config.trainer.compile) != "none":
        compile_module(classifier.backbone, mode, trainer.strategy.root_device)
    with quick_look_for_gpus():
        trainer.fit(classifier, training.datamodule, ckpt_path=checkpoint, weights_only=True)
    # Now: measuring loads the best epoch, and with it that epoch's totals.
    return {
        "seconds": speed.elapsed,
        "tiles_per_second": speed.tiles_per_second,
        "data_wait_seconds": speed.waited,
        "epochs": trainer.current_epoch,
    }


@contextlib.contextmanager
def _interruption_names_its_epoch(training: Training) -> Iterator[None]:
    try:
        with quiet_lightning():
            yield
    except SystemExit as error:  # what Lightning makes of Ctrl-C and SIGTERM
        again = command_line("histolight", "train", f"run={training.directory}")
        epoch = training.trainer.current_epoch + 1  # people count from 1, and so do the lines of each epoch
        raise InterruptionError(f"interrupted in epoch {epoch}: continue with {again}") from error


@contextlib.contextmanager
def _faults_in_one_line(config: Config, directory: Path) -> Iterator[None]:
    """Say in our words what a machine's limits end a training with."""
    again = command_line("histolight", "train", f"run={directory}")
    try:
        yield
    except (KeyboardInterrupt, SystemExit) as error:  # the one outside Lightning, the other in its learning rate finder
        raise InterruptionError(f"interrupted: continue with {again}") from error
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise HistolightError(out_of_memory(config)) from error
        name, alert, _ = str(error).partition(" does not have a deterministic implementation")
        if not alert:
            raise
        raise HistolightError(
            f"trainer.deterministic=true: PyTorch's {name} has no deterministic implementation on this device: use "
            "trainer.deterministic=false or another network"
        ) from error
    except OSError as error:
        if error.errno is None:
            raise
        done, remedy = ("written", "make room") if error.errno in NO_ROOM else ("used", "mend that")
        what = f"{error.filename or directory} can't be {done} ({system_reason(error)})"
        raise HistolightError(f"{what}: {remedy}, then continue with {again}") from error


def _write_beginning(config: Config, data: PreparedData, directory: Path) -> None:
    files.write_atomically(directory / "config.yaml", to_yaml(config))
    runs.write_splits(directory, data.table)
    if len(data.leaks):
        files.write_csv(directory / "leaks.csv", data.leaks)
    if len(data.warnings):
        files.write_csv(directory / "data_problems.csv", data.warnings)
    counts = data.table.groupby(["split", "label"]).size().unstack(fill_value=0)
    runs.update_metrics(
        directory,
        split=data.split_kind,
        split_note=describe_split(data.split_kind, data.without_slide, data.leaking, data.torn_slides),
        slides=data.slides,
        torn_slides=data.torn_slides,
        without_slide=data.without_slide,
        leaking=data.leaking,
        tiles={part: {str(label): int(count) for label, count in row.items()} for part, row in counts.iterrows()},
        data_fingerprint=data.fingerprint,
        selected_on="val",
        **runs.provenance(),
    )


def measure_parts(training: Training, drawn: bool = True) -> dict[str, Any]:
    """Measure the best epoch on validation, and on the test part where there is one; draw what was measured."""
    data, trainer, directory = training.data, training.trainer, training.directory
    classifier, datamodule = training.classifier, training.datamodule
    best = directory / "checkpoints" / "best.ckpt"
    settings = training.config.report
    measured: dict[str, Any] = {}
    for part in ("val", "test"):
        if data.part(part).empty:
            continue
        with files.named(best), open(best, "rb") as file:
            file.read(1)  # what the system refuses has its file's name
        run = trainer.validate if part == "val" else trainer.test
        run(classifier, datamodule=datamodule, ckpt_path=str(best), weights_only=True, verbose=False)
        assert classifier.predictions is not None
        rows, logits = (tensor.numpy() for tensor in classifier.predictions)
        table = measure.predictions_table(data.part(part), rows, logits)
        files.write_csv(directory / "predictions" / f"{part}.csv", table)
        if part == "val":
            scores, labels = (torch.tensor(table[name].to_numpy()) for name in ("score", "label"))
            measured["threshold"] = best_threshold(scores, labels)
            measured["abstention"] = choose_band(scores, labels, settings.abstain, measured["threshold"])
        measured |= measure.measure_part(
            part, table, measured["threshold"], measured["abstention"], settings.prevalence
        )
        runs.update_metrics(directory, **measured)  # before anything is drawn, which can fail
        if drawn and files.is_main_process():
            with waiting(f"drawing the figures of {part}"):
                figures = measure.draw_part(
                    part, table, data.part(part)["row"].to_numpy(), data.tiles, measured, f"{data.split_kind} split"
                )
                for name, png in measure.save_figures(figures, part, directory).items():
                    loggers.log_picture(trainer.logger, f"{part}/{name}", png, trainer.global_step)
    return measured


def record(training: Training, figures: dict[str, Any], cost: dict[str, Any], compared: Collection[str] | None) -> None:
    """Write what the training reached and cost into ``metrics.json``, and to the logger beside its hyperparameters."""
    _log_hyperparameters(training.trainer, training.config, figures, compared)
    runs.update_metrics(
        training.directory,
        **figures,
        **cost,
        peak_memory_mb=peak_memory_mb(),
        anonymous_memory_mb=training.speed.anonymous_memory_mb,
        parameters=sum(parameter.numel() for parameter in training.classifier.parameters()),
        flops_per_tile=training.flops,
        devices=training.trainer.world_size,
    )


def report(directory: Path) -> None:
    """Write ``report.html``, without which the run is complete all the same."""
    if files.is_main_process():
        try:
            with waiting("writing report.html"):
                write_run_report(directory)
        except Exception as error:  # whatever it is, the training is done
            log.warning("the run has no report.html: %s", error, exc_info=not isinstance(error, HistolightError))


def _log_hyperparameters(
    trainer: L.Trainer, config: Config, measured: dict[str, Any], compared: Collection[str] | None
) -> None:
    """Log the final figures with the hyperparameters; TensorBoard's table of them shows only those compared."""
    flat = {"seed": config.seed} | {
        f"{section}.{key}": str(value) if value is None or isinstance(value, list | dict) else value
        for section, values in dataclasses.asdict(config).items()
        if isinstance(values, dict)
        for key, value in values.items()
    }
    if compared is not None and config.logger.name == "tensorboard":
        flat = {key: value for key, value in flat.items() if key in compared}
    parts = [part for part in ("val", "test") if part in measured]
    final = {f"final/{part}_{name}": figure.value for part in parts for name, figure in measured[part].items()}
    loggers.log_final(trainer.logger, flat, final, trainer.global_step)
