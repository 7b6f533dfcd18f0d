"""The verdict through run directories: what may be said, of which unit and which population."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from fake_runs import fake_run
from scipy import stats
from sklearn.metrics import roc_auc_score

import histolight
from histolight.errors import RequestError
from histolight.ranking.answer import answer, headline, where
from histolight.ranking.ranking import Ranking, compare_runs
from histolight.ranking.runs import find_runs
from histolight.statistics.verdict import auroc_covariance, verdict_of_configurations, verdict_of_trainings


def predictions(directory: Path, part: str = "val") -> pd.DataFrame:
    return pd.read_csv(directory / "predictions" / f"{part}.csv")


def unranked(ranking: Ranking) -> dict[str, str]:
    return {one.name: one.reason for one in ranking.unranked}


def seeds(folder: Path, shifts: dict[str, float], count: int, spread: float = 0.0, **settings: object) -> Path:
    """Runs of several seeds; ``spread`` is the standard deviation of a seed's shift."""
    for number, (name, shift) in enumerate(shifts.items()):
        moved = np.random.default_rng(number).normal(0, spread, count)
        moved -= moved.mean()
        for seed in range(count):
            fake_run(folder / f"{name}_{seed}", shift + moved[seed], model__name=name, seed=seed, **settings)
    return folder


@pytest.fixture(scope="module")
def folds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """5 folds x 2 seeds of two architectures, split by slide."""
    sweep = tmp_path_factory.mktemp("folds")
    for name, shift in (("resnet18", 1.4), ("densenet121", 2.0)):
        for fold in range(5):
            for seed in range(2):
                changes = {"model__name": name, "data__fold": fold, "seed": seed}
                fake_run(sweep / f"{name}_{fold}_{seed}", shift, tiles=150, slides=9, split="slide", **changes)
    return sweep


def test_rows_stand_by_auroc_and_show_only_what_differs(three: Path) -> None:
    ranking = compare_runs([three])
    assert (ranking.swept, ranking.among, ranking.by) == (["model.name"], False, None)
    truth = [roc_auc_score(predictions(row.runs[0].directory)["label"], row.runs[0].scores) for row in ranking.rows]
    assert truth == sorted(truth, reverse=True)
    assert ranking.verdict is not None
    assert ranking.verdict.auroc.tolist() == pytest.approx(truth)
    assert ranking.rows[-1].name == "resnet18"


def test_trainings_are_judged_all_with_all_on_the_same_tiles(three: Path) -> None:
    ranking = compare_runs([three])
    tables = [predictions(row.runs[0].directory) for row in ranking.rows]
    covariance = auroc_covariance([table["score"] for table in tables], tables[0]["label"])
    given = (covariance.aurocs, covariance.covariance, covariance.degrees_of_freedom)
    expected = verdict_of_trainings(*given, share=covariance.share)
    assert ranking.verdict is not None
    assert ranking.verdict.p == pytest.approx(expected.p)
    assert ranking.verdict.low == pytest.approx(expected.low, nan_ok=True)
    assert ranking.verdict.ranks.tolist() == expected.ranks.tolist() == [[1, 2], [1, 2], [3, 3]]
    assert sorted(ranking.best_set) == ["densenet121", "resnet34"]


def test_configurations_are_judged_by_their_seeds_with_the_covariance_over_slides(tmp_path: Path) -> None:
    seeds(tmp_path, {"resnet18": 1.5, "resnet34": 2.2}, 3, tiles=300, slides=25, split="slide")
    ranking = compare_runs([tmp_path])
    tables = [[predictions(run.directory) for run in row.runs] for row in ranking.rows]
    one = tables[0][0]
    covariance = auroc_covariance([table["score"] for row in tables for table in row], one["label"], one["group"])
    aurocs = [[roc_auc_score(table["label"], table["score"]) for table in row] for row in tables]
    expected = verdict_of_configurations(
        aurocs, covariance.covariance, covariance.degrees_of_freedom, hardest=covariance.hardest
    )
    assert (ranking.unit, ranking.population, ranking.slides) == ("configuration", "slides", 25)
    assert ranking.verdict is not None
    assert ranking.verdict.p == pytest.approx(expected.p)
    assert ranking.verdict.row_low == pytest.approx(expected.row_low)


