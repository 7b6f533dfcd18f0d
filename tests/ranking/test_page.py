"""What is written: ``comparison.json``, the table, the page, the terminal."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from fake_runs import fake_run
from made_rankings import ranking_of
from matplotlib.figure import Figure

import histolight
from histolight.ranking.page import markdown_text, notes, ranking_figures, terminal_text, write_report
from histolight.ranking.plan import plan_table
from histolight.ranking.ranking import Ranking, compare_runs
from histolight.ranking.runs import Unranked
from histolight.ranking.tables import comparison_csv, main_table
from histolight.reports.page import as_text


def test_comparison_json_has_the_documented_shape_and_is_what_the_api_returns(three: Path, tmp_path: Path) -> None:
    fake_run(three / "3", status="failed", reason="out of GPU memory")
    write_report(compare_runs([three]), tmp_path / "out", "x")
    data = json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert list(data) == ["rows", "best_set", "population", "split", "method", "not_ranked"]
    documented = (Path(__file__).parents[2] / "docs" / "comparison.md").read_text()
    for key in (*data, *data["rows"][0], *data["rows"][-1]["worse_than"], *data["not_ranked"][0]):
        assert f"`{key}`" in documented
    first, second, last = data["rows"]
    assert first["auroc"] >= second["auroc"] > last["auroc"]
    assert first["low"] < first["auroc"] < first["high"]
    assert [row["rank"] for row in data["rows"]] == [[1, 2], [1, 2], [3, 3]]
    assert [row["in_best_set"] for row in data["rows"]] == [True, True, False]
    assert {(row["unit"], row["seeds"], row["tiles"]) for row in data["rows"]} == {("training", 1, 200)}
    assert data["best_set"] == [first["row"], second["row"]]
    assert (data["population"], data["split"]) == ("tiles", "random")
    assert last["worse_than"]["row"] in data["best_set"]
    assert 0 <= last["worse_than"]["low"] < last["worse_than"]["by"] < last["worse_than"]["high"]
    assert data["not_ranked"] == [
        {"row": "3", "status": "failed", "reason": "out of GPU memory", "runs": [str(three / "3")]}
    ]
    found = histolight.compare(three)
    assert {key: getattr(found, key) for key in data} == data
    assert list(found.table["row"]) == [row["row"] for row in data["rows"]]


def test_csv_has_every_figure_and_says_where_it_comes_from(tmp_path: Path) -> None:
    for name, shift in (("resnet18", 1.0), ("resnet34", 2.5)):
        for seed in range(3):
            fake_run(tmp_path / f"{name}{seed}", shift, slides=30, split="slide", model__name=name, seed=seed)
    table = comparison_csv(compare_runs([tmp_path]))
    assert list(table["model.name"]) == ["resnet34", "resnet18"]
    assert list(table[["rank_first", "rank_last"]].to_numpy().ravel()) == [1, 1, 2, 2]
    assert set(table["unit"]) == {"configuration"}
    assert set(table["population"]) == {"slides"}
    assert table["runs"].str.count(";").tolist() == [2, 2]
    assert pd.isna(table["worse_by"][0])
    assert table["worse_by"][1] == pytest.approx(table["auroc"][0] - table["auroc"][1])
    assert {"auroc_sd", "accuracy", "ece_sd", "worse_low", "parameters", "tiles_per_second"} <= set(table)


def test_markdown_terminal_and_page_agree(three: Path, tmp_path: Path) -> None:
    fake_run(three / "<b>x", status="failed", reason="<script>alert(1)</script>")
    ranking = compare_runs([three])
    write_report(ranking, tmp_path / "out", "Comparison of <i>")
    page = (tmp_path / "out" / "report.html").read_text()
    assert "<script" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "Comparison of &lt;i&gt;" in page
    markdown = (tmp_path / "out" / "comparison.md").read_text()
    for text in (page, markdown, terminal_text(ranking, 100)):
        assert f"{ranking.rows[0].mean('auroc'):.4f}" in text
        assert "2 of these 3 trainings may be the best on other tiles like these" in text
        assert "random" in text
    assert markdown.startswith(markdown_text(ranking, "Comparison of <i>", "")[:99])


def test_the_page_begins_with_one_sentence_one_picture_and_one_table(three: Path, tmp_path: Path) -> None:
    write_report(compare_runs([three]), tmp_path / "out", "three")
    page = (tmp_path / "out" / "report.html").read_text()
    places = [page.index(text) for text in ("may be the best", "Each bar spans the ranks", "<table", "By how much")]
    assert places == sorted(places)
    assert page.index("<table") < page.index("ROC of all rows")


def test_the_table_marks_the_set_of_the_best_and_says_how_far_below_it_the_others_are(three: Path) -> None:
    ranking = compare_runs([three])
    table = main_table(ranking)
    assert table.columns == ["rank", "model", "AUROC", "verdict"]
    assert table.marked == 2
    assert [str(row[0]) for row in table.rows] == ["1-2", "1-2", "3"]
    assert [str(row[3]) for row in table.rows[:2]] == ["may be the best"] * 2
    assert re.fullmatch(r"0\.\d{4} below the first row \[0\.\d{4}, 0\.\d{4}\]", str(table.rows[2][3]))


def test_figures_follow_what_was_swept(tmp_path: Path) -> None:
    sweep = tmp_path / "grid"
    for rate in (1e-4, 1e-3, 1e-2):
        for decay in (0.0, 1e-4):
            costs = {"seconds": 30 + 1e4 * rate, "parameters": 1e6}
            fake_run(sweep / f"{rate}_{decay}", costs=costs, optimizer__lr=rate, optimizer__weight_decay=decay)
    write_report(compare_runs([sweep]), tmp_path / "out", "grid")
    names = {file.stem for file in (tmp_path / "out" / "figures").glob("*.png")}
    heatmap = "heatmap_optimizer.lr_optimizer.weight_decay"
    assert names == {"ranks", "roc", "axis_optimizer.lr", "axis_optimizer.weight_decay", heatmap, "cost_seconds"}
    assert (tmp_path / "out" / "report.html").read_text().count("data:image/png;base64,") == len(names)


def test_curves_of_all_runs_are_one_picture_while_the_sweep_runs_too(tmp_path: Path, capsys) -> None:
    sweep = tmp_path / "X"
    for number, status in enumerate(["completed"] * 7 + ["running", "failed"]):
        run = fake_run(sweep / f"{number}_lr", status=status, optimizer__lr=10.0**-number)
        rows = [f"{epoch},{0.6 + 0.01 * number * epoch}" for epoch in range(1 + 2 * (number != 1))]
        (run / "csv").mkdir()
        (run / "csv" / "metrics.csv").write_text("\n".join(["step,val/auroc", *rows]) + "\n")
    (sweep / "8_lr" / "csv" / "metrics.csv").write_text("nothing\n")
    ranking = compare_runs([sweep])
    [(_, figure, caption)] = [drawn for drawn in ranking_figures(ranking) if drawn[0] == "curves"]
    lines = figure.axes[0].lines
    assert len(lines) == 7  # one has a single epoch, one a damaged log
    assert {line.get_linestyle() for line in lines if len(line.get_xdata()) == 3} >= {"--", "-"}
    named = {text.get_text() for text in figure.axes[0].get_legend().get_texts()}
    assert named == {row.name for row in ranking.rows[:5]} - {"lr 0.1"}
    assert "Validation AUROC after each epoch" in caption
    assert next((one.status, one.reason) for one in ranking.unranked) == ("running", "it has no result yet")


def test_a_single_row_and_no_row_have_a_page_too(three: Path, tmp_path: Path) -> None:
    write_report(compare_runs([three / "1_resnet34"]), tmp_path / "one", "one")
    assert "there is no other row to rank" in (tmp_path / "one" / "report.html").read_text()
    write_report(compare_runs([three], by="optimizer.lr"), tmp_path / "none", "none")
    assert "Nothing can be ranked" in (tmp_path / "none" / "report.html").read_text()
    assert json.loads((tmp_path / "none" / "comparison.json").read_text())["rows"] == []


HEADINGS = ["Possible ranks", "Ranking", "By how much", "Not ranked", "AUROC by domain", "Further figures"]


def made(rows: int, unranked: bool, domains: bool) -> Ranking:
    out = [Unranked("x", [Path("x")], "failed", "why")] if unranked else []
    ranking = ranking_of([0.9, 0.5, 0.4][:rows], 1e-4, unranked=out)
    for run in ranking.runs if domains else []:
        run.metrics["val_by_domain"] = [{"domain": "far", "auroc": {"value": 0.7}}]
    return ranking


def nothing_ranked() -> Ranking:
    return Ranking([], None, None, "val", [], [Unranked("x", [Path("x")], "chosen", "why")], "model.name", [(None, 0)])


@pytest.mark.parametrize(
    ("ranking", "left_out"),
    [
        (made(3, True, True), []),
        (made(2, True, False), ["By how much", "AUROC by domain"]),  # the first sentence says by how much
        (made(1, False, True), ["Possible ranks", "By how much", "Not ranked"]),
        (nothing_ranked(), ["Possible ranks", "Ranking", "By how much", "AUROC by domain", "Further figures"]),
    ],
)
def test_page_markdown_and_terminal_have_the_sections_that_there_is_something_for(
    ranking: Ranking, left_out: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = [(name, Figure(figsize=(1, 1)), f"{name} drawn") for name in ("first", "second", "third")]
    monkeypatch.setattr("histolight.ranking.page.ranking_figures", lambda _: iter(drawn))
    write_report(ranking, tmp_path, "title")
    page = (tmp_path / "report.html").read_text()
    expected = [heading for heading in HEADINGS if heading not in left_out]
    assert re.findall(r"<h2[^>]*>([^<]+)", page) == [*expected, "How this was computed"]
    assert {path.stem for path in (tmp_path / "figures").glob("*")} == (
        {"first", "second", "third"} if ranking.rows else set()
    )
    if ranking.rows:  # the picture of the ranks stands before the table, all others behind it
        places = [page.index(f"{name} drawn") for name in ("first", "second", "third")]
        assert [place < page.index("<table") for place in places] == [len(ranking.rows) > 1, False, False]
    if ranking.unranked:
        assert "why" in page
    markdown = (tmp_path / "comparison.md").read_text()
    of_page_only = ("Possible ranks", "By how much")
    headings = [heading for heading in expected if heading not in of_page_only]
    assert re.findall(r"^## (.+)$", markdown, re.MULTILINE) == [*headings, "How this was computed"]
    assert markdown.splitlines()[-1].startswith("histolight ")
    shown = terminal_text(ranking, None)
    assert ("AUROC by domain:" in shown, "Not ranked:" in shown) == tuple(
        heading not in left_out for heading in ("AUROC by domain", "Not ranked")
    )


def test_figures_are_those_of_the_keys_that_differ_and_of_costs_that_do(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = [f"data.key{number}" for number in range(9)]
    ranking = replace(ranking_of([0.9, 0.8, 0.7, 0.6], 1e-4), swept=[*keys, "same"])
    for number, row in enumerate(ranking.rows):
        row.config.update(dict.fromkeys(keys, number), same=1)
        row.runs[0].metrics["parameters"] = 1e6 * (number % 2)
    for name in ("axis_figure", "heatmap_figure", "cost_figure", "rank_figure", "roc_figure"):
        monkeypatch.setattr(f"histolight.ranking.figures.{name}", lambda *_: None)
    pairs = [("data.key0", "data.key1")] * 9
    monkeypatch.setattr("histolight.ranking.figures.heatmap_pairs", lambda _, some: pairs if some == keys[:8] else [])
    drawn = [(name, caption) for name, _, caption in ranking_figures(ranking)]
    assert [name for name, _ in drawn] == [
        *("ranks", "roc"),
        *(f"axis_{key}" for key in keys[:8]),
        *["heatmap_data.key0_data.key1"] * 8,
        "cost_parameters",
    ]
    captions = dict(drawn)
    assert captions["axis_data.key3"].startswith("AUROC against key3: ")
    assert captions["heatmap_data.key0_data.key1"] == "Mean AUROC for each key0 and key1."
    assert captions["cost_parameters"].startswith("AUROC against parameters (coloured")


def test_curves_are_read_of_every_run_with_two_epochs_or_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[dict[Path, pd.Series]] = []
    monkeypatch.setattr("histolight.ranking.figures.curves_figure", lambda *given: seen.append(given[2]))
    monkeypatch.setattr("histolight.ranking.figures.roc_figure", lambda *_: None)
    monkeypatch.setattr("histolight.ranking.figures.rank_figure", lambda *_: None)

    def logged(name: str, *values: float) -> Path:
        (tmp_path / name / "csv").mkdir(parents=True)
        lines = ["step,val/auroc", *(f"{epoch},{value}" for epoch, value in enumerate(values))]
        (tmp_path / name / "csv" / "metrics.csv").write_text("\n".join(lines) + "\n")
        return tmp_path / name

    out = [Unranked("x", [logged("failed", 0.5, 0.6), tmp_path / "no log"], "failed", "why")]
    for count in (6, 5):
        ranking = ranking_of([0.9, 0.8, 0.7, 0.6, 0.6, 0.5][:count], 1e-4, unranked=out)
        ranking.rows[0].runs[0].directory = logged(f"two {count}", 0.7, 0.8)
        ranking.rows[1].runs[0].directory = logged(f"one {count}", 0.7)
        captions = {name: caption for name, _, caption in ranking_figures(ranking)}
        assert list(captions)[2] == "curves"
        shown = "those of the first rows coloured" if count > 5 else "a line for each run"
        assert captions["curves"].startswith(f"Validation AUROC after each epoch: {shown}, grey dashes where")
        assert captions["roc"].startswith(f"ROC of {'the first 5 of 6' if count > 5 else 'all'} rows on")
    assert {path.name: values.tolist() for path, values in seen[-1].items()} == {
        "two 5": [0.7, 0.8],
        "failed": [0.5, 0.6],
    }
    assert "curves" not in [name for name, _, _ in ranking_figures(ranking_of([0.9], 1e-4))]


def test_rows_that_cannot_be_told_apart_are_told_what_would(tmp_path: Path) -> None:
    for name in ("resnet18", "resnet34"):
        for seed in range(3):
            fake_run(tmp_path / f"{name}{seed}", 2.0, slides=40, split="slide", model__name=name, seed=seed)
    found = histolight.compare(tmp_path)
    assert found.answer[0] == "These 2 configurations (3 seeds each) can't be told apart on other slides."
    assert "Not told apart does not mean equal. A true difference of 0.0" in found.answer[2]
    assert found.answer[2].endswith("would make that 80 %.")


def test_a_plan_from_a_sweep_says_tiles_slides_and_seeds(tmp_path: Path) -> None:
    for name in ("resnet18", "resnet34"):
        for seed in range(3):
            fake_run(tmp_path / f"{name}{seed}", 2.0, 400, slides=40, split="slide", model__name=name, seed=seed)
    table, notes = plan_table([tmp_path])
    assert table.columns == ["difference", "rows", "seeds each", "chance here", "tiles for 80 %", "slides for 80 %"]
    assert [str(row[0]) for row in table.rows] == ["0.01"] * 5 + ["0.03"] * 5
    chances = [int(str(row[3]).rstrip("%")) for row in table.rows]
    assert chances[:5] < chances[5:]
    assert "assumed" not in " ".join(notes)
    needed = {int(str(row[5]).replace(",", "")) for row in table.rows if str(row[5])[0].isdecimal()}
    assert min(needed) >= 40
    assert max(needed) > 40


def test_a_plan_from_one_run_says_what_it_assumes(three: Path) -> None:
    table, notes = plan_table([three / "1_resnet34"])
    assert {str(row[1]) for row in table.rows} == {"2", "27"}
    assert "assumed that the AUROCs of two rows correlate at 0.5" in " ".join(notes)
    assert "assumed a standard deviation in AUROC of 0.01" in " ".join(notes)
    assert "slides" not in as_text(table)


def test_backbones_are_named_briefly_with_their_licence_and_citation(tmp_path: Path) -> None:
    card = {"url": "https://example.org/m", "licence": "MIT", "citation": "Who 2024", "width": 3}
    of_hub = {"model__kwargs": {"depth": 2}, "model__mean": [0.5, 0.5, 0.5], "model__features": "cls"}
    for seed in range(2):
        fake_run(tmp_path / f"a{seed}", model__name="hf/o/m", model__card=card, **of_hub, seed=seed)
        fake_run(tmp_path / f"b{seed}", model__name="resnet18", seed=seed)
    ranking = compare_runs([tmp_path])
    assert {row.name for row in ranking.rows} == {"hf/o/m", "resnet18"}
    assert ranking.swept == ["model.name"]
    assert "The backbone https://example.org/m: licence MIT; cite Who 2024." in notes(ranking)
