"""Sentences and cells of rankings that are made in memory, with AUROCs and variances that are known."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from made_rankings import HOLD_OUT, SEEDS, ranking_of
from sklearn.metrics import roc_auc_score

from histolight.errors import RequestError
from histolight.ranking.answer import answer, context, gaps, headline, joined, lack, unit_text, where
from histolight.ranking.page import methods, notes, ranking_figures, terminal_text
from histolight.ranking.plan import plan_of, plan_table, scaled
from histolight.ranking.runs import ScoredTiles, Unranked
from histolight.ranking.tables import (
    comparison_csv,
    counts_text,
    domain_table,
    further_table,
    main_table,
    method,
    unranked_table,
)
from histolight.statistics.planning import power, tiles_needed

CHOSEN = (
    "The epoch of each run was chosen by the AUROC on these same validation tiles: all AUROCs here are optimistic, "
    "the more so the fewer tiles."
)


@pytest.mark.parametrize(
    ("aurocs", "pairs", "expected"),
    [
        (
            [0.9, 0.89, 0.5],
            HOLD_OUT,
            "2 of these 3 trainings may be the best on other tiles like these and can't be told apart: a and b. "
            "The other is worse.",
        ),
        (
            [0.9, 0.9, 0.9, 0.89, 0.5, 0.5],
            [(0, 0), (1, 0)],
            "4 of these 6 rows of 2 trainings may be the best on other tiles like these and can't be told apart: "
            "a, b, c and d. The 2 others are worse.",
        ),
        (
            [0.9, 0.9, 0.9, 0.9, 0.89, 0.5],
            HOLD_OUT,
            "5 of these 6 trainings may be the best on other tiles like these and can't be told apart. "
            "The other is worse.",
        ),
        (
            [0.9, 0.5, 0.5],
            HOLD_OUT,
            "This training of a is the best of these 3 trainings on other tiles like these: every other is worse (all "
            "claims together at 95 %).",
        ),
        (
            [0.9, 0.5, 0.5],
            [(0, 0), (1, 0)],
            "These 2 trainings of a are the best of these 3 rows of 2 trainings on other tiles like these: every other "
            "is worse (all claims together at 95 %).",
        ),
        ([0.9, 0.9], SEEDS, "These 2 configurations (3 seeds each) can't be told apart on other tiles like these."),
    ],
)
def test_the_headline_counts_and_names_the_set_of_the_best(aurocs, pairs, expected) -> None:
    assert headline(ranking_of(aurocs, 1e-4, pairs)) == expected


@pytest.mark.parametrize(
    ("pairs", "begins"),
    [
        (HOLD_OUT, "This training of a has an AUROC of 0.9000 [0.8"),
        ([(0, 0), (1, 0)], "These 2 trainings of a have an AUROC of 0.9000 [0.8"),
        (SEEDS, "The configuration a has an AUROC of 0.9000 [0.8"),
    ],
)
def test_one_row_has_its_interval(pairs, begins) -> None:
    ranking = ranking_of([0.9], 1e-4, pairs)
    assert headline(ranking).startswith(begins)
    assert headline(ranking).endswith("there is no other row to rank.")
    assert context(ranking)[0].startswith("The epoch of each run was chosen")
    assert main_table(ranking).columns == ["rank", "row", "AUROC"]
    assert main_table(ranking).marked == 0


@pytest.mark.parametrize(
    ("epochs", "said"),
    [
        ((1, 1), []),
        ((5, 5), [CHOSEN]),
        ((1, 5), [CHOSEN, "A run with more epochs to choose from gains more by it."]),
    ],
)
def test_an_epoch_was_chosen_only_where_there_were_several(epochs: tuple[int, int], said: list[str]) -> None:
    ranking = ranking_of([0.9, 0.8], 1e-4)
    for row, count in zip(ranking.rows, epochs, strict=True):
        row.runs[0].metrics["epochs"] = count
    assert [sentence for sentence in context(ranking) if "epoch" in sentence] == said


def test_a_probe_has_no_epochs_to_choose_from() -> None:
    ranking = ranking_of([0.9, 0.8], 1e-4)
    ranking.rows[0].runs[0].metrics["epochs"] = 5
    ranking.rows[1].runs[0].metrics["probe"] = {"chosen": {"neighbours": 5, "val_auroc": 0.8}}
    [chosen] = [sentence for sentence in context(ranking) if "chosen" in sentence]
    assert chosen.startswith("The epoch and the number of neighbours of the probe of each run were chosen by")
    assert not any("more epochs" in sentence for sentence in context(ranking))


def test_what_was_not_tested_is_not_explained() -> None:
    told, apart = ranking_of([0.9, 0.5], 1e-4), ranking_of([0.9, 0.9], 1e-4)
    unranked = ranking_of([0.9, 0.8, 0.7, 0.6], 1e-4, freedom=2)
    verdicts, sets = zip(
        *(
            ("Verdict:" in " ".join(notes(it)), "The set of the best" in " ".join(methods(it)))
            for it in (told, apart, unranked)
        ),
        strict=True,
    )
    assert verdicts == (True, False, False)
    assert sets == (True, True, False)


def test_three_rows_are_said_to_be_worse_one_by_one_and_the_others_together() -> None:
    ranking = ranking_of([0.95, 0.8, 0.75, 0.7, 0.6, 0.5], 1e-4)
    sentences = gaps(ranking)
    assert [sentence.split(";")[0] for sentence in sentences[:3]] == [
        "This training of a scored 0.1500 above this training of b",
        "This training of a scored 0.2000 above this training of c",
        "This training of a scored 0.2500 above this training of d",
    ]
    assert ranking.verdict is not None
    low, high = ranking.verdict.low[0, 1], ranking.verdict.high[0, 1]
    assert sentences[0].endswith(f"expected on other tiles like these {low:.4f} to {high:.4f} (simultaneous 95 %).")
    assert sentences[3] == (
        f"The 2 trainings below these are each worse than a better one by {ranking.verdict.low[0, 4]:.4f} or more on "
        "other tiles like these (simultaneous 95 %)."
    )
    assert len(sentences) == 4
    assert len(gaps(ranking_of([0.95, 0.8, 0.75, 0.7], 1e-4))) == 3
    assert gaps(ranking_of([0.95, 0.8], 1e-4, SEEDS))[0].startswith("The configuration a scored 0.1500 above the conf")
    assert " and with other seeds 0." in gaps(ranking_of([0.95, 0.8], 1e-4, SEEDS))[0]


def test_the_answer_begins_with_the_headline_and_does_not_repeat_it() -> None:
    sentences = answer(ranking_of([0.9, 0.5], 1e-4))
    assert sentences[0].startswith("This training of a scored 0.4000 above this training of b")
    assert len(set(sentences)) == len(sentences)
    assert sentences[1] == "Measured on 100 validation tiles (random split)."
    assert sentences[2] == "Whether a's settings are better needs three seeds."
    apart = answer(ranking_of([0.9, 0.89], 1e-4))
    assert apart[1] == "Their AUROCs run from 0.8900 to 0.9000 on 100 validation tiles (random split)."
    assert apart[3] == "Whether one row's settings are better needs three seeds."
    assert answer(ranking_of([0.9, 0.5], 1e-4, [(0, 0)]))[2] == sentences[2]
    folds = answer(ranking_of([0.9, 0.89], 1e-4, [(0, 0), (1, 0)]))
    assert "Folds share training tiles: whether one row's settings are better needs three seeds of one split." in folds


def test_what_would_tell_a_difference_is_said_with_tiles_slides_and_seeds() -> None:
    trainings = context(ranking_of([0.9, 0.89], 1e-4))[1]
    # Of normal scores: 0.01 / sqrt(2e-4) = 0.71 is seen with a power of 10 %, four times as much with one of 80 %.
    assert trainings == (
        "Not told apart does not mean equal. A true difference of 0.01 had a chance of 10 % to be seen here; about "
        "1,600 tiles in place of 100 would make that 80 %."
    )
    slides = context(ranking_of([0.9, 0.89], 1e-4, slides=20, split="slide"))[1]
    assert "about 320 slides in place of 20 would make" in slides
    sure = context(ranking_of([0.9, 0.9], 1e-7))
    assert "Not told apart does not mean equal." in sure
    assert not any("A true difference" in sentence for sentence in sure)


def test_seeds_that_change_nothing_are_named() -> None:
    ranking = ranking_of([0.9, 0.9], 1e-4, SEEDS)
    for run in ranking.runs:
        run.scores[:99] = 0.5  # the last tile's score differs
    assert not any("same for every seed" in sentence for sentence in context(ranking))
    for run in ranking.rows[1].runs:
        run.scores = ranking.rows[1].runs[0].scores
    said = "are the same for every seed: what is stated of them holds for these training tiles."
    assert f"The scores of b {said}" in context(ranking)
    many = ranking_of([0.9] * 4, 1e-4, SEEDS)
    for row in many.rows:
        for run in row.runs:
            run.scores = row.runs[0].scores
    assert f"The scores of 4 rows {said}" in context(many)
    assert f"The scores of a, b and c {said}" in context(replace(many, rows=many.rows[:3]))
    other = "Other seeds are other draws of data.shots tiles from these training tiles."
    assert other not in context(many)
    many.rows[1].config["data.shots"] = 8
    assert other in context(many)


def test_lists_and_units_are_written_out() -> None:
    assert [joined(names) for names in (["a"], ["a", "b"], ["a", "b", "c"])] == ["a", "a and b", "a, b and c"]
    assert joined(["a, lr 1", "b"]) == "a, lr 1 and b"
    assert joined(["a, lr 1", "b", "c"]) == "a, lr 1; b and c"
    units = [unit_text(ranking_of([0.9, 0.8], 1e-4, pairs)) for pairs in (HOLD_OUT, [(0, 0), (1, 0)], SEEDS)]
    assert units == ["one training", "the mean of 2 trainings", "a configuration, by 3 seeds"]
    assert [scaled(multiple, 400) for multiple in (1.01, 2.6, 26)] == ["410", "1,100", "11,000"]
    assert scaled(1.5, 4) == "6"


def test_the_terminal_speaks_of_a_spread_only_where_it_shows_one() -> None:
    measured = {"accuracy": {"value": 0.8}}
    for pairs, spread in ((HOLD_OUT, ""), (SEEDS, ", after ± the standard deviation over a row's trainings")):
        ranking = ranking_of([0.9, 0.5], 1e-4, pairs)
        for run in [run for row in ranking.rows for run in row.runs]:
            run.metrics["val"] |= measured
        assert f"In brackets 95 % intervals{spread}; calls at 0.5." in terminal_text(ranking, None)
        assert ("± is the standard deviation" in methods(ranking)[-1]) == bool(spread)


def test_tables_count_runs_rows_and_folders() -> None:
    unranked = [Unranked("x", [Path("x0"), Path("x1"), Path("x2")], "incomplete", "why")]
    ranking = ranking_of([0.9, 0.5], 1e-4, SEEDS, unranked=unranked)
    assert counts_text(ranking) == "6 runs in 2 rows, 1 not ranked"
    assert counts_text(ranking_of([0.9], 1e-4)) == "1 run in 1 row, 0 not ranked"
    for count, more in ((3, " and 2 more"), (2, " and 1 more"), (1, "")):
        one = [unranked[0]._replace(directories=unranked[0].directories[:count])]
        listed = unranked_table(replace(ranking, unranked=one))
        assert [str(cell) for cell in listed.rows[0]] == ["x", "incomplete", "why", f"x0{more}"]
        assert listed.words == len(listed.columns)
    table = main_table(ranking)
    assert table.columns == ["rank", "model", "AUROC", "verdict"]
    assert str(table.rows[0][3]) == "the best"
    assert str(table.rows[1][3]).startswith("0.4000 below the first row [")
    assert table.marked == 1
    further = further_table(ranking)
    cells = dict(zip(further.columns, map(str, further.rows[0]), strict=True))
    costs = {"parameters": "2.50 M", "training s": "90", "tiles/s": "n/a"}
    assert cells.items() >= {"model": "a", "accuracy": "n/a", **costs}.items()


@pytest.mark.parametrize(("seconds", "text"), [(9.94, "9.9"), (10.0, "10"), (10.6, "11"), (12_345.0, "12,345")])
def test_costs_have_a_decimal_below_ten(seconds: float, text: str) -> None:
    ranking = ranking_of([0.9], 1e-4)
    ranking.rows[0].runs[0].metrics["seconds"] = seconds
    table = further_table(ranking)
    assert str(table.rows[0][list(table.columns).index("training s")]) == text


def test_figures_have_their_spread_over_the_runs_and_folds_a_pooled_auroc() -> None:
    ranking = ranking_of([0.9], 1e-4, [(fold, 0) for fold in range(5)])
    for run, value in zip(ranking.runs, (0.7, 0.7, 0.8, 0.9, 0.9), strict=True):
        run.metrics["val"]["accuracy"] = {"value": value}
    table = further_table(ranking)
    cells = dict(zip(table.columns, map(str, table.rows[0]), strict=True))
    assert cells["accuracy"] == "0.800 ± 0.100"
    scores = np.concatenate([run.scores for run in ranking.runs])
    labels = np.concatenate([run.tiles.labels for run in ranking.runs])
    assert cells["pooled AUROC"] == f"{roc_auc_score(labels, scores):.4f}"
    one = ranking_of([0.9], 1e-4)
    one.runs[0].metrics["val"]["accuracy"] = {"value": 0.7}
    assert "0.700" in map(str, further_table(one).rows[0])
    assert "pooled AUROC" not in further_table(one).columns


def test_rows_that_cannot_be_ranked_are_not_marked() -> None:
    assert headline(ranking_of([0.9, 0.9], 0.0)) == (
        "These 2 trainings can't be ranked: the rows order the tiles alike: no difference has a variance."
    )
    ranking = ranking_of([0.9, 0.8], 1e-4)
    assert ranking.covariance is not None
    assert lack(replace(ranking, covariance=replace(ranking.covariance, lack="no interval: one slide"))) == "one slide"
    table = main_table(ranking_of([0.9, 0.9], 0.0))
    assert table.marked == 0
    assert [str(row[3]) for row in table.rows] == ["not ranked", "not ranked"]


def test_the_row_that_another_is_below_is_the_highest_one_surely_above_it() -> None:
    ranking = ranking_of([0.90, 0.89, 0.87, 0.7], 2e-4)
    assert ranking.verdict is not None
    assert ranking.verdict.best.tolist() == [True, True, True, False]
    assert str(main_table(ranking).rows[3][3]).startswith("0.2000 below the first row")
    assert [str(row[0]) for row in main_table(ranking).rows] == ["1-3", "1-3", "1-3", "4"]


def test_domains_stand_with_the_worst_first_and_with_the_mean_of_the_runs() -> None:
    ranking = ranking_of([0.9, 0.8], 1e-4, [(None, 0), (None, 1)])
    assert domain_table(ranking) is None
    for row, base in zip(ranking.rows, (0.9, 0.8), strict=True):
        for run, more in zip(row.runs, (0.0, 0.02), strict=True):
            domains = {"near": base + more, "far": base - 0.3 + more}
            run.metrics["val_by_domain"] = [
                *({"domain": name, "auroc": {"value": value}} for name, value in domains.items()),
                {"domain": "one class", "auroc": None},
            ]
    table = domain_table(ranking)
    assert table is not None
    assert table.columns == ["model", "far", "near"]
    assert [[str(cell) for cell in row] for row in table.rows] == [
        ["a", "0.6100", "0.9100"],
        ["b", "0.5100", "0.8100"],
    ]
    assert comparison_csv(ranking)["worst_domain"].tolist() == ["far", "far"]
    for run in ranking.rows[1].runs:
        del run.metrics["val_by_domain"]
    some = domain_table(ranking)
    assert some is not None
    assert [str(cell) for cell in some.rows[1]] == ["b", "n/a", "n/a"]


def test_the_method_names_what_the_variance_is_taken_over() -> None:
    assert method(ranking_of([0.9, 0.8], 1e-4)) == (
        "covariance of AUROCs over tiles (DeLong 1988); t with nu1 = 50.0, 95% for all claims together"
    )
    assert method(ranking_of([0.9, 0.8, 0.7], 1e-4, SEEDS, slides=10, split="slide")) == (
        "covariance of AUROCs clustered by slide (Obuchowski 1997), with seeds as readers nested in configurations "
        "(Hillis 2014); t with nu1 = 50.0, Holm over all 3 pairs, 95% for all claims together"
    )
    assert method(ranking_of([0.9, 0.9], 0.0)) == "none: the rows order the tiles alike: no difference has a variance"
    assert method(ranking_of([0.9], 1e-4)).startswith("covariance")
    for part in ("covariance", "verdict"):
        assert method(replace(ranking_of([0.9], 1e-4), **{part: None})) == "none: no row can be ranked"


def test_a_plan_from_one_row_assumes_a_correlation_and_a_spread_of_seeds() -> None:
    one = plan_of(ranking_of([0.9], 1e-4))
    assert (one.rows, one.seeds, one.degrees_of_freedom) == (2, 1, 50.0)
    assert (one.seed_variance, one.tile_variance) == pytest.approx((1e-4, 1e-4))
    two = plan_of(ranking_of([0.9, 0.8], 1e-4))
    assert (two.rows, two.seeds) == (2, 1)
    assert (two.seed_variance, two.tile_variance) == pytest.approx((1e-4, 2e-4))
    seeds = ranking_of([0.9], 1e-4, SEEDS)
    assert seeds.covariance is not None
    seeds.covariance.aurocs[:] = 0.90, 0.92, 0.94
    assert (plan_of(seeds).seeds, plan_of(seeds).seed_variance) == (3, pytest.approx(4e-4))
    rows = ranking_of([0.9, 0.8], 1e-4, SEEDS)
    assert (plan_of(rows).seeds, plan_of(rows).seed_variance) == (3, pytest.approx(0))


def test_a_plan_needs_a_variance() -> None:
    ranking = ranking_of([0.9, 0.8], 1e-4)
    assert ranking.covariance is not None
    for covariance, why in (
        (None, "no row can be ranked"),
        (replace(ranking.covariance, lack="one slide"), "one slide"),
    ):
        with pytest.raises(RequestError, match=rf"give no variance to plan with \({why}\): give runs on more tiles"):
            plan_of(replace(ranking, covariance=covariance))


@pytest.mark.parametrize(
    ("aurocs", "pairs", "slides", "counts", "assumed"),
    [
        ([0.9, 0.8], HOLD_OUT, 20, [2], [False, True]),
        ([0.9], SEEDS, 0, [2, 27], [True, False]),
        ([0.9], HOLD_OUT, 0, [2, 27], [True, True]),
        ([0.9, 0.8, 0.7], SEEDS, 0, [3], [False, False]),
    ],
)
def test_a_plan_has_a_line_for_each_difference_and_number_of_seeds(
    aurocs, pairs, slides, counts, assumed, monkeypatch
) -> None:
    ranking = ranking_of(aurocs, 1e-4, pairs, slides, "slide" if slides else "random")
    monkeypatch.setattr("histolight.ranking.plan.compare_runs", lambda _: ranking)
    table, said = plan_table([])
    seeds = [1, 3, 5, 10, 20]
    cells = [[str(cell) for cell in row] for row in table.rows]
    assert [row[0] for row in cells] == (["0.01"] * 5 + ["0.03"] * 5) * len(counts)
    assert [row[1] for row in cells] == [str(count) for count in counts for _ in range(10)]
    assert [row[2] for row in cells] == ["1 (trainings)", *map(str, seeds[1:])] * 2 * len(counts)
    earlier = plan_of(ranking)
    first, last = (replace(earlier, rows=count, seeds=one) for count, one in ((counts[0], 1), (counts[-1], 20)))
    assert (cells[0][3], cells[-1][3]) == (f"{power(first, 0.01):.0%}", f"{power(last, 0.03):.0%}")
    needed = tiles_needed(first, 0.01, 0.8)
    assert cells[0][4:] == [scaled(needed, count) for count in (100, slides) if count]
    assert len(table.columns) == len(cells[0])
    assert said[0].count("(100 tiles" + (" of 20 slides here)" if slides else " here)")) == 1
    words = ("correlate at 0.5 over other tiles", "a standard deviation in AUROC of 0.01")
    assert [any(word in sentence for sentence in said) for word in words] == assumed
    assert said[-1] == "Fewer than three seeds compare trainings, not configurations."


def test_notes_say_what_the_figures_rest_on() -> None:
    ranking = ranking_of([0.9, 0.8], 1e-4, SEEDS, uncounted=4)
    said = notes(ranking)
    assert said[0] == (
        "Each row is a configuration, by 3 seeds; what is said of the rows holds on other tiles like these. Measured "
        "on 100 validation tiles (random split)."
    )
    assert said[1].startswith("Rank: every rank that the row can have")
    assert said[2].startswith("4 trainings of these rows are not counted")
    assert len(said) == 3
    run = ranking.rows[1].runs[2]
    run.metrics |= {"out_of_memory": {"data.batch_size": 32}, "machine": "another", "git_commit": "abc"}
    said = notes(ranking)
    assert f"Out of memory, so trained with half data.batch_size and twice trainer.accumulate: {run.directory}." in said
    assert "The runs were made with different commits of histolight." in said
    assert any("different machines" in sentence for sentence in said)
    assert len(notes(ranking_of([0.9], 1e-4))) == 1


def test_methods_are_those_of_the_unit() -> None:
    trainings, configurations = (" ".join(methods(ranking_of([0.9, 0.8], 1e-4, pairs))) for pairs in (HOLD_OUT, SEEDS))
    assert "A row here is a training as it came out" in trainings
    assert "A row is a configuration, measured by 3 seeds" in configurations
    for text in (trainings, configurations):
        assert "The row with the highest AUROC was picked on the same tiles" in text
        assert "Pooled AUROC" not in text
        assert "Figures are those of the validation part, as not every compared run has a test part." in text
    assert "was picked on the same tiles" not in " ".join(methods(ranking_of([0.9], 1e-4)))
    folds = ranking_of([0.9, 0.8], 1e-4, [(fold, 0) for fold in range(5)])
    assert "Pooled AUROC: over the validation tiles of all folds together" in " ".join(methods(folds))


def test_figures_have_captions_that_count_the_rows() -> None:
    drawn = {name: caption for name, _, caption in ranking_figures(ranking_of([0.9, 0.5], 1e-4, SEEDS))}
    assert list(drawn) == ["ranks", "roc"]
    assert drawn["ranks"].startswith("Each bar spans the ranks that one of these 2 rows can have")
    assert drawn["ranks"].endswith("with 95 % certainty on other tiles like these and with other seeds.")
    assert drawn["roc"].startswith("ROC of all rows on 100 validation tiles")
    many = {name: caption for name, _, caption in ranking_figures(ranking_of([0.9] * 6, 0.0))}
    assert many["ranks"].endswith("Nothing can be ranked on these tiles: every row can have every rank.")
    assert many["roc"].startswith("ROC of the first 5 of 6 rows")
    assert [name for name, _, _ in ranking_figures(ranking_of([0.9], 1e-4))] == ["roc"]
    long = ranking_of([0.9, 0.5], 1e-4)
    long.rows[0] = replace(long.rows[0], name="n" * 53)
    long.rows[1] = replace(long.rows[1], name="m" * 52)
    bars = next(figure for name, figure, _ in ranking_figures(long) if name == "ranks").axes[0]
    names = [text.get_text() for text in bars.texts]
    assert names[0].startswith("1: nnn")
    assert len(names[0]) <= 52
    assert names[2] == "m" * 52


def test_the_terminal_has_the_answer_the_tables_and_the_count() -> None:
    blocks = terminal_text(ranking_of([0.9, 0.5], 1e-4), None).split("\n\n")
    assert blocks[0].startswith("This training of a scored 0.4000 above")
    assert blocks[-1] == "2 runs in 2 rows, 0 not ranked"
    assert len(blocks) == 4


@pytest.mark.parametrize(("label", "name"), [(1, "with tumour"), (0, "without tumour")])
def test_the_scarcer_class_is_counted_where_rows_cannot_be_ranked(label: int, name: str) -> None:
    ranking = ranking_of([0.9, 0.8, 0.7, 0.6], 1e-4, freedom=1.3, slides=10, split="slide")
    # 50 tiles of the class in slides of 30, 10 and 10 count as 50^2 / (30^2 + 10^2 + 10^2) = 2.3.
    slides = np.array([*("t0 " * 30 + "t1 " * 10 + "t2 " * 10).split(), *(f"n{n % 20}" for n in range(50))], object)
    labels = np.repeat(np.array([label, 1 - label], np.int8), 50)
    for run in ranking.runs:
        run.tiles = ScoredTiles("key", run.tiles.ids, labels, slides, slides)
    assert lack(ranking) == (
        f"3 slides {name}, which count as 2.3 as some hold most of the tiles, cannot rank 4 rows: add slides, or name "
        "up to three rows beforehand (among=…)"
    )
    slides[:50] = np.repeat(["t0", "t1"], 25)
    assert lack(ranking).startswith(f"2 slides {name} cannot rank 4 rows")


@pytest.mark.parametrize(
    ("split", "slides", "known", "note", "unknown"),
    [
        ("random", 0, 100, "Random split: tiles that overlap", False),
        ("overlap", 0, 100, "Split by overlap, slides unknown", False),
        ("slide", 10, 100, "", False),
        ("slide", 10, 90, "", True),
        ("given", 10, 100, "", False),
        ("given", 10, 90, "Given split: made elsewhere", True),
    ],
)
def test_cautions_are_those_of_the_split(split: str, slides: int, known: int, note: str, unknown: bool) -> None:
    ranking = ranking_of([0.9, 0.8], 1e-4, slides=slides, split=split)
    for run in ranking.runs:
        if slides:
            run.tiles.slides[known:] = np.nan
    said = context(ranking)
    assert any(sentence.startswith(("Random", "Split by", "Given")) for sentence in said) is bool(note)
    assert any(note and sentence.startswith(note) for sentence in said) is bool(note)
    assert ("Not every tile's slide is known: nothing is said here of other slides." in said) is unknown


def test_the_place_of_measurement_has_slides_and_folds() -> None:
    assert where(ranking_of([0.9], 1e-4, slides=8, split="slide")) == (
        "100 validation tiles of 8 slides (split by slide)"
    )
    assert where(ranking_of([0.9], 1e-4, [(0, 0), (1, 0)])) == "100 validation tiles in 2 folds (random split)"
    assert where(ranking_of([0.9], 1e-4, [(0, 0)])) == "100 validation tiles (random split)"
