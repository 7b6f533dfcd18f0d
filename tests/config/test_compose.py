from __future__ import annotations

import dataclasses
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import hydra
import pytest
from omegaconf import OmegaConf

from histolight.augment.registry import augmentations
from histolight.config import hydra_adapter
from histolight.config.checks import absolute_paths
from histolight.config.compose import compose_config, conf_directory, config_groups, like_config, to_yaml, typed
from histolight.config.schema import AugmentConfig, Config, augmentation_keys, valid_keys
from histolight.errors import RequestError
from histolight.ranking.runs import with_defaults

NOT_UTF8 = b"tiles-\xff"
FILES = [(group, name) for group, names in config_groups().items() for name in names]


@pytest.mark.parametrize(("group", "name"), FILES)
def test_every_file_of_conf_composes_and_passes_the_checks(group: str, name: str) -> None:
    overrides = [f"{group}={name}"]
    if name in ("kaggle", "pcam", "folder", "slides", "notebook", "linear_probe", "best"):
        overrides.append("data.root=somewhere")
    config = typed(compose_config(overrides))
    if group in ("model", "optimizer", "scheduler", "logger") and "/" not in getattr(config, group).name:
        assert getattr(config, group).name == name
    if group == "data":
        assert config.data.source == name


def test_a_path_that_no_configuration_can_hold_is_refused(tmp_path: Path) -> None:
    config = typed(compose_config(["data=folder", f"data.root={tmp_path / os.fsdecode(NOT_UTF8)}"]))
    with pytest.raises(RequestError, match="has a name in it that is not UTF-8"):
        absolute_paths(config.data)


