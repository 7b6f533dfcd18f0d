from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from scipy.special import expit
from sklearn import metrics as reference

from histolight.reports.measure import draw_part, measure_part, predictions_table, save_figures


def tiles(count: int = 120, seed: int = 0) -> pd.DataFrame:
    random = np.random.default_rng(seed)
    label = random.integers(0, 2, count)
    logit = (label + random.normal(size=count)).astype(np.float32)
    table = pd.DataFrame({"id": [f"t{row}" for row in range(count)], "label": label, "group": None, "logit": logit})
    return table.assign(score=expit(logit), cluster=None)


def test_logits_in_any_order_find_their_tiles() -> None:
    part = tiles(5).assign(row=[7, 2, 9, 0, 4], split="val", cluster=["a", "a", "b", "c", "d"])
    found = predictions_table(part, np.array([0, 9, 4, 7, 2]), np.array([3.0, 2.0, 4.0, 0.0, 1.0], dtype=np.float32))
    assert list(found) == ["id", "label", "group", "cluster", "logit", "score"]
    assert found["id"].tolist() == part["id"].tolist()
    assert found["cluster"].tolist() == ["a", "a", "b", "c", "d"]
    assert found["logit"].tolist() == [0.0, 1.0, 2.0, 3.0, 4.0]
    assert found["score"].dtype == np.float32
    assert found["score"].to_numpy() == pytest.approx(1 / (1 + np.exp(-np.arange(5))))


def test_tiles_that_each_are_a_cluster_of_their_own_have_none() -> None:
    part = tiles(3).assign(row=[0, 1, 2], split="val", cluster=["a", "b", "c"])
    found = predictions_table(part, np.arange(3), np.zeros(3, dtype=np.float32))
    assert found["cluster"].isna().all()


def test_a_part_is_measured_at_one_half_and_at_the_threshold() -> None:
    table = tiles()
    found = measure_part("test", table, 0.3)
    assert list(found) == ["test", "test_at_threshold"]
    assert {"auroc", "average_precision", "nll", "ece"} <= set(found["test"])
    assert list(found["test_at_threshold"]) == ["accuracy", "balanced_accuracy", "f1", "sensitivity", "specificity"]
    for name, threshold in (("test", 0.5), ("test_at_threshold", 0.3)):
        called = table["score"] > threshold
        assert found[name]["accuracy"].value == reference.accuracy_score(table["label"], called)
        assert found[name]["sensitivity"].value == reference.recall_score(table["label"], called)
    slides = measure_part("test", table.assign(cluster=[f"s{row % 30}" for row in range(120)]), 0.3)
    assert slides["test"]["auroc"].method != found["test"]["auroc"].method


class Numbers:
    """Tiles that are as bright as their row."""

    def gather(self, rows: np.ndarray) -> np.ndarray:
        return np.broadcast_to(rows[:, None, None, None].astype(np.uint8), (len(rows), 32, 32, 3))


def test_the_worst_calls_show_their_own_tiles() -> None:
    table = tiles(4).assign(label=[0, 1, 0, 1], score=[0.1, 0.2, 0.9, 0.8])
    found = {**measure_part("val", table, 0.5), "threshold": 0.5}
    drawn = draw_part("val", table, np.array([11, 22, 33, 44]), Numbers(), found, "other tiles")  # type: ignore[arg-type]
    assert drawn["roc"].axes[0].get_title().startswith("val, other tiles\nAUROC ")
    [axes] = drawn["worst_calls"].axes
    assert [image.get_array().max() for image in axes.images] == [33, 22]
    assert [text.get_text() for text in axes.texts] == ["benign, score 0.90", "tumour, score 0.20"]
    assert drawn["worst_calls"].get_suptitle() == "val, other tiles: threshold 0.500 calls 2 of 4 tiles wrong"


def test_figures_are_saved_under_the_name_of_their_part(tmp_path: Path) -> None:
    save_figures({"roc": Figure()}, "test", tmp_path)
    assert [path.name for path in (tmp_path / "figures").iterdir()] == ["test_roc.png"]
