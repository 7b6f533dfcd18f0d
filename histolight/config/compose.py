"""From overrides on the command line to one checked configuration, with Hydra's errors put into one line each."""

from __future__ import annotations

import difflib
import errno
import itertools
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import (
    ConfigAttributeError,
    ConfigKeyError,
    InterpolationKeyError,
    OmegaConfBaseException,
    ValidationError,
)

from histolight import runs
from histolight.config import hydra_adapter as hydra
from histolight.config.checks import check_values
from histolight.config.keys import key_of
from histolight.config.overrides import quoted
from histolight.config.schema import Config, RequestedConfig, SweepConfig, conf_directory, valid_keys
from histolight.config.texts import OPEN_KEYS, as_typed, kinds
from histolight.errors import RequestError, nearest

HYDRA_GROUPS = ("hydra/launcher", "hydra/sweeper")

_Section = TypeVar("_Section")


def compose_config(overrides: Sequence[str] = ()) -> DictConfig:
    """Compose ``conf/`` with overrides, Hydra's own node included under ``hydra``.

    Args:
        overrides: As on the command line, for example ``["model=resnet34", "optimizer.lr=3e-4"]``.

    Raises:
        RequestError: A key, a group, a value's type or the grammar is wrong.
    """
    words = as_typed(overrides)
    for override in overrides:
        if override.startswith("~") and not override.startswith("~hydra"):
            raise RequestError(f"{override}: nothing can be left out of a configuration; set it to another value")
        group, separator, names = override.lstrip("+").partition("=")
        if separator and names in ("", "''", '""') and kinds(group) == [str]:
            raise RequestError(f"{group}= is empty: give a value, or leave it out")
        several = names.startswith("[") and "," in names
        if several and group in (*config_groups(), *HYDRA_GROUPS):  # of which Hydra takes the last
            raise RequestError(f"{override} is several of a group that has one: give {group}=NAME")
    try:
        config = hydra.compose(words)
        OmegaConf.to_container(_job(config), resolve=True)
        OmegaConf.to_container(config.hydra.run, resolve=True)
        return config
    except (hydra.HydraException, OmegaConfBaseException, ValueError, TypeError) as error:
        raise RequestError(_translate(error, overrides)) from error
    except OSError as error:  # Hydra looks for a file of the name of every group
        what = max(overrides, key=len, default="") if error.errno == errno.ENAMETOOLONG else error.filename
        raise RequestError(f"{what} can't be looked up: {error.strerror}") from error


def typed(config: DictConfig) -> Config:
    """Turn a composed configuration into plain, typed dataclasses and check every range and choice.

    Raises:
        RequestError: A value is out of its range or not among its choices.
    """
    try:
        result = cast(Config, OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Config), _job(config))))
    except OmegaConfBaseException as error:
        raise RequestError(_translate(error, [])) from error
    check_values(result)
    return result


def sweep_settings(config: DictConfig) -> SweepConfig:
    """Turn what a composed configuration says of its sweep into a dataclass, ranges and choices checked.

    Raises:
        RequestError: A value is out of its range or not among its choices.
    """
    settings = cast(SweepConfig, OmegaConf.to_object(config.sweep))
    check_values(settings, "sweep.")
    return settings


def typed_section(section: type[_Section], values: Mapping[str, str], prefix: str) -> _Section:
    """Turn a command's own keys, as written, into a dataclass of the schema and check every range and choice.

    Raises:
        RequestError: A value is of the wrong type or out of its range.
    """
    given = {key.removeprefix(prefix): value for key, value in values.items() if key.startswith(prefix)}
    try:
        merged = OmegaConf.merge(OmegaConf.structured(section), given)
    except OmegaConfBaseException as error:
        raise RequestError(prefix + _translate(error, [])) from error
    result = cast(_Section, OmegaConf.to_object(merged))
    check_values(result, prefix)
    return result


def like_config(saved: DictConfig, overrides: Sequence[str]) -> DictConfig:
    """Apply overrides to a saved configuration: whole groups are replaced, single values set.

    Raises:
        RequestError: As :func:`compose_config`, or an override that presets a whole run (``experiment``, ``debug``).
    """
    composed = compose_config(overrides)
    result = OmegaConf.merge(OmegaConf.structured(Config), saved, {"like": composed.like, "run": None})
    for override in hydra.parse(as_typed(overrides)):
        key = override.key_or_group
        if key in ("experiment", "debug"):
            raise RequestError(f"{key}= presets a whole run and can't be laid over like=; override single keys instead")
        if not key.startswith("hydra"):
            OmegaConf.update(result, key, OmegaConf.select(composed, key), merge=False)
    result = cast(DictConfig, result)
    OmegaConf.set_struct(result, False)
    result.hydra = composed.hydra
    return result