def test_folds_are_averaged_and_claimed_as_trainings(folds: Path) -> None:
    ranking = compare_runs([folds])
    assert (ranking.unit, ranking.folds, ranking.tiles, len(ranking.pairs)) == ("training", 5, 750, 10)
    first = ranking.rows[0]
    assert first.name == "densenet121"
    tables = {run.pair: predictions(run.directory) for run in first.runs}
    aurocs = [roc_auc_score(table["label"], table["score"]) for table in tables.values()]
    assert ranking.verdict is not None
    assert ranking.verdict.auroc[0] == pytest.approx(np.mean(aurocs))
    assert first.sd("auroc") == pytest.approx(np.std(aurocs, ddof=1))
    whole = [pd.concat([tables[fold, seed] for fold in range(5)]) for seed in range(2)]
    assert first.pooled == pytest.approx(np.mean([roc_auc_score(table["label"], table["score"]) for table in whole]))
    variance = 0.0
    for fold in range(5):
        pair = [
            [predictions(run.directory) for run in row.runs if run.pair[0] == fold] for row in (first, ranking.rows[1])
        ]
        part = auroc_covariance(
            [table["score"] for row in pair for table in row], pair[0][0]["label"], pair[0][0]["group"]
        )
        contrast = np.array([0.5, 0.5, -0.5, -0.5])
        variance += float(contrast @ part.covariance @ contrast) / 25
    half = ranking.verdict.difference[0, 1] - ranking.verdict.low[0, 1]  # its far end allows for more
    assert ranking.verdict.high[0, 1] > ranking.verdict.difference[0, 1] + half > 0
    assert half == pytest.approx(stats.t.ppf(0.975, ranking.verdict.degrees_of_freedom[0, 1]) * math.sqrt(variance))
    text = " ".join(answer(ranking))
    assert "These 10 trainings of densenet121 scored" in text
    assert (
        "Folds share training tiles: whether densenet121's settings are better needs three seeds of one split" in text
    )


@pytest.mark.parametrize("study", [3, 7])
def test_equal_models_are_not_told_apart_however_many_there_are(study: int, tmp_path: Path) -> None:
    """Best against the rest, with Holm, called the best better than one of its equals in each of these studies."""
    for model in range(27):
        fake_run(tmp_path / str(model), tiles=200, model__name=f"model {model}", data__seed=study)
    found = histolight.compare(tmp_path)
    assert len(found.best_set) == 27
    assert all(row["rank"] == [1, 27] for row in found.rows)


def test_ten_seeds_given_as_ten_rows_are_all_in_the_set_of_the_best(tmp_path: Path) -> None:
    for draw, slides in enumerate((0, 12, 40)):
        for row in range(10):
            changes = {"model__name": f"seed {row}", "data__seed": draw}
            fake_run(tmp_path / str(draw) / str(row), 2.0, 400, slides, "slide" if slides else "random", **changes)
        found = histolight.compare(tmp_path / str(draw))
        assert len(found.best_set) == 10
        assert all(row["rank"] == [1, 10] for row in found.rows)
        assert found.answer[0].startswith("These 10 trainings can't be told apart on other ")


def test_one_training_each_is_never_a_verdict_on_configurations(tmp_path: Path) -> None:
    for name, shift in (("resnet18", 1.0), ("resnet34", 2.5)):
        fake_run(tmp_path / name, shift, 2000, 40, "slide", model__name=name)
    found = histolight.compare(tmp_path)
    first, second = found.rows
    worse = second["worse_than"]
    assert found.answer[0] == (
        f"This training of resnet34 scored {worse['by']:.4f} above this training of resnet18; expected on other slides "
        f"{worse['low']:.4f} to {worse['high']:.4f} (simultaneous 95 %)."
    )
    assert "Whether resnet34's settings are better needs three seeds." in found.answer
    assert {row["unit"] for row in found.rows} == {"training"}
    assert (first["seeds"], found.population) == (1, "slides")


