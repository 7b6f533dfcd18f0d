from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from fake_runs import fake_run
from sklearn.metrics import roc_auc_score

from histolight.errors import RequestError
from histolight.ranking.page import (
    answer,
    comparison_csv,
    group_table,
    markdown_text,
    notes,
    terminal_text,
    verdict,
    write_report,
)
from histolight.ranking.ranking import Ranking, compare_runs
from histolight.ranking.runs import find_runs
from histolight.statistics.comparison import Paired, holm, paired_bootstrap, paired_delong


def predictions(directory: Path, part: str = "val") -> pd.DataFrame:
    return pd.read_csv(directory / "predictions" / f"{part}.csv")


def reasons(ranking: Ranking) -> dict[str, str]:
    return {one.directory.name: f"{one.status}: {one.reason}" for one in ranking.unranked}


@pytest.fixture
def three(tmp_path: Path) -> Path:
    """Two models that can't be told apart, and one that is clearly worse."""
    sweep = tmp_path / "sweep"
    for number, (name, shift) in enumerate([("resnet18", 1.0), ("resnet34", 2.5), ("densenet121", 2.5)]):
        fake_run(sweep / f"{number}_{name}", shift, model__name=name)
    return sweep


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


def test_rows_are_ranked_by_auroc_and_show_only_what_differs(three: Path) -> None:
    ranking = compare_runs([three])
    assert ranking.swept == ["model.name"]
    rows = ranking.groups[0].rows
    truth = [roc_auc_score(predictions(row.runs[0].directory)["label"], row.runs[0].scores) for row in rows]
    assert truth == sorted(truth, reverse=True)
    assert [row.mean("auroc") for row in rows] == pytest.approx(truth)
    assert rows[-1].config["model.name"] == "resnet18"


def test_single_runs_are_tested_by_delong_with_holm_over_the_table(three: Path) -> None:
    rows = compare_runs([three]).groups[0].rows
    tables = [predictions(row.runs[0].directory) for row in rows]
    expected = [paired_delong(tables[0]["score"], table["score"], table["label"]) for table in tables[1:]]
    for row, difference, p in zip(rows[1:], expected, holm([one.p for one in expected]), strict=True):
        assert row.test is not None
        assert row.test.method == "DeLong"
        assert row.test.difference == pytest.approx(difference)
        assert row.test.p == pytest.approx(p)


def test_known_slides_make_delong_one_over_slides(tmp_path: Path) -> None:
    for name in ("resnet18", "resnet34"):
        fake_run(tmp_path / name, slides=25, split="slide", model__name=name)
    best, other = compare_runs([tmp_path]).groups[0].rows
    a, b = (predictions(row.runs[0].directory) for row in (best, other))
    assert other.test is not None
    assert other.test.method == "DeLong over slides"
    assert other.test.difference == pytest.approx(paired_delong(a["score"], b["score"], a["label"], a["group"]))


def test_the_order_of_the_tiles_in_a_file_does_not_matter(three: Path) -> None:
    before = compare_runs([three])
    path = three / "1_resnet34" / "predictions" / "val.csv"
    pd.read_csv(path).sample(frac=1, random_state=0).to_csv(path, index=False)
    after = compare_runs([three])
    assert len(after.groups) == 1
    assert [row.test and row.test.difference for row in after.rows] == [
        row.test and row.test.difference for row in before.rows
    ]


def test_the_words_say_what_the_tests_allow(three: Path) -> None:
    ranking = compare_runs([three])
    text = " ".join(answer(ranking))
    assert "can't be told apart on these 200 validation tiles (random split)" in text
    assert "It is better than resnet18: +0." in text
    assert "on which each run's epoch was chosen too: these figures are optimistic" in text
    assert "tiles of one slide may sit on both sides" in text


def test_a_clear_winner_is_called_best(tmp_path: Path) -> None:
    fake_run(tmp_path / "a", 3.0, model__name="resnet18")
    fake_run(tmp_path / "b", 0.5, model__name="resnet34")
    ranking = compare_runs([tmp_path])
    assert verdict(ranking.groups[0], ranking)[0].startswith("resnet18 is best: AUROC 0.9")


