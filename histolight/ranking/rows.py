"""Rows: runs that differ only in seed or fold, and which of their runs can be compared with those of other rows."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.metrics import roc_auc_score

from histolight.errors import RequestError, nearest
from histolight.ranking.runs import ScoredRun, Unranked, with_defaults
from histolight.runs import REPEATED
from histolight.statistics.verdict import FEWEST_SEEDS

COSTS = {"parameters": "parameters", "seconds": "training s", "tiles_per_second": "tiles/s"}  # and their headings
LOGGING = ("logger.name", "logger.project", "logger.uri", "logger.offline")
BOOKKEEPING = ("name", "run", "like", "data.cache", "trainer.profiler", "model.card", *LOGGING)
# What a file of conf/model, or a hub's model, brings along with its name.
OF_THE_MODEL = {
    f"model.{key}" for key in ("architecture", "kwargs", "features", "mean", "std", "input_size", "interpolation")
}
NAMED_PAIRS = 4  # missing (fold, seed) pairs named in a reason

Pair = tuple[int | None, int]  # fold (None for a hold-out split) and seed


@dataclass(frozen=True)
class Row:
    """One configuration and its runs.

    Attributes:
        config: Flat configuration, without seed and fold.
        runs: Its runs, by fold and seed.
        part: ``val`` or ``test``.
        name: What sets it apart from the other rows, and from no other row.
        chosen_from: With ``by`` or ``sweep.seeds``: number of rows among which this one was chosen.
    """

    config: dict[str, Any]
    runs: list[ScoredRun]
    part: str
    name: str = ""
    chosen_from: int = 1

    @property
    def pairs(self) -> list[Pair]:
        """The (fold, seed) of each run."""
        return [run.pair for run in self.runs]

    def values(self, name: str) -> npt.NDArray[np.float64]:
        """Return one figure or cost of each run, (runs,), NaN where a run does not have it."""
        records = [run.metrics if name in COSTS else run.metrics[self.part] for run in self.runs]
        values = [metrics.get(name) if name in COSTS else (metrics.get(name) or {}).get("value") for metrics in records]
        return np.array([math.nan if value is None else value for value in values], dtype=np.float64)

    def mean(self, name: str) -> float:
        """Return the mean of a figure over the runs."""
        return float(self.values(name).mean())

    def sd(self, name: str) -> float:
        """Return the standard deviation of a figure over the runs (n - 1); NaN for one run."""
        return float(self.values(name).std(ddof=1)) if len(self.runs) > 1 else math.nan

    def restricted(self, pairs: Iterable[Pair]) -> Row:
        """Keep the runs with these pairs."""
        kept = set(pairs)
        return replace(self, runs=[run for run in self.runs if run.pair in kept])

    @property
    def tiles_of_folds(self) -> dict[int | None, str]:
        """Map each fold to the key of its tiles."""
        return {run.pair[0]: run.tiles.key for run in self.runs}

    @property
    def pooled(self) -> float | None:
        """AUROC over the validation tiles of all folds together, the mean over the seeds that have every fold.

        None for a hold-out split, a test part (the same in every fold) and incomplete folds.
        """
        by_seed: dict[int, list[ScoredRun]] = defaultdict(list)
        for run in self.runs:
            by_seed[run.pair[1]].append(run)
        folds = set(range(self.config["data.folds"]))
        whole = [runs for runs in by_seed.values() if {run.pair[0] for run in runs} == folds]
        if self.part != "val" or not whole:
            return None
        aurocs = [
            roc_auc_score(
                np.concatenate([run.tiles.labels for run in runs]), np.concatenate([run.scores for run in runs])
            )
            for runs in whole
        ]
        return float(np.mean(aurocs))


def form_rows(runs: Sequence[ScoredRun], part: str, unranked: list[Unranked]) -> tuple[list[Row], list[str]]:
    """Put runs that differ only in seed or fold into one row.

    A second run of the same configuration, fold and seed, and a fold whose tiles differ from those of its row, go to
    ``unranked``.

    Returns:
        The rows, named; and the keys in which they differ.
    """
    rows: dict[Any, Row] = {}
    for run in runs:
        config = {key: value for key, value in run.config.items() if key not in (*REPEATED, *BOOKKEEPING)}
        # With folds, each has tiles of its own: there the fingerprint says that the data are the same.
        data = run.tiles.key if run.pair[0] is None else run.metrics.get("data_fingerprint")
        key = (tuple(sorted(config.items())), run.metrics["split"], run.pair[0] is None, data)
        row = rows.setdefault(key, Row(config, [], part))
        if twin := next((other for other in row.runs if other.pair == run.pair), None):
            reason = f"the same configuration, fold and seed as {twin.directory}"
            unranked.append(Unranked(run.directory.name, [run.directory], "not comparable", reason))
        elif row.tiles_of_folds.get(run.pair[0], run.tiles.key) != run.tiles.key:
            reason = f"its fold {run.pair[0]} has other tiles than the runs of the same configuration have"
            unranked.append(Unranked(run.directory.name, [run.directory], "not comparable", reason))
        else:
            row.runs.append(run)
    for row in rows.values():
        row.runs.sort(key=lambda run: _order(run.pair))
    return name_rows(list(rows.values()))


def name_rows(rows: Sequence[Row]) -> tuple[list[Row], list[str]]:
    """Name rows by the keys that set them apart, ``resnet18, lr 0.001``, or by model and folder where nothing does."""
    swept = [key for key in rows[0].config if len({row.config[key] for row in rows}) > 1] if rows else []
    models = {row.config["model.name"] for row in rows}
    follow = {
        key
        for key in OF_THE_MODEL.intersection(swept)
        if len({(row.config["model.name"], row.config[key]) for row in rows}) == len(models)
    }
    swept = [key for key in swept if key not in follow]
    swept.sort(key=lambda key: not key.startswith("model."))  # what one looks for first
    names = [", ".join(_part_of_name(row, key, swept) for key in swept) for row in rows]
    twice = {name for name, count in Counter(names).items() if count > 1}
    if len(rows) == 1:
        names = [text_of(rows[0].config["model.name"])]
    named = []
    for row, name in zip(rows, names, strict=True):
        unique = f"{name or text_of(row.config['model.name'])} ({row.runs[0].directory.name})"
        named.append(replace(row, name=name if name and name not in twice else unique))
    return named, swept


def _part_of_name(row: Row, key: str, swept: Sequence[str]) -> str:
    value = text_of(row.config[key])
    return value if key == "model.name" else f"{short_key(key, swept)} {value}"


def short_key(key: str, keys: Sequence[str]) -> str:
    """Shorten a dotted key where no other one ends alike: ``optimizer.lr`` to ``lr``, ``model.name`` to ``model``."""
    head, _, tail = key.rpartition(".")
    if tail == "name" and head:
        return head
    if key == "data.seed":  # not to be taken for the seed of the training
        return key
    return tail if sum(other.rpartition(".")[2] == tail for other in keys) == 1 else key


def text_of(value: Any) -> str:
    """Write a configuration's value briefly: ``1e-05``, ``null``, the last two parts of an absolute path."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:g}"
    parts = str(value).split("/")
    return f"…/{'/'.join(parts[-2:])}" if str(value).startswith("/") and len(parts) > 3 else str(value)


