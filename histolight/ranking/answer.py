"""A ranking in sentences: each names its unit (trainings or configurations) and its population (tiles or slides)."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pandas as pd

from histolight.data.table import PARTS, SPLITS, split_note
from histolight.ranking.plan import DIFFERENCES, POWER, plan_of, scaled
from histolight.ranking.ranking import LEVEL, Ranking
from histolight.ranking.rows import short_key
from histolight.ranking.runs import ScoredTiles
from histolight.reports.parts import interval_text, what_was_chosen
from histolight.statistics.clusters import effective_clusters
from histolight.statistics.planning import power, seeds_needed, tiles_needed

NAMED = 3  # rows named in one sentence


def answer(ranking: Ranking) -> list[str]:
    """Say what holds: one sentence that answers, by how much, what it rests on and what to beware of."""
    first = headline(ranking)
    return [first, *(gap for gap in gaps(ranking) if gap != first), *context(ranking)]


def headline(ranking: Ranking) -> str:
    """Answer in one sentence which row is best."""
    rows, verdict = ranking.rows, ranking.verdict
    if verdict is None:
        return (
            "Nothing can be ranked: the only trainings of the chosen points are those that chose them. Train each with "
            "three other seeds: histolight train like=FOLDER seed=NUMBER."
        )
    names, best = [row.name for row in rows], ranking.best_set
    if len(rows) == 1:
        interval = interval_text(verdict.row_low[0], verdict.row_high[0])
        return (
            f"{_subject(ranking, names[0], True)} {_has(ranking)} an AUROC of {verdict.auroc[0]:.4f} {interval} on "
            f"{where(ranking)}; there is no other row to rank."
        )
    if verdict.reason:
        return f"These {_units(ranking, len(rows))} can't be ranked: {lack(ranking)}."
    if len(best) == len(rows):
        return f"These {_units(ranking, len(rows))} can't be told apart {population(ranking)}."
    if len(best) == 1 and len(rows) == 2 and ranking.unit == "training":
        return _gap(ranking, 0, 1)
    if len(best) == 1:
        return (
            f"{_subject(ranking, best[0], True)} {_is(ranking)} the best of these {_units(ranking, len(rows))} "
            f"{population(ranking)}: every other is worse (all claims together at 95 %)."
        )
    listed = f": {joined(best)}" if len(best) <= NAMED + 1 else ""
    others = len(rows) - len(best)
    return (
        f"{len(best)} of these {_units(ranking, len(rows))} may be the best {population(ranking)} and can't be told "
        f"apart{listed}. The {'other is' if others == 1 else f'{others} others are'} worse."
    )


def gaps(ranking: Ranking) -> list[str]:
    """Say of the first rows outside the set of the best how far they are below a better one; empty without such."""
    verdict = ranking.verdict
    if verdict is None:
        return []
    worse = np.flatnonzero(~verdict.best).tolist()
    sentences = [_gap(ranking, above(ranking, place), place) for place in worse[:NAMED]]
    if more := worse[NAMED:]:
        smallest = min(verdict.low[above(ranking, place), place] for place in more)
        sentences.append(
            f"The {_units(ranking, len(more))} below these are each worse than a better one by {smallest:.4f} or more "
            f"{population(ranking)} (simultaneous 95 %)."
        )
    return sentences


def context(ranking: Ranking) -> list[str]:
    """Say what the answer rests on, what would settle what is open, and what to beware of."""
    return [*_basis(ranking), *_cautions(ranking)]


def _basis(ranking: Ranking) -> list[str]:
    rows, verdict = ranking.rows, ranking.verdict
    if verdict is None or len(rows) < 2:
        return []
    sentences = [f"Measured on {where(ranking)}."]
    if verdict.best.all():
        low, high = verdict.auroc.min(), verdict.auroc.max()
        sentences = [f"Their AUROCs run from {low:.4f} to {high:.4f} on {where(ranking)}."]
        if not verdict.reason:
            sentences.append(f"Not told apart does not mean equal. {_would_tell(ranking)}".strip())
    if ranking.unit == "training":
        reason = "Folds share training tiles: whether" if ranking.folds > 1 else "Whether"
        split = " of one split" if ranking.folds > 1 else ""
        whose = f"{ranking.best_set[0]}'s settings are" if len(ranking.best_set) == 1 else "one row's settings are"
        sentences.append(f"{reason} {whose} better needs three seeds{split}.")
    return sentences


def above(ranking: Ranking, place: int) -> int:
    """Choose the row that a row outside the set of the best is compared with: the highest that is surely above it."""
    verdict = ranking.verdict
    assert verdict is not None
    surely = np.flatnonzero(verdict.better[:, place])
    return int(surely[np.argmax(verdict.auroc[surely])])


def _gap(ranking: Ranking, first: int, second: int) -> str:
    verdict, names = ranking.verdict, [row.name for row in ranking.rows]
    assert verdict is not None
    gap, low, high = (float(matrix[first, second]) for matrix in (verdict.difference, verdict.low, verdict.high))
    better, worse = _subject(ranking, names[first], True), _subject(ranking, names[second], False)
    seeds = " and with other seeds" if ranking.unit == "configuration" else ""
    return (
        f"{better} scored {gap:.4f} above {worse}; expected {population(ranking)}{seeds} {low:.4f} to {high:.4f} "
        "(simultaneous 95 %)."
    )


def _would_tell(ranking: Ranking) -> str:
    """Say which difference these tiles and seeds can't tell, and what would."""
    plan = plan_of(ranking)
    for difference in DIFFERENCES:
        chance = power(plan, difference, LEVEL)
        if not chance < POWER:
            continue
        ways = []
        multiple = tiles_needed(plan, difference, POWER, LEVEL)
        if math.isfinite(multiple):
            count, what = (ranking.slides, "slides") if ranking.slides else (ranking.tiles, "tiles")
            ways.append(f"{scaled(multiple, count)} {what} in place of {count:,}")
        if ranking.unit == "configuration" and math.isfinite(seeds := seeds_needed(plan, difference, POWER, LEVEL)):
            ways.append(f"{seeds:.0f} seeds each in place of {plan.seeds}")
        if ways:
            return (
                f"A true difference of {difference:g} had a chance of {100 * chance:.0f} % to be seen here; about "
                f"{' or '.join(ways)} would make that 80 %."
            )
    return ""