def test_folds_and_seeds_become_two_rows_with_mean_sd_pooled_auroc_and_a_paired_test(folds: Path) -> None:
    (group,) = compare_runs([folds]).groups
    best, other = group.rows
    assert (best.config["model.name"], len(best.runs), len(other.runs)) == ("densenet121", 10, 10)
    assert (group.tiles, group.folds) == (750, 5)
    tables = {run.pair: predictions(run.directory) for run in best.runs}
    aurocs = [roc_auc_score(table["label"], table["score"]) for table in tables.values()]
    assert best.mean("auroc") == pytest.approx(np.mean(aurocs))
    assert best.sd("auroc") == pytest.approx(np.std(aurocs, ddof=1))
    whole = [pd.concat([tables[fold, seed] for fold in range(5)]) for seed in range(2)]
    assert best.pooled == pytest.approx(np.mean([roc_auc_score(table["label"], table["score"]) for table in whole]))
    theirs = {run.pair: predictions(run.directory) for run in other.runs}
    pairs = [
        Paired(*(tables[pair][name] for name in ("id", "label", "score")), theirs[pair]["score"], tables[pair]["group"])
        for pair in tables
    ]
    assert other.test is not None
    assert (other.test.method, other.test.pairs) == ("slide bootstrap", 10)
    assert other.test.difference == pytest.approx(paired_bootstrap(pairs))


def test_incomplete_folds_are_said_and_the_test_takes_the_pairs_that_both_have(folds: Path, tmp_path: Path) -> None:
    some = [run for run in find_runs(folds) if run.name not in ("resnet18_4_0", "resnet18_4_1", "resnet18_3_1")]
    ranking = compare_runs(some)
    other = ranking.groups[0].rows[1]
    assert other.pooled is None
    assert other.test is not None
    assert other.test.pairs == 7
    text = " ".join(notes(ranking.groups[0], ranking))
    assert "resnet18 has 7 of the group's 10 (fold, seed) pairs" in text


def test_rows_without_a_common_pair_are_not_tested(tmp_path: Path) -> None:
    for name, seeds in (("resnet18", (0, 1)), ("resnet34", (2, 3))):
        for seed in seeds:
            fake_run(tmp_path / f"{name}{seed}", model__name=name, seed=seed)
    ranking = compare_runs([tmp_path])
    (test,) = [row.test for row in ranking.rows if row.test]
    assert test.method == "no test: no (fold, seed) in common"
    assert math.isnan(test.p)
    assert "could not be tested" in " ".join(answer(ranking))


def test_other_tiles_and_other_splits_are_ranked_apart_with_the_reason(three: Path) -> None:
    fake_run(three / "3", 9.0, data__seed=1)
    fake_run(three / "4", 9.0, split="given")
    ranking = compare_runs([three])
    assert [len(group.rows) for group in ranking.groups] == [3, 1, 1]
    found = {group.rows[0].runs[0].directory.name: group.reason for group in ranking.groups[1:]}
    assert found["3"] == "the tiles, their labels or their slides are others; data.seed differs"
    assert found["4"] == "the split is of another kind (given instead of random)"
    assert group_table(ranking.groups[0], ranking).columns[:3] == ["#", "model", "measured on"]
    text = terminal_text(ranking, None)
    assert "they make 3 groups, each ranked by itself" in text
    assert "Ranked apart from group 1: the split is of another kind" in text


def test_other_labels_of_the_same_ids_are_other_tiles(three: Path) -> None:
    path = three / "2_densenet121" / "predictions" / "val.csv"
    table = pd.read_csv(path)
    table["label"] = 1 - table["label"]
    table.to_csv(path, index=False)
    assert [len(group.rows) for group in compare_runs([three]).groups] == [2, 1]


def test_the_test_part_is_preferred_where_every_run_has_one(tmp_path: Path) -> None:
    for name in ("resnet18", "resnet34"):
        fake_run(tmp_path / name, parts=("val", "test"), model__name=name)
    ranking = compare_runs([tmp_path])
    assert ranking.part == "test"
    assert "epoch was chosen" not in " ".join(answer(ranking))
    run = ranking.rows[0].runs[0]
    assert set(run.tiles.ids) == set(predictions(run.directory, "test")["id"])

    fake_run(tmp_path / "vgg11", model__name="vgg11")
    assert compare_runs([tmp_path]).part == "val"


def test_by_shows_each_value_at_its_own_best_point(tmp_path: Path) -> None:
    for name, rates in (("resnet18", (1e-4, 1e-3, 1e-2)), ("resnet34", (1e-4,))):
        for rate in rates:
            fake_run(tmp_path / f"{name}{rate}", 2.5 if rate == 1e-3 else 1.0, model__name=name, optimizer__lr=rate)
    ranking = compare_runs([tmp_path], by="model.name")
    found = {row.config["model.name"]: (row.config["optimizer.lr"], row.chosen_from) for row in ranking.rows}
    assert found == {"resnet18": (1e-3, 3), "resnet34": (1e-4, 1)}
    assert "3 points" in terminal_text(ranking, None)
    assert "that flatters it" in " ".join(answer(ranking))


