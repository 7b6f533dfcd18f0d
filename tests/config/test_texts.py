"""Texts of the command line reach the program, its config.yaml and the points of a sweep as they were typed."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from histolight import runs
from histolight.config import hydra_adapter as hydra
from histolight.config.compose import compose_config, to_yaml, typed
from histolight.config.request import training_request
from histolight.config.texts import as_typed, split, texts
from histolight.errors import RequestError
from histolight.sweeps.sweep import plan_sweep

# fmt: off
ODD = [
    "2026_11_27", "2024-01-05", "1e3", "1_0", "0x10", "001", "1.", ".5", "-1", "1:30", "true", "False", "no",
    "off", "NaN", "inf", "-inf", "null", "None", "~", "~/tiles", "a=b", "epoch=1-step=10.pth", "a b", " a",
    "a ", "ä/é", "/it's", "\"a", "a'b'", "[x]", "[x", "{a:1}", "(1)", "a(b", "C:\\x\\", "\\", "\\'", "a\\ b",
    "$HOME", "$x$", "x # y", "a: b", "- a", "*a", "&a", "!a", "%TAG", "@a", "`a`", "=", "==", "+a", "?", "😀",
    "int(3", "choice", "{", "]", "a\tb", "٣", "1e", "_1", "1_", "012_3",
]
# fmt: on
LETTERS = "aZ01_-.e+/\\ =:()[]{}'\"~@#%&*!?<>|$^`é٣"


def is_plain(value: str) -> bool:
    """Whether a value is one text: no list, nothing in quotes, no interpolation, none of Hydra's functions."""
    in_quotes = value.strip()[:1] in ("'", '"') and value.strip()[:1] == value.strip()[-1:]
    return len(split(value)) == 1 and not in_quotes and "${" not in value and not re.match(r"\w+\(.*\)$", value)


one_text = (st.sampled_from(ODD) | st.text(LETTERS, min_size=1, max_size=12)).filter(is_plain)


DEFAULTS = compose_config([])
OWN = [key for key in texts() if not key.startswith("hydra")]
OPTIONAL = {key for key in OWN if OmegaConf.select(DEFAULTS, key) is None} | {"loss.pos_weight", "model.weights"}


@settings(max_examples=20, deadline=None)
@given(st.lists(one_text, min_size=len(texts()), max_size=len(texts())))
@example([ODD[number % len(ODD)] for number in range(len(texts()))])
@example([ODD[-number % len(ODD)] for number in range(len(texts()))])
def test_every_text_is_what_was_typed_and_config_yaml_says_the_same(
    tmp_path_factory: pytest.TempPathFactory, values: list[str]
) -> None:
    typed_in = dict(zip(texts(), values, strict=True))
    words = [f"{key}={value}" for key, value in typed_in.items() if not key.startswith("hydra.sweeper")]
    config = compose_config(words)
    for key, value in typed_in.items():
        if key.startswith("hydra.sweeper"):
            continue  # of a sweeper that is not chosen
        expected = None if value == "null" and key in OPTIONAL else value
        assert OmegaConf.select(config, key) == expected, key
    path = tmp_path_factory.mktemp("run") / "config.yaml"
    path.write_text(to_yaml(config), encoding="utf-8")
    saved = OmegaConf.create(runs.read_config(path))
    for key in texts():
        if not key.startswith("hydra"):
            assert OmegaConf.select(saved, key) == OmegaConf.select(config, key), key


@settings(max_examples=80, deadline=None)
@given(st.lists(one_text, min_size=2, max_size=3), st.sampled_from(["data.root", "name", "trainer.devices"]))
@example(["w/epoch=1-step=10.pth", "w/epoch=2-step=20.pth"], "model.weights")
@example(["2024_01", "true"], "data.root")
def test_commas_between_texts_sweep_over_them(values: list[str], key: str) -> None:
    word = f"{key}={','.join(values)}"
    if split(word.partition("=")[2]) != [value.strip() for value in values] or not all(map(str.strip, values)):
        return  # brackets or quotes of several join; nothing between commas is refused
    [override] = hydra.parse(as_typed([word]))
    points = [hydra.parse([text])[0].value() for [text] in hydra.expand([override])]
    expected = [None if v.strip().lower() == "null" and key in OPTIONAL else v.strip() for v in values]
    assert list(dict.fromkeys(points)) == list(dict.fromkeys(expected))


