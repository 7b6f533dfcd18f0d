"""Findings about the tiles: what stops a run (errors on the table) and what it should hear of (warnings on pixels)."""

from __future__ import annotations

import numpy as np
import pandas as pd

from histolight.config.schema import DataConfig
from histolight.errors import DataError

# The standard deviation of a tile's grey, in levels of 255, below which it shows next to nothing. Of 4,000 tiles of
# Kaggle's training set, 15 lie below 5, one of them labelled 1, and all are empty glass, one colour, or a few specks;
# the first with tissue in it has 5.4. The median is 46.
NEAR_BLANK_CONTRAST = 5.0

_COLUMNS = ["id", "problem", "detail"]


def problem_frame(rows: list[tuple[str, str, str]]) -> pd.DataFrame:
    """Make the frame of findings: one row each, with columns id, problem and detail (all str)."""
    return pd.DataFrame(rows, columns=_COLUMNS, dtype=object)


def describe(problems: pd.DataFrame) -> str:
    """Say in one line how many findings of each kind there are, and name the first three tiles of each.

    A detail that they share follows, or else that of the first.

    >>> describe(problem_frame([("a", "no file", ""), ("b", "no file", ""), ("c", "wrong size", "9x9 pixels")]))
    'no file: 2 (a, b); wrong size: 1 (c): 9x9 pixels'
    >>> describe(problem_frame([("a", "wrong size", "9x9 pixels"), ("b", "wrong size", "8x8 pixels")]))
    'wrong size: 2 (a, b), the first: 9x9 pixels'
    """
    kinds = []
    for problem, rows in problems.groupby("problem", sort=False):
        first = ", ".join(name if name.isprintable() and name else repr(name) for name in rows["id"].head(3))
        detail = next(iter(rows["detail"]))
        more = ", …" if len(rows) > 3 else ""
        whose = "" if rows["detail"].nunique() == 1 else ", the first"
        kinds.append(f"{problem}: {len(rows)} ({first}{more}){f'{whose}: {detail}' if detail else ''}")
    return "; ".join(kinds)


def check_table(table: pd.DataFrame, config: DataConfig) -> None:
    """Check a labelled table before any tile is decoded.

    Raises:
        DataError: Two tiles share an id, a label is neither 0 nor 1, or a class has fewer tiles than the split needs.
    """
    twice = table.loc[table["id"].duplicated(keep=False), "id"]
    wrong = table.loc[~table["label"].isin([0, 1]), ["id", "label"]]
    rows = [(name, "id twice", "") for name in twice]
    rows += [(row.id, "label is not 0 or 1", str(row.label)) for row in wrong.itertuples()]
    if rows:
        problems = problem_frame(rows)
        raise DataError(f"{len(problems)} problems in the table of tiles: {describe(problems)}", problems)
    parts = (2 if config.fold is None else config.folds) + (config.test_fraction > 0)
    rows = [
        ("", f"too few tiles of class {label}", f"{count}, where the split needs {parts}")
        for label in (0, 1)
        if (count := int((table["label"] == label).sum())) < parts
    ]
    if rows:
        detected = " and ".join(f"{problem} ({detail})" for _, problem, detail in rows)
        raise DataError(f"{detected}: {_what_is_enough(table, config)}", problem_frame(rows))


def _what_is_enough(table: pd.DataFrame, config: DataConfig) -> str:
    """Name what a split needs less tiles of the rarer class for, or how many it needs."""
    rarest, testing = int(np.bincount(table["label"], minlength=2).min()), config.test_fraction > 0
    needed = (2 if config.fold is None else config.folds) + testing
    more, enough = "give more tiles of it", f"give at least {needed} of each"
    if config.split != "random" and "group" in table and table["group"].notna().any():  # then slides count, not tiles
        rarest = int(table.groupby("label")["group"].nunique().reindex([0, 1], fill_value=0).min())
        more = enough = f"give more tiles of it, of {needed} slides or more"
    if config.fold is not None and rarest - testing >= 2:
        first = " data.fold=0" if config.fold >= rarest - testing else ""
        return f"use data.folds={rarest - testing}{first}, or {more}"
    if config.fold is None and testing and rarest >= 2:
        return f"use data.test_fraction=0, or {more}"
    return enough


def find_duplicates(table: pd.DataFrame, hashes: np.ndarray) -> tuple[pd.DataFrame, str]:
    """Find tiles with exactly the same pixels.

    Args:
        table: The tiles to look at, with their ``row``.
        hashes: uint64 (N,): the hash of the pixels of each row of the pack. Two different tiles share one with a
            probability of 2^-64.

    Returns:
        The findings, one for each tile of a set of equal ones, and the line that sums them up; both empty without any.
    """
    tiles = table.assign(pixels=hashes[table["row"].to_numpy()])
    tiles = tiles[tiles["pixels"].duplicated(keep=False)]
    if tiles.empty:
        return problem_frame([]), ""
    sets = tiles.groupby("pixels", sort=False)
    first = sets["id"].transform("first")
    mixed = sets["label"].transform("nunique") > 1 if "label" in tiles else pd.Series(False, index=tiles.index)
    problems = problem_frame(
        [
            (name, "duplicate pixels, different labels" if both else "duplicate pixels", f"same pixels as {other}")
            for name, other, both in zip(tiles["id"], first, mixed, strict=True)
        ]
    )
    message = (
        f"{len(tiles)} tiles in {sets.ngroups} sets have exactly the same pixels as another; "
        f"{tiles.loc[mixed, 'pixels'].nunique()} of the sets carry both labels: "
        f"{describe(problems.assign(detail=''))}"
    )
    return problems, message


def find_near_blank(table: pd.DataFrame, contrast: np.ndarray) -> tuple[pd.DataFrame, str]:
    """Find tiles that show next to nothing: a contrast below :data:`NEAR_BLANK_CONTRAST`.

    Args:
        table: The tiles to look at, with their ``row``.
        contrast: float32 (N,): the standard deviation of grey of each row of the pack, in levels of 255.

    Returns:
        The findings, and the line that sums them up; both empty without any.
    """
    tiles = table.assign(contrast=contrast[table["row"].to_numpy()])
    tiles = tiles[tiles["contrast"] < NEAR_BLANK_CONTRAST]
    if tiles.empty:
        return problem_frame([]), ""
    positive = tiles["label"].eq(1) if "label" in tiles else pd.Series(False, index=tiles.index)
    problems = problem_frame(
        [
            (name, "near-blank, labelled 1" if one else "near-blank", f"standard deviation of grey {value:.2f} of 255")
            for name, value, one in zip(tiles["id"], tiles["contrast"], positive, strict=True)
        ]
    )
    without_detail = describe(problems.assign(detail=""))
    labelled = f"{int(positive.sum()) or 'none'} labelled 1, and used all the same"
    subject = "1 tile is" if len(tiles) == 1 else f"{len(tiles)} tiles are"
    return problems, f"{subject} near-blank, {labelled}: {without_detail}"