def test_conf_has_files_and_every_file_is_in_a_group() -> None:
    yamls = list(conf_directory().rglob("*.yaml"))
    assert len(yamls) == len(FILES) + 1


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["seed=1", "model=resnet34", "optimizer.lr=3e-4", "seed=2"],
        ["data=folder", "data.root='/a (b)'", "data.classes=[a,b]", "data.limit=${seed}", "hydra.run.dir=elsewhere"],
        ["optimizer=sgd", "optimizer.momentum=0.5", "optimizer=adam", "name='a,b'"],
        ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "sweep=grid", "+data.limit=50", "++trainer.ema=0.9"],
        ["hydra.job.config.override_dirname.exclude_keys=[seed]", "seed=4", "optimizer={lr:1,weight_decay:2}"],
        ["hydra.job.env_copy=[HISTOLIGHT_COPIED]", "seed=5"],
    ],
)
def test_values_over_files_composed_before_give_what_hydra_gives(
    overrides: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HISTOLIGHT_COPIED", "as it is")
    with hydra.initialize_config_dir(str(conf_directory()), version_base=".".join(hydra.__version__.split(".")[:2])):
        expected = hydra.compose("config", overrides, return_hydra_config=True)
    for _ in range(2):
        found = hydra_adapter.compose(overrides)
        assert OmegaConf.to_yaml(found) == OmegaConf.to_yaml(expected)
        found.seed = 77  # of this one only


def test_resolvers_are_there_again_after_a_caller_is_rid_of_them() -> None:
    hydra_adapter.compose([])
    OmegaConf.clear_resolver("now")
    assert "now" not in str(hydra_adapter.compose([]).hydra.run.dir)


def test_a_file_that_was_edited_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    conf = shutil.copytree(conf_directory(), tmp_path / "conf")
    monkeypatch.setattr(hydra_adapter, "conf_directory", lambda: conf)
    assert hydra_adapter.compose(["optimizer=sgd"]).optimizer.lr == 0.01
    (conf / "optimizer" / "sgd.yaml").write_text("name: sgd\nlr: 0.02\n")
    (conf / "optimizer" / ".#sgd.yaml").symlink_to("an-editor-s-lock")
    assert hydra_adapter.compose(["optimizer=sgd"]).optimizer.lr == 0.02


def test_embedded_data_choose_a_smaller_network_unless_one_is_given() -> None:
    assert typed(compose_config([])).model.name == "resnet18"
    assert typed(compose_config(["model=densenet121"])).model.name == "densenet121"
    assert typed(compose_config(["model.name=vgg11"])).model.name == "vgg11"


def test_the_notebook_experiment_has_the_faults_of_the_notebook() -> None:
    config = typed(compose_config(["experiment=notebook", "data.root=x"]))
    assert config.model.name == "densenet121"
    assert config.model.normalize == "none"
    assert config.loss.pos_weight == "inverse"
    assert config.scheduler.total_epochs == 20
    assert config.trainer.max_epochs == 1
    assert config.data.augment_val
    assert (config.augment.geometry, config.augment.brightness, config.augment.contrast) == ("flips", 0, 0)
    assert (config.optimizer.lr, config.optimizer.weight_decay, config.data.limit) == (1e-3, 1e-5, 10_000)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optimizer.lr=abc", "optimizer.lr=abc is of the wrong type: it must be a number"),
        ("optimizer.lrr=1", "optimizer.lrr is not a key: did you mean optimizer.lr"),
        ("optmizer.lr=1", "optmizer.lr is not a key: did you mean optimizer.lr"),
        ("zebra=1", "zebra is not a key: valid: augment, data"),
        ("+zebra=1", "zebra is not a key"),
        ("hydra.run.dir=o/${nam}", "refers to ${nam}, which is not there: nam is not a key: did you mean name"),
        ("~optimizer", "nothing can be left out of a configuration"),
        ("~optimizer.lr", "nothing can be left out of a configuration"),
        ("data.batch_size=1.5", "data.batch_size=1.5 is of the wrong type: it must be a whole number"),
        ("data.augment_val=maybe", "data.augment_val=maybe is of the wrong type: it must be true or false"),
        ("data.classes=cancer", "data.classes=cancer is of the wrong type: it must be a list"),
        ("data=kagle", "data=kagle is not known: did you mean kaggle?"),
        ("model=densnet121", "model=densnet121 is not known: did you mean densenet121"),
        ("experiment=nothing", "experiment=nothing is not known"),
        ("seed=1,2", "seed=1,2 is several values"),
        ("seed", "seed can't be read: write KEY=VALUE"),
        ("seed =", "seed  is not a key: did you mean seed"),
        ("a\nb='", "a b is not a key"),
        ("model.kwargs.a='", "can't be read: quote its special characters"),
        ("seed=1)", "seed=1) can't be read: it must be a whole number"),
        ("data=a(b", "data=a(b is not known"),
        ("a" * 300 + "=1", "=1 can't be looked up: File name too long"),
        ("name=a(b", "name=a(b becomes a folder"),
        ("hydra.run.dirr=x", "hydra.run.dirr is not a key"),
        ("run=", "run= is empty: give a value, or leave it out"),
        ("logger=[csv,mlflow]", "logger=[csv,mlflow] is several of a group that has one: give logger=NAME"),
        ("+logger=[csv,mlflow]", "+logger=[csv,mlflow] is several of a group that has one: give logger=NAME"),
        ("hydra/launcher=[basic,joblib]", "is several of a group that has one: give hydra/launcher=NAME"),
        ("+data.root=''", "data.root= is empty: give a value, or leave it out"),
        (
            "model=resnet50",
            "model=resnet50 is not a file of conf/model: give the network by its name, model.name=resnet",
        ),
    ],
)
def test_what_cannot_be_composed_is_refused_in_one_line(override: str, message: str) -> None:
    with pytest.raises(RequestError, match=re.escape(message)) as caught:
        typed(compose_config([override]))
    assert "\n" not in str(caught.value)


