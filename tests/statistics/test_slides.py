"""Figures of each slide, on a table that is small enough to be measured by hand."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import recall_score, roc_auc_score

from histolight.statistics.slides import domain_figures, slide_figures, slides_of_classes


@pytest.mark.filterwarnings("error")
def test_slides_are_listed_worst_first_and_by_name_where_they_are_alike() -> None:
    rows = [("b", 1, 0.5), ("b", 0, 0.1), ("a", 1, 0.5), ("a", 0, 0.2), ("c", 1, 0.4), ("c", 1, 0.3), ("d", 0, 0.1)]
    found = slide_figures(pd.DataFrame(rows, columns=["group", "label", "score"]), 0.5)  # 0.5 itself is not above 0.5
    expected = pd.DataFrame(
        {
            "slide": ["c", "a", "b", "d"],
            "tiles": [2, 2, 2, 1],
            "tumour": [2, 1, 1, 0],
            "wrong": [1.0, 0.5, 0.5, 0.0],
            "auroc": [np.nan, 1.0, 1.0, np.nan],
            "sensitivity": [0.0, 0.0, 0.0, np.nan],
            "specificity": [np.nan, 1.0, 1.0, 1.0],
        }
    )
    pd.testing.assert_frame_equal(found, expected)


def test_slides_are_measured_as_scikit_learn_does() -> None:
    random = np.random.default_rng(0)
    labels = random.integers(0, 2, 300)
    table = pd.DataFrame({"label": labels, "score": (labels + random.normal(size=300)) / 4 + 0.4})
    table["group"] = np.where(np.arange(300) < 20, None, "s" + (table.index % 5).astype(str))
    table.loc[(table["group"] == "s3") & (table["label"] == 1), "group"] = "only_tumour"
    found = slide_figures(table, 0.45).set_index("slide")
    assert found["wrong"].is_monotonic_decreasing
    assert found["tiles"].sum() == 280
    own = table[table["group"] == "s1"]
    called = own["score"] > 0.45
    assert found.loc["s1", "auroc"] == roc_auc_score(own["label"], own["score"])
    assert found.loc["s1", "sensitivity"] == recall_score(own["label"], called)
    assert found.loc["s1", "specificity"] == recall_score(own["label"], called, pos_label=0)
    assert found.loc["s1", "wrong"] == (called != own["label"]).mean()
    assert np.isnan(found.loc["s3", ["auroc", "sensitivity"]].astype(float)).all()
    assert np.isnan(found.loc["only_tumour", ["auroc", "specificity"]].astype(float)).all()


def test_domains_are_measured_by_themselves_the_worst_first() -> None:
    random = np.random.default_rng(0)
    labels = random.integers(0, 2, 300)
    shift = np.repeat([0.5, 2.0, 1.0], 100)
    logits = shift * labels + random.normal(size=300)
    table = pd.DataFrame({"label": labels, "domain": np.repeat(["b", "c", "a"], 100), "logit": logits, "cluster": None})
    table = table.assign(score=1 / (1 + np.exp(-logits)))
    # 0.6 itself is not above 0.6.
    one_class = {"label": [1, 1, 0, 0, 0], "domain": list("zzyyy"), "logit": 0.0, "score": [0.7, 0.6, 0.6, 0.7, 0.8]}
    table = pd.concat([table, pd.DataFrame(one_class)])
    measured = domain_figures(table, 0.6)
    assert [entry["domain"] for entry in measured] == ["b", "a", "c", "y", "z"]
    for entry in measured[:3]:
        tiles = table[table["domain"] == entry["domain"]]
        called, positive = tiles["score"] > 0.6, tiles["label"] == 1
        assert entry["auroc"].value == pytest.approx(roc_auc_score(positive, tiles["logit"]))
        assert entry["auroc"].low < entry["auroc"].value < entry["auroc"].high
        assert entry["sensitivity"] == pytest.approx((called & positive).sum() / positive.sum())
        assert entry["specificity"] == pytest.approx((~called & ~positive).sum() / (~positive).sum())
        assert (entry["tiles"], entry["tumour"]) == (100, positive.sum())
    assert measured[3:] == [
        {
            "domain": "y",
            "tiles": 3,
            "tumour": 0,
            "auroc": None,
            "sensitivity": None,
            "specificity": pytest.approx(1 / 3),
        },
        {"domain": "z", "tiles": 2, "tumour": 2, "auroc": None, "sensitivity": 0.5, "specificity": None},
    ]


def test_slides_of_a_class_are_counted_where_all_of_them_are_known() -> None:
    known = pd.DataFrame({"label": [0, 0, 1, 1], "group": ["a", "b", "b", "b"]})
    assert slides_of_classes(known) == {0: 2, 1: 1}
    assert slides_of_classes(known.assign(group=["a", "b", "b", None])) == {0: 2}
    assert slides_of_classes(known.assign(group=None)) == {}
