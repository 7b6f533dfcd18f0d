"""Which tiles train, validate and test: by slide wherever slides are known."""

from __future__ import annotations

import logging
import math

import numpy as np
import pandas as pd
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold, train_test_split

from histolight.config.schema import DataConfig
from histolight.errors import RequestError

log = logging.getLogger("histolight")


def make_split(table: pd.DataFrame, config: DataConfig) -> tuple[pd.Series, str]:
    """Decide the part of each tile.

    The source's own split is used as it is. Otherwise the test part (``data.test_fraction``) is taken first, and of
    the rest either ``data.val_fraction`` of all tiles or fold ``data.fold`` of ``data.folds`` validates. ``data.fold``
    with a source's own split makes folds of its training and validation tiles; its test part stays. Where slides are
    known, no slide lies on two sides, and tiles without one train.

    Args:
        table: Labelled tiles with ``id``, ``label``, ``group`` and ``split``; the order of its rows has no influence.
        config: The data part of a run's configuration; ``seed`` is the random state.

    Returns:
        The part (train, val or test) of each row, with the table's index; and how the validation tiles were chosen:
        ``given`` by the source, by ``slide`` or at ``random``.

    Raises:
        RequestError: A part would lack a class, or there are too few tiles or slides.
    """
    ordered = table.sort_values("id", kind="stable")
    given = ordered["split"].to_numpy(dtype=object) if ordered["split"].notna().any() else None
    if given is not None and config.test_fraction > 0:
        raise RequestError(
            f"data.test_fraction={config.test_fraction} has no place here: data={config.source} brings its own split"
        )
    if given is not None and config.fold is None and "val" in given:
        parts, kind = given, "given"
        torn = int((ordered.groupby("group")["split"].nunique() > 1).sum())
        if torn:
            log.warning("%d slides lie on several sides of the source's own split: its figures flatter", torn)
    else:
        parts, kind = _draw(ordered, given, config)
    _check_parts(parts, ordered["label"].to_numpy())
    return pd.Series(parts, index=ordered.index, name="split", dtype=object).reindex(table.index), kind


def _draw(table: pd.DataFrame, given: np.ndarray | None, config: DataConfig) -> tuple[np.ndarray, str]:
    labels = table["label"].to_numpy()
    known = table["group"].notna().to_numpy()
    slides = table["group"].to_numpy(dtype=object) if known.any() else None
    parts = np.full(len(table), "train", dtype=object)
    pool = np.arange(len(table))
    if given is not None:
        parts[given == "test"] = "test"
        pool = np.flatnonzero(given != "test")
    if slides is not None and not known[pool].all():
        log.warning("%d tiles have no known slide: they train, and never validate or test", (~known[pool]).sum())
        pool = pool[known[pool]]
    val_fraction = config.val_fraction
    if given is None and config.test_fraction > 0:
        test = _hold_out(
            pool, labels, slides, config.test_fraction, config.seed, f"data.test_fraction={config.test_fraction}"
        )
        parts[test] = "test"
        pool = np.setdiff1d(pool, test)
        val_fraction /= 1 - config.test_fraction
    if config.fold is None:
        val = _hold_out(pool, labels, slides, val_fraction, config.seed, f"data.val_fraction={config.val_fraction}")
    else:
        val = _folds(pool, labels, slides, config.folds, config.seed, f"data.folds={config.folds}")[config.fold]
    parts[val] = "val"
    return parts, "random" if slides is None else "slide"


def _hold_out(
    pool: np.ndarray, labels: np.ndarray, slides: np.ndarray | None, fraction: float, seed: int, key: str
) -> np.ndarray:
    """Choose ``fraction`` of the pool: exactly when at random, as nearly as whole slides allow otherwise."""
    if slides is None:
        size = math.ceil(round(fraction * len(pool), 6))  # scikit-learn's own rule, safe from 200.00000000000003
        try:
            chosen = train_test_split(pool, test_size=size, stratify=labels[pool], random_state=seed)[1]
        except ValueError as error:
            raise RequestError(f"{key} cannot be split off {len(pool)} tiles: {error}") from None
        return np.asarray(chosen)
    most = min(len(set(slides[pool])), int(np.bincount(labels[pool], minlength=2).min()))
    if most < 2:
        raise RequestError(
            f"{key} needs two slides and two tiles of each class to choose from, and there are {most}: add slides"
        )
    # The fewest folds, some of them taken together, that come within a hundredth of the fraction.
    count = min(range(2, most + 1), key=lambda folds: (max(_error(fraction, folds), 0.01), folds))
    taken = _taken(fraction, count)
    folds = _folds(pool, labels, slides, count, seed, key)
    candidates = [np.concatenate((folds + folds)[first : first + taken]) for first in range(count)]
    prevalence = labels[pool].mean()

    def miss(chosen: np.ndarray) -> float:
        rest = np.setdiff1d(pool, chosen)
        if min(len(np.unique(labels[chosen])), len(np.unique(labels[rest]))) < 2:
            return np.inf
        return abs(len(chosen) / len(pool) - fraction) + abs(labels[chosen].mean() - prevalence)

    return min(candidates, key=miss)


def _taken(fraction: float, folds: int) -> int:
    """Return how many of so many folds are nearest to a fraction: at least one, and not all."""
    return min(max(round(fraction * folds), 1), folds - 1)


def _error(fraction: float, folds: int) -> float:
    return abs(_taken(fraction, folds) / folds - fraction)


def _folds(
    pool: np.ndarray, labels: np.ndarray, slides: np.ndarray | None, count: int, seed: int, key: str
) -> list[np.ndarray]:
    """Cut the pool into ``count`` stratified folds, of whole slides where these are known."""
    rarest = np.bincount(labels[pool], minlength=2).min()
    if rarest < count:
        raise RequestError(
            f"{key} needs {count} tiles of each class, and one has {rarest}: use fewer folds or more tiles"
        )
    if slides is None:
        folds = StratifiedKFold(count, shuffle=True, random_state=seed).split(pool, labels[pool])
    else:
        known = len(set(slides[pool]))
        if known < count:
            raise RequestError(
                f"{key} needs {count} slides, and there are {known}: use at most data.folds={known}, a larger fraction "
                "or more slides"
            )
        splitter = StratifiedGroupKFold(count, shuffle=True, random_state=seed)
        folds = splitter.split(pool, labels[pool], slides[pool])
    return [pool[fold] for _, fold in folds]


def _check_parts(parts: np.ndarray, labels: np.ndarray) -> None:
    for part in pd.unique(np.append(["train", "val"], parts)):
        for label in (0, 1):
            if not ((parts == part) & (labels == label)).any():
                raise RequestError(
                    f"the {part} part has no tile of class {label}: use fewer data.folds, a larger data.limit, another "
                    "data.seed, or more slides with tiles of this class"
                )
