"""A run that was damaged, cut short or made on a full disk: one line says what is wrong, nothing is half-written."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
from odd_names import NAMES, overrides
from small_disk import small_disk

from histolight import api, cli, runs
from histolight.errors import HistolightError, InterruptionError, RequestError
from histolight.models.classifier import Classifier
from histolight.reports.curves import read_curves
from histolight.reports.parts import save_figure

OneLine = Callable[..., str]


def test_tiles_and_slides_called_na_keep_their_names(run: Path) -> None:
    splits = runs.read_splits(run)["split"]
    assert set(NAMES) <= set(splits.index)
    found = pd.concat([runs.read_predictions(run / "predictions" / f"{part}.csv") for part in ("val", "test")])
    assert sorted(found["id"]) == sorted(splits.index[splits != "train"])
    with open(run / "predictions" / "val.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    table = api.Run(run).predictions()
    assert table["id"].tolist() == [row["id"] for row in rows]
    assert table["group"].tolist() == [row["group"] for row in rows]
    assert table["score"].tolist() == [float(pd.Series([row["score"]], dtype="float32")[0]) for row in rows]


def edited(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def header_only(path: Path) -> None:
    path.write_text(path.read_text().splitlines()[0] + "\n")


DAMAGES: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "splits missing": ("splits.csv", Path.unlink, "splits.csv is missing"),
    "splits empty": ("splits.csv", lambda path: path.write_text(""), "splits.csv is damaged"),
    "splits without rows": ("splits.csv", header_only, "splits.csv is damaged: it has no rows"),
    "splits binary": ("splits.csv", lambda path: path.write_bytes(b"\xff\x00\xfe"), "splits.csv is damaged"),
    "splits a folder": ("splits.csv", lambda path: (path.unlink(), path.mkdir()), "splits.csv can't be read"),
    "predictions missing": ("predictions/val.csv", Path.unlink, "val.csv is missing"),
    "predictions empty": ("predictions/val.csv", lambda path: path.write_text(""), "val.csv is damaged"),
    "predictions text": ("predictions/val.csv", lambda path: edited(path, ",0,", ",zero,"), "val.csv is damaged"),
    "predictions label": ("predictions/val.csv", lambda path: edited(path, ",0,", ",7,"), "labels other than 0 and 1"),
    "predictions cut": (
        "predictions/val.csv",
        lambda path: path.write_text(path.read_text()[: path.read_text().rindex(",")]),
        "missing values (NaN) in column score",
    ),
    "metrics without threshold": (
        "metrics.json",
        lambda path: edited(path, '"threshold"', '"thresh"'),
        "metrics.json is damaged: it has no threshold",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_evaluate_says_what_is_damaged(damage: str, run: Path, one_line: OneLine) -> None:
    name, work, message = DAMAGES[damage]
    work(run / name)
    assert message in one_line("evaluate", f"run={run}", "calibrate=true", "hydra.run.dir=out")
    assert not Path("out").exists()


@pytest.mark.parametrize("command", ["explain", "export"])
def test_explain_and_export_say_what_is_damaged(command: str, run: Path, one_line: OneLine) -> None:
    edited(run / "predictions" / "val.csv", ",0,", ",7,")
    assert "labels other than 0 and 1" in one_line(command, f"run={run}", "hydra.run.dir=out")
    assert not Path("out").exists()


def test_the_card_of_an_evaluation_states_the_training(run: Path) -> None:
    assert cli.main(["evaluate", f"run={run}", "data.batch_size=5", "trainer=cpu", "hydra.run.dir=out"]) == 0
    for page in (run / "report.html", Path("out/report.html")):
        assert "2 epochs of adam, " in page.read_text()
        assert "16 tiles a step (8 a batch, 2 batches)" in page.read_text()


def test_a_continued_csv_log_keeps_its_earlier_epochs(place: Path, tmp_path: Path, monkeypatch, undrawn) -> None:
    original = Classifier.training_step

    def interrupt(self: Classifier, batch, batch_idx: int):
        if self.trainer.current_epoch == 1 and batch_idx == 2:
            raise KeyboardInterrupt
        return original(self, batch, batch_idx)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Classifier, "training_step", interrupt)
    with pytest.raises(InterruptionError):
        api.train([*overrides(place / "tiles", place / "cache"), "hydra.run.dir=cut"])
    monkeypatch.setattr(Classifier, "training_step", original)
    log = Path("cut/csv/metrics.csv")
    before = pd.read_csv(log)
    log.rename(log.with_name("earlier.csv"))  # as a kill in the middle of continuing leaves it
    log.write_text("a copy, cut sh")
    api.train(["run=cut"])
    after = pd.read_csv(log)
    pd.testing.assert_frame_equal(after[before.columns].head(len(before)), before)
    whole = read_curves(place / "run")["val/auroc"]
    curve = read_curves(Path("cut"))["val/auroc"]
    assert len(curve) == len(whole) == 2
    assert not log.with_name("earlier.csv").exists()


def test_a_full_disk_leaves_no_half_figure(tmp_path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure()
    figure.add_subplot().plot([0, 1], [0, 1])
    with (
        small_disk(1000),
        pytest.raises(HistolightError, match=r"roc.png can't be written \(File too large\): make room"),
    ):
        save_figure(figure, tmp_path / "figures" / "roc.png")
    assert list(tmp_path.rglob("*.png*")) == []


class FakeProgram:
    """Stands in for PyTorch's exporter, which takes ten seconds: it writes a file as the real one does."""

    def __init__(self, *arguments: object, **options: object) -> None:
        self.model = SimpleNamespace(metadata_props={})

    def save(self, path: Path, external_data: bool) -> None:
        path.write_bytes(bytes(1_000_000))


@pytest.mark.parametrize("command", ["evaluate", "explain", "export", "export format=wsinfer slides.model_mpp=1"])
def test_a_full_disk_is_one_line_for_every_command(command: str, run: Path, one_line: OneLine, monkeypatch) -> None:
    monkeypatch.setattr("torch.onnx.export", FakeProgram)
    with small_disk(20_000):
        line = one_line(*command.split(), f"run={run}", "hydra.run.dir=out", status=1)
    assert "can't be written (File too large): make room there" in line
    written = [path for path in Path("out").rglob("*") if path.is_file() and path.name != ".histolight.lock"]
    assert not any(path.suffix in (".html", ".onnx") or path.name.startswith(".") for path in written)


def test_a_run_with_damaged_predictions_has_no_page(run: Path) -> None:
    from histolight.reports.run_page import write_run_report

    edited(run / "predictions" / "test.csv", ",1,", ",1.5,")
    with pytest.raises(RequestError, match=r"test.csv is damaged: it has labels other than 0 and 1"):
        write_run_report(run)
    (run / "predictions" / "test.csv").unlink()
    (run / "config.yaml").write_text("data: [")
    with pytest.raises(RequestError, match="config.yaml is damaged"):
        write_run_report(run)