def saved_config(directory: Path) -> DictConfig:
    """Read ``config.yaml`` of a run directory; keys that it lacks take their default.

    A run that is older than ``data.split`` keeps the split that it was made with: at random where no slide was known.

    Raises:
        RequestError: It is missing or damaged, or no plain data.
    """
    path = directory / "config.yaml"
    saved = runs.read_config(path)
    try:
        if "data" not in saved:
            raise RequestError("it is not a configuration")
        if "split" not in saved["data"] and runs.recorded_split(directory) == "random":
            saved["data"]["split"] = "random"
        return cast(DictConfig, OmegaConf.merge(OmegaConf.structured(Config), saved))
    except Exception as error:
        raise RequestError(f"{path} is damaged: {' '.join(str(error).split())}") from error


def config_groups() -> dict[str, list[str]]:
    """Map each group of ``conf/`` to the names of its files."""
    return {
        folder.name: sorted(file.stem for file in folder.glob("*.yaml"))
        for folder in sorted(conf_directory().iterdir())
        if folder.is_dir()
    }


def _translate(error: Exception, overrides: Sequence[str]) -> str:
    """Put the error of Hydra or OmegaConf into one line, from the error's own fields and the overrides."""
    if isinstance(error, hydra.MissingConfigException) and error.missing_cfg_file:
        return _unknown_choice(error.missing_cfg_file, error.options or [])
    fault = error if isinstance(error, OmegaConfBaseException) else error.__cause__
    key = getattr(fault, "full_key", None) or ""
    given = next((word for word in overrides if key_of(word) == key), "")
    if isinstance(fault, InterpolationKeyError):
        missing = next((name for name in re.findall(r"\$\{([^{}:]+)\}", given) if name not in _keys()), "")
        return f"{key} refers to ${{{missing}}}, which is not there: {_unknown_key(missing)}"
    if isinstance(
        fault, ConfigKeyError | ConfigAttributeError
    ):  # its key ends where the configuration does, and the override may go on
        return _unknown_key(
            next((word for word in map(key_of, overrides) if f"{word}.".startswith(f"{key}.")), key), given
        )
    if isinstance(fault, ValidationError) and key:
        typed_in = given.partition("=")[2]
        value = typed_in or ("null" if fault.value is None else fault.value)
        swept = ""
        if typed_in.startswith("[") and typed_in.endswith("]") and "," in typed_in:
            swept = f"; several are swept with histolight train -m {key}={typed_in[1:-1].replace(' ', '')}"
        return f"{key}={value} is of the wrong type: it must be {_expected(key)}{swept}"
    for number, override in enumerate(overrides):
        try:
            [parsed] = hydra.parse(as_typed([override]))
        except hydra.HydraException:
            return _unreadable(override, overrides[number + 1 :])
        if parsed.is_sweep_override():
            key, _, value = override.lstrip("+").partition("=")
            return (
                f"{override} is several values: give one, or sweep over them with `histolight train -m`, in Python "
                f"histolight.sweep{_one_value(key, value)}"
            )
        if key := _not_known(key_of(override)):
            return _unknown_key(key)
    return " ".join(f"{error} {error.__cause__ or ''}".split())


def _unreadable(override: str, following: Sequence[str]) -> str:
    """Say what to write instead of a word that Hydra's grammar can't read."""
    key, separator, value = override.lstrip("+").partition("=")
    together = _without_spaces(override, following)
    if together != override and together.partition("=")[0] in _keys():
        return f"{override} can't be read: write it without spaces, {shlex.quote(together)}"
    if not separator:
        return f"{override} can't be read: write KEY=VALUE"
    if _not_known(key):
        return _unknown_key(key)
    if value.endswith(","):
        rest = itertools.takewhile(lambda word: "=" not in word, following)
        given = f"{key}={value}{','.join(rest)}".replace(",,", ",").rstrip(",")
        return f"{override} ends in a comma: write the values of a sweep without spaces, histolight train -m {given}"
    if key in config_groups():
        return f"{override} is not known: {nearest(value, config_groups()[key])}"
    if key in _keys():
        return f"{override} can't be read: it must be {_expected(key)}"
    return f"{override} can't be read: quote its special characters, {_in_quotes(key, value)}"


def _without_spaces(word: str, following: Sequence[str]) -> str:
    """Put KEY = VALUE together, of one word or of several."""
    if "=" not in word and following and following[0].startswith("="):
        word += "".join(following[: 2 if following[0] == "=" else 1])
    key, equals, value = (part.strip() for part in word.partition("="))
    return f"{key}={value}" if equals and value else word


