"""Which tiles train, validate and test: by slide wherever slides are known, else so that no two parts share a pixel."""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Iterator

import numpy as np
import pandas as pd
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold, train_test_split

from histolight.config.schema import DataConfig
from histolight.errors import RequestError

log = logging.getLogger("histolight")

_TOO_LARGE = "{} of them hang together by copies and overlaps, too many for one part"
_WAYS_ON = "name the slides with data.groups=CSV, or see what data.split=random hides"


def make_split(table: pd.DataFrame, config: DataConfig) -> tuple[pd.Series, str]:
    """Decide the part of each tile.

    A given split, the source's own or that of ``data.split=FILE``, is used as it is. Otherwise the test part
    (``data.test_fraction``) is taken first, and of the rest either ``data.val_fraction`` of all tiles or fold
    ``data.fold`` of ``data.folds`` validates. ``data.fold`` with a given split makes folds of its training and
    validation tiles; its test part stays. No cluster lies on two sides: no slide where these are known, and no
    component of copies and overlaps where they are not. Where slides are known in part, tiles that belong to none
    train.
    With a ``domain`` each fold is a domain instead, in the order of names.
    ``data.split=random`` heeds neither slides nor clusters.

    Args:
        table: Labelled tiles with ``id``, ``label``, ``group``, ``cluster`` (as
            :func:`histolight.data.overlaps.find_clusters` names it) and ``split``; the order of its rows has no
            influence.
        config: The data part of a run's configuration; ``seed`` is the random state.

    Returns:
        The part (train, val or test) of each row, with the table's index; and how the validation tiles were chosen, one
        of :data:`histolight.data.table.SPLITS`: ``given``, by ``slide``, by ``overlap``, by ``domain`` or at
        ``random``.

    Raises:
        NoSplitError: A class is too rare for any split.
        RequestError: A part would lack a class, there are too few tiles or slides, or a cluster is too large.
    """
    ordered = table.sort_values("id", kind="stable")
    given = ordered["split"].to_numpy(dtype=object) if ordered["split"].notna().any() else None
    if config.split == "random" and given is not None:
        given = np.where(given == "test", "test", "train") if "test" in given else None
    if given is not None and config.test_fraction > 0:
        raise RequestError(
            f"data.test_fraction={config.test_fraction} has no place here: "
            f"{f'data={config.source}' if config.split in ('auto', 'random') else config.split} brings its own split"
        )
    if given is not None:
        _check_given_test(given == "test", ordered["label"].to_numpy())
    if given is not None and config.fold is None and "val" in given:
        parts, kind = given, "given"
        torn = int((ordered.groupby("group")["split"].nunique() > 1).sum())
        if torn:
            log.warning("%d slides lie on several sides of the given split: its figures flatter", torn)
    else:
        try:
            parts, kind = _draw(ordered, given, config)
            _check_parts(parts, ordered["label"].to_numpy())
        except _RareError as error:
            raise _with_what_works(error, ordered, given, config) from None
    try:
        _check_parts(parts, ordered["label"].to_numpy())
    except _RareError as error:  # of a given split
        if config.split not in ("auto", "random"):
            other = "give each part tiles of both classes there, or leave data.split out"
            raise RequestError(f"{error}: {other}") from None
        raise _with_what_works(error, ordered, given, config, dataclasses.replace(config, fold=0)) from None
    return pd.Series(parts, index=ordered.index, name="split", dtype=object).reindex(table.index), kind


class _RareError(RequestError):
    """A class is too rare for the split that is asked for; another may work."""


class NoSplitError(RequestError):
    """A class is too rare among these tiles for any split."""


