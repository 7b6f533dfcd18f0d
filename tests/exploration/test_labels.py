from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from scipy.special import expit, logit

from histolight import runs
from histolight.cli import main
from histolight.commands.explore import explore, parse_request
from histolight.config.compose import compose_config, to_yaml, typed
from histolight.data.prepare import prepare
from histolight.errors import RequestError
from histolight.exploration.labels import COPY, LEARNING, doubt_labels, tile_captions
from histolight.files import write_atomically, write_csv

NONE = pd.DataFrame({"id_1": [], "id_2": []})


def predicted(labels: np.ndarray, scores: np.ndarray) -> pd.DataFrame:
    return pd.DataFrame({"id": [f"t{n:04d}" for n in range(len(labels))], "label": labels, "logit": logit(scores)})


def confident_joint(labels: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Northcutt et al. 2021, equation 1: who carries label i and is confidently of class j."""
    probabilities = np.stack([1 - scores, scores], axis=1)
    thresholds = [probabilities[labels == label, label].mean() for label in (0, 1)]
    joint = np.zeros((2, 2))
    for label, row in zip(labels, probabilities, strict=True):
        confident = [j for j in (0, 1) if row[j] >= thresholds[j]]
        if confident:
            joint[label, max(confident, key=lambda j: row[j])] += 1
    return joint


@pytest.mark.parametrize("seed", [0, 1])
def test_as_many_are_doubted_as_confident_learning_estimates_and_flipped_labels_come_first(seed: int) -> None:
    random = np.random.default_rng(seed)
    truth = random.integers(0, 2, 1000)
    scores = expit(3 * (2 * truth - 1) + random.normal(size=1000))
    labels = truth.copy()
    flipped = random.choice(1000, 30, replace=False)
    labels[flipped] = 1 - labels[flipped]
    ranked = doubt_labels(predicted(labels, scores), NONE)
    joint = confident_joint(labels, scores)
    joint *= np.bincount(labels)[:, None] / joint.sum(axis=1, keepdims=True)  # calibrated to the counts of labels
    doubted = ranked[ranked["why"] == LEARNING]
    for label in (0, 1):
        assert (doubted["label"] == label).sum() == pytest.approx(joint[label, 1 - label], abs=1.5)
    right = ranked["id"].head(30).isin([f"t{n:04d}" for n in flipped])
    assert right.mean() > 0.9
    assert ranked["own"][ranked["why"] == LEARNING].is_monotonic_increasing
    assert set(ranked["id"]) == {f"t{n:04d}" for n in range(1000)}


def test_copies_with_different_labels_come_first_and_tiles_of_one_label_are_refused() -> None:
    labels, scores = np.array([0, 1] * 10), np.linspace(0.1, 0.9, 20)
    table = predicted(labels, scores)
    ranked = doubt_labels(table, pd.DataFrame({"id_1": ["t0000"], "id_2": ["t0019"]}))
    assert ranked["why"].head(2).tolist() == [COPY, COPY]
    assert set(ranked["id"].head(2)) == {"t0000", "t0019"}
    with pytest.raises(RequestError, match="all 10 tiles with predictions have the label 0: give more runs"):
        doubt_labels(table[table["label"] == 0], NONE)


def test_without_cleanlab_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cleanlab.filter", None)
    with pytest.raises(RequestError, match=r"explore runs= needs cleanlab: .* histolight\[labels\]"):
        doubt_labels(predicted(np.array([0, 1]), np.array([0.2, 0.7])), NONE)


@pytest.fixture
def folds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Runs of five folds on 60 tiles, as a training leaves them, that score by brightness; three labels are wrong."""
    monkeypatch.chdir(tmp_path)
    random = np.random.default_rng(0)
    for number in range(60):
        label = number % 2
        wrong = number in (10, 21, 44)
        tile = random.integers(0, 60, (32, 32, 3)) + 190 * (label ^ wrong)
        path = tmp_path / "tiles" / str(label) / f"t{number:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(tile.astype(np.uint8)).save(path)
    copied = tmp_path / "tiles/1/t01.png"
    (tmp_path / "tiles/0/copy.png").write_bytes(copied.read_bytes())
    for fold in range(5):
        words = [f"data.root={tmp_path / 'tiles'}", "data=folder", "data.image_size=32", f"data.fold={fold}"]
        config = typed(compose_config([*words, f"data.cache={tmp_path / 'cache'}"]))
        data = prepare(config.data)
        directory = tmp_path / "sweep" / str(fold)
        write_atomically(directory / "config.yaml", to_yaml(config))
        part = data.part("val")
        light = data.tiles.gather(part["row"].to_numpy()).mean(axis=(1, 2, 3))
        part = part.assign(logit=(light - 120) / 20, score=expit((light - 120) / 20))
        write_csv(directory / "predictions/val.csv", part[["id", "label", "group", "cluster", "logit", "score"]])
        figures = {"auroc": {"value": 0.9, "low": 0.8, "high": 0.95, "method": "delong"}}
        runs.update_metrics(
            directory,
            status="completed",
            split="overlap",
            threshold=0.5,
            val=figures,
            data_fingerprint=data.fingerprint,
        )
    return tmp_path / "sweep"


def test_a_cross_validation_lists_what_it_doubts(folds: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explore", f"runs={folds}", "hydra.run.dir=page"]) == 0
    printed = capsys.readouterr().out
    assert "61 tiles have predictions of runs that did not train on them, from 5 runs in all." in printed
    assert "1 pairs of exact copies have different labels: one of each is wrong." in printed
    found = pd.read_csv("page/doubtful_labels.csv")
    assert found["id"].tolist()[:2] == ["copy", "t01"]
    assert found["why"].tolist()[:2] == [COPY, COPY]
    assert set(found["id"][2:]) == {"t10", "t21", "t44"}
    assert found["runs"].eq(1).all()
    page = Path("page/report.html").read_text()
    assert "Copies with different labels" in page
    assert "Labelled benign, predicted tumour" in page
    assert {path.name for path in Path("page/figures").iterdir()} == {
        "conflicts.png",
        "doubted_benign.png",
        "doubted_tumour.png",
    }


def test_a_picture_names_its_tiles_as_the_list_does() -> None:
    shown = pd.DataFrame({"id": ["t01", "a$b", "1976924f642df653b5daad10776a8499c70ccc42"], "score": [0.0185, 1, 0.5]})
    assert tile_captions(shown) == ["t01 0.018", r"a\$b 1.000", "197692…ccc42 0.500"]


def test_one_run_judges_its_own_part_only(folds: Path) -> None:
    sentences = explore(parse_request([f"runs={folds / '3'}", "hydra.run.dir=page"]))
    assert sentences[0].startswith("12 tiles have predictions")
    assert sentences[1].startswith("49 tiles have none, as they trained in every run: a cross-validation")


def test_runs_of_other_tiles_are_refused(folds: Path, tmp_path: Path) -> None:
    metrics = json.loads((folds / "2/metrics.json").read_text())
    (folds / "2/metrics.json").write_text(json.dumps(metrics | {"data_fingerprint": "0"}))
    with pytest.raises(RequestError, match="2 is of other tiles or labels than .*0: give the runs of one cross-valid"):
        explore(parse_request([f"runs={folds}", "hydra.run.dir=page"]))
    (tmp_path / "tiles/0/t00.png").rename(tmp_path / "tiles/1/t00.png")
    with pytest.raises(RequestError, match="are no longer those that .* was trained on: restore them"):
        explore(parse_request([f"runs={folds / '0'}", "hydra.run.dir=page"]))
    with pytest.raises(RequestError, match="data.fold= has no place in histolight explore"):
        parse_request([f"runs={folds}", "data.fold=1"])