def test_configuration_files_that_cannot_be_read_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hydra says of its own, as of those in conf/, only that they are missing."""
    missing = hydra_adapter.MissingConfigException("", missing_cfg_file="hydra/env/default", options=[])
    with (
        monkeypatch.context() as patch,
        pytest.raises(RequestError, match="hydra/env/default of hydra-core can't be read"),
    ):
        patch.setattr(hydra_adapter, "compose", raising(missing))
        compose_config([])
    closed = PermissionError(13, "Permission denied", "conf/data")
    with monkeypatch.context() as patch, pytest.raises(RequestError, match="^conf/data can't be looked up: Permission"):
        patch.setattr(hydra_adapter, "compose", raising(closed))
        compose_config(["seed=3"])


def raising(error: Exception) -> Callable[..., None]:
    def fail(*_: object) -> None:
        raise error

    return fail


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["optimizer.lr=-1"], "optimizer.lr=-1.0 is out of range: it must be above 0 and at most 100"),
        (["optimizer.lr=nan"], "optimizer.lr=nan is out of range"),
        (["data.batch_size=0"], "data.batch_size=0 is out of range: it must be at least 1"),
        (["model.dropout=1"], "model.dropout=1.0 is out of range"),
        (["optimizer.name=adaam"], "optimizer.name=adaam is not known: did you mean adam"),
        (["trainer.compile=False"], "trainer.compile=False is not known: valid: default, none, reduce-overhead"),
        (["data.fold=5"], "data.fold=5 is out of range: with data.folds=5 it is 0 to 4"),
        (["data.val_fraction=0.5", "data.test_fraction=0.5"], "must be below 1"),
        (["data.classes=[a,b,c]"], "data.classes takes two names"),
        (["loss.pos_weight=heavy"], "loss.pos_weight=heavy is not known"),
        (["loss.pos_weight=-1"], "loss.pos_weight=-1.0 is out of range"),
        (["trainer.devices=many"], "trainer.devices=many is not known"),
        (["scheduler.total_epochs=1"], "is shorter than trainer.max_epochs=2"),
        (["name=../../x"], "becomes a folder"),
    ],
)
def test_values_out_of_range_are_refused_in_one_line(overrides: list[str], message: str) -> None:
    with pytest.raises(RequestError, match=re.escape(message)):
        typed(compose_config(overrides))


@pytest.mark.parametrize("path", ["~/tiles", "/a b/c", "/tiles (1)/x", "/a=b", "/ä/é", "C:\\tiles", "/it's", "/a[1]"])
def test_paths_reach_the_configuration_as_typed(path: str) -> None:
    assert typed(compose_config(["data=folder", f"data.root={path}"])).data.root == path


def test_a_configuration_survives_yaml(tmp_path: Path) -> None:
    config = typed(compose_config(["model=resnet34", "loss.pos_weight=2.5", "data.limit=100"]))
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    assert typed(OmegaConf.load(tmp_path / "config.yaml")) == config


def test_like_replaces_groups_and_sets_values_and_keeps_the_rest() -> None:
    saved = OmegaConf.create(
        to_yaml(typed(compose_config(["optimizer=sgd", "optimizer.lr=0.5", "seed=7", "data.limit=9"])))
    )
    config = typed(like_config(saved, ["like=DIR", "model=resnet34", "optimizer.lr=0.001", "data.limit=null"]))
    assert config.model.name == "resnet34"
    assert (config.optimizer.name, config.optimizer.lr, config.optimizer.weight_decay) == ("sgd", 0.001, 1e-4)
    assert (config.seed, config.data.limit) == (7, None)
    with pytest.raises(RequestError, match="presets a whole run"):
        like_config(saved, ["like=DIR", "experiment=demo"])


def test_every_key_is_explained_in_its_docstring() -> None:
    def check(schema: type) -> None:
        for item in dataclasses.fields(schema):
            kind = item.default_factory if item.default_factory is not dataclasses.MISSING else None
            if dataclasses.is_dataclass(kind):
                check(kind)
            elif schema is not AugmentConfig or item.name not in augmentation_keys():
                assert f"        {item.name}: " in (schema.__doc__ or ""), f"{schema.__name__}.{item.name}"

    check(Config)
    for registered in augmentations():
        assert all(key in (registered.change.__doc__ or "") for key in registered.limits), registered.change.__name__
    assert len(valid_keys()) > 40


def test_the_defaults_of_the_schema_are_the_composed_ones() -> None:
    """What a preset of augmentations doesn't name is off, and a source names itself; every other key is the same."""
    config = typed(compose_config(["data=folder", "data.root=tiles", "augment=none"]))
    data = dataclasses.replace(config.data, source="synthetic", root=None)
    assert dataclasses.replace(config, name="synthetic", data=data) == typed(OmegaConf.structured(Config()))


def test_a_run_that_lacks_a_key_has_the_composed_default() -> None:
    config = OmegaConf.to_container(OmegaConf.structured(Config()))
    known = with_defaults(config)
    del config["trainer"]["devices"]
    assert with_defaults(config) == known
    assert known["trainer.devices"] == compose_config().trainer.devices == "1"
