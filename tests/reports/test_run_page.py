from __future__ import annotations

import dataclasses
import io
import json
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from fake_runs import fake_run
from PIL import Image

from histolight import files, runs
from histolight.config.schema import Config
from histolight.data.prepare import PreparedData, prepare
from histolight.errors import HistolightError, RequestError
from histolight.reports.calls import calls_notes
from histolight.reports.curves import read_curves
from histolight.reports.measure import measure_part
from histolight.reports.model_card import known_limits
from histolight.reports.run_page import slides_of_parts, write_run_report
from histolight.statistics.decisions import Band
from histolight.statistics.slides import slide_figures, worst_by_chance


class Words(HTMLParser):
    """Collects what a reader reads, and the headings."""

    def __init__(self) -> None:
        super().__init__()
        self.text = ""
        self.headings: list[str] = []
        self.place = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.place = tag
        self.text += " "

    def handle_data(self, data: str) -> None:
        if self.place == "h2" and data.strip():
            self.headings.append(data)
        if self.place != "style":
            self.text += data


def read(page: Path) -> Words:
    words = Words()
    words.feed(page.read_text())
    words.text = " ".join(words.text.split())
    return words


def measured(directory: Path, **metrics: object) -> Path:
    """Give a fake run the figures of its predictions."""
    found: dict[str, object] = {"threshold": 0.25}
    for path in sorted((directory / "predictions").glob("*.csv")):
        found |= measure_part(path.stem, runs.read_predictions(path), 0.25)
    runs.update_metrics(directory, **found, **metrics)
    return directory


def write_png(path: Path) -> None:
    path.parent.mkdir(exist_ok=True)
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "PNG")
    path.write_bytes(buffer.getvalue())


def test_the_page_of_a_training_has_everything(small_config: Config, tmp_path: Path) -> None:
    from histolight.training.fit import train

    data = prepare(small_config.data)
    train(small_config, data, tmp_path / "run", progress=False)
    words = read(tmp_path / "run" / "report.html")
    assert words.headings == [
        "How good it is",
        "What its calls are worth",
        "The validation tiles in pictures",
        "How it was trained",
        "The tiles and their split",
        "What the checks found",
        "What it cost",
        "Model card",
        "Configuration",
        "Provenance",
    ]
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    auroc = metrics["val"]["auroc"]
    assert (
        "On 12 validation tiles (split by overlap, slides unknown), shufflenet_v2_x0_5 finds tumour with AUROC "
        f"{auroc['value']:.3f} [{auroc['low']:.3f}, {auroc['high']:.3f}] (95 % interval)." in words.text
    )
    for said in ("The epoch was chosen by its AUROC on these same tiles", "other slides will be harder"):
        assert said in words.text
    for setting in ("batch_size 8", "geometry dihedral", f"torch {metrics['versions']['torch']}", "0.34 million"):
        assert setting in words.text
    curves = read_curves(tmp_path / "run")
    assert set(curves) == {"train/loss", "val/nll", "train/auroc", "val/auroc", "learning_rate"}
    assert len(curves["val/auroc"]) == 2
    assert curves["val/auroc"].max() == pytest.approx(auroc["value"], abs=1e-6)


