"""Where in a tile lies what speaks for a transformer's call: integrated gradients of its patches.

Sundararajan et al., "Axiomatic Attribution for Deep Networks", ICML 2017, with the embeddings of the patches as input.
The baseline is a tile whose every patch has their mean: attributed is what a patch has and the tile has not on average.
With enough steps the attributions of a tile add up to the difference of the two logits. Grad-CAM weighs the channels of
a map that is averaged behind it, which tokens are not; maps of attention need the code of each network. What these maps
find was measured: benchmarks/centre_attribution.py.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from histolight.data.datamodule import to_floats
from histolight.models.classifier import Classifier

STEPS = 4  # of the midpoint rule along the way from the baseline
BATCH = 16  # tiles whose activations are kept at once


def patch_attributions(
    classifier: Classifier, layer: str, tiles: npt.NDArray[np.uint8], called: npt.NDArray[np.bool_], steps: int = STEPS
) -> npt.NDArray[np.float32]:
    """Attribute what was called to the patches.

    Args:
        classifier: In evaluation mode.
        layer: Dotted name inside its backbone of the layer that embeds patches, whose output is ``(N, C, h, w)``.
        tiles: ``(N, S, S, 3)`` uint8.
        called: ``(N,)``: the gradient is the logit's where a tile is called tumour, else that of minus the logit.
        steps: Gradients along the way.

    Returns:
        ``(N, h, w)`` float32: positive where a patch speaks for the call, negative where against it.
    """
    module = classifier.backbone.get_submodule(layer)
    signs = torch.from_numpy(np.where(called, np.float32(1), np.float32(-1)))
    found = []
    for start in range(0, len(tiles), BATCH):
        pixels = to_floats(torch.from_numpy(tiles[start : start + BATCH]), classifier.stain)
        embedded = _output(module, classifier, pixels)
        baseline = embedded.mean((2, 3), keepdim=True)
        total = torch.zeros_like(embedded)
        for step in range(steps):
            between = (baseline + (embedded - baseline) * (step + 0.5) / steps).requires_grad_()
            with _replaced(module, between):
                logits = classifier(pixels) * signs[start : start + BATCH]
            total += torch.autograd.grad(logits.sum(), between)[0]
        found.append(((embedded - baseline) * total / steps).sum(1))
    return torch.cat(found).numpy()


@torch.no_grad()
def _output(module: nn.Module, classifier: Classifier, pixels: torch.Tensor) -> torch.Tensor:
    seen: list[torch.Tensor] = []
    handle = module.register_forward_hook(lambda _module, _inputs, output: seen.append(output))
    try:
        classifier(pixels)
    finally:
        handle.remove()
    return seen[0]


@contextlib.contextmanager
def _replaced(module: nn.Module, output: torch.Tensor) -> Iterator[None]:
    handle = module.register_forward_hook(lambda _module, _inputs, _output: output)
    try:
        yield
    finally:
        handle.remove()
