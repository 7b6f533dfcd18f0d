"""Domains: hospitals or scanners that are left out one by one, and figures for each."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from sklearn.metrics import roc_auc_score

from histolight.cli import main
from histolight.config.schema import DataConfig
from histolight.data.prepare import prepare
from histolight.data.splits import make_split
from histolight.errors import RequestError


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """90 tiles of 9 slides of three hospitals; class 1 is brighter, less so in hospital b."""
    random = np.random.default_rng(0)
    rows = []
    for number in range(90):
        label, slide = number % 2, number // 10
        hospital = "cab"[slide // 3]
        tile = random.normal(120 + label * (8 if hospital == "b" else 60), 40, (32, 32, 3)).clip(0, 255)
        path = tmp_path / "tiles" / str(label) / f"t{number:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(tile.astype(np.uint8)).save(path)
        rows.append((f"t{number:02d}", f"s{slide}", hospital))
    table = pd.DataFrame(rows, columns=["id", "slide", "hospital"])
    table[["id", "slide"]].to_csv(tmp_path / "slides.csv", index=False)
    table[["id", "hospital"]].to_csv(tmp_path / "hospitals.csv", index=False)
    return tmp_path / "tiles"


def config(root: Path, **values) -> DataConfig:
    common = {"source": "folder", "root": str(root), "image_size": 32, "cache": str(root.parent / "cache")}
    domain = str(root.parent / "hospitals.csv")
    return DataConfig(**{**common, "domain": domain, "groups": str(root.parent / "slides.csv"), "folds": 3, **values})


@pytest.mark.parametrize("fold", [0, 1, 2])
def test_each_fold_leaves_one_domain_out(root, fold):
    data = prepare(config(root, fold=fold))
    assert data.split_kind == "domain"
    validated = data.part("val")
    assert set(validated["domain"]) == {"abc"[fold]}
    assert len(validated) == 30
    assert "abc"[fold] not in set(data.part("train")["domain"])


def test_a_hold_out_goes_by_slide_and_keeps_the_domains(root):
    data = prepare(config(root))
    assert data.split_kind == "slide"
    assert (data.table.groupby("group")["split"].nunique() == 1).all()
    assert data.part("val")["domain"].notna().all()
    assert "domain" not in prepare(config(root, domain=None)).table


def test_a_test_part_has_slides_of_all_domains(root):
    data = prepare(config(root, fold=1, test_fraction=0.12))
    assert set(data.part("val")["domain"]) == {"b"}
    assert (data.table.groupby("group")["split"].nunique() == 1).all()


def test_the_synthetic_source_has_centres_of_whole_slides():
    data = prepare(DataConfig(domain="source", folds=4, fold=2, limit=400, image_size=32))
    assert data.split_kind == "domain"
    assert data.table.groupby("group")["domain"].nunique().eq(1).all()
    assert data.table["domain"].nunique() == 4
    assert set(data.part("val")["domain"]) == {"centre_2"}


def rewrite(root: Path, change) -> None:
    table = pd.read_csv(root.parent / "hospitals.csv")
    change(table).to_csv(root.parent / "hospitals.csv", index=False)


@pytest.mark.parametrize(
    ("change", "values", "message"),
    [
        (
            lambda table: table,
            {"folds": 5, "fold": 0},
            r"has 3 domains to leave out one by one, a, b, c: set data.folds=3",
        ),
        (lambda table: table.head(50), {}, "gives no domain to 40 of 90 tiles, such as t50: each tile needs one"),
        (lambda table: table.assign(hospital=["x", "y"] * 45), {}, "puts the slide s0 into several domains"),
        (
            lambda table: table.assign(hospital=[f"{label}" for label in "01" * 45]),
            {"groups": None, "folds": 2, "fold": 0},
            "leaves out the domain 0, whose 45 tiles all have the label 0: nothing can be measured there",
        ),
        (lambda table: table.assign(id="x"), {}, "names 1 ids more than once|of none of the 90 tiles"),
        (lambda table: table.rename(columns={"hospital": "a"}).assign(b=1), {}, "one column that names the centre"),
        (lambda table: table, {"domain": "source"}, "data=folder does not say where tiles come from"),
        (lambda table: table, {"domain": "gone.csv"}, "gone.csv is not a file: give a CSV id,<centre column>"),
    ],
)
def test_what_does_not_fit_is_one_line(root, change, values, message):
    rewrite(root, change)
    with pytest.raises(RequestError, match=message) as caught:
        prepare(config(root, **values))
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_figures_by_domain_stand_in_metrics_page_and_comparison(root, small, tmp_path, capsys):
    words = [word for word in small if not word.startswith(("data.root", "data.cache"))]
    words += [f"data.root={root}", f"data.groups={root.parent / 'slides.csv'}", f"data.cache={tmp_path / 'cache'}"]
    words += [f"data.domain={root.parent / 'hospitals.csv'}", "data.val_fraction=0.5", "trainer.max_epochs=1"]
    assert main(["train", *words, f"hydra.run.dir={tmp_path / 'run'}"]) == 0
    metrics = json.loads((tmp_path / "run/metrics.json").read_text())
    predictions = pd.read_csv(tmp_path / "run/predictions/val.csv")
    measured = metrics["val_by_domain"]
    assert {entry["domain"] for entry in measured} == set(predictions["domain"])
    for entry in measured:
        tiles = predictions[predictions["domain"] == entry["domain"]]
        assert entry["tiles"] == len(tiles)
        assert entry["auroc"]["value"] == pytest.approx(roc_auc_score(tiles["label"], tiles["logit"]))
        called = tiles["score"] > metrics["threshold"]
        assert entry["sensitivity"] == pytest.approx(called[tiles["label"] == 1].mean())
    aurocs = [entry["auroc"]["value"] for entry in measured]
    assert aurocs == sorted(aurocs)
    assert "Domain by domain: validation" in (tmp_path / "run/report.html").read_text()
    assert main(["compare", f"runs={tmp_path / 'run'}", f"hydra.run.dir={tmp_path / 'compared'}"]) == 0
    assert "AUROC by domain" in capsys.readouterr().out
    (row,) = json.loads((tmp_path / "compared/comparison.json").read_text())["rows"]
    assert list(row["by_domain"].values()) == pytest.approx(aurocs)
    assert "AUROC by domain" in (tmp_path / "compared/report.html").read_text()


def test_tiles_without_a_slide_are_left_out_with_their_domain() -> None:
    table = pd.DataFrame({"id": [f"{number:02d}" for number in range(40)], "label": [0, 1] * 20, "split": None})
    table["domain"] = ["a"] * 20 + ["b"] * 20
    table["group"] = [f"s{number}" if number % 2 else None for number in range(40)]
    table["cluster"] = table["group"].where(table["group"].notna(), table["id"])
    parts, kind = make_split(table, DataConfig("folder", "x", domain="source", folds=2, fold=0))
    assert kind == "domain"
    assert set(parts[table["domain"] == "a"]) == {"val"}
    assert set(parts[table["domain"] == "b"]) == {"train"}