def named_beforehand(rows: Sequence[Row], among: str | Sequence[str]) -> list[Row]:
    """Keep the rows that a user named, each by its name or by the folder of one of its runs.

    Args:
        rows: All rows.
        among: Names, or text with commas between them; a name may have commas of its own.

    Raises:
        RequestError: A name is not one of a row, or fewer than two rows are named.
    """
    known: dict[str, int] = {}
    for number, row in enumerate(rows):
        for run in row.runs:
            known |= {run.directory.name: number, str(run.directory): number}
        known[row.name] = number
    names = [name for group in ([among] if isinstance(among, str) else among) for name in _split_names(group, known)]
    chosen = {known[name] for name in names}
    if len(chosen) < 2:
        raise RequestError(f"among={among if isinstance(among, str) else ','.join(among)} names one row: name two")
    return [row for number, row in enumerate(rows) if number in chosen]


def _split_names(text: str, known: dict[str, int]) -> list[str]:
    """Split at those commas that leave known names, the longest first."""
    pieces, names = text.split(","), []
    while pieces:
        for length in range(len(pieces), 0, -1):
            name = ",".join(pieces[:length]).strip().removesuffix("/")
            if name in known:
                break
        else:
            raise RequestError(f"among: no row or run folder is called {name}: {nearest(name, known)}")
        names.append(name)
        pieces = pieces[length:]
    return names


