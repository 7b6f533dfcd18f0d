"""The features of tiles as a table: computed once, kept where probes find them, and written as Parquet."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import lightning as L
import numpy as np
import pandas as pd
import torch

from histolight import files, runs
from histolight.config.schema import Config, tile_mpp
from histolight.data.checks import check_table
from histolight.data.datamodule import compute_features
from histolight.data.prepare import load_tiles
from histolight.data.sources import load_source
from histolight.errors import HistolightError, RequestError, cannot_write
from histolight.hardware import REDUCED, is_out_of_memory, prepare_matrix_products
from histolight.inference.networks import inference_device, inference_precision
from histolight.models.classifier import Classifier
from histolight.training.fit import check_request
from histolight.training.kept_features import kept_features

COLUMNS = ("id", "label", "group", "split")  # of the table, where they say anything
ROWS = 4096  # of a row group


@dataclass(frozen=True)
class Embedding:
    """The features of a set of tiles.

    Attributes:
        path: The Parquet file: ``id``, ``label``, ``group`` and ``split`` where known, ``features`` (lists of float32).
        tiles: Number of its rows.
        width: Number of features.
        kept: The folder in ``data.cache`` that keeps them too.
    """

    path: Path
    tiles: int
    width: int
    kept: Path


def embed(config: Config, directory: Path, progress: bool = True) -> Embedding:
    """Write ``features.parquet`` and, about them, ``embed.json``.

    Args:
        config: Its ``data``, ``model`` and ``trainer`` say which tiles, which network, and where it computes.
        directory: An unused folder.
        progress: Say on stderr which tiles there are.

    Raises:
        RequestError: The network or the tiles do not exist, pyarrow is missing, or the network has no features.
        HistolightError: Out of memory, features that are not finite, or a file can't be written.
    """
    if importlib.util.find_spec("pyarrow") is None:
        raise RequestError("histolight embed needs pyarrow: install histolight with its extra, histolight[parquet]")
    config = check_request(config)
    settings = config.trainer
    device = inference_device(settings)
    precision = inference_precision(settings, device)
    prepare_matrix_products()
    source = load_source(config.data)
    check_table(source.table, config.data)
    packed = load_tiles(source, config.data)
    if progress:
        print(f"{len(packed.table):,} tiles; writing {directory}", file=sys.stderr)
    L.seed_everything(config.seed, verbose=False)  # decides random weights
    classifier = Classifier.from_config(config, 1.0).eval().requires_grad_(False)
    if not classifier.ends_in_head():
        raise RequestError(f"model.name={config.model.name} has no features in front of one last layer: choose another")
    kept = kept_features(classifier, config, packed.pack.tiles, precision)
    reduced = REDUCED.get(precision)
    context = partial(torch.autocast, device.type, reduced, enabled=reduced is not None)
    features = classifier.to(device).features
    compute = partial(
        compute_features, features, packed.pack.tiles, config=config.data, device=device, precision=context
    )
    rows = packed.table["row"].to_numpy()
    try:
        values = kept.fill(rows, compute, "tiles", config.data.batch_size)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        half = max(1, config.data.batch_size // 2)
        raise HistolightError(f"out of GPU memory: use data.batch_size={half}") from error
    about = {
        "model": dataclasses.asdict(config.model),
        "data": {"source": config.data.source, "root": config.data.root, "image_size": config.data.image_size},
        "mpp": tile_mpp(config.data),
        "stain": config.data.stain,
        "data_fingerprint": packed.fingerprint,
        "precision": precision,
        "tiles": len(rows),
        "width": values.shape[1],
        **runs.provenance(),
    }
    with files.claimed(directory):
        path = directory / "features.parquet"
        write_features(path, packed.table, values, precision)
        files.write_atomically(directory / "embed.json", json.dumps(about, indent=2) + "\n")
    return Embedding(path, len(rows), values.shape[1], kept.folder)


def write_features(path: Path, table: pd.DataFrame, values: np.ndarray, precision: str) -> None:
    """Write one row a tile, in memory that does not grow with their number.

    Args:
        path: The file.
        table: Its ``row`` is a tile's place in ``values``.
        values: float32 ``(N, F)``.
        precision: In which they were computed, for the message.

    Raises:
        HistolightError: A feature is not finite, or the file can't be written.
    """
    import pyarrow as pa
    from pyarrow import parquet

    columns = [name for name in COLUMNS if name in table and table[name].notna().any()]
    kinds = {"label": pa.int8()}
    kind = pa.list_(pa.float32(), values.shape[1])
    schema = pa.schema([*((name, kinds.get(name, pa.string())) for name in columns), ("features", kind)])
    try:
        with files.temporary_folder(path.parent) as folder:
            beside = folder / path.name
            with parquet.ParquetWriter(beside, schema) as writer:
                for start in range(0, len(table), ROWS):
                    part = table.iloc[start : start + ROWS]
                    found = np.ascontiguousarray(values[part["row"].to_numpy()])
                    if not np.isfinite(found).all():
                        raise HistolightError(
                            f"the network gives features that are not finite ({precision}): try "
                            "trainer.precision=32-true"
                        )
                    arrays = [pa.array(part[name], schema.field(name).type, from_pandas=True) for name in columns]
                    arrays.append(pa.FixedSizeListArray.from_arrays(pa.array(found.ravel()), type=kind))
                    writer.write_batch(pa.RecordBatch.from_arrays(arrays, schema=schema))
            beside.replace(path)
    except OSError as error:
        raise HistolightError(cannot_write(path, error, files.ANOTHER_FOLDER)) from error
