from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pcam_files
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

SIZE = 32


def _tiles(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, SIZE, SIZE, 3), dtype=np.uint8)


def _write_kaggle(root: Path, ids: list[str], tiles: np.ndarray, labels: np.ndarray | None) -> Path:
    part, listing = ("test", "sample_submission.csv") if labels is None else ("train", "train_labels.csv")
    (root / part).mkdir(parents=True)
    for name, tile in zip(ids, tiles, strict=True):
        Image.fromarray(tile).save(root / part / f"{name}.tif")
    values = np.zeros(len(ids), int) if labels is None else labels
    lines = [f"{name},{label}" for name, label in zip(ids, values, strict=True)]
    (root / listing).write_text("\n".join(["id,label", *lines]) + "\n")
    return root


def _write_folder(root: Path, ids: list[str], tiles: np.ndarray, labels: np.ndarray, suffix: str = ".png") -> Path:
    for name, tile, label in zip(ids, tiles, labels, strict=True):
        path = root / str(label) / f"{name}{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(tile).save(path)
    return root


def _encoded(tile: np.ndarray, kind: str = "PNG", **options: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(tile).save(file, kind, **options)
    return file.getvalue()


def _write_parquet(root: Path, parts: dict[str, tuple[np.ndarray, np.ndarray]], rows: int = 10, **columns: Any) -> Path:
    """One file a part, its row groups of ``rows`` tiles, as the Hugging Face hub names and fills them."""
    root.mkdir(parents=True, exist_ok=True)
    for part, (tiles, labels) in parts.items():
        images = [{"bytes": _encoded(tile), "path": f"{part}_{n}.png"} for n, tile in enumerate(tiles)]
        table = pa.table({"image": images, "label": labels, **{name: of[part] for name, of in columns.items()}})
        pq.write_table(table, root / f"{part}-00000-of-00001.parquet", row_group_size=rows)
    return root


@pytest.fixture
def encoded() -> Callable[..., bytes]:
    return _encoded


@pytest.fixture
def write_parquet() -> Callable[..., Path]:
    return _write_parquet


@pytest.fixture
def make_tiles() -> Callable[..., np.ndarray]:
    return _tiles


@pytest.fixture
def write_kaggle() -> Callable[..., Path]:
    return _write_kaggle


@pytest.fixture
def write_folder() -> Callable[..., Path]:
    return _write_folder


@pytest.fixture
def write_pcam() -> Callable[..., Path]:
    return pcam_files.write_pcam