def test_a_sweep_over_weights_with_lightnings_names_has_two_points() -> None:
    plan = plan_sweep(["model.weights=w/epoch=1-step=10.pth,w/epoch=2-step=20.pth", "name=2026_11_27"])
    assert [config.model.weights for config in plan.configs] == ["w/epoch=1-step=10.pth", "w/epoch=2-step=20.pth"]
    assert plan.directory.name == "2026_11_27"


def test_class_folders_may_have_the_names_of_numbers_and_booleans() -> None:
    for typed_in in ("[false,true]", "[1e3,2e3]", "[2024_01,001]", "[a=b,c (1)]"):
        assert typed(compose_config([f"data.classes={typed_in}"])).data.classes == typed_in[1:-1].split(",")
    plan = plan_sweep(["data.classes=[0,1],[false,true]"])
    assert [list(config.data.classes) for config in plan.configs] == [["0", "1"], ["false", "true"]]


@pytest.mark.parametrize("mark", ["", "+", "++"])
@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("trainer.limit_train_batches=0.1", "trainer.limit_train_batches is not a key"),
        ("optimizer.lrr=1e-5", "optimizer.lrr is not a key: did you mean optimizer.lr"),
        ("data.rooot=/x", "data.rooot is not a key: did you mean data.root"),
        ("foo=1", "foo is not a key"),
        ("trainer={foo:3}", "trainer.foo is not a key"),
        ("trainer={max_epochs:2,foo:3}", "trainer.foo is not a key"),
        ("optimizer@foo=adam", "optimizer@foo is not a key"),
        ("hydra.run.dirr=x", "hydra.run.dirr is not a key of Hydra"),
        (
            "data={root:2024_01_05}",
            "data.root is a text, which a mapping in braces would change: write data.root=VALUE",
        ),
    ],
)
def test_a_key_is_checked_with_and_without_plus_signs(mark: str, word: str, message: str) -> None:
    with pytest.raises(RequestError, match=re.escape(message)):
        compose_config([mark + word])
    with pytest.raises(RequestError, match=re.escape(message)):
        plan_sweep([mark + word, "seed=0,1"])


def test_plus_signs_change_nothing_where_the_key_is_right() -> None:
    assert typed(compose_config(["+experiment=best", "data.root=x"])) == typed(
        compose_config(["experiment=best", "data.root=x"])
    )
    assert compose_config(["++optimizer.lr=0.5", "+model=resnet34"]).model.name == "resnet34"
    assert compose_config(["+hydra.job.env_set.A=b"]).hydra.job.env_set.A == "b"
    assert compose_config(["+model.kwargs.depth=2"]).model.kwargs.depth == 2
    with pytest.raises(RequestError, match="optimizer.lrr is not a key"):
        plan_sweep(["+optimizer.lrr=1e-5,1e-1"])


def test_a_run_in_a_folder_named_by_a_date_is_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config, directory, _ = training_request(["hydra.run.dir=2026_1"])
    assert directory == Path("2026_1")
    Path("2026_1").mkdir()
    Path("2026_1", "config.yaml").write_text(to_yaml(config))
    runs.update_metrics(Path("2026_1"), status="interrupted")
    for word in ("run=2026_1", "+run=2026_1"):
        assert training_request([word]) == (config, Path("2026_1"), True)
    assert training_request(["like=2026_1", "hydra.run.dir=2026_2"])[1] == Path("2026_2")
    assert training_request(["run=null"])[2] is False
