"""Ranges, choices and what must fit together: the checks of a typed configuration."""

from __future__ import annotations

import dataclasses
import math
import os
import re
from pathlib import Path
from typing import Any

from histolight.config.schema import Config, DataConfig
from histolight.errors import RequestError, nearest

DOWNLOADED = ("imagenet", "hub")  # what model.weights names besides a file


def check_weights_file(weights: str | None) -> None:
    """Raise :class:`RequestError` for the path of a weights file that isn't there."""
    if weights not in (None, "auto", *DOWNLOADED) and not Path(str(weights)).expanduser().is_file():
        raise RequestError(
            f"model.weights={weights} is not a file: give imagenet, hub, null, or the path of a state dict (.pth, "
            ".safetensors)"
        )


def absolute_path(path: str) -> str:
    """Make a path hold from any working directory, so that a configuration can be read again anywhere.

    Raises:
        RequestError: A name in it is not UTF-8, and no configuration can hold it.
    """
    whole = os.path.abspath(os.path.expanduser(path))
    check_utf8(whole)
    return whole


def check_utf8(path: str) -> None:
    """Refuse a path that no text file can hold.

    Raises:
        RequestError: A name in it is not UTF-8.
    """
    try:
        path.encode()
    except UnicodeEncodeError:
        raise RequestError(f"{path} has a name in it that is not UTF-8: rename that folder or file") from None


def absolute_paths(data: DataConfig) -> DataConfig:
    """Make the paths hold from any working directory, as :func:`absolute_path` does."""

    def absolute(path: str | None, *words: str) -> Any:
        return path if path is None or path in words else absolute_path(path)

    slides = dataclasses.replace(
        data.slides,
        annotations=absolute(data.slides.annotations),
        labels=absolute(data.slides.labels),
        tissue=absolute(data.slides.tissue, "otsu", "none"),
    )
    return dataclasses.replace(
        data,
        root=absolute(data.root),
        cache=absolute(data.cache),
        groups=absolute(data.groups),
        domain=absolute(data.domain, "source"),
        split=absolute(data.split, "auto", "random"),
        slides=slides,
    )


def check_values(config: Any, prefix: str = "") -> None:
    """Raise :class:`RequestError` for the first value outside its range or its choices.

    >>> from histolight.config.schema import OptimizerConfig
    >>> check_values(Config(optimizer=OptimizerConfig(lr=-1.0)))
    Traceback (most recent call last):
    histolight.errors.RequestError: optimizer.lr=-1.0 is out of range: it must be above 0 and at most 100
    """
    for item in dataclasses.fields(config):
        key, value = prefix + item.name, getattr(config, item.name)
        if dataclasses.is_dataclass(value):
            check_values(value, f"{key}.")
        elif "choices" in item.metadata:
            if value not in item.metadata["choices"]:
                raise RequestError(f"{key}={value} is not known: {nearest(str(value), item.metadata['choices'])}")
        elif item.metadata and value is not None:
            check_range(key, value, dict(item.metadata))
    if isinstance(config, Config):
        _check_together(config)


def check_range(key: str, value: float, limits: dict[str, float]) -> None:
    """Raise :class:`RequestError` for a number outside its limits, as the schema declares them."""
    broken = (
        not math.isfinite(value)
        or value < limits.get("least", -math.inf)
        or value > limits.get("most", math.inf)
        or value <= limits.get("above", -math.inf)
        or value >= limits.get("below", math.inf)
    )
    if broken:
        words = {"least": "at least", "most": "at most", "above": "above", "below": "below"}
        bounds = " and ".join(f"{words[kind]} {bound}" for kind, bound in limits.items())
        raise RequestError(f"{key}={value} is out of range: it must be {bounds or 'finite'}")


def _check_together(config: Config) -> None:
    data, loss, trainer = config.data, config.loss, config.trainer
    if not re.fullmatch(r"\w[\w.-]*", config.name):
        raise RequestError(f"name={config.name} becomes a folder: use letters, digits, dots, dashes and underscores")
    if data.val_fraction + data.test_fraction >= 1:
        raise RequestError("data.val_fraction + data.test_fraction must be below 1, or no tile is left to train on")
    if data.fold is not None and data.fold >= data.folds:
        raise RequestError(
            f"data.fold={data.fold} is out of range: with data.folds={data.folds} it is 0 to {data.folds - 1}"
        )
    if data.classes is not None and len(data.classes) != 2:
        raise RequestError("data.classes takes two names: [NEGATIVE,POSITIVE]")
    if loss.pos_weight not in (None, "balanced", "inverse"):
        try:
            weight = float(loss.pos_weight)
        except ValueError:
            raise RequestError(
                f"loss.pos_weight={loss.pos_weight} is not known: balanced, inverse, null or a number"
            ) from None
        check_range("loss.pos_weight", weight, {"above": 0})
    if trainer.ema is not None and trainer.swa is not None:
        raise RequestError("trainer.ema and trainer.swa are two averages of the same weights: set one of them")
    if trainer.compile == "reduce-overhead" and trainer.accumulate > 1:  # which overwrite them with each batch
        raise RequestError(
            f"trainer.compile=reduce-overhead can't add up the gradients of trainer.accumulate={trainer.accumulate} "
            "batches in its CUDA graphs: use trainer.compile=default"
        )
    if config.model.input_size is not None and config.model.input_size < data.image_size:
        raise RequestError(
            f"model.input_size={config.model.input_size} is smaller than the tiles, data.image_size={data.image_size}: "
            "it enlarges tiles only"
        )
    if config.model.freeze_epochs >= trainer.max_epochs:
        raise RequestError(
            f"model.freeze_epochs={config.model.freeze_epochs} leaves none of trainer.max_epochs={trainer.max_epochs} "
            "to the backbone: use fewer, or model.freeze=backbone"
        )
    if trainer.devices != "auto" and not (trainer.devices.isdigit() and int(trainer.devices) > 0):
        raise RequestError(f"trainer.devices={trainer.devices} is not known: auto, or a number of devices such as 2")
    if config.scheduler.total_epochs is not None and config.scheduler.total_epochs < trainer.max_epochs:
        raise RequestError(
            f"scheduler.total_epochs={config.scheduler.total_epochs} is shorter than "
            f"trainer.max_epochs={trainer.max_epochs}: the schedule would end before the training"
        )
