"""Completed run directories with networks as they were initialised: enough for whatever only uses a run."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import lightning
import torch

from histolight import files, runs
from histolight.config.compose import compose_config, to_yaml, typed
from histolight.models.classifier import Classifier


def untrained_run(
    directory: Path, overrides: list[str], seed: int = 0, auroc: float = 0.5, status: str = "completed"
) -> Path:
    """Write ``config.yaml``, ``metrics.json`` and ``checkpoints/best.ckpt``."""
    config = typed(compose_config(overrides))
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, weights=None))
    torch.manual_seed(seed)
    classifier = Classifier.from_config(config, 1.0)
    for module in classifier.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1.0
    # Batch statistics as a training would leave them: without, all tiles have nearly the same logit.
    classifier(torch.rand(16, 3, config.data.image_size, config.data.image_size) * torch.rand(16, 3, 1, 1))
    classifier.zero_grad()
    files.write_atomically(directory / "config.yaml", to_yaml(config))
    runs.update_metrics(
        directory, status=status, split="random", val={"auroc": {"value": auroc}}, data_fingerprint="", threshold=0.5
    )
    (directory / "checkpoints").mkdir()
    checkpoint = {
        "state_dict": classifier.state_dict(),
        "hyper_parameters": dict(classifier.hparams),
        "pytorch-lightning_version": lightning.__version__,
    }
    torch.save(checkpoint, directory / "checkpoints" / "best.ckpt")
    return directory
