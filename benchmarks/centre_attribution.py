"""Do the maps of `explain` find the centre, where the label of these tiles is decided, in networks that learned it?

    python benchmarks/centre_attribution.py > benchmarks/centre_attribution.csv

TILES grainy tiles of 96 pixels. A tile is positive where one or two dark spots lie inside its centre 32x32; up to five
more lie anywhere else in tiles of both kinds. A small vision transformer and a CNN are trained on them, from SEEDS
initial weights each. Of MEASURED other tiles: the share of the maps inside the centre (chance is a ninth), with random
weights and after training, with its 95 % interval over tiles; and how well the maps, signs included, correlate within a
tile with what the logit loses when one of 36 squares is hidden behind the tile's mean colour. Of the transformer: with
four gradients, as `explain` has it, with one and with sixteen.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import numpy as np
import torch
from sklearn.metrics import roc_auc_score
from tables import csv_printer
from torch.nn.functional import avg_pool2d, binary_cross_entropy_with_logits

from histolight.explanation.grad_cam import centre_share, feature_layers, grad_cam, mean_share
from histolight.explanation.patches import patch_attributions
from histolight.models.classifier import Classifier

SIZE, TILES, MEASURED, BATCH = 96, 2048, 96, 64
SEEDS = 2
VIT = {"img_size": SIZE, "patch_size": 16, "embed_dim": 64, "depth": 4, "num_heads": 4}
NETWORKS = {  # how it is built, epochs
    "vision transformer": ({"name": "timm/vit_tiny_patch16_224", "kwargs": VIT}, 10),
    "CNN (ShuffleNet v2 x0.5)": ({"name": "shufflenet_v2_x0_5"}, 3),
}


def draw_tiles(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw tiles, uint8 (N, 96, 96, 3), and their labels, (N,)."""
    random = np.random.default_rng(seed)
    tiles = random.normal((195, 150, 190), 20, (count, SIZE, SIZE, 3))
    labels = np.arange(count) % 2
    rows, columns = np.mgrid[:SIZE, :SIZE]
    for tile, label in zip(tiles, labels, strict=True):
        inside = random.uniform(37, 58, (label * random.integers(1, 3), 2))
        anywhere = random.uniform(5, SIZE - 6, (40, 2))
        outside = anywhere[np.abs(anywhere - 47.5).max(1) > 22][: random.integers(0, 6)]
        for row, column in np.concatenate([inside, outside]):
            tile[(rows - row) ** 2 + (columns - column) ** 2 < 25] -= (45, 90, 36)
    return tiles.clip(0, 255).astype(np.uint8), labels


def logits_of(network: Classifier, tiles: np.ndarray) -> torch.Tensor:
    return network(torch.from_numpy(tiles).permute(0, 3, 1, 2).float() / 255)


def fit(network: Classifier, tiles: np.ndarray, labels: np.ndarray, epochs: int) -> None:
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3, weight_decay=0.01)
    steps = epochs * (len(tiles) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, total_steps=steps)
    for _ in range(epochs):
        for rows in torch.randperm(len(tiles))[: len(tiles) // BATCH * BATCH].split(BATCH):
            loss = binary_cross_entropy_with_logits(logits_of(network, tiles[rows]), torch.tensor(labels[rows]).float())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()


@torch.inference_mode()
def hidden_squares(network: Classifier, tiles: np.ndarray) -> np.ndarray:
    """What hiding each of 6x6 squares takes from the logit, (N, 6, 6)."""
    whole, taken = logits_of(network, tiles), np.zeros((len(tiles), 6, 6))
    for row in range(6):
        for column in range(6):
            hidden = tiles.copy()
            hidden[:, row * 16 : row * 16 + 16, column * 16 : column * 16 + 16] = tiles.mean((1, 2), keepdims=True)
            taken[:, row, column] = (whole - logits_of(network, hidden)).numpy()
    return taken


def correlation(maps: np.ndarray, taken: np.ndarray) -> float:
    pooled = avg_pool2d(torch.from_numpy(maps)[:, None], maps.shape[1] // 6)[:, 0].numpy()
    return float(np.nanmean([np.corrcoef(a.ravel(), b.ravel())[0, 1] for a, b in zip(pooled, taken, strict=True)]))


def main() -> int:
    fields = ("network", "seed", "weights", "auroc", "share", "low", "high", "correlation", "one_step", "sixteen_steps")
    print_row = csv_printer(*fields)
    (tiles, labels), (measured, truth) = draw_tiles(TILES, 0), draw_tiles(MEASURED, 1)
    torch.set_num_threads(1)
    for name, (model, epochs) in NETWORKS.items():
        for seed in range(SEEDS):
            torch.manual_seed(seed)
            network = Classifier({"weights": None, **model}, {}, {}, {}, image_size=SIZE)
            for weights in ("random", "trained"):
                if weights == "trained":
                    fit(network.train(), tiles, labels, epochs)
                print_row(name, seed, weights, *figures(network.eval(), measured, truth))
    return 0


def figures(network: Classifier, tiles: np.ndarray, labels: np.ndarray) -> list[str]:
    with torch.inference_mode():
        logits = logits_of(network, tiles).numpy()
    layers = feature_layers(network.backbone, network.input_size)
    called = logits > 0
    attribute: Callable[..., np.ndarray] = patch_attributions if layers.patches else grad_cam
    maps = attribute(network, layers.shown, tiles, called)
    share = mean_share(centre_share(maps.clip(min=0), SIZE), [None] * len(tiles))
    taken = hidden_squares(network, tiles) * np.where(called, 1, -1)[:, None, None]
    others = (
        [
            f"{correlation(patch_attributions(network, layers.shown, tiles, called, steps), taken):.2f}"
            for steps in (1, 16)
        ]
        if layers.patches
        else ["", ""]
    )
    interval = [f"{100 * value:.1f}" for value in (share.value, share.low, share.high)]
    return [f"{roc_auc_score(labels, logits):.3f}", *interval, f"{correlation(maps, taken):.2f}", *others]


if __name__ == "__main__":
    sys.exit(main())
