"""The blocks of a transformer, one behind the other: their learning rates, and the memory of their activations."""

from __future__ import annotations

import re
from typing import Any

from torch import nn

from histolight.errors import RequestError

# What comes after the last block.
BEHIND = re.compile(r"(^|\.)(norm|fc_norm|ln|layernorm|post_layernorm|head|heads|pooler)\b")
LIKE = 1.5  # times the parameters of the smallest block


def find_blocks(network: nn.Module) -> str:
    """Name the list of a transformer's blocks: like layers, of like size, with all its attention and most parameters.

    Raises:
        RequestError: The network is no transformer of one stage. The stages of a pyramid differ in size.
    """
    size = _size(network)
    attending = [name for name, _ in network.named_modules() if "att" in name]
    for name, module in network.named_modules():
        alike = isinstance(module, nn.ModuleList | nn.Sequential) and len({type(child) for child in module}) == 1
        attends = bool(attending) and all(child.startswith(f"{name}.") for child in attending)
        if alike and attends and 2 * _size(module) > size:
            sizes = [_size(child) for child in module.children()]
            if max(sizes) <= LIKE * min(sizes):
                return name
    raise RequestError("optimizer.layer_decay needs a transformer with a list of blocks, and this network has none")


def _size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def depth_of(parameter: str, blocks: str, count: int) -> int:
    """Say how many of the layers below the last one a parameter belongs to lie under it: 0 for what embeds patches.

    Args:
        parameter: Its dotted name.
        blocks: From :func:`find_blocks`.
        count: Number of blocks.

    >>> [depth_of(name, "blocks", 12) for name in ("pos_embed", "blocks.0.norm1.weight", "norm.bias", "head.weight")]
    [0, 1, 13, 13]
    """
    if parameter.startswith(f"{blocks}."):
        return 1 + int(parameter.removeprefix(f"{blocks}.").split(".")[0].rpartition("_")[2])
    return count + 1 if BEHIND.search(parameter) else 0


def recompute_activations(network: nn.Module) -> None:
    """Let the blocks forget their activations and compute them again for the gradients: less memory, more time.

    Raises:
        RequestError: The network's library has no such thing for it.
    """
    trunk: Any = getattr(network, "trunk", network)
    try:
        if hasattr(trunk, "gradient_checkpointing_enable"):
            trunk.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        else:
            trunk.set_grad_checkpointing(True)
    except (AttributeError, AssertionError, ValueError) as error:
        raise RequestError(
            "model.checkpointing=true is for networks of timm/ and hf/ that can compute their activations again, and "
            "this one can't: use a smaller data.batch_size with trainer.accumulate"
        ) from error
