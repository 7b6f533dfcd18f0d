"""From overrides on the command line to one checked configuration, with Hydra's errors put into one line each."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from histolight import runs
from histolight.config.schema import Config, check_values, conf_directory, valid_keys
from histolight.errors import RequestError, nearest
from histolight.process import own_hydra

PATH_KEYS = (
    "data.root",
    "data.cache",
    "data.groups",
    "model.weights",
    "run",
    "like",
    "hydra.run.dir",
    "hydra.sweep.dir",
)

_Section = TypeVar("_Section")

ConfigStore.instance().store(name="histolight_schema", node=Config)


def compose_config(overrides: Sequence[str] = ()) -> DictConfig:
    """Compose ``conf/`` with overrides, Hydra's own node included under ``hydra``.

    Args:
        overrides: As on the command line, for example ``["model=resnet34", "optimizer.lr=3e-4"]``.

    Raises:
        RequestError: A key, a group, a value's type or the grammar is wrong.
    """
    overrides = quote_paths(overrides)
    for override in overrides:
        if override.startswith("~") and not override.startswith("~hydra"):
            raise RequestError(f"{override}: nothing can be left out of a configuration; set it to another value")
    try:
        with own_hydra(), initialize_config_dir(str(conf_directory()), version_base="1.3"):
            config = compose("config", list(overrides), return_hydra_config=True)
        OmegaConf.to_container(_job(config), resolve=True)
        OmegaConf.to_container(config.hydra.run, resolve=True)
        return config
    except (HydraException, OmegaConfBaseException, ValueError, TypeError) as error:
        raise RequestError(_translate(error, overrides)) from error
    except OSError as error:  # Hydra looks for a file of the name of every group
        raise RequestError(f"{max(overrides, key=len, default='')} can't be looked up: {error.strerror}") from error


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
    for override in _parse(quote_paths(overrides)):
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

    Raises:
        RequestError: It is missing or damaged, or no plain data.
    """
    path = directory / "config.yaml"
    saved = runs.read_config(path)
    try:
        if "data" not in saved:
            raise RequestError("it is not a configuration")
        return cast(DictConfig, OmegaConf.merge(OmegaConf.structured(Config), saved))
    except Exception as error:
        raise RequestError(f"{path} is damaged: {' '.join(str(error).split())}") from error


def quote_paths(overrides: Sequence[str]) -> list[str]:
    """Quote the values of path keys that Hydra's grammar can't read bare: ``~``, parentheses, ``=``, umlauts ...

    >>> quote_paths(["data.root=/tiles (1)/a=b", "seed=3"])
    ["data.root='/tiles (1)/a=b'", 'seed=3']
    """
    return [_quote_path(override) for override in overrides]


def _quote_path(override: str) -> str:
    key, separator, value = override.partition("=")
    if key.lstrip("+") not in PATH_KEYS or not separator:
        return override
    try:
        OverridesParser.create().parse_override(override)
    except HydraException:
        return f"{key}={quoted(value)}"
    return override


def quoted(value: str) -> str:
    r"""Quote a value for Hydra's grammar, where a backslash counts in front of a quote only.

    >>> print(quoted("it's a\\"))
    'it\'s a\\'
    """
    escaped = re.sub(r"(\\*)'", r"\1\1\\'", value)
    ending = len(escaped) - len(escaped.rstrip("\\"))
    return f"'{escaped}{ending * chr(92)}'"


def _parse(overrides: Sequence[str]) -> list[Override]:
    return OverridesParser.create().parse_overrides(list(overrides))


def config_groups() -> dict[str, list[str]]:
    """Map each group of ``conf/`` to the names of its files."""
    return {
        folder.name: sorted(file.stem for file in folder.glob("*.yaml"))
        for folder in sorted(conf_directory().iterdir())
        if folder.is_dir()
    }


def _translate(error: Exception, overrides: Sequence[str]) -> str:
    """Put Hydra's or OmegaConf's message, several lines with types and internals, into one line of our own words."""
    text = f"{error}\n{error.__cause__ or ''}"
    if match := re.search(r"(?:Could not find|In '[^']*': Could not find) '([\w/]+)/([^'/]*)'", text):
        group, name = match.groups()
        if group in ("hydra/launcher", "hydra/sweeper"):
            return f"{group}={name} is a plugin that is not installed: install histolight[{name.partition('_')[0]}]"
        return f"{group}={name} is not known: {nearest(name, config_groups().get(group, []))}"
    if match := re.search(r"Value '(.*?)'.* could not be converted to (\w+)", text):
        kinds = {"Float": "a number", "Integer": "a whole number", "Boolean": "true or false"}
        return f"{_key(text)}={match[1]} is of the wrong type: it must be {kinds.get(match[2], match[2].lower())}"
    if match := re.search(r"Value '(.*)' is not a valid (\w+)|Invalid value assigned: (\w+) is not a (\w+)", text):
        kind = match[2] or match[4]
        return f"{_key(text)} is of the wrong type: it must be a {'list, [A,B]' if 'ist' in kind else kind.lower()}"
    if "Cannot convert" in text:
        return f"{_key(text)} is of the wrong type: it must be a single word or path"
    if match := re.search(r"Could not override '([^']+)'|Key '([^']+)' (?:is not in struct|not in '\w+')", text):
        return _unknown_key(match[1] or _key(text) or match[2])
    if match := re.search(r"Interpolation key '([^']+)' not found", text):
        return f"{_key(text)} refers to ${{{match[1]}}}, which is not there: {_unknown_key(match[1])}"
    if "Ambiguous value for argument" in text:
        override = text.split("'")[1]
        return f"{override} is several values: give one, or sweep over them with `histolight train -m`"
    broken = next((override for override in overrides if _unreadable(override)), None)
    if broken is not None:
        key, _, value = broken.partition("=")
        return f"{broken} can't be read: write KEY=VALUE, and quote special characters, \"{key}='{value}'\""
    return " ".join(text.split())


def _unknown_key(key: str) -> str:
    """Suggest among the keys of the same level and of all groups; listing all of them would be a screenful."""
    group = key.rpartition(".")[0]
    keys = [*valid_keys(), *config_groups()]
    close = nearest(key, [known for known in keys if ("." in known) == ("." in key)])
    if close.startswith("did"):
        return f"{key} is not a key: {close}"
    same_level = [known for known in keys if known.rpartition(".")[0] == group]
    return f"{key} is not a key: {nearest(key, same_level or [known for known in keys if '.' not in known])}"


def _key(text: str) -> str:
    match = re.search(r"full_key: (\S+)", text) or re.search(r"merging override \W?([\w.]+)", text)
    return match[1] if match else ""


def _unreadable(override: str) -> bool:
    try:
        _parse([override])
    except HydraException:
        return True
    return False


def to_yaml(config: Any) -> str:
    """Write a composed or typed configuration as YAML, resolved and without Hydra's own node."""
    return OmegaConf.to_yaml(
        _job(config) if isinstance(config, DictConfig) else OmegaConf.structured(config), resolve=True
    )


def _job(config: DictConfig) -> DictConfig:
    return OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])