def on_the_same_tiles(rows: Sequence[Row], unranked: list[Unranked]) -> list[Row]:
    """Keep the largest group of rows that were measured on the same tiles; the others go to ``unranked``.

    Rows with folds belong together when they share a fold and every fold that both have has the same tiles.
    """
    groups: list[list[Row]] = []
    tiles: list[dict[int | None, str]] = []
    for row in sorted(rows, key=lambda row: -len(row.tiles_of_folds)):
        own = row.tiles_of_folds
        for group, of_group in zip(groups, tiles, strict=True):
            shared = own.keys() & of_group.keys()
            same = shared and all(own[fold] == of_group[fold] for fold in shared)
            if same and group[0].runs[0].metrics["split"] == row.runs[0].metrics["split"]:
                group.append(row)
                of_group.update(own)
                break
        else:
            groups.append([row])
            tiles.append(dict(own))
    kept = max(groups, key=lambda group: (len(group), _tile_count(group)))
    for group in groups:
        if group is not kept:
            reason = _difference(kept, group)
            unranked += [Unranked(row.name, _directories(row), "not comparable", reason) for row in group]
    return kept


def _difference(kept: Sequence[Row], group: Sequence[Row]) -> str:
    split, kept_split = (rows[0].runs[0].metrics["split"] for rows in (group, kept))
    cross_validated, kept_cross_validated = (rows[0].pairs[0][0] is not None for rows in (group, kept))
    count, kept_count = _tile_count(group), _tile_count(kept)
    if split != kept_split:
        reason = f"its split is of another kind than that of the ranked rows ({split} instead of {kept_split})"
    elif cross_validated != kept_cross_validated:
        reason = "it was cross-validated, and the ranked rows were not"
        if kept_cross_validated:
            reason = "it has one hold-out split, and the ranked rows were cross-validated"
    elif count != kept_count:
        reason = f"it was measured on other tiles than the ranked rows ({count:,} instead of {kept_count:,})"
    else:
        reason = "its tiles, their labels or their slides are not those of the ranked rows"
    config, kept_config = group[0].config, kept[0].config
    differing = [key for key in config if key.startswith("data.") and config[key] != kept_config[key]]
    return f"{reason}; {', '.join(differing)} differs" if differing else reason


def _tile_count(rows: Sequence[Row]) -> int:
    parts = {run.tiles.key: len(run.tiles.ids) for row in rows for run in row.runs}
    return sum(parts.values())


def shared_pairs(rows: Sequence[Row]) -> list[Pair]:
    """Choose the (fold, seed) pairs to compare on: those that most rows have; of equally frequent sets the largest."""
    counts = Counter(tuple(row.pairs) for row in rows)
    most = max(((count, len(pairs)) for pairs, count in counts.items()), default=(0, 0))
    return list(min((pairs for pairs, count in counts.items() if (count, len(pairs)) == most), default=()))


def on_shared_pairs(rows: Sequence[Row], unranked: list[Unranked]) -> list[Row]:
    """Keep the runs with :func:`shared_pairs`; rows that lack some of these go to ``unranked``."""
    pairs = shared_pairs(rows)
    kept = []
    for row in rows:
        if missing := [pair for pair in pairs if pair not in row.pairs]:
            unranked.append(Unranked(row.name, _directories(row), "incomplete", _lack(missing, len(pairs))))
        else:
            kept.append(row.restricted(pairs))
    return kept


def _lack(missing: Sequence[Pair], needed: int) -> str:
    names = [f"seed {seed}" if fold is None else f"fold {fold} with seed {seed}" for fold, seed in missing]
    listed = ", ".join(names[:NAMED_PAIRS]) + ", …" * (len(names) > NAMED_PAIRS)
    return f"it lacks {len(missing)} of the {needed} trainings that the rows are compared on: {listed}"


