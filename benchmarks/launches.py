"""What one training step starts on a GPU and what in it waits, counted without a GPU on PyTorch's fake CUDA device.

    python benchmarks/launches.py > benchmarks/launches.csv

A fake tensor has a device, a shape and no values: every operation that would start there is seen, and one that mixes
devices fails. Counted are operations that compute; views, empty tensors and what the caching allocator does are not. A
wait is a copy between host and device that blocks, or an operation whose result the host must know. PyTorch runs no
backward pass on a fake CUDA device without a real one, whose streams it asks for: the backbone's own work is left out,
which is the same in any training loop.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import torch
from tables import csv_printer
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from histolight.augment import constants
from histolight.augment.registry import augmentations
from histolight.config.compose import compose_config, typed
from histolight.config.schema import Config
from histolight.data.datamodule import augmented
from histolight.data.loader import Batch, DeviceRows, TileLoader
from histolight.models.classifier import Classifier
from histolight.models.losses import binary_loss
from histolight.models.optimizers import build_optimizer, parameter_groups
from histolight.training.callbacks import AveragedWeights

CUDA = torch.device("cuda", 0)
ASKING = ("_local_scalar_dense", "nonzero", "masked_select", "_linalg_eigh", "unique", "is_nonzero")
COUNTLESS = ("prim::", "empty", "new_empty", "lift_fresh", "detach", "_unsafe_view", "alias", "resize_", "set_")


class Launches(TorchDispatchMode):
    """Counts what is started on a fake CUDA device while it is active.

    Attributes:
        started: Names of operations, in their order.
        waits: Those that make the host wait.
    """

    def __init__(self) -> None:
        super().__init__()
        self.started: list[str] = []
        self.waits: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation and count it."""
        kwargs = kwargs or {}
        name = func._schema.name.removeprefix("aten::")
        if name == "_local_scalar_dense":
            result = 1  # what the host is told
        elif name == "_sample_dirichlet":  # without a fake version in PyTorch
            result = torch.empty_like(args[0])
        else:
            result = func(*args, **kwargs)
        before, after = _devices((args, kwargs)), _devices(result)
        if "cuda" in before | after and not func.is_view and not name.startswith(COUNTLESS):
            self.started.append(name)
            copied = name in ("_to_copy", "copy_") and {"cpu", "cuda"} <= before | after
            blocking = copied and not (kwargs.get("non_blocking") or args[2:3] == (True,))
            if blocking or name.startswith(ASKING):
                self.waits.append(name)
        return result


def _devices(values: Any) -> set[str]:
    if isinstance(values, torch.Tensor):
        return {values.device.type}
    if isinstance(values, dict):
        values = list(values.values())
    return set().union(*map(_devices, values)) if isinstance(values, list | tuple) else set()


class FakeGenerator(torch.Generator):
    """Says that it is on a CUDA device; fake operations draw nothing."""

    device = CUDA

    def __new__(cls, device: torch.device) -> FakeGenerator:
        """Make one on the CPU."""
        assert device.type == "cuda"
        return super().__new__(cls)

    def manual_seed(self, seed: int) -> FakeGenerator:
        """Return itself, as PyTorch's does."""
        return self


@contextmanager
def fake_cuda() -> Iterator[None]:
    """Make a CUDA device that holds no values; constants that were copied to it are forgotten at the end."""
    augmentations()  # imported with real constants
    kept = mock.patch.multiple(constants, _COPIES={}, _lasts=lambda copy: True)
    with kept, FakeTensorMode(allow_non_fake_inputs=True):
        yield


@contextmanager
def half_precision() -> Iterator[None]:
    """Do what ``torch.autocast("cuda", torch.bfloat16)`` does, which without a GPU does nothing."""
    before = torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda")
    torch.set_autocast_enabled("cuda", True)
    torch.set_autocast_dtype("cuda", torch.bfloat16)
    torch.autocast_increment_nesting()
    try:
        yield
    finally:
        if torch.autocast_decrement_nesting() == 0:
            torch.clear_autocast_cache()
        torch.set_autocast_enabled("cuda", before[0])
        torch.set_autocast_dtype("cuda", before[1])


def on_fake_cuda(module: nn.Module) -> None:
    """Move the parameters and buffers of a module, and nothing else that it holds."""
    for part in module.modules():
        for name, values in part._parameters.items():
            if values is not None:
                part._parameters[name] = nn.Parameter(_like(values), values.requires_grad)
        for name, values in part._buffers.items():
            if values is not None:
                part._buffers[name] = _like(values)


