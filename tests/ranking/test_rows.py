"""Rows made in memory: how runs form them, what they are called, and which of them can be compared."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from histolight.errors import RequestError
from histolight.ranking.ranking import Ranking, covariance_of, judged, unit_of
from histolight.ranking.rows import (
    REPEATED,
    Pair,
    Row,
    best_of_each,
    check_by,
    form_rows,
    most_common_pairs,
    name_rows,
    named_beforehand,
    on_shared_pairs,
    on_the_same_tiles,
    shared_pairs,
    short_key,
    text_of,
    without_choosing,
)
from histolight.ranking.runs import ScoredRun, ScoredTiles, Unranked, with_defaults
from histolight.statistics.verdict import auroc_covariance

LABELS = np.tile(np.array([0, 1], np.int8), 20)


def run_of(model: str, pair: Pair = (None, 0), tiles: str = "t", auroc: float = 0.8, **changes: Any) -> ScoredRun:
    """A run named by its model and pair; keys of ``changes`` have ``__`` in place of dots, its metrics are ``m_``."""
    (fold, seed), metrics = pair, {"split": "random", "val": {"auroc": {"value": auroc}}}
    metrics |= {key.removeprefix("m_"): value for key, value in changes.items() if key.startswith("m_")}
    config = with_defaults({"model": {"name": model}, "data": {"fold": fold}, "seed": seed})
    config |= {key.replace("__", "."): value for key, value in changes.items() if not key.startswith("m_")}
    run = ScoredRun(Path(f"runs/{model}-{'' if fold is None else fold}-{seed}"), config, metrics)
    run.tiles = ScoredTiles(tiles, np.array([f"{tiles}{number}" for number in range(40)], object), LABELS, None, None)
    random = np.random.default_rng([seed, 9 if fold is None else fold, *model.encode()])
    run.scores = (LABELS + random.normal(size=40)).astype(np.float32)
    return run


def row_of(model: str, pairs: list[Pair], **changes: Any) -> Row:
    runs = [run_of(model, pair, **changes) for pair in pairs]
    config = {key: value for key, value in runs[0].config.items() if key not in REPEATED}
    return Row(config, runs, "val", model)


def seeds(*numbers: int) -> list[Pair]:
    return [(None, number) for number in numbers]


def reasons(unranked: list[Unranked]) -> dict[str, tuple[str, str]]:
    return {one.name: (one.status, one.reason) for one in unranked}


def test_keys_are_short_where_no_other_ends_alike() -> None:
    keys = ["optimizer.lr", "model.name", "a.rate", "b.rate", "name", "data.seed"]
    assert [short_key(key, keys) for key in keys] == ["lr", "model", "a.rate", "b.rate", "name", "data.seed"]


def test_values_are_written_briefly() -> None:
    values = [None, True, 1e-5, 0.25, 3, "vgg11", "/a/b", "/a/b/c", "/a/b/c/d", "a/b/c/d"]
    texts = ["null", "true", "1e-05", "0.25", "3", "vgg11", "/a/b", "…/b/c", "…/c/d", "a/b/c/d"]
    assert [text_of(value) for value in values] == texts


def test_rows_are_named_by_what_sets_them_apart() -> None:
    rates = [row_of(model, seeds(0), optimizer__lr=rate) for model, rate in (("a", 1e-3), ("a", 1e-4), ("b", 1e-3))]
    named, swept = name_rows(rates)
    assert [row.name for row in named] == ["a, lr 0.001", "a, lr 0.0001", "b, lr 0.001"]
    assert swept == ["model.name", "optimizer.lr"]  # the model first
    assert name_rows([]) == ([], [])
    assert [row.name for row in name_rows(rates[:1])[0]] == ["a"]
    alike, _ = name_rows([row_of("a", seeds(0)), row_of("a", seeds(1))])
    assert [row.name for row in alike] == ["a (a--0)", "a (a--1)"]
    some, swept = name_rows([row_of("a", seeds(0)), row_of("b", seeds(1)), row_of("b", seeds(2))])
    assert [row.name for row in some] == ["a", "b (b--1)", "b (b--2)"]


def test_what_follows_from_the_model_is_not_in_the_name() -> None:
    means = {"a": "[0.5]", "b": "[0.4]"}
    named, swept = name_rows([row_of(model, seeds(0), model__mean=mean) for model, mean in means.items()])
    assert ([row.name for row in named], swept) == (["a", "b"], ["model.name"])
    crossed, swept = name_rows([row_of("a", seeds(0), model__mean=mean) for mean in means.values()])
    assert ([row.name for row in crossed], swept) == (["mean [0.5]", "mean [0.4]"], ["model.mean"])


def test_runs_form_rows_by_configuration_and_stand_by_fold_and_seed() -> None:
    pairs: list[Pair] = [(1, 0), (0, 1), (0, 0)]
    runs = [run_of("a", pair, f"t{pair[0]}", m_data_fingerprint="x") for pair in pairs]
    runs += [run_of("a", (None, seed), logger__name=name) for seed, name in ((1, "csv"), (0, "mlflow"))]
    runs += [run_of("a", (None, 0), "others"), run_of("a", (0, 0), "t0", m_data_fingerprint="y")]
    runs += [run_of("a", (None, 2), m_split="slide")]
    unranked: list[Unranked] = []
    rows, swept = form_rows(runs, "val", unranked)
    assert [row.pairs for row in rows] == [[(0, 0), (0, 1), (1, 0)], seeds(0, 1), seeds(0), [(0, 0)], seeds(2)]
    assert (swept, unranked) == ([], [])


def test_a_second_run_and_a_fold_of_other_tiles_are_left_out() -> None:
    unranked: list[Unranked] = []
    first, other = run_of("a", (0, 0), "t0"), run_of("a", (0, 1), "other")
    twin = run_of("a", (0, 0), "t0")
    [row], _ = form_rows([first, twin, other], "val", unranked)
    assert row.runs == [first]
    assert [one.reason for one in unranked] == [
        "the same configuration, fold and seed as runs/a-0-0",
        "its fold 0 has other tiles than the runs of the same configuration have",
    ]
    assert {one.status for one in unranked} == {"not comparable"}


def test_figures_and_costs_of_a_row_are_those_of_its_runs() -> None:
    row = row_of("a", seeds(0, 1, 2))
    for run, value in zip(row.runs, (0.7, 0.8, 0.96), strict=True):
        run.metrics["val"]["auroc"]["value"] = value
        run.metrics["seconds"] = 100 * value
    assert (row.mean("auroc"), row.sd("auroc")) == pytest.approx((0.82, np.std([0.7, 0.8, 0.96], ddof=1)))
    assert row.mean("seconds") == pytest.approx(82)
    assert np.isnan([row.mean("ece"), row.mean("parameters"), row.restricted(seeds(1)).sd("auroc")]).all()
    assert row.restricted([(None, 2), (None, 0), (0, 1)]).pairs == seeds(0, 2)


def test_folds_are_pooled_for_each_seed_that_has_them_all() -> None:
    pairs: list[Pair] = [(0, 0), (1, 0), (0, 1), (1, 1), (0, 2)]
    row = row_of("a", pairs, data__folds=2)
    aurocs = [
        roc_auc_score(np.tile(LABELS, 2), np.concatenate([run.scores for run in row.runs if run.pair[1] == seed]))
        for seed in (0, 1)
    ]
    assert row.pooled == pytest.approx(np.mean(aurocs))
    assert replace(row, part="test").pooled is None
    assert row.restricted([(0, 0), (0, 1)]).pooled is None
    assert row_of("a", seeds(0, 1)).pooled is None


def test_rows_named_beforehand_are_kept_in_their_order() -> None:
    rows = [replace(row_of(model, seeds(0)), name=name) for model, name in zip("xyz", ("a", "a, b", "c"), strict=True)]
    for among in ("a,c", "c,a", "c, a", "runs/x--0,z--0/", ["c", "a"]):
        assert [row.name for row in named_beforehand(rows, among)] == ["a", "c"]
    assert [row.name for row in named_beforehand(rows, "a, b,c")] == ["a, b", "c"]  # the longest first
    assert [row.name for row in named_beforehand(rows, "a,a, b,c")] == ["a", "a, b", "c"]
    for one in ("a", "a,x--0", ["a"]):
        with pytest.raises(
            RequestError, match=rf"among={one if isinstance(one, str) else 'a'} names one row: name two"
        ):
            named_beforehand(rows, one)
    with pytest.raises(RequestError, match="no row or run folder is called d: "):
        named_beforehand(rows, "a,d")


def folds(*numbers: int) -> list[Pair]:
    return [(number, 0) for number in numbers]


def row_of_folds(model: str, numbers: list[int], prefix: str = "t") -> Row:
    row = row_of(model, folds(*numbers))
    for run in row.runs:
        run.tiles = replace(run.tiles, key=f"{prefix}{run.pair[0]}")
    return row


def test_rows_with_folds_belong_together_where_they_share_one_and_differ_in_none() -> None:
    unranked: list[Unranked] = []
    rows = [
        row_of_folds("a", [2, 3]),
        row_of_folds("b", [0, 1, 2]),
        row_of_folds("c", [3]),
        row_of_folds("d", [3], "x"),
    ]
    kept = on_the_same_tiles(rows, unranked)
    assert [row.name for row in kept] == ["b", "a", "c"]  # c shares a fold with a, which shares one with b
    assert [one.name for one in unranked] == ["d"]


def test_the_largest_group_is_kept_or_of_two_that_with_more_tiles() -> None:
    more = row_of("a", seeds(0), tiles="more")
    more.runs[0].tiles = replace(more.runs[0].tiles, ids=np.arange(1100).astype(object))
    unranked: list[Unranked] = []
    assert [row.name for row in on_the_same_tiles([row_of("b", seeds(0)), more], unranked)] == ["a"]
    said = "it was measured on other tiles than the ranked rows (40 instead of 1,100)"
    assert reasons(unranked) == {"b": ("not comparable", said)}
    two = [row_of("b", seeds(0)), more, row_of("c", seeds(0))]
    assert [row.name for row in on_the_same_tiles(two, unranked)] == ["b", "c"]
    assert reasons(unranked)["a"][1] == said.replace("40 instead of 1,100", "1,100 instead of 40")


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        (row_of("c", seeds(0), m_split="slide"), "its split is of another kind than that of the ranked rows"),
        (row_of("c", seeds(0), tiles="x"), "its tiles, their labels or their slides are not those of the ranked rows"),
        (row_of("c", seeds(0), tiles="x", data__limit=7), "those of the ranked rows; data.limit differs"),
        (row_of("c", folds(0)), "it was cross-validated, and the ranked rows were not"),
    ],
)
def test_why_a_row_is_not_comparable(other: Row, reason: str) -> None:
    unranked: list[Unranked] = []
    kept = on_the_same_tiles([row_of("a", seeds(0)), row_of("b", seeds(0)), other], unranked)
    assert [row.name for row in kept] == ["a", "b"]
    assert reason in reasons(unranked)["c"][1]
    assert ("differs" in reasons(unranked)["c"][1]) is ("differs" in reason)


def test_a_hold_out_among_cross_validated_rows_is_told_so() -> None:
    unranked: list[Unranked] = []
    on_the_same_tiles([row_of("a", folds(0)), row_of("b", folds(0)), row_of("c", seeds(0))], unranked)
    said = "it has one hold-out split, and the ranked rows were cross-validated"
    assert reasons(unranked) == {"c": ("not comparable", said)}


def test_rows_are_compared_on_the_pairs_that_most_have_or_else_on_the_largest_set() -> None:
    one, two, three = row_of("a", seeds(0)), row_of("b", seeds(0, 1)), row_of("c", seeds(0, 1))
    assert shared_pairs([]) == []
    assert shared_pairs([one, two]) == seeds(0, 1)
    assert shared_pairs([one, one, two]) == seeds(0)
    assert shared_pairs([row_of("a", seeds(1)), one]) == seeds(0)
    unranked: list[Unranked] = []
    kept = on_shared_pairs([one, two, three, row_of("d", seeds(0, 1, 2))], unranked)
    assert [(row.name, row.pairs) for row in kept] == [(name, seeds(0, 1)) for name in "bcd"]
    said = "it lacks 1 of the 2 trainings that the rows are compared on: seed 1"
    assert reasons(unranked) == {"a": ("incomplete", said)}


def test_four_missing_trainings_are_named() -> None:
    for count, end in ((4, "fold 4 with seed 0"), (5, "fold 4 with seed 0, …")):
        unranked: list[Unranked] = []
        whole = [row_of(name, folds(*range(count + 1))) for name in "ab"]
        on_shared_pairs([*whole, row_of("c", folds(0))], unranked)
        said = f"it lacks {count} of the {count + 1} trainings that the rows are compared on: fold 1 with seed 0, "
        assert reasons(unranked)["c"][1] == f"{said}fold 2 with seed 0, fold 3 with seed 0, {end}"


def test_pairs_are_common_where_rows_have_them_among_others() -> None:
    rows = [row_of("a", seeds(0, 1, 2)), row_of("b", seeds(0, 1)), row_of("c", seeds(1, 2))]
    assert most_common_pairs(rows) == seeds(0, 1)  # a and b have it in full, as a and c have the other
    assert most_common_pairs(rows[:1]) == seeds(0, 1, 2)
    assert most_common_pairs([rows[0], rows[2]]) == seeds(1, 2)


def points(counts: dict[str, int], **aurocs: float) -> list[Row]:
    """Points of models a and b, such as ``a1``, with so many seeds and such validation AUROCs."""
    return [
        replace(row_of(name[0], seeds(*range(counts[name])), auroc=auroc, optimizer__lr=float(name[1])), name=name)
        for name, auroc in aurocs.items()
    ]


def test_each_value_stands_at_its_best_point_on_seeds_that_did_not_choose_it() -> None:
    unranked: list[Unranked] = []
    counts = {"a1": 4, "a2": 4, "a3": 1, "b1": 4}
    rows, chose = best_of_each(points(counts, a1=0.8, a2=0.9, a3=0.7, b1=0.6), "model.name", unranked)
    assert [(row.name, row.chosen_from, row.pairs) for row in rows] == [
        ("a2", 3, seeds(1, 2, 3)),
        ("b1", 1, seeds(1, 2, 3)),
    ]
    assert (chose, unranked) == (seeds(0), [])


def test_a_point_without_further_seeds_is_listed_as_chosen_and_one_without_the_first_as_incomplete() -> None:
    unranked: list[Unranked] = []
    made = points({"a1": 1, "a2": 1, "b1": 2}, a1=0.8, a2=0.9, b1=0.6)
    made.append(replace(row_of("c", seeds(5)), name="c1"))
    rows, chose = best_of_each(made, "model.name", unranked)
    assert ([row.name for row in rows], chose) == (["b1"], seeds(0))
    assert reasons(unranked) == {
        "c1": ("incomplete", "it lacks 1 of the 1 trainings that the rows are compared on: seed 0"),
        "a2": ("chosen", "chosen from 2 points by a validation AUROC of 0.9000, and has no other training"),
    }


def test_trainings_that_chose_leaders_are_not_counted() -> None:
    leader, other = row_of("a", seeds(0, 1, 2)), row_of("b", seeds(0), auroc=0.75)
    for row in (leader, other):
        row.runs[0].metrics["chose_from"] = 7
    unranked: list[Unranked] = []
    rows, chose = without_choosing([leader, other], unranked)
    assert [(row.name, row.pairs, row.chosen_from) for row in rows] == [("a", seeds(1, 2), 7)]
    assert chose == seeds(0)
    said = "it was not among the leaders, chosen from 7: AUROC 0.7500 in validation"
    assert reasons(unranked) == {"b": ("not chosen", said)}
    assert without_choosing([other], unranked) == ([other], [])
    plain = row_of("c", seeds(0, 1))
    assert without_choosing([plain], unranked) == ([plain], [])


@pytest.mark.parametrize(
    ("key", "message"), [("data.fold", "by=data.fold is not possible"), ("model.nam", "did you mean model.name")]
)
def test_a_key_that_rows_do_not_have_is_refused(key: str, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        check_by(key)


def test_three_seeds_of_one_split_are_a_configuration() -> None:
    assert [unit_of(seeds(*range(count))) for count in (2, 3)] == ["training", "configuration"]
    assert unit_of([(0, 0), (0, 1), (0, 2)]) == "configuration"
    assert unit_of([(0, 0), (0, 1), (1, 0)]) == "training"


def test_the_covariance_is_over_all_runs_of_configurations_and_over_means_of_trainings() -> None:
    configurations = [row_of(name, seeds(0, 1, 2)) for name in "ab"]
    scores = np.stack([run.scores for row in configurations for run in row.runs])
    expected = auroc_covariance(scores, LABELS)
    found = covariance_of(configurations)
    assert found.aurocs.tolist() == expected.aurocs.tolist()
    assert found.covariance.tolist() == expected.covariance.tolist()
    means = covariance_of([row.restricted(seeds(0, 2)) for row in configurations])
    mean = np.zeros((2, 6))
    mean[0, [0, 2]] = mean[1, [3, 5]] = 0.5
    assert means.aurocs == pytest.approx(mean @ expected.aurocs)
    assert means.covariance == pytest.approx(mean @ expected.covariance @ mean.T)


def test_folds_of_two_tile_sets_are_averaged() -> None:
    rows = [row_of_folds(name, [0, 1]) for name in "ab"]
    parts = [auroc_covariance(np.stack([row.runs[fold].scores for row in rows]), LABELS) for fold in (0, 1)]
    found = covariance_of(rows)
    assert found.aurocs == pytest.approx((parts[0].aurocs + parts[1].aurocs) / 2)
    assert found.covariance == pytest.approx((parts[0].covariance + parts[1].covariance) / 4)


@pytest.mark.parametrize("pairs", [seeds(0), seeds(0, 1, 2)])
def test_rows_are_put_in_the_order_of_their_aurocs_with_what_belongs_to_them(pairs: list[Pair]) -> None:
    rows = [row_of(name, pairs) for name in "abcd"]
    ranking = judged(Ranking(rows, None, None, "val", [], []))
    aurocs = {row.name: np.mean([roc_auc_score(LABELS, run.scores) for run in row.runs]) for row in rows}
    assert [row.name for row in ranking.rows] == sorted(aurocs, key=aurocs.__getitem__, reverse=True)
    assert ranking.verdict is not None
    assert ranking.covariance is not None
    assert ranking.verdict.auroc == pytest.approx([aurocs[row.name] for row in ranking.rows])
    again = covariance_of(ranking.rows)
    assert ranking.covariance.covariance == pytest.approx(again.covariance)
    assert ranking.covariance.aurocs == pytest.approx(again.aurocs)
    assert not ranking.verdict.reason


SLIDES = np.tile(np.array(["one", "two"], object), 20)
SOME = np.append(SLIDES[:-1], np.nan)
OWN, WHOLE, PARTLY, OVERLAPS = (None, None), (SLIDES, SLIDES), (SOME, SOME), (None, SOME)


@pytest.mark.parametrize(
    ("parts", "metrics", "said"),
    [
        ([OWN, OWN], {}, ("tiles", 0, "tiles")),
        ([OVERLAPS, OWN], {}, ("components", 0, "tiles")),
        ([WHOLE, OWN], {}, ("slides", 2, "tiles")),
        ([WHOLE, PARTLY], {}, ("slides", 2, "tiles")),
        ([WHOLE, WHOLE], {}, ("slides", 2, "slides")),
        ([WHOLE, WHOLE], {"torn_slides": 1}, ("slides", 2, "tiles")),
        ([WHOLE, WHOLE], {"split": "random"}, ("slides", 2, "tiles")),
    ],
)
def test_the_population_follows_from_the_slides_of_every_part(
    parts: list[Any], metrics: dict[str, Any], said: tuple[str, int, str]
) -> None:
    row = row_of_folds("a", [0, 1])
    for run, (slides, clusters) in zip(row.runs, parts, strict=True):
        run.tiles = replace(run.tiles, slides=slides, clusters=clusters)
        run.metrics |= {"split": "slide"} | metrics
    ranking = Ranking([row], None, None, "val", [], [])
    assert (ranking.clusters, ranking.slides, ranking.population) == said
    assert (ranking.folds, ranking.tiles, ranking.split, ranking.unit) == (
        2,
        80,
        row.runs[0].metrics["split"],
        "training",
    )


def test_a_ranking_without_rows_is_empty() -> None:
    ranking = Ranking([], None, None, "val", [], [])
    assert (ranking.pairs, ranking.folds, ranking.tiles, ranking.runs, ranking.best_set) == ([], 0, 0, [], [])
    assert (ranking.split, ranking.among, ranking.uncounted) == ("", False, 0)


@pytest.mark.parametrize("pairs", [seeds(0), seeds(0, 1, 2)])
def test_the_set_of_the_best_stands_first(pairs: list[Pair]) -> None:
    rows = [row_of(name, pairs) for name in "ab"]
    for run in rows[1].runs:
        run.scores = np.where(LABELS == 1, run.scores + 3, run.scores)
    ranking = judged(Ranking(rows, None, None, "val", [], []))
    assert ([row.name for row in ranking.rows], ranking.best_set) == (["b", "a"], ["b"])
    assert len(ranking.runs) == 2 * len(pairs)


def test_points_chosen_by_these_tiles_are_not_judged_by_them() -> None:
    rows = [replace(row_of("a", seeds(0)), chosen_from=2), row_of("b", seeds(0))]
    judgement = judged(Ranking(rows, None, None, "val", [], [])).verdict
    assert judgement is not None
    assert judgement.reason.startswith("their points were chosen on these same validation tiles")
    assert np.isnan([judgement.low, judgement.high]).all()
    assert (judgement.p.tolist(), judgement.better.any(), judgement.best.all()) == ([[1, 1], [1, 1]], False, True)
    assert judgement.ranks.tolist() == [[1, 2], [1, 2]]
    assert np.isfinite(judgement.row_low).all()
    for part, some in (("test", rows), ("val", rows[1:] * 2), ("val", rows[:1])):
        verdict = judged(Ranking(some, None, None, part, [], [])).verdict
        assert verdict is not None
        assert "chosen" not in verdict.reason
