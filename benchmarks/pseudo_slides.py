"""Write a ``data.groups`` file of pseudo-slides: tiles of like stain, for data whose slides nobody knows.

A split by these groups validates on stains that training has not seen, as other slides would be; it takes no label.
`--clusters` is the number of slides to imitate, 20; with 2 they are very likely the two hospitals of Kaggle's tiles.

    python benchmarks/pseudo_slides.py FILE.csv data=kaggle data.root=FOLDER --clusters 2
    histolight train data=kaggle data.root=FOLDER data.groups=FILE.csv data.folds=2 data.fold=0
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.cluster import KMeans
from sklearn.preprocessing import StandardScaler

from histolight.config.compose import compose_config, typed
from histolight.data.prepare import prepare
from histolight.files import write_csv

BLOCK = 256


def stain_features(tiles: np.ndarray) -> np.ndarray:
    """Describe the stain of tiles, not their tissue.

    Args:
        tiles: uint8 (N, S, S, 3).

    Returns:
        float (N, 6): mean and standard deviation of the direction of the optical density, over the pixels that hold
        tissue (optical density above 0.15 on average, as Macenko et al. 2009 have it); that direction is what the dyes
        are, its length how much of them there is.
    """
    density = -np.log((tiles.reshape(len(tiles), -1, 3).astype(np.float32) + 1) / 256)
    tissue = (density.mean(-1, keepdims=True) > 0.15).astype(np.float32)
    direction = density / np.maximum(np.linalg.norm(density, axis=-1, keepdims=True), 1e-6)
    weight = np.maximum(tissue.sum(1), 1)
    mean = (direction * tissue).sum(1) / weight
    variance = ((direction - mean[:, None]) ** 2 * tissue).sum(1) / weight
    return np.concatenate([mean, np.sqrt(variance)], axis=1)


def main() -> None:
    """Cluster, write the file, print the sizes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path, help="CSV to write: id,slide")
    parser.add_argument("overrides", nargs="+", help="as for histolight train: data=kaggle data.root=FOLDER …")
    parser.add_argument("--clusters", type=int, default=20)
    options = parser.parse_args()
    data = prepare(typed(compose_config(options.overrides)).data)
    rows = data.table["row"].to_numpy()
    features = np.concatenate(
        [stain_features(data.tiles.gather(rows[start : start + BLOCK])) for start in range(0, len(rows), BLOCK)]
    )
    clusters = KMeans(options.clusters, n_init=4, random_state=0).fit_predict(StandardScaler().fit_transform(features))
    write_csv(
        options.output, pd.DataFrame({"id": data.table["id"], "slide": [f"stain_{number}" for number in clusters]})
    )
    print(pd.crosstab(clusters, data.table["label"]).to_string())


if __name__ == "__main__":
    main()