def _like(values: torch.Tensor) -> torch.Tensor:
    return torch.empty_strided(values.shape, values.stride(), dtype=values.dtype, device=CUDA)


def batch_on_cuda(size: int, image_size: int) -> Batch:
    """Make a batch as the loader gives it."""
    tiles = torch.empty(size, image_size, image_size, 3, dtype=torch.uint8, device=CUDA)
    return Batch(tiles, torch.zeros(size, device=CUDA), torch.zeros(size, dtype=torch.int64, device=CUDA), 1)


def resident_batches(count: int, size: int) -> Iterator[Batch]:
    """Iterate over resident tiles."""
    rows = np.arange(count)
    store = DeviceRows(rows, torch.empty(count, 96, 96, 3, dtype=torch.uint8, device=CUDA))
    return iter(TileLoader(store, rows, np.zeros(count), size))


def counted(step: Callable[[], Any]) -> Launches:
    """Count what the second of two equal steps starts: the first one copies constants and makes room."""
    with Launches():
        step()
    with Launches() as launches:
        step()
    return launches


def averaged(classifier: Classifier, decay: float | None) -> AveragedWeights:
    """Return what averages the weights of a classifier, before either is on the device."""
    average = AveragedWeights(decay)
    trainer: Any = SimpleNamespace(strategy=SimpleNamespace(root_device=torch.device("cpu")))
    average.setup(trainer, classifier, "fit")
    return average


def average_step(average: AveragedWeights, classifier: Classifier) -> Callable[[], None]:
    """Return what averages the weights after a step."""
    assert average._average_model is not None
    on_fake_cuda(average._average_model)
    trainer: Any = SimpleNamespace(estimated_stepping_batches=100, global_step=1)

    def step() -> None:
        average.on_train_batch_end(trainer, classifier, None, None, 0)
        trainer.global_step += 1

    step()
    return step


def optimizer_step(classifier: Classifier, config: Config) -> Callable[[], Any]:
    """Return what updates the weights, given gradients."""
    optimizer = build_optimizer(
        parameter_groups(classifier.backbone, classifier.head, config.optimizer), config.optimizer
    )
    for parameter in classifier.parameters():
        parameter.grad = torch.empty_like(parameter)
    return optimizer.step


def loss_step(classifier: Classifier, batch: Batch) -> Callable[[], None]:
    """Return what lies around the backbone: its input, its loss, and what metrics keep."""
    tiles, logits = torch.zeros(len(batch.rows), 3, 96, 96, device=CUDA), torch.zeros(len(batch.rows), device=CUDA)

    def step() -> None:
        classifier._network_input(tiles)
        binary_loss(logits, batch.labels, 2.0, 0.0)
        classifier._trained.add(batch.rows, batch.labels, logits)

    return step


def steps(
    classifier: Classifier, averages: dict[str, AveragedWeights], config: Config
) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Yield each part of a training step with its name."""
    batch = batch_on_cuda(64, 96)
    batches = resident_batches(6400, 64)
    yield "a batch of resident tiles", lambda: next(batches)
    for name in ("none", "flips", "dihedral", "stain", "strong"):
        augment = typed(compose_config([f"augment={name}"])).augment
        yield f"augment={name}", lambda augment=augment: augmented(batch, augment, "none", FakeGenerator)
    mixing = typed(compose_config(["augment=none", "augment.cutmix=0.5", "augment.mixup=0.3"])).augment
    yield "augment.cutmix=0.5 augment.mixup=0.3", lambda: augmented(batch, mixing, "none", FakeGenerator)
    none = typed(compose_config(["augment=none"])).augment
    for stain in ("macenko", "reinhard"):
        yield f"data.stain={stain}", lambda stain=stain: augmented(batch, none, stain, FakeGenerator)
    yield "input of the network, loss, what metrics keep", loss_step(classifier, batch)
    yield "optimizer=adam, DenseNet-121", optimizer_step(classifier, config)
    for name, average in averages.items():
        yield f"{name}, DenseNet-121", average_step(average, classifier)


def main() -> None:
    """Print the table."""
    print_row = csv_printer("part", "launches", "waits", "what_waits")
    config = typed(compose_config(["model=densenet121", "model.weights=null"]))
    classifier = Classifier.from_config(config, 2.0)
    averages = {"trainer.ema=0.99": averaged(classifier, 0.99), "trainer.swa=0.5": averaged(classifier, None)}
    with fake_cuda():
        on_fake_cuda(classifier)
        for name, step in steps(classifier, averages, config):
            launches = counted(step)
            print_row(name, len(launches.started), len(launches.waits), " ".join(sorted(set(launches.waits))))


if __name__ == "__main__":
    main()
