"""Camelyon17-WILDS (Koh et al. 2021) as its own package downloads it: ``metadata.csv`` and ``patches/``.

A row of ``metadata.csv`` has ``patient``, ``node``, ``x_coord``, ``y_coord``, ``tumor``, ``slide``, ``center`` and
``split``; its tile is ``patches/patient_P_node_N/patch_patient_P_node_N_x_X_y_Y.png``. The official split: centre 1
validates, centre 2 tests, and of the other three the rows of split 0 train. Those of split 1 (``id_val``) are tiles of
the training slides: neither independent validation nor training, they are left out.
"""

from __future__ import annotations

import logging

import numpy as np
import pandas as pd

from histolight.config.schema import DataConfig
from histolight.data.checks import describe, problem_frame
from histolight.data.images import file_source, list_images
from histolight.data.sources import Kind, data_root
from histolight.data.table import UNUSED, Source, read_csv
from histolight.errors import DataError, RequestError

log = logging.getLogger("histolight")

_FOLDER = "camelyon17_v1.0"  # what the package makes below its root_dir
_COLUMNS = ("patient", "node", "x_coord", "y_coord", "tumor", "slide", "center", "split")
_CENTRES = {"1": "val", "2": "test"}
_SPLITS = {"0": "train", "1": UNUSED}


def load(config: DataConfig) -> Source:
    """List the tiles, with slide, centre (``domain``) and official split; an id is the name of the file.

    Raises:
        RequestError: There is no ``metadata.csv``, or not with these columns.
        DataError: Labels other than 0 and 1, rows that stand there twice or without a tile, other values of ``split``.
    """
    root = data_root(config)
    if not (root / "metadata.csv").exists() and (root / _FOLDER / "metadata.csv").exists():
        root /= _FOLDER
    rows = read_csv(root / "metadata.csv", _COLUMNS)
    folder = "patient_" + rows["patient"] + "_node_" + rows["node"]
    name = "patch_" + folder + "_x_" + rows["x_coord"] + "_y_" + rows["y_coord"]
    split = rows["center"].map(_CENTRES).fillna(rows["split"].map(_SPLITS))
    table = pd.DataFrame({"id": name, "path": "patches/" + folder + "/" + name + ".png", "group": rows["slide"]})
    table = table.assign(domain=rows["center"], split=split.astype(object), tumor=rows["tumor"], given=rows["split"])
    try:
        files, _ = list_images(root / "patches", (".png",))
    except FileNotFoundError:
        raise RequestError(f"{root / 'patches'} is missing: it holds the tiles of metadata.csv") from None
    files["path"] = "patches/" + files["path"]
    problems = _problems(table, set(files["path"]))
    if problems:
        frame = problem_frame(problems)
        raise DataError(f"{len(frame)} problems with {root / 'metadata.csv'}: {describe(frame)}", frame)
    if unlisted := len(files) - len(table):
        log.warning("%d files in %s are not in metadata.csv and are left out", unlisted, root / "patches")
    if unused := int((table["split"] == UNUSED).sum()):
        log.warning("%d tiles of training slides that WILDS keeps as id_val are left out", unused)
    table["label"] = table["tumor"].astype(np.int8)
    table = table.drop(columns=["tumor", "given"]).merge(files, on="path")
    return file_source(table, root, "wilds", config.image_size)


def _problems(table: pd.DataFrame, there: set[str]) -> list[tuple[str, str, str]]:
    problems = []
    for wrong, problem, column in (
        (~table["tumor"].isin(["0", "1"]), "label is not 0 or 1", "tumor"),
        (table["split"].isna(), "split is not 0 or 1", "given"),
        (table["group"] == "", "no slide", "group"),
        (table["id"].duplicated(), "id twice", "path"),
        (~table["path"].isin(there), "row without a tile", "path"),
    ):
        problems += [(name, problem, detail) for name, detail in table.loc[wrong, ["id", column]].to_numpy().tolist()]
    return problems


KIND = Kind(load, unlabelled_apart=True)