def test_two_seeds_are_trainings_and_three_a_configuration(tmp_path: Path) -> None:
    for count, unit in ((2, "training"), (3, "configuration")):
        folder = seeds(tmp_path / unit, {"resnet18": 1.0, "resnet34": 2.5}, count, tiles=500)
        found = histolight.compare(folder)
        assert {row["unit"] for row in found.rows} == {unit}
        assert found.best_set == ["resnet34"]
    assert found.answer[0] == (
        "The configuration resnet34 is the best of these 2 configurations (3 seeds each) on other tiles like these: "
        "every other is worse (all claims together at 95 %)."
    )
    assert "needs three seeds" not in " ".join(found.answer)


def test_seeds_that_differ_keep_configurations_in_the_set_that_trainings_would_leave(tmp_path: Path) -> None:
    folder = seeds(tmp_path, {"resnet18": 1.85, "resnet34": 2.15}, 3, spread=0.5, tiles=4000)
    assert len(histolight.compare(folder).best_set) == 2
    one_seed = [run for run in find_runs(folder) if run.name.endswith("_0")]
    assert len(histolight.compare(one_seed).best_set) == 1


@pytest.mark.parametrize(
    ("split", "slides", "population", "words"),
    [
        ("slide", 12, "slides", "on other slides"),
        ("given", 12, "slides", "on other slides"),
        ("given", 0, "tiles", "on other tiles like these"),
        ("random", 12, "tiles", "on other tiles of these slides"),
        ("random", 0, "tiles", "on other tiles like these"),
        ("overlap", 80, "tiles", "on other tiles like these"),
    ],
)
def test_the_population_is_slides_only_where_training_has_not_seen_them(
    split: str, slides: int, population: str, words: str, tmp_path: Path
) -> None:
    for name in ("resnet18", "resnet34"):
        fake_run(tmp_path / name, 2.0, slides=slides, split=split, model__name=name)
    found = histolight.compare(tmp_path)
    assert (found.population, found.split) == (population, split)
    assert words in found.answer[0]
    if split == "overlap":
        assert "clustered by groups of overlapping tiles" in found.method
        assert found.rows[0]["slides"] == 0


def test_tiles_of_unknown_slides_among_known_ones_narrow_the_population(tmp_path: Path) -> None:
    for name in ("resnet18", "resnet34"):
        run = fake_run(tmp_path / name, 2.0, slides=20, split="slide", model__name=name)
        table = predictions(run)
        table.loc[:20, "group"] = None
        table.to_csv(run / "predictions" / "val.csv", index=False)
    found = histolight.compare(tmp_path)
    assert found.population == "tiles"
    assert "Not every tile's slide is known: nothing is said here of other slides." in found.answer


def test_few_slides_with_tumour_rank_three_rows_and_no_more(tmp_path: Path) -> None:
    for number, shift in enumerate((0.5, 1.5, 2.5, 3.5)):
        run = fake_run(tmp_path / str(number), shift, 900, slides=30, split="slide", model__name=f"model {number}")
        table = predictions(run)
        table["group"] = np.where(table["label"] == 1, "tumour " + (table.index % 3).astype(str), table["group"])
        table.to_csv(run / "predictions" / "val.csv", index=False)
    found = histolight.compare(tmp_path)
    assert found.answer[0].startswith("These 4 trainings can't be ranked: 3 slides with tumour")
    assert "cannot rank 4 rows: add slides, or name up to three rows beforehand (among=…)." in found.answer[0]
    assert len(found.best_set) == 4
    assert found.method.startswith("none: 3 slides with tumour")
    few = histolight.compare(tmp_path, among="model 0,model 3")
    assert len(few.rows) == 2
    assert few.method.startswith("covariance")


def test_a_class_on_one_slide_has_no_interval_and_no_verdict(tmp_path: Path) -> None:
    for name, shift in (("resnet18", 0.5), ("resnet34", 3.0)):
        run = fake_run(tmp_path / name, shift, slides=5, split="slide", model__name=name)
        table = predictions(run)
        table.loc[table["label"] == 1, "group"] = "the only one"
        table.to_csv(run / "predictions" / "val.csv", index=False)
    found = histolight.compare(tmp_path)
    assert found.answer[0] == "These 2 trainings can't be ranked: one slide holds every positive tile."
    assert found.rows[0]["low"] is None
    assert len(found.best_set) == 2