def best_of_each(rows: Sequence[Row], key: str, unranked: list[Unranked]) -> tuple[list[Row], list[Pair]]:
    """Keep the best row for each value of a key, with those of its runs that did not choose it.

    It is chosen by the mean validation AUROC over the (fold, seed) pairs that most rows have, or over those of the
    lowest of these seeds, where this leaves the verdict more seeds.

    Args:
        rows: Rows on the same tiles.
        key: A configuration key.
        unranked: Takes the rows that lack a pair: those that can't be chosen, and those that can't be compared.

    Returns:
        The rows, possibly none; and the pairs that chose.
    """
    common = most_common_pairs(rows)
    lowest = min(seed for _, seed in common)
    ways = [_chosen_and_left(rows, key, pairs) for pairs in (common, [pair for pair in common if pair[1] == lowest])]
    choosing, chosen, left = max(ways, key=lambda way: min(FEWEST_SEEDS, len(shared_pairs(way[2]))))
    for row in rows:
        if missing := [pair for pair in choosing if pair not in row.pairs]:
            unranked.append(Unranked(row.name, _directories(row), "incomplete", _lack(missing, len(choosing))))
    left_over = {row.name for row in left}
    for row in chosen:
        if row.name not in left_over:
            by = f"by a validation AUROC of {_validation_auroc(row, choosing):.4f}"
            reason = f"chosen from {row.chosen_from} points {by}, and has no other training"
            unranked.append(Unranked(row.name, _directories(row), "chosen", reason))
    return on_shared_pairs(left, unranked), choosing


def without_choosing(rows: Sequence[Row], unranked: list[Unranked]) -> tuple[list[Row], list[Pair]]:
    """Leave out the trainings by which a sweep chose the points that it gave further seeds (``sweep.seeds``).

    Args:
        rows: Rows on the same tiles.
        unranked: Takes the rows that have no other trainings.

    Returns:
        The rows, as they are where nothing was so chosen; and the pairs that chose.
    """
    chose = {run.pair: int(run.metrics["chose_from"]) for row in rows for run in row.runs if _chose(run)}
    further = [replace(row, runs=[run for run in row.runs if not _chose(run)]) for row in rows]
    if not chose or not any(row.runs for row in further):
        return list(rows), []
    count = max(chose.values())
    for row, left in zip(rows, further, strict=True):
        if not left.runs:
            reason = f"it was not among the leaders, chosen from {count}: AUROC {_validation_auroc(row, row.pairs):.4f}"
            unranked.append(Unranked(row.name, _directories(row), "not chosen", f"{reason} in validation"))
    return [replace(row, chosen_from=count) for row in further if row.runs], sorted(chose, key=_order)


def _chose(run: ScoredRun) -> bool:
    return isinstance(run.metrics.get("chose_from"), int)


def most_common_pairs(rows: Sequence[Row]) -> list[Pair]:
    """Of the rows' sets of pairs, the one that most rows have in full; of equally common ones the largest."""
    sets: list[tuple[Pair, ...]] = sorted({tuple(row.pairs) for row in rows})
    holders = [sum(set(pairs) <= set(row.pairs) for row in rows) for pairs in sets]
    most = max((count, len(pairs)) for count, pairs in zip(holders, sets, strict=True))
    return next(list(pairs) for count, pairs in zip(holders, sets, strict=True) if (count, len(pairs)) == most)


def _chosen_and_left(rows: Sequence[Row], key: str, choosing: list[Pair]) -> tuple[list[Pair], list[Row], list[Row]]:
    """The pairs that choose, the rows that they choose, and those of these with other pairs, cut down to them."""
    candidates = [row for row in rows if set(choosing) <= set(row.pairs)]
    chosen = _choose(candidates, key, choosing)
    further = [row.restricted(set(row.pairs) - set(choosing)) for row in chosen]
    return choosing, chosen, [row for row in further if row.runs]


def _choose(rows: Sequence[Row], key: str, pairs: Sequence[Pair]) -> list[Row]:
    points: dict[Any, list[Row]] = defaultdict(list)
    for row in rows:
        points[row.config[key]].append(row)
    best = [max(same, key=lambda row: _validation_auroc(row, pairs)) for same in points.values()]
    return [replace(row, chosen_from=len(points[row.config[key]])) for row in best]


def _validation_auroc(row: Row, pairs: Sequence[Pair]) -> float:
    return float(np.mean([run.metrics["val"]["auroc"]["value"] for run in row.restricted(pairs).runs]))


def check_by(key: str) -> None:
    """Refuse a key that rows don't have.

    Raises:
        RequestError: It is no configuration key, or one that a row's runs differ in.
    """
    if key in REPEATED:
        raise RequestError(f"by={key} is not possible: runs that differ only in seed or fold are one row")
    if str(key) not in with_defaults({}):
        raise RequestError(f"by={key} is not a key of the configuration: {nearest(key, with_defaults({}))}")


def _directories(row: Row) -> list[Any]:
    return [run.directory for run in row.runs]


def _order(pair: Pair) -> tuple[bool, int, int]:
    return pair[0] is not None, pair[0] or 0, pair[1]