def _one_value(key: str, value: str) -> str:
    """Say how to write a value with a comma in it, where that is a text that the key takes, or a decimal fraction."""
    if kinds(key) == [float] and re.fullmatch(r"[0-9]+,[0-9]+", value):
        return f"; a decimal fraction has a point, {key}={value.replace(',', '.')}"
    if kinds(key) != [str]:
        return ""
    try:
        typed(compose_config([f"{key}={quoted(value)}"]))
    except RequestError:  # a text with a comma is none of its choices
        return ""
    return f", or, if the comma is part of it, {_in_quotes(key, value)}"


def _in_quotes(key: str, value: str) -> str:
    """Write an override with its value in quotes of Hydra's, for the shell."""
    text = f"{key}={quoted(value)}"
    return shlex.quote(text) if re.search(r'["$`\\!]', text) else f'"{text}"'


def _unknown_choice(file: str, options: Sequence[str]) -> str:
    group = next((known for known in (*config_groups(), *HYDRA_GROUPS) if file.startswith(f"{known}/")), "")
    name = file.removeprefix(f"{group}/")
    if group == "hydra/sweeper":
        return f"{group}={name} is not used: a search is sweep=optuna or sweep=asha"
    if group in HYDRA_GROUPS:
        return f"{group}={name} is a plugin that is not installed: install histolight[{name.partition('_')[0]}]"
    if not options:  # one of Hydra's own files, of which there always are some
        return f"{file} of hydra-core can't be read: make its installed files readable for you, or install it again"
    if group == "model" and _is_network(name):
        return f"{group}={name} is not a file of conf/model: give the network by its name, model.name={name}"
    return f"{group}={name} is not known: {nearest(name, options)}"


def _is_network(name: str) -> bool:
    """Say whether this is the name of a network that ``model.name`` takes, of torchvision or with another's prefix."""
    from torchvision.models import list_models  # seconds, for a request that is wrong

    return name.startswith(("timm/", "hf/")) or name in list_models()


def _not_known(key: str) -> str:
    """Return a key that no configuration has; Hydra's own are not looked at."""
    known = key in _keys() or key in config_groups() or key.startswith("hydra") or OPEN_KEYS.match(f"{key}=")
    return "" if known else key


def _keys() -> list[str]:
    return valid_keys(RequestedConfig)


def _expected(key: str) -> str:
    """Say in words of which type a key of the schema is."""
    words = {float: "a number", int: "a whole number", bool: "true or false", str: "a single word or path"}
    return next((words[kind] for kind in kinds(key) if kind in words), "a list, [A,B]")


def _unknown_key(key: str, override: str = "") -> str:
    """Suggest among the keys of the same level and of all groups; listing all of them would be a screenful."""
    if override.startswith(f"{key}={{"):  # a mapping: it is one of its own keys
        inner = re.findall(r"[{,]\s*(\w+)\s*:", override)
        key = next((f"{key}.{name}" for name in inner if f"{key}.{name}" not in _keys()), key)
    if key.startswith("hydra.sweeper."):
        return f"{key} is not a key of Hydra's own sweeper: set sweep.n_trials and the other sweep.* keys for a search"
    if key.startswith("hydra"):
        return f"{key} is not a key of Hydra: histolight train --cfg hydra shows what there is"
    group = key.rpartition(".")[0]
    keys = [*_keys(), *config_groups()]
    close = nearest(key, [known for known in keys if ("." in known) == ("." in key)])
    if close.startswith("did"):
        return f"{key} is not a key: {close}"
    if not group:  # lr for optimizer.lr
        deeper = {known.rpartition(".")[2]: known for known in reversed(keys) if "." in known}
        if alike := difflib.get_close_matches(key, deeper, n=1, cutoff=0.75):
            return f"{key} is not a key: did you mean {deeper[alike[0]]}?"
    same_level = [known for known in keys if known.rpartition(".")[0] == group]
    return f"{key} is not a key: {nearest(key, same_level or [known for known in keys if '.' not in known])}"


def to_yaml(config: Any) -> str:
    """Write a composed or typed configuration as YAML, resolved and without what belongs to Hydra or the sweep."""
    return OmegaConf.to_yaml(
        _job(config) if isinstance(config, DictConfig) else OmegaConf.structured(config), resolve=True
    )


def _job(config: DictConfig) -> DictConfig:
    return OmegaConf.masked_copy(config, [str(key) for key in config if key not in ("hydra", "sweep")])
