"""``model.lora_rank``: low-rank adapters on a transformer's attention, through peft, an extra.

Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models", arXiv:2106.09685. Each linear layer W of the
attention becomes W + B A with a trainable A of so many rows; B begins at zero, and the scale is 1 (alpha = rank).
"""

from __future__ import annotations

import logging

from torch import nn

from histolight.config.schema import ModelConfig
from histolight.errors import RequestError

log = logging.getLogger("histolight")


def check_lora() -> None:
    """Raise :class:`RequestError` where peft is missing."""
    try:
        import peft  # noqa: F401
    except ImportError:
        raise RequestError("model.lora_rank needs peft: install histolight with its extra, histolight[lora]") from None


def check_frozen(model: ModelConfig) -> None:
    """Refuse adapters on a backbone that is frozen anyway, and warn of a random one that stays as it is.

    Args:
        model: With the weights resolved.

    Raises:
        RequestError: peft is missing, or adapters and a frozen backbone are both asked for.
    """
    frozen = model.freeze == "backbone"
    if model.lora_rank is not None:
        check_lora()
        if frozen or model.freeze_epochs:
            raise RequestError(
                "model.lora_rank keeps the backbone itself frozen: leave model.freeze and freeze_epochs out"
            )
    if model.weights is None and (frozen or model.lora_rank is not None):
        log.warning(
            "%s with model.weights=null: the backbone is random and stays so; give pretrained weights, "
            "model.weights=imagenet, hub or FILE",
            "model.freeze=backbone" if frozen else f"model.lora_rank={model.lora_rank}",
        )


def add_adapters(network: nn.Module, head: str, rank: int) -> None:
    """Freeze a network but for its last layer, and give its attention adapters to train.

    Args:
        network: Changed in place.
        head: Dotted name of its last layer.
        rank: Of the adapters.

    Raises:
        RequestError: peft is missing, or the network has no attention with linear layers of its own.
    """
    check_lora()
    from peft import LoraConfig, inject_adapter_in_model

    targets = [name for name, module in network.named_modules() if "att" in name and type(module) is nn.Linear]
    if not targets:
        raise RequestError(
            "model.lora_rank needs a transformer of timm/ or hf/: this network's attention has no layers"
        )
    if any(getattr(module, "q_bias", None) is not None for module in network.modules()):
        raise RequestError(
            "model.lora_rank does not reach this network's attention, which reads the weights of its layers directly"
        )
    inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=rank, target_modules=targets), network)
    network.get_submodule(head).requires_grad_(True)


def merge_adapters(network: nn.Module) -> None:
    """Add what the adapters learned to the weights, and leave none: the network is what it was built as."""
    check_lora()
    from peft.tuners.lora import LoraLayer

    for name, module in list(network.named_modules()):
        if isinstance(module, LoraLayer):
            module.merge()
            network.set_submodule(name, module.get_base_layer())
