"""Weights from a download or a file, for every family: all but the last layer, unless the file's has one logit too."""

from __future__ import annotations

import logging
import pickle
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.error import URLError

import torch
from torch import nn

from histolight import files
from histolight.config.checks import DOWNLOADED
from histolight.config.schema import ModelConfig
from histolight.errors import HistolightError, RequestError, unreadable_reason
from histolight.models.backbones.family import Family
from histolight.models.backbones.tokens import TRUNK

# The last of them counts: a teacher is what DINO means to be used.
WRAPPERS = (
    "state_dict",
    "model_state_dict",
    "model",
    "net",
    "network",
    "weights",
    "teacher",
)  # what training codes keep a state dict under
PREFIXES = (
    "module.",
    "_orig_mod.",
    "_forward_module.",
    "model.",
    "net.",
    "network.",
    "backbone.",
    "encoder.",
    TRUNK,
    "dinov2.",
    "vit.",
)  # ... and call its keys
LEFT_OUT = ("mask_token",)  # of the pretraining only
DEPTH = 4

log = logging.getLogger("histolight")


def read_weights(family: Family, config: ModelConfig) -> dict[str, torch.Tensor]:
    """Download the weights that a configuration names, or read them from its file.

    Raises:
        RequestError: The file is no plain state dict, or there are no such weights.
        HistolightError: The download failed.
    """
    if config.weights not in DOWNLOADED:
        return read_state(Path(str(config.weights)).expanduser())
    try:
        return dict(family.pretrained_state(config))
    except (URLError, OSError, RuntimeError) as error:
        kind = "ImageNet weights" if config.weights == "imagenet" else "The weights"
        raise HistolightError(
            f"{kind} of {config.name} could not be downloaded ({error}): without internet access use "
            "model.weights=null (random) or model.weights=PATH (a state dict)"
        ) from error


def fitted_state(
    family: Family, network: nn.Module, head: str, state: Mapping[str, torch.Tensor], config: ModelConfig, size: int
) -> dict[str, torch.Tensor]:
    """Name and shape a state dict as a network's own, its last layer excepted unless it has one with one logit.

    Args:
        family: The network's.
        network: On any device, also ``meta``.
        head: Dotted name of its last layer.
        state: The weights as read.
        config: Names the weights and the network in messages.
        size: Height and width in pixels of what enters the network.

    Raises:
        RequestError: They belong to another network.
    """
    own = network.state_dict()
    named = _named_as(own, state)
    named = family.adapt_state(network, named, size)
    # model.dropout puts the last layer at the second place of a Sequential.
    own_head = f"{head}.1." if isinstance(network.get_submodule(head), nn.Sequential) else f"{head}."
    named = {re.sub(rf"^{re.escape(head)}\.(1\.)?", own_head, key): value for key, value in named.items()}
    of_head = re.compile(rf"{re.escape(head)}\.|aux[12]\.|AuxLogits\.")
    kept = {key: value for key, value in named.items() if not of_head.match(key) or _fits(key, value, own)}
    kept = {key: value for key, value in kept.items() if key in own or key.rpartition(".")[2] not in LEFT_OUT}
    # Files from before PyTorch 0.4.1 have no num_batches_tracked, which only a batch norm without momentum reads.
    needed = [key for key in own if not of_head.match(key) and not key.endswith("num_batches_tracked")]
    needed = [key for key in needed if key.rpartition(".")[2] not in LEFT_OUT]
    faults = {
        "missing": [key for key in needed if key not in kept],
        "surplus": [key for key in kept if key not in own],
        "of another shape": [key for key, value in kept.items() if key in own and not _fits(key, value, own)],
    }
    if any(faults.values()):
        text = "; ".join(f"{len(keys)} {fault} ({', '.join(keys[:3])})" for fault, keys in faults.items() if keys)
        raise RequestError(f"model.weights={config.weights} doesn't fit model.name={config.name}: keys {text}")
    return kept


def log_taken(state: Mapping[str, torch.Tensor], taken: Mapping[str, torch.Tensor], weights: str) -> None:
    """Say in a line what of a file was taken, renamed and left out, unless it was all taken as it is."""
    names = {key.removeprefix(TRUNK) for key in taken}
    renamed = sum(name not in state for name in names)
    left_out = [key for key in state if not any(key == name or key.endswith(f".{name}") for name in names)]
    if renamed or left_out:
        such = f" ({', '.join(left_out[:2])}{' ...' * (len(left_out) > 2)})" if left_out else ""
        log.warning(
            "model.weights=%s: %d keys taken, %d of them renamed; %d left out%s",
            weights, len(taken), renamed, max(0, len(state) - len(taken)), such,
        )  # fmt: skip


def _named_as(own: Mapping[str, torch.Tensor], state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Take the prefixes off that make most keys those of a network; what lies outside of them is left out."""
    forms = (
        form
        for inside in _unwrapped(state, DEPTH)
        for form in (inside, {TRUNK + key: value for key, value in inside.items()})
    )
    return max(forms, key=lambda form: sum(key in own for key in form))


def _unwrapped(state: Mapping[str, torch.Tensor], depth: int) -> Iterator[dict[str, torch.Tensor]]:
    yield dict(state)
    for prefix in PREFIXES if depth else ():
        inside = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
        if inside:
            yield from _unwrapped(inside, depth - 1)


def _fits(key: str, value: torch.Tensor, own: Mapping[str, torch.Tensor]) -> bool:
    return key in own and value.shape == own[key].shape


def read_state(path: Path) -> dict[str, torch.Tensor]:
    """Read a state dict from safetensors or from what ``torch.save`` wrote, without running any of its code.

    Raises:
        RequestError: It is neither, or no state dict.
    """
    try:
        with files.reading(path):
            path.open("rb").close()  # what the system refuses is not damage
            content: Any = _read_safetensors(path) if path.suffix == ".safetensors" else _read_pickle(path)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        reason = unreadable_reason(error)
        raise RequestError(f"model.weights={path} can't be read as a plain state dict of tensors ({reason})") from error
    state = _inside(content)
    if state is None:
        raise RequestError(
            f"model.weights={path} is not a state dict (names mapped to tensors): save model.state_dict()"
        )
    return dict(state)


def _inside(content: Any, depth: int = DEPTH) -> Mapping[str, torch.Tensor] | None:
    """Take a state dict out of what wraps it: a usual name, or whatever is the only one; None without any."""
    if not isinstance(content, Mapping) or not content or not depth:
        return None
    if all(isinstance(value, torch.Tensor) for value in content.values()):
        return content
    for name in reversed(WRAPPERS):
        if (state := _inside(content.get(name), depth - 1)) is not None:
            return state
    inner = [state for value in content.values() if (state := _inside(value, 1)) is not None]
    return inner[0] if len(inner) == 1 else None


def _read_pickle(path: Path) -> Any:
    return torch.load(path, map_location="cpu", weights_only=True)


def _read_safetensors(path: Path) -> Any:
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ImportError:
        raise RequestError(
            f"model.weights={path} needs safetensors: install histolight with its extra, histolight[timm] or "
            "histolight[hf]"
        ) from None
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(str(error)) from error