@pytest.mark.parametrize("error", [HistolightError("no room"), ValueError("no room")])
def test_a_page_that_cannot_be_written_leaves_the_run_completed(
    error: Exception,
    small_config: Config,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    from histolight.training import fit as training

    def fail(directory: Path) -> Path:
        raise error

    monkeypatch.setattr(training, "write_run_report", fail)
    config = dataclasses.replace(small_config, trainer=dataclasses.replace(small_config.trainer, max_epochs=1))
    assert training.train(config, _few(config), tmp_path, progress=False)["status"] == "completed"
    assert "the run has no report.html: no room" in caplog.text
    assert ("Traceback" in caplog.text) == isinstance(error, ValueError)


def test_a_figure_that_cannot_be_drawn_leaves_the_metrics(
    small_config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from histolight.training import fit as training

    def fail(*arguments: object) -> None:
        raise OSError(28, "No space left on device", "figures/val_roc.png")

    monkeypatch.setattr(training.measure, "save_figures", fail)
    config = dataclasses.replace(small_config, trainer=dataclasses.replace(small_config.trainer, max_epochs=1))
    with pytest.raises(HistolightError, match="No space left"):
        training.train(config, _few(config), tmp_path, progress=False)
    metrics = runs.read_metrics(tmp_path)
    assert metrics["status"] == "failed"
    assert 0 <= metrics["val"]["auroc"]["value"] <= 1


def _few(config: Config) -> PreparedData:
    return prepare(dataclasses.replace(config.data, limit=24))


def test_the_test_part_leads_and_slides_are_listed_worst_first(tmp_path: Path) -> None:
    run = measured(fake_run(tmp_path / "run", slides=18, split="slide", parts=("val", "test")), slides=90)
    words = read(write_run_report(run))
    assert "On 200 test tiles of 18 slides that it was not trained on, densenet121 finds tumour" in words.text
    assert "Nothing was chosen on these tiles" in words.text
    assert "On the 200 validation tiles, on which the epoch was chosen, it is" in words.text
    assert "tiles of only 18 slides: the interval rests on others being like them" in words.text
    assert "random" not in words.text.partition("How good it is")[0]
    assert "Shown: the 15 of 18 slides" in words.text
    table = slide_figures(pd.read_csv(run / "predictions/test.csv"), 0.25)
    test_part = words.text.partition("Slide by slide: test")[2].partition("Shown:")[0]
    order = [test_part.find(name + " ") for name in table["slide"].head(15)]
    assert order == sorted(order)
    assert -1 not in order
    assert "test at 0.250" in words.text


def test_the_worst_slide_stands_beside_what_chance_makes_of_it(tmp_path: Path) -> None:
    run = measured(fake_run(tmp_path / "run", slides=25, split="slide"), slides=25)
    table = runs.read_predictions(run / "predictions/val.csv")
    sizes = table.groupby("group").size().to_numpy()
    wrong = ((table["score"] > 0.25) != (table["label"] == 1)).mean()
    random = np.random.default_rng(0)
    usual = np.median((random.binomial(sizes, wrong, (20_000, len(sizes))) / sizes).max(axis=1))
    assert worst_by_chance(sizes, wrong) == pytest.approx(usual)
    said = f"with the same probability, {wrong:.1%}, it would have {usual:.1%} or more in half of such samples."
    assert said in read(write_run_report(run)).text


def test_few_slides_of_one_class_are_said_of_many(tmp_path: Path) -> None:
    run = measured(fake_run(tmp_path / "run", slides=25, split="slide"), slides=25)
    table = runs.read_predictions(run / "predictions/val.csv")
    assert "the interval rests on others" not in read(write_run_report(run)).text
    table.loc[table["label"] == 1, "group"] = table["group"].iloc[0]
    files.write_csv(run / "predictions/val.csv", table)
    assert "There are tumour tiles of only 1 of these slides: the interval rests on" in read(write_run_report(run)).text


def test_a_single_epoch_was_not_chosen(tmp_path: Path) -> None:
    one, more = (
        read(write_run_report(measured(fake_run(tmp_path / f"run{count}"), epochs=count, selected_on="val"))).text
        for count in (1, 2)
    )
    assert "The epoch was chosen by its AUROC on these same tiles" in more
    assert (
        "The threshold was chosen on these same tiles: figures at it are optimistic, the more so the fewer tiles."
        in one
    )
    assert "The epoch was chosen" not in one


@pytest.mark.parametrize("status", ["failed", "interrupted"])
def test_a_run_without_figures_says_why(status: str, tmp_path: Path) -> None:
    run = fake_run(tmp_path / "run", status=status, reason="out of GPU memory")
    words = read(write_run_report(run))
    assert f"This run is {status}: out of GPU memory." in words.text
    assert "How good it is" not in words.headings


def test_an_evaluation_has_a_page_too(tmp_path: Path) -> None:
    place = fake_run(tmp_path / "evaluation", split="other", parts=("test",), data__source="folder")
    measured(
        place,
        run="outputs/runs/a",
        temperature=1.4142,
        tta="flips",
        notes=["temperature 1.4142, fitted elsewhere"],
        origin={"test": "data=folder data.root=x, which chose nothing"},
    )
    metrics = runs.read_metrics(place)
    runs.update_metrics(place, test_calibrated={**metrics["test"], "ece": {**metrics["test"]["ece"], "value": 0.0123}})
    for name in ("roc", "reliability_calibrated", "worst_calls"):
        write_png(place / "figures" / f"test_{name}.png")
    page = write_run_report(place)
    words = read(page)
    assert words.text.startswith("Evaluation evaluation")
    assert "On 200 other tiles, densenet121 finds tumour" in words.text
    assert "The epoch was chosen" not in words.text
    assert "Their slides are unknown: the interval knows tiles that overlap but no slides" in words.text
    for said in ("test, calibrated", "0.0123", "divided by 1.4142", "flips", "outputs/runs/a", "Temperature 1.4142"):
        assert said in words.text
    assert "How it was trained" not in words.headings
    assert page.read_text().count("<img") == 3
    assert "image/jpeg" in page.read_text()


def test_calls_say_what_chose_them_and_what_their_intervals_rest_on(tmp_path: Path) -> None:
    slides = fake_run(tmp_path / "run", slides=12, split="slide", report__prevalence=0.05)
    table = runs.read_predictions(slides / "predictions/val.csv")
    found = measure_part("val", table, 0.25, Band(0.2, 0.6), 0.05)
    runs.update_metrics(slides, threshold=0.25, abstention=Band(0.2, 0.6), slides=12, **found)
    text = read(write_run_report(slides)).text
    for said in (
        "no call from a score of 0.200 to one of 0.600. On validation no more than 5% of the tumour tiles lie below, "
        "and of the benign tiles above, whose own figures are therefore optimistic. They are",
        "calls at 0.250, chosen on validation, whose own figures are therefore optimistic, where 0.05 of the tiles",
        "95 % intervals for this training on other slides like these: shares take slides, or groups of overlapping",
        "predictive values from the rates of right and wrong calls (Donner and Zou 2012).",
    ):
        assert said in text
    metrics = runs.read_metrics(slides)
    metrics["val_abstaining"]["error"] |= {"method": "none", "low": None, "note": "no interval: one slide holds all"}
    notes = calls_notes(metrics, {"report": {}})
    assert {
        "No interval: one slide holds all.",
        "NPV: the wrong calls count as fewer than 5 slides, so the interval may be too short.",
    } <= {*notes}
    test = {"chosen_on": "the 9 tiles of x", "abstention": {"low": 0.2, "high": 0.6}}
    assert "no more than 0.5% of the tumour tiles" in calls_notes(test, {"report": {"abstain": 0.005}})[0]
    (note,) = calls_notes(test, {})
    assert "On the 9 tiles of x no more than 5%" in note
    assert "optimistic" not in note
    assert "expected" not in note


def test_a_band_says_what_is_to_be_expected_of_other_tiles_and_where_there_is_none() -> None:
    metrics = {"chosen_on": "x", "choosing": {"0": 24, "1": 40}, "abstention": {"low": 0.49121, "high": 0.49134}}
    (note,) = calls_notes(metrics, {})
    assert "no call from a score of 0.4912 to one of 0.4913." in note
    assert (
        "They are 40 and 24 tiles: of others like them at most about 7.3% and 8% are expected there" in note
    )  # 3 / 41 and 2 / 25
    (note,) = calls_notes(metrics | {"abstention": {"low": 0.49121, "high": 0.49121}}, {})
    assert "one threshold, 0.491, keeps both limits: only what scores exactly that is no call." in note
    assert "expected" not in note


@pytest.mark.parametrize(
    ("split", "torn", "others"), [("slide", 0, "slides"), ("random", 0, "tiles"), ("given", 2, "tiles")]
)
def test_intervals_speak_of_other_slides_only_where_training_has_not_seen_these(split, torn, others) -> None:
    figure = {"value": 0.9, "low": 0.8, "high": 0.95, "method": "korn-graubard", "note": ""}
    metrics = {"split": split, "slides": 12, "torn_slides": torn, "test_abstaining": {"coverage": figure}}
    assert f"for this training on other {others} like these" in calls_notes(metrics, {})[0]


@pytest.mark.parametrize("adapted", [None, "adapted to 200 unlabelled tiles (batch-norm statistics)"])
def test_what_is_adapted_to_its_tiles_says_that_something_was_chosen_on_them(adapted, tmp_path: Path) -> None:
    place = measured(fake_run(tmp_path / "evaluation", split="other", parts=("test",), data__source="folder"))
    runs.update_metrics(place, adapted=adapted and {"sentence": adapted})
    text = read(write_run_report(place)).text
    assert ("But for the adaptation, which saw no label, nothing was chosen on these tiles" in text) == bool(adapted)
    assert ("Nothing was chosen on these tiles" in text) != bool(adapted)


def test_everything_from_data_is_escaped(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>"
    run = measured(fake_run(tmp_path / "run", slides=4, split="slide", data__root=evil), slides=4)
    table = pd.read_csv(run / "predictions/val.csv")
    table["group"] = table["group"].replace(table["group"].iloc[0], evil)
    files.write_csv(run / "predictions/val.csv", table)
    problems = pd.DataFrame({"id": [evil] * 5, "problem": "near-blank", "detail": evil})
    files.write_csv(run / "data_problems.csv", problems)
    page = write_run_report(run).read_text()
    assert "<script" not in page
    assert page.count("&lt;script&gt;alert(1)&lt;/script&gt;") >= 8


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="is not a run directory"):
        write_run_report(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_card_knows_the_limits_of_the_run() -> None:
    tiles = {"val": {"0": 90, "1": 10}}
    val, scores = {"ece": {"value": 0.2}}, {"val": pd.DataFrame({"score": np.full(100, 0.3)})}
    metrics = {"split": "random", "slides": 0, "tiles": tiles, "val": val}
    random = known_limits(metrics, {"data": {"source": "kaggle"}}, scores)
    text = " ".join(random)
    for said in ("on other slides was not measured", "10% of the tiles", "0.200 apart", "no test part"):
        assert said in text
    test = {"split": "slide", "slides": 8, "tiles": {"test": tiles["val"]}, "test": {"ece": {"value": 0.01}}}
    text = " ".join(known_limits(test, {"data": {"source": "synthetic"}}, {"test": scores["val"]}))
    assert "synthetic" in text
    assert "Only 8 slides" in text
    for absent in ("on other slides was not measured", "apart", "no test part"):
        assert absent not in text


@pytest.mark.parametrize(
    ("count", "said"), [(60, "These 60 tiles don't show"), (6000, "A score is not a probability here")]
)
def test_the_card_denies_probabilities_only_where_chance_does_not_explain_the_ece(count: int, said: str) -> None:
    metrics = {"split": "slide", "tiles": {"test": {"0": 1, "1": 1}}, "test": {"ece": {"value": 0.08}}}
    scores = pd.DataFrame({"score": np.linspace(0.02, 0.98, count)})
    assert said in " ".join(known_limits(metrics, {}, {"test": scores}))
    assert "probability" not in " ".join(
        known_limits(metrics | {"test": {"ece": {"value": 0.04}}}, {}, {"test": scores})
    )


def test_the_slides_of_the_training_part_are_those_of_the_split(tmp_path: Path) -> None:
    run = fake_run(tmp_path / "run", slides=3, split="slide", parts=("val",))
    metrics = runs.read_metrics(measured(run, slides=12))
    metrics["tiles"]["train"] = {"0": 10, "1": 10}
    runs.update_metrics(run, tiles=metrics["tiles"])
    validated = pd.read_csv(run / "predictions/val.csv")
    rows = [f"{row.id},val,{row.group}" for row in validated.itertuples()]
    rows += [f"t{number},train,slide of training {number % 9}" for number in range(20)]
    (run / "splits.csv").write_text("\n".join(["id,split,group", *rows]) + "\n")
    assert slides_of_parts(run, {}) == {"train": 9, "val": 3}
    text = read(write_run_report(run)).text.partition("The tiles and their split")[2]
    assert "training 20 10 10 50.0% 9 validation" in " ".join(text.split())


def test_a_figure_without_an_interval_is_not_said_to_have_one(tmp_path: Path) -> None:
    run = measured(fake_run(tmp_path / "run", slides=3, split="slide"), slides=12)
    metrics = runs.read_metrics(run)
    metrics["val"]["auroc"] |= {"low": None, "high": None, "method": "none", "note": "no interval: one slide holds all"}
    runs.update_metrics(run, val=metrics["val"])
    text = read(write_run_report(run)).text
    assert "These are tiles of only 3 slides: others may be unlike them." in text
    assert "the interval rests on" not in text