def test_the_order_of_the_tiles_in_a_file_does_not_matter(three: Path) -> None:
    before = histolight.compare(three)
    path = three / "1_resnet34" / "predictions" / "val.csv"
    pd.read_csv(path).sample(frac=1, random_state=0).to_csv(path, index=False)
    assert histolight.compare(three).rows == before.rows


def test_one_fold_against_five_is_not_ranked(tmp_path: Path) -> None:
    """The mean over five folds was once compared with that over another one, and called better by a negative number."""
    for fold in range(5):
        fake_run(tmp_path / f"d{fold}", 1.9, 300, model__name="densenet121", data__fold=fold)
    fake_run(tmp_path / "r0", 2.6, 300, model__name="resnet18", data__fold=0)
    found = histolight.compare(tmp_path)
    assert [row["row"] for row in found.rows] == found.best_set == ["densenet121"]
    (missing,) = found.not_ranked
    assert (missing["row"], missing["status"], missing["runs"]) == ("resnet18", "incomplete", [str(tmp_path / "r0")])
    assert missing["reason"].startswith(
        "it lacks 4 of the 5 trainings that the rows are compared on: fold 1 with seed 0"
    )
    assert "there is no other row to rank" in found.answer[0]


def test_rows_are_compared_on_the_pairs_that_they_share(folds: Path) -> None:
    some = [run for run in find_runs(folds) if not (run.name.startswith("resnet18") and run.name.endswith("_1"))]
    extra = compare_runs([run for run in some if run.name != "resnet18_3_0"])
    assert [row.name for row in extra.rows] == ["densenet121"]
    assert "it lacks 6 of the 10 trainings" in unranked(extra)["resnet18"]


def test_further_seeds_of_one_row_are_left_out(tmp_path: Path) -> None:
    for name in ("resnet18", "resnet34", "vgg11"):
        fake_run(tmp_path / name, model__name=name)
    for seed in (1, 2):
        fake_run(tmp_path / f"more {seed}", model__name="vgg11", seed=seed)
    ranking = compare_runs([tmp_path])
    assert (len(ranking.rows), ranking.pairs, ranking.uncounted) == (3, [(None, 0)], 2)


def test_a_sweep_in_progress_ranks_its_complete_rows(tmp_path: Path) -> None:
    seeds(tmp_path, {"resnet18": 1.5, "resnet34": 2.0}, 3)
    fake_run(tmp_path / "vgg11_0", model__name="vgg11", seed=0)
    fake_run(tmp_path / "vgg11_1", model__name="vgg11", seed=1, status="running")
    ranking = compare_runs([tmp_path])
    assert {row.name for row in ranking.rows} == {"resnet18", "resnet34"}
    assert unranked(ranking) == {
        "vgg11": "it lacks 2 of the 3 trainings that the rows are compared on: seed 1, seed 2",
        "vgg11_1": "it has no result yet",
    }


def test_other_tiles_and_other_splits_are_not_ranked_and_the_reason_says_why(three: Path) -> None:
    fake_run(three / "3", 9.0, data__seed=1)
    fake_run(three / "4", 9.0, split="given")
    found = histolight.compare(three)
    assert len(found.rows) == 3
    reasons = {Path(one["runs"][0]).name: one["reason"] for one in found.not_ranked}
    assert reasons["3"] == "its tiles, their labels or their slides are not those of the ranked rows; data.seed differs"
    assert reasons["4"] == "its split is of another kind than that of the ranked rows (given instead of random)"


def test_other_labels_of_the_same_ids_are_other_tiles(three: Path) -> None:
    path = three / "2_densenet121" / "predictions" / "val.csv"
    table = pd.read_csv(path)
    table["label"] = 1 - table["label"]
    table.to_csv(path, index=False)
    assert len(compare_runs([three]).rows) == 2


def test_the_test_part_is_preferred_where_every_run_has_one(tmp_path: Path) -> None:
    for name in ("resnet18", "resnet34"):
        fake_run(tmp_path / name, parts=("val", "test"), model__name=name)
    ranking = compare_runs([tmp_path])
    assert ranking.part == "test"
    assert where(ranking) == "200 test tiles (random split)"
    assert "The epoch of each run was chosen" not in " ".join(answer(ranking))
    run = ranking.rows[0].runs[0]
    assert set(run.tiles.ids) == set(predictions(run.directory, "test")["id"])

    fake_run(tmp_path / "vgg11", model__name="vgg11")
    assert compare_runs([tmp_path]).part == "val"


