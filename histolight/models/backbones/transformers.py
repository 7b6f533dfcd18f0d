"""Models in transformers' form, an extra: ``model.name=hf/ORG/NAME``, or ``hf/local-dir:FOLDER``."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from histolight.config.schema import ModelConfig
from histolight.errors import RequestError, nearest
from histolight.models.backbones.family import IMAGENET, Backbone, Family, statistics
from histolight.models.backbones.hub import complete, hub_faults, model_file, place_of, read_json
from histolight.models.backbones.tokens import TRUNK, TokenNetwork

# Of a saved configuration: what describes the file rather than the network.
NO_ARGUMENTS = {"model_type", "architectures", "transformers_version", "torch_dtype", "dtype", "auto_map"}
NO_ARGUMENTS |= {"stage_names", "out_features", "out_indices", "_name_or_path"}
INTERPOLATIONS = {2: "bilinear", 3: "bicubic"}  # Pillow's numbers, in preprocessor_config.json


class Transformers(Family):
    """Vision transformers that ``AutoModel`` knows."""

    prefix = ("hf/", "hf/local-dir:")
    pretrained = "hub"

    def names(self, name: str) -> list[str]:
        """Take every name: only the hub knows what it has."""
        import_transformers(name)
        return [name]

    def resolve(self, config: ModelConfig) -> ModelConfig:
        """Read the architecture and the preprocessing from the model's files, unless all of it is given."""
        if complete(config):
            return config
        place = place_of(config.name, self.prefix)
        saved = read_json(model_file(config.name, place, "config.json"))
        kwargs = {key: value for key, value in saved.items() if key not in NO_ARGUMENTS}
        images: dict[str, Any] = {}
        with contextlib.suppress(RequestError):  # some models have none
            images = read_json(model_file(config.name, place, "preprocessor_config.json"))
        size = images.get("crop_size") or images.get("size") or saved.get("image_size")
        if isinstance(size, dict):
            size = size.get("height") or size.get("shortest_edge")
        named = INTERPOLATIONS.get(images.get("resample", 0), "auto")
        return dataclasses.replace(
            config,
            architecture=config.architecture or saved.get("model_type"),
            kwargs={**kwargs, **config.kwargs},
            mean=config.mean or images.get("image_mean") or list(IMAGENET[0]),
            std=config.std or images.get("image_std") or list(IMAGENET[1]),
            input_size=config.input_size or size,
            interpolation=named if config.interpolation == "auto" else config.interpolation,
        )

    def build(self, config: ModelConfig, image_size: int) -> Backbone:
        """Build a model with one logit from its pooled tokens."""
        transformers = import_transformers(config.name)
        if config.trust_remote_code:
            repository, folder = place_of(config.name, self.prefix)
            source = str(folder or repository)
            with hub_faults(config.name, repository):
                settings = transformers.AutoConfig.from_pretrained(source, trust_remote_code=True)
                trunk = transformers.AutoModel.from_config(settings, trust_remote_code=True)
        else:
            settings = self._settings(config)
            try:
                trunk = transformers.AutoModel.from_config(settings)
            except (TypeError, ValueError, RuntimeError, AttributeError, ZeroDivisionError) as error:
                reason = " ".join(str(error).split())[:160]
                raise RequestError(
                    f"model.kwargs does not fit {config.architecture} of transformers: {reason}"
                ) from error
        if config.features != "pooled" and getattr(trunk, "pooler", None) is not None:
            trunk.pooler = None
        width, patch = getattr(settings, "hidden_size", None), getattr(settings, "patch_size", None)
        if not isinstance(width, int) or not isinstance(patch, int):
            raise RequestError(
                f"model.name={config.name} is no vision transformer that histolight knows ({config.architecture})"
            )
        if image_size % patch:
            raise RequestError(
                f"model.name={config.name} cuts tiles into patches of {patch} pixels, and {image_size} is no multiple: "
                f"add model.input_size={getattr(settings, 'image_size', patch * 16)}"
            )
        prefix = 1 + (getattr(settings, "num_register_tokens", 0) or 0)
        mean, std = statistics(config.mean or IMAGENET[0]), statistics(config.std or IMAGENET[1])
        return Backbone(TokenNetwork(trunk, config.features, width, prefix), "head", mean, std)

    def _settings(self, config: ModelConfig) -> Any:
        """Build transformers' configuration; it would keep an unknown key without a word."""
        from transformers import CONFIG_MAPPING

        kind = str(config.architecture)
        if kind not in CONFIG_MAPPING:
            hint = "add model.trust_remote_code=true to run its own code, or " if config.architecture else ""
            raise RequestError(
                f"model.name={config.name}: {kind} is no model type of this transformers: {hint}give model.architecture"
            )
        known = CONFIG_MAPPING[kind]().to_dict()
        for key in config.kwargs:
            if key not in known:
                raise RequestError(f"model.kwargs.{key} is not known to {kind} of transformers: {nearest(key, known)}")
        try:
            return CONFIG_MAPPING[kind](**config.kwargs)
        except Exception as error:  # each version of transformers has its own errors for values
            reason = " ".join(str(error).split())[:160]
            raise RequestError(f"model.kwargs does not fit {kind} of transformers: {reason}") from error

    def pretrained_state(self, config: ModelConfig) -> Mapping[str, torch.Tensor]:
        """Read, or download, the weights; safetensors first, and tensors only."""
        transformers = import_transformers(config.name)
        repository, folder = place_of(config.name, self.prefix)
        with hub_faults(config.name, repository):
            return _loaded(
                transformers.AutoModel, str(folder or repository), trust_remote_code=config.trust_remote_code
            )

    def adapt_state(
        self, network: nn.Module, state: dict[str, torch.Tensor], image_size: int
    ) -> dict[str, torch.Tensor]:
        """Rename what transformers saves under other names; leave out the pooler where tokens are asked for."""
        assert isinstance(network, TokenNetwork)
        inner = {key.removeprefix(TRUNK): value for key, value in state.items() if key.startswith(TRUNK)}
        trunk: Any = network.trunk
        if inner and not set(trunk.state_dict()) <= set(inner):
            inner = _loaded(type(trunk), None, config=trunk.config, state_dict=dict(inner))
        if getattr(trunk, "pooler", None) is None:
            inner = {key: value for key, value in inner.items() if not key.startswith("pooler.")}
        own = {key: value for key, value in state.items() if not key.startswith(TRUNK)}
        return {f"{TRUNK}{key}": value for key, value in inner.items()} | own


def _loaded(kind: Any, source: str | None, **options: Any) -> dict[str, torch.Tensor]:
    """Load a model as transformers does and return the weights that were there: it makes up the others."""
    from transformers import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        model, loading_info = kind.from_pretrained(
            source,
            weights_only=True,
            dtype="float32",
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            **options,
        )
    finally:
        logging.set_verbosity(verbosity)
    absent = {*loading_info["missing_keys"], *(key for key, *_ in loading_info["mismatched_keys"])}
    return {key: value for key, value in model.state_dict().items() if key not in absent}


def import_transformers(name: str) -> Any:
    """Import transformers.

    Raises:
        RequestError: It is not installed.
    """
    try:
        import transformers
    except ImportError:
        raise RequestError(
            f"model.name={name} needs transformers: install histolight with its extra, histolight[hf]"
        ) from None
    return transformers


FAMILY = Transformers()
