from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from histolight.config.compose import compose_config, config_groups, typed
from histolight.config.overrides import LISTS, as_words
from histolight.config.schema import Config, valid_keys
from histolight.config.texts import kinds
from histolight.errors import RequestError


@pytest.mark.parametrize(
    "text",
    ["a b", "o'hara", "a=b,c", "ü (1)", "~/x", "a\\b", "back\\'slash", "[x]", "$HOME", '"quoted"', "x # y", "1_0"],
)
def test_text_arrives_as_it_is(text: str) -> None:
    for overrides in ({"data.root": text}, {"data": {"root": text}}):
        assert typed(compose_config(as_words(overrides))).data.root == text


def test_a_dictionary_says_what_words_say() -> None:
    words = ["model=resnet18", "optimizer.lr=1e-4", "data.limit=null", "data.classes=[benign,tumour]", "trainer.clip=1"]
    given = {
        "model": "resnet18",
        "optimizer": {"lr": np.float32(1e-4).item()},
        "data": {"limit": None, "classes": ["benign", "tumour"]},
        "trainer.clip": np.int64(1),
    }
    found = typed(compose_config(as_words(given)))
    assert found.optimizer.lr == pytest.approx(1e-4)
    expected = typed(compose_config(words))
    assert dataclasses.replace(found, optimizer=expected.optimizer) == expected
    assert as_words({"seed": (0, 1), "model": ["resnet18", "densenet121"]}) == [
        "seed=0,1",
        "model=resnet18,densenet121",
    ]


def test_a_configuration_comes_back_as_it_was(tmp_path: Path) -> None:
    words = ["experiment=best", "data=folder", f"data.root={tmp_path}/a b", "data.classes=[x,y]", "trainer.ema=0.99"]
    config = typed(compose_config([*words, "augment=strong", "loss.pos_weight=null"]))
    assert typed(compose_config(as_words(config))) == config
    assert typed(compose_config(as_words(Config()))) == Config()


@pytest.mark.parametrize("model", [*config_groups()["model"], "timm model.kwargs.blocks=[[1,2],[a b]]"])
def test_a_configuration_of_any_network_comes_back_as_it_was(model: str) -> None:
    config = typed(compose_config(f"model={model}".split(maxsplit=1)))
    assert typed(compose_config(as_words(config))) == config


def test_every_list_of_the_schema_is_known() -> None:
    assert {key for key in valid_keys() if kinds(key)[0] in (list[str], list[float])} == set(LISTS)


@pytest.mark.parametrize("wrong", ["data=kaggle", [1], {"seed": object()}, {"seed": [{}]}])
def test_what_no_override_can_be_is_refused(wrong: object) -> None:
    with pytest.raises(RequestError, match="can't be"):
        as_words(wrong)


@pytest.mark.parametrize("word", ["logger=[tensorboard,csv]", "augment=[flips,stain]"])
def test_several_of_one_group_are_refused_and_none_is_dropped(word: str) -> None:
    with pytest.raises(RequestError, match=r"is several of a group that has one: give (logger|augment)=NAME"):
        compose_config([word])
