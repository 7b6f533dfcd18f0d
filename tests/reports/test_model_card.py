from __future__ import annotations

import dataclasses

import pytest

from histolight.config.compose import compose_config, typed
from histolight.inference.export import describe
from histolight.models.classifier import Classifier
from histolight.reports.model_card import model_card

METRICS = {"threshold": 0.5, "split": "slide", "data_fingerprint": "f"}


def test_the_card_and_the_export_name_licence_and_citation_of_the_backbone() -> None:
    model = dataclasses.asdict(typed(compose_config(["model=uni2_h", "model.weights=hub"])).model)
    rows = {row[0].text: row[1].text for row in model_card(METRICS, {}, {"model": model}).rows}
    assert rows["licence of the backbone"].startswith("CC-BY-NC-ND-4.0")
    assert "Chen et al. 2024" in rows["citation of the backbone"]
    assert "code" not in rows
    untrained = model_card(METRICS, {}, {"model": {**model, "weights": None, "trust_remote_code": True}})
    names = {row[0].text for row in untrained.rows}
    assert "code" in names
    assert "licence of the backbone" not in names

    pytest.importorskip("onnxruntime")
    network = Classifier(
        {"name": "shufflenet_v2_x0_5", "weights": None, "card": model["card"]}, {}, {}, {}, image_size=32
    )
    assert describe(network, "run", METRICS)["backbone"] == model["card"]