def _cautions(ranking: Ranking) -> list[str]:
    sentences = []
    if ranking.by is not None:
        seeds = sorted({seed for _, seed in ranking.chosen_by})
        sentences.append(
            f"Each {short_key(ranking.by, [ranking.by])} stands at its own best point, chosen by the validation AUROC "
            f"of seed{'s' * (len(seeds) > 1)} {joined(list(map(str, seeds)))}, which the verdict does not count."
        )
    elif ranking.chosen_by:
        seeds = sorted({seed for _, seed in ranking.chosen_by})
        sentences.append(
            f"These rows were chosen from {ranking.rows[0].chosen_from} by the validation AUROC of seed"
            f"{'s' * (len(seeds) > 1)} {joined(list(map(str, seeds)))}, which the verdict does not count."
        )
    if ranking.among:
        sentences.append(
            f"These {len(ranking.rows)} rows were named on the command line (among=…): the verdict holds if that was "
            "decided before anyone saw these figures."
        )
    if not ranking.rows:
        return sentences
    if ranking.part == "val":
        sentences += _choices(ranking)
    if ranking.split in SPLITS and ranking.split != "slide" and ranking.population == "tiles":
        note = split_note(ranking.runs[0].metrics)
        sentences.append(f"{note[0].upper()}{note[1:]}.")
    if ranking.unit == "configuration":
        sentences += _seeds(ranking)
    if ranking.split in ("slide", "given") and ranking.population == "tiles":
        sentences.append("Not every tile's slide is known: nothing is said here of other slides.")
    return sentences


def _choices(ranking: Ranking) -> list[str]:
    """Say what each run chose on the tiles on which it is measured, and whom that favours."""
    chosen = sorted({what_was_chosen(run.metrics) for run in ranking.runs} - {""})
    if not chosen:
        return []
    what, were = joined(chosen), "were" if len(chosen) > 1 else "was"
    sentences = [
        f"{what[0].upper()}{what[1:]} of each run {were} chosen by the AUROC on these same validation tiles: all "
        "AUROCs here are optimistic, the more so the fewer tiles."
    ]
    if len({run.metrics.get("epochs") for run in ranking.runs if "probe" not in run.metrics}) > 1:
        sentences.append("A run with more epochs to choose from gains more by it.")
    return sentences