def _with_what_works(
    error: _RareError,
    table: pd.DataFrame,
    given: np.ndarray | None,
    config: DataConfig,
    near: DataConfig | None = None,
) -> RequestError:
    """Name a split near to ``near`` (the one asked for) that gives every part both classes, by trying it."""
    labels = table["label"].to_numpy()
    for other in _neighbours(near or config, int(np.bincount(labels, minlength=2).min())):
        folds = range(other.folds) if other.fold is not None else [None]
        try:
            for fold in folds:
                _check_parts(_draw(table, given, dataclasses.replace(other, fold=fold))[0], labels)
        except RequestError:
            continue
        keys = [
            key for key in ("test_fraction", "val_fraction", "folds", "fold") if vars(other)[key] != vars(config)[key]
        ]
        return RequestError(f"{error}: use {' '.join(f'data.{key}={vars(other)[key]:g}' for key in keys)}")
    return NoSplitError(
        f"{error}: no fraction and no number of folds works: give more tiles of it, from several slides"
    )


def _neighbours(config: DataConfig, rarest: int) -> Iterator[DataConfig]:
    """List splits like the one asked for, the nearest first: fewer folds, other fractions, no test part."""
    for test in dict.fromkeys((config.test_fraction, 0.0)):
        if config.fold is not None:
            for folds in range(min(config.folds, rarest), 1, -1)[:20]:
                fold = config.fold if config.fold < folds else 0
                yield dataclasses.replace(config, test_fraction=test, folds=folds, fold=fold)
        else:
            for fraction in sorted((0.1, 0.2, 0.3, 0.4, 0.5), key=lambda value: abs(value - config.val_fraction)):
                yield dataclasses.replace(config, test_fraction=test, val_fraction=fraction)


def _draw(table: pd.DataFrame, given: np.ndarray | None, config: DataConfig) -> tuple[np.ndarray, str]:
    labels = table["label"].to_numpy()
    slides = set(table["group"].dropna())
    kind = "random" if config.split == "random" else "slide" if slides else "overlap"
    clusters = None if kind == "random" else table["cluster"].to_numpy(dtype=object)
    parts = np.full(len(table), "train", dtype=object)
    pool = np.arange(len(table))
    if given is not None:
        parts[given == "test"] = "test"
        pool = np.flatnonzero(given != "test")
    by_domain = config.fold is not None and kind != "random" and "domain" in table
    if kind == "slide" and not by_domain and not (known := table["cluster"].isin(slides).to_numpy())[pool].all():
        log.warning("%d tiles have no known slide: they train, and never validate or test", (~known[pool]).sum())
        pool = pool[known[pool]]
    hold_out, make_folds = (_hold_out_components, _component_folds) if kind == "overlap" else (_hold_out, _folds)
    val_fraction = config.val_fraction
    if given is None and config.test_fraction > 0:
        test = hold_out(
            pool, labels, clusters, config.test_fraction, config.seed, f"data.test_fraction={config.test_fraction}"
        )
        parts[test] = "test"
        pool = np.setdiff1d(pool, test)
        val_fraction /= 1 - config.test_fraction
    if by_domain:  # which needs no known slides
        parts[_of_domain(table, pool, config)] = "val"
        return parts, "domain"
    if config.fold is None:
        val = hold_out(pool, labels, clusters, val_fraction, config.seed, f"data.val_fraction={config.val_fraction}")
    else:
        val = make_folds(pool, labels, clusters, config.folds, config.seed, f"data.folds={config.folds}")[config.fold]
    parts[val] = "val"
    return parts, kind


def _of_domain(table: pd.DataFrame, pool: np.ndarray, config: DataConfig) -> np.ndarray:
    """Choose the tiles of the pool that are of one domain: fold n is the n-th in the order of names."""
    of_pool = table["domain"].to_numpy(dtype=object)[pool]
    domains = sorted(set(of_pool))
    if len(domains) != config.folds:
        raise RequestError(
            f"data.domain has {len(domains)} domains to leave out one by one, {', '.join(domains[:5])}"
            f"{', …' * (len(domains) > 5)}: set data.folds={len(domains)}"
        )
    assert config.fold is not None
    chosen = pool[of_pool == domains[config.fold]]
    labels = table["label"].to_numpy()[chosen]
    if len(np.unique(labels)) < 2:
        raise RequestError(
            f"data.fold={config.fold} leaves out the domain {domains[config.fold]}, whose {len(chosen)} tiles all have "
            f"the label {labels[0]}: nothing can be measured there; leave this fold out, or join it with another domain"
        )
    return chosen


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
        return _with_both(np.asarray(chosen), pool, labels, seed)
    most = min(len(set(slides[pool])), int(np.bincount(labels[pool], minlength=2).min()))
    if most < 2:
        raise _RareError(f"{key} needs two slides and two tiles of each class to choose from, and there are {most}")
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

    best = min(candidates, key=miss)
    return best if miss(best) < np.inf else _spread(pool, labels, slides, fraction, seed)


