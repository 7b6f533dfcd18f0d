"""Probes of frozen networks: fitted as independent implementations fit them, and finished runs like any other."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import roc_auc_score
from sklearn.neighbors import KNeighborsClassifier
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits, normalize

from histolight import runs
from histolight.config.compose import compose_config, typed
from histolight.config.schema import Config
from histolight.data.prepare import few_shots, prepare
from histolight.errors import InterruptionError, RequestError
from histolight.inference.export import export_onnx
from histolight.inference.networks import load_classifier, load_classifiers
from histolight.models.neighbours import NearestNeighbours
from histolight.reports.model_card import _training
from histolight.training.fit import check_request, prepare_data, train
from histolight.training.probes import PENALTIES, fit_linear, fit_neighbours

Part = tuple[torch.Tensor, torch.Tensor]


@pytest.fixture(scope="module")
def parts() -> tuple[Part, Part]:
    random = torch.Generator().manual_seed(0)
    inputs = torch.randn(300, 6, generator=random) * torch.tensor([1.0, 5, 0.1, 1, 1, 30]) + 3
    noise = torch.randn(300, generator=random)
    labels = ((inputs[:, 0] - 3) + (inputs[:, 1] - 3) / 5 + noise > 0.5).float()
    return (inputs[:200], labels[:200]), (inputs[200:], labels[200:])


def test_the_linear_probe_minimises_the_penalised_loss(parts: tuple[Part, Part]) -> None:
    train_part, val_part = parts
    head = nn.Linear(6, 1)
    tried, best = fit_linear(head, train_part, val_part, pos_weight=2.0)
    assert [figures["penalty"] for figures in tried] == list(PENALTIES)
    assert tried[best]["val_auroc"] == max(figures["val_auroc"] for figures in tried)
    with torch.no_grad():
        assert roc_auc_score(val_part[1], head(val_part[0])[:, 0]) == pytest.approx(tried[best]["val_auroc"])
    deviation = train_part[0].std(0, correction=0)
    weight = (head.weight.detach()[0] * deviation).requires_grad_()  # of standardised features
    bias = (head.bias.detach() + head.weight.detach()[0] @ train_part[0].mean(0)).requires_grad_()
    inputs = (train_part[0] - train_part[0].mean(0)) / deviation
    logits = inputs @ weight + bias
    loss = binary_cross_entropy_with_logits(logits, train_part[1], pos_weight=torch.tensor(2.0))
    (loss + tried[best]["penalty"] / 2 * weight.square().sum()).backward()
    assert weight.grad is not None
    assert bias.grad is not None
    np.testing.assert_allclose(torch.cat([weight.grad, bias.grad]), 0, atol=2e-4)


def test_neighbours_vote_as_those_of_scikit_learn(parts: tuple[Part, Part]) -> None:
    train_part, val_part = parts
    head = NearestNeighbours(6)
    tried, best = fit_neighbours(head, train_part, val_part)
    assert [figures["neighbours"] for figures in tried] == [5, 10, 20, 50, 100]
    count = int(tried[best]["neighbours"])
    logits = head(val_part[0])[:, 0]
    assert roc_auc_score(val_part[1], logits) == pytest.approx(max(figures["val_auroc"] for figures in tried))
    # Of unit vectors the squared distance is 2 - 2 s: exp(s / 0.07) is exp(-d^2 / 0.14) up to a factor.
    judge = KNeighborsClassifier(count, weights=lambda distances: np.exp(-(distances**2) / 0.14))
    judge.fit(normalize(train_part[0]).numpy(), train_part[1].numpy())
    unit = normalize(val_part[0]).numpy()
    distances, _ = judge.kneighbors(unit)
    votes = np.exp((distances[:, :1] ** 2 - distances**2) / 0.14).sum(1)
    share = judge.predict_proba(unit)[:, 1]
    np.testing.assert_allclose(logits, np.log((share * votes + 0.5) / ((1 - share) * votes + 0.5)), atol=2e-3)


@pytest.fixture
def probe_config(small: list[str]) -> Config:
    words = [*small, "model.name=resnet18", "model.freeze=backbone", "augment=none", "data.test_fraction=0.2"]
    return check_request(typed(compose_config(words)))


@pytest.mark.parametrize("kind", ["linear", "knn"])
def test_a_probe_is_a_run_like_any_other(kind: str, probe_config: Config, undrawn, tmp_path: Path, monkeypatch) -> None:
    config = replace(probe_config, model=replace(probe_config.model, probe=kind))
    data = prepare(config.data)
    with monkeypatch.context() as patch:
        patch.setattr("histolight.training.fit.measure_parts", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises((InterruptionError, KeyboardInterrupt)):
            train(config, data, tmp_path / "run")
    metrics = train(config, data, tmp_path / "run", resume=True)
    assert metrics["status"] == "completed"
    chosen = metrics["probe"]["chosen"]
    assert metrics["val"]["auroc"]["value"] == pytest.approx(chosen["val_auroc"])
    network = load_classifier(tmp_path / "run")
    predictions = pd.read_csv(tmp_path / "run/predictions/test.csv", dtype={"id": str})
    rows = data.table.set_index("id")["row"][predictions["id"]].to_numpy()
    tiles = data.tiles.gather(rows)
    with torch.inference_mode():
        logits = network(torch.from_numpy(tiles).permute(0, 3, 1, 2).float() / 255)
    np.testing.assert_allclose(logits, predictions["logit"], rtol=1e-4, atol=1e-4)
    assert f"{next(iter(chosen))}: {next(iter(chosen.values())):g}" in _training(metrics, runs_config(tmp_path / "run"))


def runs_config(run: Path) -> dict:
    import yaml

    return yaml.safe_load((run / "config.yaml").read_text())


@pytest.mark.slow
def test_neighbours_are_exported(probe_config: Config, undrawn, tmp_path: Path) -> None:
    config = replace(probe_config, model=replace(probe_config.model, probe="knn"))
    train(config, prepare(config.data), tmp_path / "run")
    tiles = np.random.default_rng(0).integers(0, 256, (9, 32, 32, 3), dtype=np.uint8)
    assert export_onnx(load_classifiers([tmp_path / "run"], 32)[0], tiles, tmp_path / "model.onnx", {}) <= 1e-4


def test_shots_are_drawn_anew_for_each_seed_and_only_from_training(probe_config: Config, undrawn, tmp_path) -> None:
    config = replace(probe_config, data=replace(probe_config.data, shots=4))
    whole = prepare(config.data).table
    drawn = [prepare_data(replace(config, seed=seed), tmp_path).table for seed in (0, 1, 0)]
    ids = [set(table.loc[table["split"] == "train", "id"]) for table in drawn]
    assert ids[0] == ids[2] != ids[1]
    for table, names in zip(drawn, ids, strict=True):
        assert table[table["split"] == "train"]["label"].value_counts().to_dict() == {0: 4, 1: 4}
        assert names <= set(whole.loc[whole["split"] == "train", "id"])
        pd.testing.assert_frame_equal(table[table["split"] != "train"], whole[whole["split"] != "train"])
    config = replace(config, model=replace(config.model, probe="linear"))
    train(config, prepare_data(config, tmp_path), tmp_path / "run")
    splits = runs.read_splits(tmp_path / "run")
    assert set(splits.index[splits["split"] == "train"]) == ids[0]


def test_what_does_not_go_together_is_said_in_a_line(small: list[str], probe_config: Config, tmp_path: Path) -> None:
    with pytest.raises(
        RequestError, match="data.shots=25 needs as many training tiles of each class, and there are 18"
    ):
        few_shots(prepare(probe_config.data), 25, 0)
    words = [*small, "model.probe=linear", "model.dropout=0.1", "augment=none"]
    with pytest.raises(RequestError, match="is fitted on kept features: add model.freeze=backbone model.dropout=0$"):
        check_request(typed(compose_config(words)))
    for kind, message in (("knn", "ends in vectors"), ("linear", "ends in one layer on vectors")):
        model = replace(probe_config.model, name="squeezenet1_1", probe=kind)
        config = replace(probe_config, model=model)
        with pytest.raises(RequestError, match=message):
            train(config, prepare(config.data), tmp_path / kind)


def test_the_experiment_is_a_probe() -> None:
    config = typed(compose_config(["experiment=probe", "data.root=x", "model=dinov2_s"]))
    assert (config.model.probe, config.model.freeze) == ("linear", "backbone")
