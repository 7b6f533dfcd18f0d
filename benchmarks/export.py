"""Export every network of conf/model with random weights: the largest difference in probability, and the time.

python benchmarks/export.py > benchmarks/export.csv
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from tables import csv_printer

from histolight.config.compose import compose_config, config_groups, typed
from histolight.inference.export import export_onnx
from histolight.models.classifier import Classifier

TILES, SIZE = 64, 96


def main() -> int:
    tiles = np.random.default_rng(0).integers(0, 256, (TILES, SIZE, SIZE, 3), dtype=np.uint8)
    print_row = csv_printer("network", "largest_difference", "mb", "seconds")
    for group in config_groups()["model"]:
        torch.manual_seed(0)
        model = typed(compose_config([f"model={group}"])).model
        if model.card:  # foundation models: too large to export here
            continue
        name = model.name
        classifier = Classifier(model={"name": name, "weights": None}, optimizer={}, scheduler={}, loss={})
        for module in classifier.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.momentum = None  # the statistics of one pass replace the initial ones
        with torch.no_grad():
            batch = torch.rand(16, 3, SIZE, SIZE)
            classifier(batch)
            logits = classifier.eval()(batch)
            classifier.backbone.get_submodule(classifier.head).weight /= logits.std()
        with tempfile.TemporaryDirectory() as folder:
            path, begun = Path(folder, "model.onnx"), time.perf_counter()
            difference = export_onnx(classifier.requires_grad_(False), tiles, path, {})
            seconds, size = time.perf_counter() - begun, path.stat().st_size / 1e6
        print_row(name, f"{difference:.1e}", f"{size:.1f}", f"{seconds:.0f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
