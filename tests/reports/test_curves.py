from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from histolight.reports.curves import curve_figures, read_curves


def test_curves_of_several_files_and_of_a_repeated_step_are_one(tmp_path: Path) -> None:
    folder = tmp_path / "tensorboard"
    for number, points in enumerate([[(1, 0.5), (2, 0.7)], [(2, 0.8), (3, 0.6)]]):
        writer = EventFileWriter(str(folder), filename_suffix=".new")
        for step, value in points:
            summary = Summary(value=[Summary.Value(tag="val/auroc", simple_value=value)])
            writer.add_event(Event(wall_time=float(number), step=step, summary=summary))
        writer.close()
        (written,) = folder.glob("*.new")  # its name counts the process's writers, and sorts 10 before 9
        written.rename(folder / f"events.out.tfevents.{number}")
    curve = read_curves(tmp_path)["val/auroc"]
    assert curve.index.tolist() == [1, 2, 3]
    assert curve.tolist() == pytest.approx([0.5, 0.8, 0.6])


def test_curves_come_from_a_csv_too(tmp_path: Path) -> None:
    (tmp_path / "csv").mkdir()
    (tmp_path / "csv/metrics.csv").write_text("step,train/loss,val/auroc,epoch\n1,0.9,,0\n2,,0.75,0\n3,0.5,,1\n")
    curves = read_curves(tmp_path)
    assert curves["train/loss"].to_dict() == {1: 0.9, 3: 0.5}
    assert curves["val/auroc"].to_dict() == {2: 0.75}
    drawn = curve_figures(curves)
    assert set(drawn) == {"training_loss", "training_auroc"}
    assert all(isinstance(figure, Figure) for figure, _ in drawn.values())
    assert read_curves(tmp_path / "nowhere") == {}


@pytest.mark.parametrize("text", ["", "a,b\n1,2,3,4\n", "epoch,val/auroc\n0,0.5\n"])
def test_a_damaged_log_has_no_curves(text: str, tmp_path: Path) -> None:
    (tmp_path / "csv").mkdir()
    (tmp_path / "csv/metrics.csv").write_text(text)
    assert read_curves(tmp_path) == {}


def curve(*values: float) -> pd.Series:
    return pd.Series(values, index=np.arange(1, len(values) + 1) * 10)


def test_each_line_is_named_and_the_ring_marks_the_best_epoch() -> None:
    curves = {"train/auroc": curve(0.6, 0.7, 0.9), "val/auroc": curve(0.6, 0.8, 0.7), "learning_rate": curve(1, 2, 1)}
    drawn = curve_figures(curves)
    assert set(drawn) == {"training_auroc", "training_learning_rate"}
    (axes,) = drawn["training_auroc"][0].axes
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["training, augmented", "validation"]
    training, validation, ring = axes.lines[-3:]
    assert training.get_ydata().tolist() == [0.6, 0.7, 0.9]
    assert validation.get_xdata().tolist() == [10, 20, 30]
    assert (ring.get_xdata().tolist(), ring.get_ydata().tolist()) == ([20], [0.8])
    assert training.get_color() != validation.get_color()
    assert [line.get_xdata() for line in axes.lines[:-3]] == [[10, 10], [20, 20], [30, 30]]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("step (lines: ends of epochs)", "AUROC")
    (rate,) = drawn["training_learning_rate"][0].axes
    assert rate.get_legend() is None
    assert rate.get_ylabel() == "learning rate"


@pytest.mark.parametrize(("epochs", "lines", "marker", "label"), [(50, 50, "o", "step (lines"), (51, 0, "", "step")])
def test_many_epochs_are_drawn_without_lines_and_dots(epochs: int, lines: int, marker: str, label: str) -> None:
    values = curve(*np.linspace(0.5, 0.9, epochs))
    drawn = curve_figures({"train/loss": curve(1, 2), "val/nll": 1 - values, "val/auroc": values})
    (axes,) = drawn["training_auroc"][0].axes
    assert len(axes.lines) == lines + 2
    assert axes.lines[-2].get_marker() == marker
    assert axes.get_xlabel().startswith(label)
    loss, _ = drawn["training_loss"][0].axes[0].lines[-2:]
    assert loss.get_marker() in ("", "None")  # of single batches: never dots


def test_a_curve_of_one_step_is_a_point_that_is_seen() -> None:
    drawn = curve_figures({"learning_rate": curve(0.001), "train/loss": curve(0.7)})
    for figure, _ in drawn.values():
        (line,) = figure.axes[0].lines
        assert line.get_marker() == "o"
    assert (
        curve_figures({"learning_rate": curve(1, 2)})["training_learning_rate"][0].axes[0].lines[0].get_marker() == ""
    )