def _seeds(ranking: Ranking) -> list[str]:
    """Say what other seeds are where they are not what a reader expects."""
    sentences = []
    if fixed := [row.name for row in ranking.rows if all((run.scores == row.runs[0].scores).all() for run in row.runs)]:
        who = joined(fixed) if len(fixed) <= NAMED else f"{len(fixed)} rows"
        sentences.append(
            f"The scores of {who} are the same for every seed: what is stated of them holds for these training tiles."
        )
    if any(row.config.get("data.shots") for row in ranking.rows):
        sentences.append("Other seeds are other draws of data.shots tiles from these training tiles.")
    return sentences


def lack(ranking: Ranking) -> str:
    """Say why rows can't be ranked, and what would help."""
    covariance, verdict = ranking.covariance, ranking.verdict
    assert covariance is not None
    assert verdict is not None
    if covariance.lack:
        return covariance.lack.removeprefix("no interval: ")
    if "among" not in verdict.reason:
        return verdict.reason
    kind = {"slides": "slides", "components": "groups of overlapping tiles", "tiles": "tiles"}[ranking.clusters]
    count, effective, name = min((_holders(ranking.parts, label) for label in (0, 1)), key=lambda holders: holders[1])
    equal = f", which count as {effective:.1f} as some hold most of the tiles," if effective < count - 0.5 else ""
    return (
        f"{count} {kind} {name}{equal} cannot rank {len(ranking.rows)} rows: add {kind}, or name up to three rows "
        "beforehand (among=…)"
    )


def _holders(parts: list[ScoredTiles], label: int) -> tuple[int, float, str]:
    """Count the clusters with tiles of a class, as they are and as equally large ones."""
    count, effective = 0, 0.0
    for part in parts:
        named = part.ids if part.clusters is None else np.where(pd.isna(part.clusters), part.ids, part.clusters)
        codes = pd.factorize(named[part.labels == label])[0]
        count, effective = count + int(codes.max()) + 1, effective + effective_clusters(codes)
    return count, effective, "with tumour" if label else "without tumour"


def where(ranking: Ranking) -> str:
    """Name the tiles: ``4,000 test tiles of 22 slides (split by slide)``."""
    slides = f" of {ranking.slides} slides" if ranking.slides else ""
    split = SPLITS.get(ranking.split, f"split by {ranking.split}").partition(":")[0]
    folds = f" in {ranking.folds} folds" if ranking.folds > 1 and ranking.part == "val" else ""
    return f"{ranking.tiles:,} {PARTS[ranking.part]} tiles{slides}{folds} ({split})"


def population(ranking: Ranking) -> str:
    """Say of what the claims hold: ``on other slides``."""
    if ranking.population == "slides":
        return "on other slides"
    return "on other tiles of these slides" if ranking.slides else "on other tiles like these"


def unit_text(ranking: Ranking) -> str:
    """Say what one row is: ``one training``, ``the mean of 5 trainings``, ``a configuration, by 3 seeds``."""
    if ranking.unit == "configuration":
        return f"a configuration, by {len(ranking.pairs)} seeds"
    return "one training" if len(ranking.pairs) == 1 else f"the mean of {len(ranking.pairs)} trainings"


def _units(ranking: Ranking, count: int) -> str:
    several = len(ranking.pairs)
    if ranking.unit == "configuration":
        return f"{count} configurations ({several} seeds each)"
    return f"{count} trainings" if several == 1 else f"{count} rows of {several} trainings"


def _subject(ranking: Ranking, name: str, first: bool) -> str:
    several = len(ranking.pairs)
    if ranking.unit == "configuration":
        text = f"the configuration {name}"
    else:
        text = f"this training of {name}" if several == 1 else f"these {several} trainings of {name}"
    return text[0].upper() + text[1:] if first else text


def _is(ranking: Ranking) -> str:
    return "are" if ranking.unit == "training" and len(ranking.pairs) > 1 else "is"


def _has(ranking: Ranking) -> str:
    return "have" if ranking.unit == "training" and len(ranking.pairs) > 1 else "has"


def joined(names: list[str]) -> str:
    """Write a list: ``a, b and c``; names with commas of their own are kept apart by semicolons."""
    *most, last = names
    mark = "; " if any("," in name for name in names) else ", "
    return f"{mark.join(most)} and {last}" if most else last


def ranks_text(ranks: npt.NDArray[np.int64]) -> str:
    """Write a rank interval: ``1`` or ``2-4``."""
    first, last = (int(rank) for rank in ranks)
    return str(first) if first == last else f"{first}-{last}"
