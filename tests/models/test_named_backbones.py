"""Every file of conf/model that names a hub's model: it builds without weights, as wide as its card says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from histolight.config.compose import compose_config, config_groups, typed
from histolight.models.backbones import build_backbone

pytest.importorskip("timm")
pytest.importorskip("transformers")

MODELS = {name: typed(compose_config([f"model={name}"])).model for name in config_groups()["model"]}
NAMED = [name for name, model in MODELS.items() if model.card]
PAGE = (Path(__file__).resolve().parents[2] / "docs/backbones.md").read_text(encoding="utf-8")


def test_the_models_of_the_field_are_there() -> None:
    assert {"phikon_v2", "uni2_h", "virchow2", "h_optimus_0", "gigapath", "midnight_12k", "dinov2_s"} < set(NAMED)


@pytest.mark.parametrize("name", NAMED)
def test_it_builds_without_weights_and_is_as_wide_as_its_card_says(name: str) -> None:
    model = MODELS[name]
    with torch.device("meta"):
        backbone = build_backbone(model, model.input_size)
        tiles = torch.zeros(1, 3, model.input_size, model.input_size)
        assert backbone.network.pool(tiles).shape == (1, model.card["width"])
    assert backbone.network.get_submodule(backbone.head).in_features == model.card["width"]
    assert model.mean is None or backbone.mean == tuple(model.mean)


@pytest.mark.parametrize("name", NAMED)
def test_its_card_is_whole_and_stands_in_the_table(name: str) -> None:
    card = MODELS[name].card
    assert card.keys() == {"url", "width", "mpp", "licence", "gate", "citation"}
    row = re.search(rf"^\| `{name}` .*$", PAGE, re.MULTILINE)
    assert row is not None
    for text in (f"({card['url']})", f"| {card['width']} |", f"| {card['mpp']} |", f"| {card['licence']} |"):
        assert text in row[0]
    assert f"| {MODELS[name].input_size} |" in row[0]