def test_by_chooses_on_validation_where_the_test_part_is_shown(tmp_path: Path) -> None:
    for rate in (1e-4, 1e-3):
        fake_run(tmp_path / str(rate), parts=("val", "test"), optimizer__lr=rate)
    ranked = compare_runs([tmp_path]).rows
    path = ranked[1].runs[0].directory / "metrics.json"
    metrics = json.loads(path.read_text())
    metrics["val"]["auroc"]["value"] = 0.999
    path.write_text(json.dumps(metrics))
    (row,) = compare_runs([tmp_path], by="model.name").rows
    assert row.runs[0].directory == ranked[1].runs[0].directory


@pytest.mark.parametrize(
    ("key", "message"),
    [("model.nam", "did you mean model.name"), ("seed", "differ only in seed or fold are one row")],
)
def test_by_refuses_what_rows_do_not_have(key: str, message: str, three: Path) -> None:
    with pytest.raises(RequestError, match=message):
        compare_runs([three], by=key)


def test_a_key_that_an_older_run_lacks_has_its_default(three: Path) -> None:
    path = three / "1_resnet34" / "config.yaml"
    path.write_text("".join(line for line in path.open() if "residency" not in line))
    assert compare_runs([three]).swept == ["model.name"]


def test_runs_that_did_not_finish_are_listed_with_status_and_reason(three: Path) -> None:
    fake_run(three / "3", status="failed", reason="out of GPU memory")
    fake_run(three / "4", status="running")
    fake_run(three / "5", status="interrupted", reason="interrupted in epoch 2")
    ranking = compare_runs([three])
    assert len(ranking.rows) == 3
    assert reasons(ranking) == {
        "3": "failed: out of GPU memory",
        "4": "running: no reason recorded",
        "5": "interrupted: interrupted in epoch 2",
    }
    assert "out of GPU memory" in terminal_text(ranking, None)


def damage(directory: Path, how: str) -> None:
    metrics, predicted = directory / "metrics.json", directory / "predictions" / "val.csv"
    table = pd.read_csv(predicted)
    match how:
        case "no predictions":
            predicted.unlink()
        case "half metrics":
            metrics.write_text(metrics.read_text()[:200])
        case "no metrics":
            metrics.unlink()
        case "no config":
            (directory / "config.yaml").unlink()
        case "damaged config":
            (directory / "config.yaml").write_text("data: [")
        case "no val":
            metrics.write_text('{"status": "completed", "split": "random"}')
        case "null AUROC":
            metrics.write_text('{"status": "completed", "split": "random", "val": {"auroc": {"value": null}}}')
        case "no split":
            metrics.write_text('{"status": "completed"}')
        case "no column":
            table.drop(columns="score").to_csv(predicted, index=False)
        case "NaN":
            table["score"] = table["score"].where(table.index != 3)
            table.to_csv(predicted, index=False)
        case "text":
            table.astype({"score": object}).replace({"score": {table["score"][3]: "abc"}}).to_csv(
                predicted, index=False
            )
        case "half predictions":
            table.head(150).to_csv(predicted, index=False)
        case "empty predictions":
            predicted.write_text("")
        case "one class":
            table.assign(label=1).to_csv(predicted, index=False)
        case "twice":
            table["id"] = table["id"].where(table.index != 3, table["id"][2])
            table.to_csv(predicted, index=False)


DAMAGES = {
    "no predictions": "it has no predictions/val.csv",
    "half metrics": "metrics.json is damaged",
    "no metrics": "has no metrics.json",
    "no config": "it has no config.yaml",
    "damaged config": "config.yaml is damaged",
    "no val": "its metrics.json has no AUROC of the validation part",
    "null AUROC": "its metrics.json has no AUROC of the validation part",
    "no split": "does not say how the tiles were split",
    "no column": "predictions/val.csv has no column score",
    "NaN": "predictions/val.csv has 1 missing values (NaN) in column score",
    "text": "predictions/val.csv is damaged",
    "half predictions": "predictions/val.csv has 150 of 200 tiles: half-written",
    "empty predictions": "predictions/val.csv is damaged",
    "one class": "must have labels 0 and 1",
    "twice": "names a tile twice",
}