def _with_both(chosen: np.ndarray, pool: np.ndarray, labels: np.ndarray, seed: int) -> np.ndarray:
    """Exchange a tile where a class so rare that no share of it was drawn would leave one side without it."""
    random = np.random.default_rng(seed)
    for label in (0, 1):
        rest = np.setdiff1d(pool, chosen)
        for side, other in ((chosen, rest), (rest, chosen)):
            if (labels[side] == label).any():
                continue
            comes, goes = random.choice(other[labels[other] == label]), random.choice(side)
            chosen = np.append(np.setdiff1d(chosen, [comes, goes]), comes if side is chosen else goes)
            break
    return chosen


def _spread(pool: np.ndarray, labels: np.ndarray, slides: np.ndarray, fraction: float, seed: int) -> np.ndarray:
    """Choose whole slides where a class lies in so few that stratified folds leave a part without it.

    The slide with the fewest tiles of the rarer class comes first, then others in random order as far as they fit.
    """
    table = pd.crosstab(pd.Series(slides[pool], name="slide"), labels[pool]).reindex(columns=[0, 1], fill_value=0)
    total, rare = table.to_numpy().sum(), int(table.sum().to_numpy().argmin())
    first = table[rare][table[rare] > 0].sort_values(kind="stable").index[0]
    taken = [first]
    for slide in np.random.default_rng(seed).permutation(table.index.drop(first).to_numpy(dtype=object)):
        fits = table.loc[[*taken, slide]].to_numpy().sum() <= fraction * total
        if fits and (table.drop(index=[*taken, slide]).sum() > 0).all():
            taken.append(slide)
    return pool[np.isin(slides[pool], taken)]


def _taken(fraction: float, folds: int) -> int:
    """Return how many of so many folds are nearest to a fraction: at least one, and not all."""
    return min(max(round(fraction * folds), 1), folds - 1)


def _error(fraction: float, folds: int) -> float:
    return abs(_taken(fraction, folds) / folds - fraction)


def _folds(
    pool: np.ndarray, labels: np.ndarray, slides: np.ndarray | None, count: int, seed: int, key: str
) -> list[np.ndarray]:
    """Cut the pool into ``count`` stratified folds, of whole slides where these are known."""
    _check_rarest(pool, labels, count, key)
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


def _hold_out_components(
    pool: np.ndarray, labels: np.ndarray, components: np.ndarray | None, fraction: float, seed: int, key: str
) -> np.ndarray:
    """Choose ``fraction`` of the pool, of whole components of copies and overlaps."""
    assert components is not None
    largest = _largest(pool, components)
    works = 1 - largest / len(pool)
    if largest > max(fraction, 1 - fraction) * len(pool):
        way = f"use at most {math.floor(works * 100) / 100:.2f}" if works >= 0.01 else "no fraction works"
        raise RequestError(f"{key} of {len(pool)} tiles: {_TOO_LARGE.format(largest)}; {way}, {_WAYS_ON}")
    chosen = deal(pool, labels, components, np.array([fraction, 1 - fraction]), seed)[0]
    if abs(len(chosen) / len(pool) - fraction) > 0.05:
        log.warning(
            "%s: %.0f %% of the tiles are held out, as overlapping tiles stay together, up to %d of them",
            key,
            100 * len(chosen) / len(pool),
            largest,
        )
    return chosen


def _component_folds(
    pool: np.ndarray, labels: np.ndarray, components: np.ndarray | None, count: int, seed: int, key: str
) -> list[np.ndarray]:
    """Cut the pool into ``count`` stratified folds of whole components of copies and overlaps."""
    assert components is not None
    _check_rarest(pool, labels, count, key)
    largest = _largest(pool, components)
    if largest > len(pool) / count:
        most = len(pool) // largest
        way = f"use at most data.folds={most}" if most >= 2 else "no number of folds works"
        raise RequestError(f"{key} of {len(pool)} tiles: {_TOO_LARGE.format(largest)}; {way}, {_WAYS_ON}")
    return deal(pool, labels, components, np.full(count, 1 / count), seed)


