"""Files of weights as training codes leave them: wrapped, prefixed, and in checkpoints of Lightning and of our own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from untrained_runs import untrained_run

from histolight.config.schema import ModelConfig
from histolight.errors import RequestError
from histolight.models.backbones import build_backbone, load_weights

State = dict[str, torch.Tensor]
NAME = "shufflenet_v2_x0_5"


def prefixed(prefix: str) -> Callable[[State], State]:
    return lambda state: {prefix + key: value for key, value in state.items()}


def head_of_lightning(state: State) -> dict[str, Any]:
    return {
        "state_dict": prefixed("model.")(state) | {"criterion.weight": torch.ones(2)},
        "pytorch-lightning_version": "2.0",
        "optimizer_states": [{"state": {0: {"exp_avg": torch.ones(1)}}, "param_groups": [{"lr": 1.0}]}],
        "hyper_parameters": {"lr": 1e-3},
    }


FORMS: dict[str, Callable[[State], Any]] = {
    "plain": dict,
    "state_dict": lambda state: {"state_dict": state, "epoch": 3},
    "model": lambda state: {"model": state},
    "net": lambda state: {"net": state, "acc": 0.5, "epoch": 1},
    "any single name": lambda state: {"weights_of_epoch_7": state, "lr": 0.1},
    "with its optimizer": lambda state: {
        "model_state_dict": state,
        "optimizer_state_dict": {"state": {0: {"step": torch.ones(1)}}, "param_groups": []},
    },
    "DataParallel": prefixed("module."),
    "compiled": prefixed("_orig_mod."),
    "both": prefixed("module._orig_mod."),
    "a module's": prefixed("model."),
    "a net's": prefixed("net."),
    "nested": lambda state: {"checkpoint": 1, "state_dict": {"model": prefixed("module.model.")(state)}},
    "Lightning": head_of_lightning,
    "Lightning compiled": lambda state: {"state_dict": prefixed("model._orig_mod.")(state)},
}


@pytest.mark.parametrize("form", FORMS)
def test_what_wraps_the_weights_is_taken_off(form: str, tmp_path: Path) -> None:
    torch.manual_seed(3)
    state = build_backbone(ModelConfig(NAME), 96).network.state_dict()
    path = tmp_path / "epoch=1-step=10.pth"
    torch.save(FORMS[form](state), path)
    backbone = build_backbone(ModelConfig(NAME), 96)
    load_weights(backbone.network, backbone.head, ModelConfig(NAME, str(path)), 96)
    for key, value in backbone.network.state_dict().items():
        assert torch.equal(value, state[key]), key


def test_weights_of_an_own_run_are_taken_with_their_last_layer(small: list[str], tmp_path: Path) -> None:
    run = untrained_run(tmp_path / "run", small, seed=5)
    path = run / "checkpoints" / "best.ckpt"
    state = torch.load(path, weights_only=True)["state_dict"]
    backbone = build_backbone(ModelConfig(NAME), 32)
    load_weights(backbone.network, backbone.head, ModelConfig(NAME, str(path)), 32)
    own = backbone.network.state_dict()
    assert len(own) == sum(
        any(key.endswith(name) and torch.equal(value, own[name]) for name in own) for key, value in state.items()
    )


def test_two_unnamed_state_dicts_are_refused(tmp_path: Path) -> None:
    state = build_backbone(ModelConfig(NAME), 96).network.state_dict()
    torch.save({"a": state, "b": state}, tmp_path / "two.pth")
    backbone = build_backbone(ModelConfig(NAME), 96)
    with pytest.raises(RequestError, match="is not a state dict .*: save model.state_dict"):
        load_weights(backbone.network, backbone.head, ModelConfig(NAME, str(tmp_path / "two.pth")), 96)
