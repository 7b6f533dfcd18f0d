"""Weights from a download or a file, for every family: all but the last layer, unless the file's has one logit too."""

from __future__ import annotations

import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from urllib.error import URLError

import torch
from torch import nn

from histolight.config.schema import ModelConfig
from histolight.errors import HistolightError, RequestError, unreadable_reason
from histolight.models.backbones.family import Family


def check_weights_file(weights: str | None) -> None:
    """Raise :class:`RequestError` for the path of a weights file that isn't there."""
    if weights not in (None, "imagenet", "auto") and not Path(str(weights)).expanduser().is_file():
        raise RequestError(
            f"model.weights={weights} is not a file: give imagenet, null, or the path of a state dict (.pth)"
        )


def read_weights(family: Family, config: ModelConfig) -> dict[str, torch.Tensor]:
    """Download the weights that a configuration names, or read them from its file.

    Raises:
        RequestError: The file is no plain state dict, or there are no such weights.
        HistolightError: The download failed.
    """
    return _imagenet_state(family, config.name) if config.weights == "imagenet" else _read_state(str(config.weights))


def load_state(network: nn.Module, head: str, state: Mapping[str, torch.Tensor], config: ModelConfig) -> None:
    """Load a state dict into a network, its last layer excepted unless the state dict has one with one logit.

    Args:
        network: Changed in place.
        head: Dotted name of its last layer.
        state: The weights, named as the network's own but for the last layer.
        config: Names the weights and the network in messages.

    Raises:
        RequestError: They belong to another network.
    """
    # model.dropout puts the last layer at the second place of a Sequential.
    own_head = f"{head}.1." if isinstance(network.get_submodule(head), nn.Sequential) else f"{head}."
    state = {re.sub(rf"^{re.escape(head)}\.(1\.)?", own_head, key): value for key, value in state.items()}
    own = network.state_dict()
    of_head = re.compile(rf"{re.escape(head)}\.|aux[12]\.|AuxLogits\.")
    state = {key: value for key, value in state.items() if not of_head.match(key) or _fits(key, value, own)}
    # Files from before PyTorch 0.4.1 have no num_batches_tracked, which only a batch norm without momentum reads.
    needed = [key for key in own if not of_head.match(key) and not key.endswith("num_batches_tracked")]
    faults = {
        "missing": [key for key in needed if key not in state],
        "surplus": [key for key in state if key not in own],
        "of another shape": [key for key, value in state.items() if key in own and not _fits(key, value, own)],
    }
    if any(faults.values()):
        text = "; ".join(f"{len(keys)} {fault} ({', '.join(keys[:3])})" for fault, keys in faults.items() if keys)
        raise RequestError(f"model.weights={config.weights} doesn't fit model.name={config.name}: keys {text}")
    network.load_state_dict(state, strict=False)


def _fits(key: str, value: torch.Tensor, own: Mapping[str, torch.Tensor]) -> bool:
    return key in own and value.shape == own[key].shape


def _imagenet_state(family: Family, name: str) -> dict[str, torch.Tensor]:
    try:
        state = family.imagenet_state(name)
    except (URLError, OSError, RuntimeError) as error:
        raise HistolightError(
            f"ImageNet weights of {name} could not be downloaded ({error}): without a network use model.weights=null "
            "(random) or model.weights=PATH (a state dict)"
        ) from error
    return dict(state)


def _read_state(weights: str) -> dict[str, torch.Tensor]:
    path = Path(weights).expanduser()
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        reason = unreadable_reason(error)
        raise RequestError(f"model.weights={path} can't be read as a plain state dict of tensors ({reason})") from error
    if not isinstance(state, Mapping) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise RequestError(
            f"model.weights={path} is not a state dict (names mapped to tensors): save model.state_dict()"
        )
    return dict(state)