def _largest(pool: np.ndarray, components: np.ndarray) -> int:
    return int(np.unique(components[pool], return_counts=True)[1].max())


def deal(
    pool: np.ndarray, labels: np.ndarray, components: np.ndarray, shares: np.ndarray, seed: int
) -> list[np.ndarray]:
    """Deal whole components into parts of given shares, so that each part has its share of both classes.

    Components go, larger ones first, where they add least to the sum over parts and classes of tiles^2 / share, which
    is smallest when all have their shares; single tiles then fill what is missing.

    Args:
        pool: (n,) int, the tiles to deal.
        labels: (N,) 0 or 1, of all tiles.
        components: (N,) the component of each.
        shares: Of the parts, adding up to 1.
        seed: Decides among equal ways.

    Returns:
        The tiles of each part.
    """
    random = np.random.default_rng(seed)
    codes = pd.factorize(components[pool])[0]
    counts = np.stack([np.bincount(codes, labels[pool] == label) for label in (0, 1)], axis=1)  # (components, 2)
    sizes = counts.sum(axis=1)
    targets = shares[:, None] * counts.sum(axis=0)
    filled = np.zeros_like(targets)
    part_of_component = np.empty(len(counts), dtype=int)
    several = random.permutation(np.flatnonzero(sizes > 1))
    for component in several[np.argsort(-np.floor(np.log2(sizes[several])), kind="stable")]:
        added = ((2 * filled + counts[component]) * counts[component] / targets).sum(axis=1)
        candidates = np.flatnonzero(added <= added.min() * (1 + 1e-9))
        part = random.choice(candidates)
        filled[part] += counts[component]
        part_of_component[component] = part
    for label in (0, 1):
        single = random.permutation(np.flatnonzero((sizes == 1) & (counts[:, label] == 1)))
        quota = _quota(len(single), targets[:, label] - filled[:, label], filled[:, label] == 0)
        part_of_component[single] = np.repeat(np.arange(len(shares)), quota)
    return [pool[part_of_component[codes] == part] for part in range(len(shares))]


def _quota(tiles: int, wanted: np.ndarray, empty: np.ndarray) -> np.ndarray:
    """Share single tiles among parts as wanted, the empty ones first: int, summing to ``tiles``."""
    least = empty.astype(int) if tiles >= empty.sum() else np.zeros(len(wanted), dtype=int)
    more = np.maximum(wanted - least, 0)
    rest = tiles - int(least.sum())
    exact = more * (rest / more.sum()) if rest else np.zeros(len(wanted))
    quota = np.floor(exact).astype(int)
    quota[np.argsort(quota - exact, kind="stable")[: rest - quota.sum()]] += 1
    return quota + least


def _check_rarest(pool: np.ndarray, labels: np.ndarray, count: int, key: str) -> None:
    rarest = np.bincount(labels[pool], minlength=2).min()
    if rarest < count:
        raise _RareError(f"{key} needs {count} tiles of each class, and one has {rarest}")


def _check_given_test(tested: np.ndarray, labels: np.ndarray) -> None:
    """Refuse a given test part that lacks a class or has all tiles of one: no way to split the others mends that."""
    for label in (0, 1):
        if tested.any() and not (tested & (labels == label)).any():
            raise RequestError(f"the test part has no tile of class {label}: give it tiles of both classes")
        if not (~tested & (labels == label)).any():
            raise RequestError(
                f"the test part has all tiles of class {label}: give training and validation some of them"
            )


def _check_parts(parts: np.ndarray, labels: np.ndarray) -> None:
    for part in pd.unique(np.append(["train", "val"], parts)):
        for label in (0, 1):
            if not ((parts == part) & (labels == label)).any():
                raise _RareError(f"the {part} part has no tile of class {label}")
