"""Labels that predictions doubt: of runs that have not trained on the tiles, by confident learning."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.special import expit

from histolight import runs
from histolight.config.schema import DataConfig
from histolight.data.prepare import PackedTiles, load_tiles
from histolight.data.sources import load_source
from histolight.errors import RequestError
from histolight.exploration import mosaics
from histolight.exploration.figures import CLASSES, pairs_figure
from histolight.files import write_atomically, write_csv
from histolight.reports.figures import figure_text, tile_grid_figure
from histolight.reports.page import Cell, Picture, Section, Table, render_page
from histolight.reports.parts import saved_picture

SHOWN = 40  # tiles of each class, and pairs of copies, that are shown
NAME = 12  # characters of an id under its tile
COPY, LEARNING = "copy with the other label", "confident learning"

_METHODS = [
    "Each tile is judged by runs that did not train on it: by those in whose validation or test part it lies, their "
    "logits averaged. A cross-validation, data.fold=0,1,2,3,4, judges every tile.",
    "Confident learning (Northcutt et al. 2021, Journal of Artificial Intelligence Research 70:1373), as cleanlab has "
    "it: a tile counts as confidently of a class when its score for that class reaches the mean of the tiles with that "
    "label; the share of a class's confident tiles that are confidently of the other one says which share of its "
    "labels is doubted, those with the lowest score for their own label. So many are wrong only where a network errs "
    "on no tile.",
    "Exact copies with different labels stand first: of each pair one is certainly wrong.",
    "A doubted label is to be looked at, not changed unseen: hard tiles are doubted too. docs/data.md says how many of "
    "2 % flipped labels such a list finds, docs/statistics.md how many right ones are doubted.",
]


@dataclass(frozen=True)
class OutOfFold:
    """Tiles with what runs that did not train on them predict.

    Attributes:
        table: One row a tile: ``id``, ``label``, ``group``, ``row``, ``logit`` (the mean of ``runs`` predictions).
        tiles: All tiles of the runs.
        runs: Number of runs.
    """

    table: pd.DataFrame
    tiles: PackedTiles
    runs: int


def read_out_of_fold(directories: Sequence[Path], data: DataConfig) -> OutOfFold:
    """Read the predictions of completed runs for their validation and test parts, and find the tiles.

    Args:
        directories: Directories of completed runs.
        data: Where the tiles of all of them are.

    Raises:
        RequestError: A run is damaged, or they are not of the same tiles with the same labels.
    """
    first = directories[0]
    fingerprints = {path: runs.completed_metrics(path)["data_fingerprint"] for path in directories}
    for path in directories:
        if fingerprints[path] != fingerprints[first]:
            raise RequestError(
                f"{path} is of other tiles or labels than {first}: give the runs of one cross-validation"
            )
    if data.split not in ("auto", "random"):  # the list may be gone
        data = dataclasses.replace(data, split=str((first / "splits.csv").absolute()))
    tiles = load_tiles(load_source(data), data)
    if tiles.fingerprint != fingerprints[first]:
        raise RequestError(
            f"the tiles, their labels or slides ({data.root or data.source}) are no longer those that {first} "
            "was trained on: restore them"
        )
    predictions = pd.concat(
        [runs.read_predictions(path) for run in directories for path in sorted((run / "predictions").glob("*.csv"))]
    )
    logits = predictions.groupby("id")["logit"].agg(["mean", "count"])
    table = tiles.table[["id", "label", "group", "row"]]
    table = table.assign(logit=table["id"].map(logits["mean"]), runs=table["id"].map(logits["count"]))
    return OutOfFold(table[table["logit"].notna()].reset_index(drop=True), tiles, len(directories))


def doubt_labels(table: pd.DataFrame, conflicts: pd.DataFrame) -> pd.DataFrame:
    """Rank tiles by how much their label is doubted.

    Args:
        table: ``id``, ``label`` (0/1) and ``logit`` of tiles of both classes.
        conflicts: Exact copies with different labels: ``id_1`` and ``id_2``.

    Returns:
        The table, the most doubted tile first, with ``score`` (of tumour), ``own`` (the score of the tile's own label)
        and ``why``: :data:`COPY`, :data:`LEARNING` or, for the tiles that are not doubted, empty.

    Raises:
        RequestError: cleanlab is missing, or all tiles have one label.
    """
    try:
        from cleanlab.filter import find_label_issues
    except ImportError as error:
        raise RequestError(
            "explore runs= needs cleanlab: install histolight with its extra, histolight[labels]"
        ) from error
    labels, scores = table["label"].to_numpy(), expit(table["logit"].to_numpy(dtype=np.float64))
    if len(np.unique(labels)) < 2:
        raise RequestError(f"all {len(labels)} tiles with predictions have the label {labels[0]}: give more runs")
    probabilities = np.stack([1 - scores, scores], axis=1)
    doubted = find_label_issues(labels, probabilities, filter_by="prune_by_noise_rate", n_jobs=1)
    copies = table["id"].isin(conflicts[["id_1", "id_2"]].to_numpy().ravel()).to_numpy()
    own = np.where(labels == 1, scores, 1 - scores)
    why = np.where(copies, COPY, np.where(doubted, LEARNING, ""))
    order = np.lexsort([own, ~doubted, ~copies])
    return table.assign(score=scores, own=own, why=why).iloc[order].reset_index(drop=True)


def write_doubts(data: OutOfFold, directory: Path, title: str) -> list[str]:
    """Write ``doubtful_labels.csv``, figures and ``report.html``.

    Returns:
        What the page says first, a sentence each.
    """
    shared = mosaics.shared_pixels(data.tiles.table, data.tiles.pack)
    conflicts = mosaics.label_conflicts(shared, data.tiles.table)
    ranked = doubt_labels(data.table, conflicts)
    doubted = ranked[ranked["why"] != ""]
    columns = ["id", "label", "score", "group", "runs", "why"]
    write_csv(directory / "doubtful_labels.csv", doubted[columns])
    folder = directory / "figures"
    sections = [
        _counts(ranked),
        _conflicts(conflicts, data.tiles, folder),
        *(_doubted(doubted, label, data.tiles, folder) for label in (0, 1)),
        Section("How this was computed", _METHODS),
    ]
    sentences = _answer(data, ranked, conflicts)
    footer = f"histolight {version('histolight')} explore, {datetime.now():%Y-%m-%d %H:%M}"
    page = render_page(title, sentences, [section for section in sections if section is not None], footer)
    write_atomically(directory / "report.html", page)
    return sentences


def _answer(data: OutOfFold, ranked: pd.DataFrame, conflicts: pd.DataFrame) -> list[str]:
    lacking = len(data.tiles.table) - len(ranked)
    sentences = [
        f"{len(ranked):,} tiles have predictions of runs that did not train on them, from {data.runs} runs in all."
    ]
    if lacking:
        sentences.append(
            f"{lacking:,} tiles have none, as they trained in every run: a cross-validation, data.fold=0,1,2,3,4, "
            "judges every tile."
        )
    counts = ranked[ranked["why"] == LEARNING]["label"].value_counts()
    sentences.append(
        f"Confident learning doubts {counts.sum():,} labels ({counts.sum() / len(ranked):.1%}): {counts.get(0, 0):,} "
        f"benign and {counts.get(1, 0):,} tumour."
    )
    sentences.append(
        "That is no estimate of how many are wrong, as right labels of hard tiles are doubted too: by a network with "
        "an AUROC of 0.90 about a tenth of all labels where every one is right."
    )
    if len(conflicts):
        sentences.append(f"{len(conflicts):,} pairs of exact copies have different labels: one of each is wrong.")
    sentences.append("Look at them before any label is changed.")
    return sentences


def _counts(ranked: pd.DataFrame) -> Section:
    rows = []
    for label, name in enumerate(CLASSES):
        own = ranked[ranked["label"] == label]
        why = own["why"].value_counts()
        counts = [len(own), why.get(LEARNING, 0), why.get(COPY, 0)]
        rows.append([Cell(name), *(Cell(f"{count:,}") for count in counts), Cell(f"{own['score'].mean():.3f}")])
    columns = ["label", "tiles", "doubted", COPY, "mean score of tumour"]
    return Section("Labels", ["doubtful_labels.csv has all that are doubted."], Table(columns, rows, words=1))


def _conflicts(conflicts: pd.DataFrame, tiles: PackedTiles, folder: Path) -> Section | None:
    if conflicts.empty:
        return None
    shown = conflicts.head(SHOWN)
    rows = tiles.table.set_index("id")["row"]
    pixels = tiles.pack.tiles.gather(rows[shown[["id_1", "id_2"]].to_numpy().ravel()].to_numpy())
    captions = [", ".join(CLASSES[label] for label in labels) for labels in shown[["label_1", "label_2"]].to_numpy()]
    figure = pairs_figure(pixels.reshape(len(shown), 2, *pixels.shape[1:]), captions)
    caption = f"{len(shown)} of {len(conflicts):,} pairs of exact copies, with the label of each."
    picture = saved_picture(figure, folder / "conflicts.png", caption, photographs=True, wide=True)
    return Section("Copies with different labels", pictures=[picture])


def tile_captions(shown: pd.DataFrame) -> list[str]:
    """Name each tile so that it is found in the list, and say its score.

    >>> tile_captions(pd.DataFrame({"id": ["1976924f642df653b5daad10776a8499c70ccc42"], "score": [0.0185]}))
    ['197692…ccc42 0.018']
    """
    return [f"{figure_text(name, NAME)} {score:.3f}" for name, score in zip(shown["id"], shown["score"], strict=True)]


def _doubted(doubted: pd.DataFrame, label: int, tiles: PackedTiles, folder: Path) -> Section | None:
    own = doubted[(doubted["label"] == label) & (doubted["why"] == LEARNING)]
    if own.empty:
        return None
    shown = own.head(SHOWN)
    pixels = tiles.pack.tiles.gather(shown["row"].to_numpy())
    figure = tile_grid_figure(pixels, tile_captions(shown), f"labelled {CLASSES[label]}")
    caption = (
        f"{len(shown)} of {len(own):,} tiles labelled {CLASSES[label]}, in the order of doubtful_labels.csv: the most "
        "doubted first, each with its id, cut where it is long, and its score of tumour."
    )
    path = folder / f"doubted_{CLASSES[label]}.png"
    pictures: list[Picture] = [saved_picture(figure, path, caption, photographs=True, wide=True)]
    other = CLASSES[1 - label]
    return Section(f"Labelled {CLASSES[label]}, predicted {other}", pictures=pictures)
