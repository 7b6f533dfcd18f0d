"""Models in timm's form, of a hub or a folder: ``timm/hf-hub:ORG/NAME``, ``timm/local-dir:FOLDER``."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch

from histolight.config.schema import ModelConfig
from histolight.errors import RequestError
from histolight.models.backbones.hub import complete, model_file, place_of, read_json
from histolight.models.backbones.timm import Timm, import_timm
from histolight.models.backbones.weights import read_state

OF_THE_HEAD = ("num_classes", "in_chans")  # of the saved model: ours has one logit, and three channels
WEIGHTS = ("model.safetensors", "pytorch_model.bin")


class TimmHub(Timm):
    """Models with a ``config.json`` that names a network of timm."""

    prefix = ("timm/hf-hub:", "timm/hf_hub:", "timm/local-dir:")
    pretrained = "hub"

    def names(self, name: str) -> list[str]:
        """Take every name: only the hub knows what it has."""
        import_timm(name)
        return [name]

    def resolve(self, config: ModelConfig) -> ModelConfig:
        """Read the architecture and the preprocessing from ``config.json``; a full configuration needs it for none."""
        if complete(config):
            return config
        saved = read_json(model_file(config.name, place_of(config.name, self.prefix), "config.json"))
        standard = saved.get("pretrained_cfg", saved)
        architecture = saved.get("architecture") or standard.get("architecture")
        if not isinstance(architecture, str) or not import_timm(config.name).is_model(architecture):
            raise RequestError(
                f"model.name={config.name}: its config.json names no network of this timm ({architecture}): a model of "
                "transformers is hf/ORG/NAME"
            )
        kwargs = {key: value for key, value in saved.get("model_args", {}).items() if key not in OF_THE_HEAD}
        return dataclasses.replace(
            config,
            architecture=config.architecture or architecture,
            kwargs={**kwargs, **config.kwargs},
            **_preprocessing(config, standard, kwargs),
        )

    def pretrained_state(self, config: ModelConfig) -> Mapping[str, torch.Tensor]:
        """Read, or download, the weights; safetensors first."""
        return read_state(model_file(config.name, place_of(config.name, self.prefix), *WEIGHTS))


def _preprocessing(config: ModelConfig, standard: dict[str, Any], kwargs: dict[str, Any]) -> dict[str, Any]:
    size = kwargs.get("img_size") or standard.get("input_size", [None])[-1]
    interpolation = standard.get("interpolation")
    return {
        "mean": config.mean or standard.get("mean"),
        "std": config.std or standard.get("std"),
        "input_size": config.input_size or size,
        "interpolation": interpolation
        if config.interpolation == "auto" and interpolation in ("bilinear", "bicubic")
        else config.interpolation,
    }


FAMILY = TimmHub()
