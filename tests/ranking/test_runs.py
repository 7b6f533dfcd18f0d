"""Reading runs: what can't be compared is listed with its reason, and stops nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
from fake_runs import fake_run, write_run

from histolight.errors import RequestError
from histolight.ranking.page import terminal_text
from histolight.ranking.ranking import Ranking, compare_runs
from histolight.ranking.runs import find_runs, read_runs


def reasons(ranking: Ranking) -> dict[str, str]:
    return {one.directories[0].name: f"{one.status}: {one.reason}" for one in ranking.unranked}


def test_runs_that_did_not_finish_are_listed_with_status_and_reason(three: Path) -> None:
    fake_run(three / "3", status="failed", reason="out of GPU memory")
    fake_run(three / "4", status="running")
    fake_run(three / "5", status="interrupted", reason="interrupted in epoch 2")
    ranking = compare_runs([three])
    assert len(ranking.rows) == 3
    assert reasons(ranking) == {
        "3": "failed: out of GPU memory",
        "4": "running: it has no result yet",
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


def test_points_of_a_sweep_that_have_not_begun_are_listed(three: Path) -> None:
    points = {"a": "0_resnet18", "b": "3_vgg11"}
    (three / "sweep.json").write_text(json.dumps({"base": {}, "swept": ["model.name"], "points": points}))
    for folder in (three, three.parent):
        ranking = compare_runs([folder])
        assert [(one.name, one.status) for one in ranking.unranked] == [("3_vgg11", "missing")]
    assert compare_runs([three / "0_resnet18", three / "1_resnet34"]).unranked == []
    for damaged in ("", "[]", '{"points": 3}', '{"points": {"a": 3}}'):
        (three / "sweep.json").write_text(damaged)
        assert compare_runs([three]).unranked == []


def test_points_that_have_not_begun_do_not_hide_why_nothing_can_be_compared(tmp_path: Path) -> None:
    made(tmp_path / "1", content='{"status": "failed", "reason": "no memory"}')
    (tmp_path / "sweep.json").write_text(json.dumps({"points": {"a": "0", "b": "1", "c": "2"}}))
    with pytest.raises(RequestError, match=r"none of 1 runs can be compared \(.*1: failed, no memory\)"):
        compare_runs([tmp_path])


def test_find_runs_takes_a_run_a_sweep_and_a_folder_of_sweeps(three: Path) -> None:
    fake_run(three / "10_more")
    (three / "notes").mkdir()
    names = ["0_resnet18", "1_resnet34", "2_densenet121", "10_more"]
    assert [run.name for run in find_runs(three)] == names
    assert [run.name for run in find_runs(three.parent)] == names
    assert find_runs(three / "10_more") == [three / "10_more"]


def made(folder: Path, file: str = "metrics.json", content: str = '{"status": "running"}') -> Path:
    folder.mkdir(parents=True)
    (folder / file).write_text(content)
    return folder


def test_runs_are_found_three_folders_below_and_no_deeper(tmp_path: Path) -> None:
    kept = made(tmp_path / "sweeps" / "sweep" / "0_point" / "run")
    with pytest.raises(RequestError, match="holds no run"):
        find_runs(tmp_path)
    assert find_runs(tmp_path / "sweeps") == [kept]


def test_numbers_order_the_points_of_a_sweep_and_names_without_one_come_first(tmp_path: Path) -> None:
    for name in ("10_lr=1", "2_lr=1", "b", "a_1"):
        made(tmp_path / name)
    assert [run.name for run in find_runs(tmp_path)] == ["a_1", "b", "2_lr=1", "10_lr=1"]


def test_a_run_is_known_by_its_configuration_too_and_an_evaluation_is_none(tmp_path: Path) -> None:
    begun = made(tmp_path / "0", "config.yaml", "seed: 1")
    measured = made(tmp_path / "1", content='{"status": "completed", "run": "elsewhere"}')
    assert find_runs(tmp_path) == [begun]
    with pytest.raises(RequestError, match="is an evaluation of a run"):
        find_runs(measured)


def predicted(group: list[object], cluster: list[object] | None = None) -> pd.DataFrame:
    table = pd.DataFrame({"id": list("badc"), "label": [1, 0, 1, 0], "group": group})
    return table.assign(
        **({} if cluster is None else {"cluster": cluster}), logit=[1.0, -1, 2, -2], score=[0.7, 0.3, 0.9, 0.1]
    )


def test_tiles_stand_in_the_order_of_their_ids_with_slides_and_clusters(tmp_path: Path) -> None:
    write_run(tmp_path / "slides", {"val": predicted(["s2", "s1", "s2", "s1"])}, split="slide")
    write_run(
        tmp_path / "overlap", {"val": predicted(["c1", "c1", "x", "x"], ["c1", "c1", None, None])}, split="overlap"
    )
    (slides, overlap), part, unranked = read_runs([tmp_path / "slides", tmp_path / "overlap"])
    assert (part, unranked) == ("val", [])
    assert slides.tiles.ids.tolist() == overlap.tiles.ids.tolist() == list("abcd")
    assert slides.tiles.labels.tolist() == [0, 1, 0, 1]
    assert slides.scores.tolist() == pytest.approx([0.3, 0.7, 0.1, 0.9])
    assert slides.tiles.slides is not None
    assert slides.tiles.clusters is not None
    assert slides.tiles.slides.tolist() == slides.tiles.clusters.tolist() == ["s1", "s2", "s1", "s2"]
    assert overlap.tiles.slides is None  # names of components are none of slides
    assert overlap.tiles.clusters is not None
    assert overlap.tiles.clusters[:2].tolist() == ["c1", "c1"]
    assert pd.isna(overlap.tiles.clusters[2:]).all()


def test_a_key_that_an_older_run_lacks_has_its_default(three: Path) -> None:
    path = three / "1_resnet34" / "config.yaml"
    path.write_text("".join(line for line in path.open() if "residency" not in line))
    assert compare_runs([three]).swept == ["model.name"]