def grid(folder: Path, count: int) -> Path:
    for name, rates in (("resnet18", (1e-4, 1e-3, 1e-2)), ("resnet34", (1e-4,))):
        for rate in rates:
            for seed in range(count):
                changes = {"model__name": name, "optimizer__lr": rate, "seed": seed}
                fake_run(folder / f"{name}_{rate}_{seed}", 2.5 if rate == 1e-3 else 1.0, **changes)
    return folder


def test_by_judges_each_value_at_its_best_point_on_seeds_that_did_not_choose_it(tmp_path: Path) -> None:
    ranking = compare_runs([grid(tmp_path, 4)], by="model.name")
    found = {row.config["model.name"]: (row.config["optimizer.lr"], row.chosen_from) for row in ranking.rows}
    assert found == {"resnet18": (1e-3, 3), "resnet34": (1e-4, 1)}
    assert ranking.chosen_by == [(None, 0)]
    assert ranking.pairs == [(None, 1), (None, 2), (None, 3)]
    assert ranking.unit == "configuration"
    assert "chosen by the validation AUROC of seed 0, which the verdict does not count" in " ".join(answer(ranking))
    # The validation tiles chose one of three points for one row and none for the other: they do not judge them too.
    assert "can't be ranked: their points were chosen on these same validation tiles" in answer(ranking)[0]
    assert ranking.verdict is not None
    assert ranking.verdict.best.all()
    assert ranking.verdict.ranks.tolist() == [[1, 2]] * 2


def test_by_ranks_on_a_test_part_that_chose_nothing(tmp_path: Path) -> None:
    for name, rates in (("resnet18", (1e-4, 1e-3)), ("resnet34", (1e-4,))):
        for rate, seed in itertools.product(rates, range(4)):
            changes = {"model__name": name, "optimizer__lr": rate, "seed": seed}
            fake_run(tmp_path / f"{name}_{rate}_{seed}", 3.5 if rate == 1e-3 else 1.0, parts=("val", "test"), **changes)
    ranking = compare_runs([tmp_path], by="model.name")
    assert ranking.part == "test"
    assert ranking.best_set == ["resnet18, lr 0.001"]


def test_a_given_split_that_tears_slides_apart_says_nothing_of_other_slides(tmp_path: Path) -> None:
    for name in ("resnet18", "resnet34"):
        run = fake_run(tmp_path / name, 2.0, slides=12, split="given", model__name=name)
        metrics = json.loads((run / "metrics.json").read_text())
        (run / "metrics.json").write_text(json.dumps(metrics | {"torn_slides": 3}))
    found = histolight.compare(tmp_path)
    assert found.population == "tiles"


def test_by_without_a_further_seed_has_no_verdict(tmp_path: Path) -> None:
    found = histolight.compare(grid(tmp_path, 1), by="model.name")
    assert found.rows == found.best_set == []
    assert "those that chose them. Train each with three other seeds" in found.answer[0]
    chosen = {one["row"]: one["reason"] for one in found.not_ranked}
    assert set(chosen) == {"resnet18, lr 0.001", "resnet34, lr 0.0001"}
    assert "chosen from 3 points by a validation AUROC of 0.9" in chosen["resnet18, lr 0.001"]


def test_by_counts_every_seed_where_no_value_has_a_second_point(tmp_path: Path) -> None:
    for name, seed in itertools.product(("resnet18", "resnet34"), range(3)):
        fake_run(tmp_path / f"{name}_{seed}", model__name=name, seed=seed)
    ranking = compare_runs([tmp_path], by="model.name")
    assert (ranking.pairs, ranking.chosen_by) == ([(None, 0), (None, 1), (None, 2)], [])
    assert "own best point" not in " ".join(answer(ranking))


