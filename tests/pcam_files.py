"""PatchCamelyon's six HDF5 files, of any tiles."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np

PARTS = ("train", "valid", "test")


def write_pcam(root: Path, parts: dict[str, tuple[np.ndarray, np.ndarray]], **options: object) -> Path:
    """Write each part's tiles, uint8 (N, S, S, 3), and labels (N,); ``options`` are of the tiles' data sets."""
    root.mkdir(parents=True, exist_ok=True)
    for part, (tiles, labels) in parts.items():
        for kind, values in (("x", tiles), ("y", labels.astype(np.uint8).reshape(-1, 1, 1, 1))):
            with h5py.File(root / f"camelyonpatch_level_2_split_{part}_{kind}.h5", "w") as file:
                file.create_dataset(kind, data=values, **(options if kind == "x" else {}))
    return root
