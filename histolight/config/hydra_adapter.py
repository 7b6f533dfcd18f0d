"""Hydra as histolight uses it, its private parts included: no other module imports it (tested with 1.3 and 1.4)."""

from __future__ import annotations

import contextlib
import functools
import os
import pickle
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import hydra
from hydra import initialize_config_dir
from hydra._internal import config_loader_impl
from hydra._internal.callbacks import Callbacks
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_loader import ConfigLoader
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType
from hydra.core.plugins import Plugins
from hydra.core.singleton import Singleton
from hydra.core.utils import setup_globals
from hydra.errors import HydraException, MissingConfigException
from hydra.types import HydraContext
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from histolight.config.schema import RequestedConfig, conf_directory

__all__ = ["HydraException", "MissingConfigException", "Override"]

ConfigStore.instance().store(name="histolight_schema", node=RequestedConfig)


@contextlib.contextmanager
def own_hydra() -> Iterator[None]:
    """Set aside the caller's Hydra, which composes or runs something of its own, and give it back."""
    passing = ("GlobalHydra", "HydraConfig", "JobRuntime", "VersionBase")  # the others are filled once, by imports
    instances: dict[type, Any] = Singleton._instances
    before = {kind: (made, dict(vars(made))) for kind, made in instances.items() if kind.__name__ in passing}
    GlobalHydra.instance().clear()
    try:
        yield
    finally:
        for kind in [kind for kind in instances if kind.__name__ in passing and kind not in before]:
            del instances[kind]
        for kind, (made, values) in before.items():
            instances[kind] = made
            vars(made).clear()
            vars(made).update(values)


@contextlib.contextmanager
def _initialized() -> Iterator[ConfigLoader]:
    with own_hydra(), _from_conf() as loader:
        yield loader


@contextlib.contextmanager
def _from_conf() -> Iterator[ConfigLoader]:
    # 1.4 has the behaviour of 1.3 and warns of the parameter.
    version = {"version_base": "1.3"} if hydra.__version__.startswith("1.3") else {}
    with initialize_config_dir(str(conf_directory()), **version):
        yield GlobalHydra.instance().config_loader()


def compose(overrides: Sequence[str]) -> DictConfig:
    """Compose ``conf/config.yaml`` with overrides, Hydra's own node included.

    Points of a sweep mostly choose the same files and differ in values alone: those of a choice are composed once.

    Raises:
        HydraException: An override can't be read or applied.
    """
    parsed = OverridesParser.create().parse_overrides(list(overrides))
    values = [override for override in parsed if _is_value(override)]
    if all(map(_is_plain, parsed)):
        chosen = tuple(str(override.input_line) for override in parsed if not _is_value(override))
        with contextlib.suppress(OmegaConfBaseException):  # Hydra says below what is wrong
            conf = conf_directory()
            setup_globals()  # its resolvers, such as ${now:}, of which a caller's process is rid after each call
            return _with_values(pickle.loads(_composed(conf, _last_changed(conf), chosen)), parsed, values)
    with _initialized():
        return hydra.compose("config", list(overrides), return_hydra_config=True)


_READ_WHILE_COMPOSING = ("hydra.searchpath", "hydra.job.env_copy", "hydra.aliases")


def _is_value(override: Override) -> bool:
    """Tell a key from a group, which chooses a file."""
    key = override.key_or_group
    return "." in key or not (key == "hydra" or "/" in key or (conf_directory() / key).is_dir())


def _is_plain(override: Override) -> bool:
    """Say whether Hydra would only set a value in what the chosen files give, or choose one of them."""
    if override.is_sweep_override() or isinstance(override.value(), dict):
        return False
    sets = override.type == OverrideType.CHANGE and override.package is None
    return not _is_value(override) or (sets and not override.key_or_group.startswith(_READ_WHILE_COMPOSING))


def _last_changed(conf: Path) -> int:
    """Return when a file of ``conf/`` was last written, added or removed."""
    changed = 0
    for path in [conf, *(folder for folder in conf.iterdir() if folder.is_dir()), *conf.rglob("*.yaml")]:
        with contextlib.suppress(FileNotFoundError):  # an editor's, which is gone again
            changed = max(changed, path.stat().st_mtime_ns)
    return changed


@functools.lru_cache(maxsize=64)
def _composed(conf: Path, changed: int, chosen: tuple[str, ...]) -> bytes:
    with _initialized():
        return pickle.dumps(hydra.compose("config", list(chosen), return_hydra_config=True))


def _with_values(config: DictConfig, parsed: Sequence[Override], values: Sequence[Override]) -> DictConfig:
    """Set values, and what Hydra notes of the overrides, as its own loader does."""
    for override in values:
        OmegaConf.update(config, override.key_or_group, override.value(), merge=True)
    node = config.hydra
    node.overrides.hydra = [override.input_line for override in parsed if override.is_hydra_override()]
    task = [override for override in parsed if not override.is_hydra_override()]
    node.overrides.task = [override.input_line for override in task]
    if hasattr(config_loader_impl, "get_overrides_dirname"):  # Hydra 1.4 looks it up where it is read
        style, name = node.job.config.override_dirname, config_loader_impl.get_overrides_dirname
        node.job.override_dirname = name(task, style.exclude_keys, style.item_sep, style.kv_sep)
    node.runtime.cwd = os.getcwd()
    return config


def parse(overrides: Sequence[str]) -> list[Override]:
    """Read overrides by Hydra's grammar, globs over a group's files included.

    Raises:
        HydraException: One can't be read.
    """
    if not any("glob(" in override for override in overrides):
        return OverridesParser.create().parse_overrides(list(overrides))
    with _initialized() as loader:
        return OverridesParser.create(config_loader=loader).parse_overrides(list(overrides))


def expand(axes: Sequence[Override]) -> list[list[str]]:
    """List the points of a grid, each once and as its overrides, in the order of Hydra's basic sweeper."""
    [points] = BasicSweeper.split_arguments(list(axes), None)
    return [list(point) for point in dict.fromkeys(map(tuple, points))]


def build_launcher(config: DictConfig, task: Callable[[DictConfig], Any]) -> Any:
    """Build the launcher that a composed configuration names; it calls ``task`` with the configuration of each job."""
    return Plugins.instance().instantiate_launcher(**_setup(config, task))


def _setup(config: DictConfig, task: Callable[[DictConfig], Any]) -> dict[str, Any]:
    GlobalHydra.instance().clear()
    with _from_conf() as loader:  # not own_hydra: the jobs read the version that stays set, and with it their folder
        context = HydraContext(config_loader=_Loader(loader.get_search_path()), callbacks=Callbacks())
    return {"hydra_context": context, "task_function": task, "config": config}


class _Loader(ConfigLoaderImpl):
    """Composes the jobs of a launcher, which mostly choose the same files."""

    def load_sweep_config(self, master_config: DictConfig, sweep_overrides: list[str]) -> DictConfig:
        shared = cast(list[str], OmegaConf.to_container(master_config.hydra.overrides.hydra))  # as written
        config = compose([*shared, *sweep_overrides])
        OmegaConf.copy_cache(from_config=master_config, to_config=config)  # the same time for all
        return config


@dataclass(frozen=True)
class Job:
    """What a job that a launcher runs knows of itself.

    Attributes:
        directory: Its output folder.
        sweep: The folder of the sweep.
        launcher: The name of the launcher's class.
    """

    directory: Path
    sweep: Path
    launcher: str


def running_job() -> Job:
    """Return the job that runs in this process."""
    node = HydraConfig.get()
    return Job(Path(node.runtime.output_dir), Path(node.sweep.dir), str(node.launcher._target_))