def test_by_takes_further_seeds_of_the_chosen_points_from_another_folder(tmp_path: Path) -> None:
    grid(tmp_path / "grid", 1)
    for name, rate in (("resnet18", 1e-3), ("resnet34", 1e-4)):
        for seed in (1, 2, 3):
            changes = {"model__name": name, "optimizer__lr": rate, "seed": seed}
            fake_run(tmp_path / "further" / f"{name}{seed}", 2.5 if rate == 1e-3 else 1.0, **changes)
    ranking = compare_runs([tmp_path / "grid", tmp_path / "further"], by="model.name")
    assert {row.name for row in ranking.rows} == {"resnet18, lr 0.001", "resnet34, lr 0.0001"}
    assert [seed for _, seed in ranking.pairs] == [1, 2, 3]


def test_by_leaves_the_verdict_three_seeds_where_a_point_lacks_one(tmp_path: Path) -> None:
    (grid(tmp_path, 4) / "resnet18_0.01_0" / "metrics.json").write_text('{"status": "failed"}')
    ranking = compare_runs([tmp_path], by="model.name")
    assert ranking.chosen_by == [(None, 1)]
    assert [seed for _, seed in ranking.pairs] == [0, 2, 3]


def test_by_chooses_on_validation_where_the_test_part_is_shown(tmp_path: Path) -> None:
    for rate in (1e-4, 1e-3):
        for seed in (0, 1):
            fake_run(tmp_path / f"{rate}_{seed}", parts=("val", "test"), optimizer__lr=rate, seed=seed)
    lower = compare_runs([tmp_path]).rows[1].runs[0].directory
    metrics = json.loads((lower / "metrics.json").read_text())
    metrics["val"]["auroc"]["value"] = 0.999
    (lower / "metrics.json").write_text(json.dumps(metrics))
    (row,) = compare_runs([tmp_path], by="model.name").rows
    assert [run.directory for run in row.runs] == [lower.with_name(lower.name.replace("_0", "_1"))]


@pytest.mark.parametrize(
    ("key", "message"),
    [("model.nam", "did you mean model.name"), ("seed", "differ only in seed or fold are one row")],
)
def test_by_refuses_what_rows_do_not_have(key: str, message: str, three: Path) -> None:
    with pytest.raises(RequestError, match=message):
        compare_runs([three], by=key)


@pytest.mark.parametrize(
    "among",
    [
        "resnet18, lr 0.0001,resnet34, lr 0.0001",
        "0_a,1_b",
        "resnet18, lr 0.0001,1_b/",
        ["resnet34, lr 0.0001", "resnet18, lr 0.0001"],
    ],
)
def test_among_takes_rows_by_name_or_folder(among: str | list[str], tmp_path: Path) -> None:
    for number, (name, rate) in enumerate((("resnet18", 1e-4), ("resnet34", 1e-4), ("resnet18", 1e-2))):
        fake_run(tmp_path / f"{number}_{'abc'[number]}", model__name=name, optimizer__lr=rate)
    ranking = compare_runs([tmp_path], among=among)
    assert sorted(row.name for row in ranking.rows) == ["resnet18, lr 0.0001", "resnet34, lr 0.0001"]
    assert ranking.unranked == []
    assert "named on the command line" in " ".join(answer(ranking))


@pytest.mark.parametrize(
    ("among", "message"),
    [("resnet18,resnet35", "no row or run folder is called resnet35.*resnet34"), ("resnet18", "names one row")],
)
def test_among_refuses_unknown_and_single_rows(among: str, message: str, three: Path) -> None:
    with pytest.raises(RequestError, match=message):
        compare_runs([three], among=among)


def test_a_run_that_failed_can_not_be_compared(tmp_path: Path) -> None:
    fake_run(tmp_path / "a", status="failed", reason="out of memory")
    with pytest.raises(RequestError, match=r"none of 1 runs can be compared \(.*a: failed, out of memory\): give comp"):
        compare_runs([tmp_path])


def test_a_single_row_is_given_with_its_interval(three: Path) -> None:
    ranking = compare_runs([three / "1_resnet34"])
    table = predictions(three / "1_resnet34")
    auroc = roc_auc_score(table["label"], table["score"])
    assert headline(ranking).startswith(f"This training of resnet34 has an AUROC of {auroc:.4f} [")