@pytest.mark.parametrize("how", DAMAGES)
def test_one_bad_run_among_good_ones_is_listed(how: str, three: Path) -> None:
    damage(three / "1_resnet34", how)
    ranking = compare_runs([three])
    assert len(ranking.rows) == 2
    assert DAMAGES[how] in reasons(ranking)["1_resnet34"]
    assert "\n" not in reasons(ranking)["1_resnet34"]


def test_nothing_left_to_compare_is_an_error_that_says_why(tmp_path: Path) -> None:
    damage(fake_run(tmp_path / "a"), "no predictions")
    with pytest.raises(RequestError, match=r"none of 1 runs can be compared \(.*it has no predictions/val.csv\)"):
        compare_runs([tmp_path])


def test_the_same_run_again_is_not_counted_twice(three: Path) -> None:
    fake_run(three / "3", 2.5, model__name="resnet34")
    ranking = compare_runs([three, three / "1_resnet34"])
    assert [len(row.runs) for row in ranking.rows] == [1, 1, 1]
    assert "the same configuration, fold and seed as" in reasons(ranking)["3"]


def test_a_fold_on_other_tiles_than_its_row_is_not_mixed_in(tmp_path: Path) -> None:
    for fold, seed, tiles in ((0, 0, 200), (1, 0, 200), (0, 1, 180)):
        fake_run(tmp_path / f"{fold}_{seed}", tiles=tiles, data__fold=fold, seed=seed)
    ranking = compare_runs([tmp_path])
    assert len(ranking.rows[0].runs) == 2
    assert "its fold 0 has other tiles" in reasons(ranking)["0_1"]


def test_find_runs_takes_a_run_a_sweep_and_a_folder_of_sweeps(three: Path) -> None:
    fake_run(three / "10_more")
    (three / "notes").mkdir()
    names = ["0_resnet18", "1_resnet34", "2_densenet121", "10_more"]
    assert [run.name for run in find_runs(three)] == names
    assert [run.name for run in find_runs(three.parent)] == names
    assert find_runs(three / "10_more") == [three / "10_more"]


def test_csv_has_every_figure_and_says_where_it_comes_from(folds: Path) -> None:
    table = comparison_csv(compare_runs([folds]))
    assert list(table["rank"]) == [1, 2]
    assert list(table["split"]) == ["slide", "slide"]
    assert table["directories"].str.count(";").tolist() == [9, 9]
    assert {"auroc", "auroc_sd", "accuracy", "ece_low", "p_holm", "parameters", "tiles_per_second"} <= set(table)


def test_markdown_terminal_and_page_agree(three: Path, tmp_path: Path) -> None:
    fake_run(three / "<b>x", status="failed", reason="<script>alert(1)</script>")
    ranking = compare_runs([three])
    write_report(ranking, tmp_path / "out", "Comparison of <i>")
    page = (tmp_path / "out" / "report.html").read_text()
    assert "<script" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "Comparison of &lt;i&gt;" in page
    auroc = f"{ranking.rows[0].mean('auroc'):.4f}"
    for text in (page, (tmp_path / "out" / "comparison.md").read_text(), terminal_text(ranking, 100)):
        assert auroc in text
        assert "random" in text
    assert (
        (tmp_path / "out" / "comparison.md")
        .read_text()
        .startswith(markdown_text(ranking, "Comparison of <i>", "")[:99])
    )


def test_figures_follow_what_was_swept(tmp_path: Path) -> None:
    sweep = tmp_path / "grid"
    for rate in (1e-4, 1e-3, 1e-2):
        for decay in (0.0, 1e-4):
            costs = {"seconds": 30 + 1e4 * rate, "parameters": 1e6}
            fake_run(sweep / f"{rate}_{decay}", costs=costs, optimizer__lr=rate, optimizer__weight_decay=decay)
    write_report(compare_runs([sweep]), tmp_path / "out", "grid")
    names = {file.stem for file in (tmp_path / "out" / "figures").glob("*.png")}
    heatmap = "heatmap_optimizer.lr_optimizer.weight_decay"
    assert names == {"auroc", "roc", "axis_optimizer.lr", "axis_optimizer.weight_decay", heatmap, "cost_seconds"}
    assert (tmp_path / "out" / "report.html").read_text().count("data:image/png;base64,") == len(names)


def test_a_single_row_has_a_page_too(three: Path, tmp_path: Path) -> None:
    ranking = compare_runs([three / "1_resnet34"])
    write_report(ranking, tmp_path / "out", "one")
    assert "there is no other to rank it with" in (tmp_path / "out" / "report.html").read_text()
    assert len(group_table(ranking.groups[0], ranking).rows) == 1
