"""Tiny models as hubs have them: a vision transformer in timm's form, a DINOv2 in transformers'."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import save_file
from timm.layers import SwiGLUPacked
from torch import nn

ARGUMENTS = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2, "reg_tokens": 2}
LAYERS = {"mlp_layer": "SwiGLUPacked", "act_layer": "SiLU"}
MEAN, STD = [0.7, 0.6, 0.7], [0.2, 0.25, 0.2]


def timm_folder(folder: Path, **changed: Any) -> nn.Module:
    """Write ``config.json`` and ``model.safetensors``; the two layers are left to ``model.kwargs``, as UNI2-h does."""
    torch.manual_seed(3)
    layers = {"mlp_layer": SwiGLUPacked, "act_layer": nn.SiLU}
    model = timm.create_model("vit_tiny_patch16_224", num_classes=0, **ARGUMENTS, **layers)
    nn.init.normal_(model.reg_token, std=1.0)
    folder.mkdir(parents=True)
    save_file(model.state_dict(), folder / "model.safetensors")
    standard = {"input_size": [3, 32, 32], "mean": MEAN, "std": STD, "interpolation": "bicubic", **changed}
    content = {
        "architecture": "vit_tiny_patch16_224",
        "num_classes": 0,
        "model_args": ARGUMENTS,
        "pretrained_cfg": standard,
    }
    (folder / "config.json").write_text(json.dumps(content))
    return model.eval()


def dinov2_folder(folder: Path) -> nn.Module:
    """Write a DINOv2 for tiles of 28 pixels as ``save_pretrained`` does, and its preprocessing."""
    from transformers import AutoModel, Dinov2Config

    torch.manual_seed(4)
    settings = Dinov2Config(
        hidden_size=24, num_hidden_layers=2, num_attention_heads=2, patch_size=7, image_size=28, use_swiglu_ffn=True
    )
    model = AutoModel.from_config(settings)
    model.save_pretrained(folder)
    images = {"crop_size": {"height": 42, "width": 42}, "image_mean": MEAN, "image_std": STD, "resample": 3}
    (folder / "preprocessor_config.json").write_text(json.dumps(images))
    return model.eval()
