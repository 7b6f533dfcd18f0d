"""The points of a sweep: what tells one from another, and where each lies.

================== ====================================================================================================
``sweep.json``     the configuration that all points share, the keys that were swept, and the folder of each point
``<n>_<keys>/``    a run directory (see :mod:`histolight.runs`); ``traceback.txt`` in it is of an unexpected error
================== ====================================================================================================
"""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path, PurePath
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from histolight import files, runs
from histolight.config.compose import compose_config
from histolight.config.overrides import quoted
from histolight.config.schema import valid_keys
from histolight.config.texts import as_typed
from histolight.errors import RequestError

NOT_PART_OF_A_POINT = {"name", "run", "like", "data.cache", "report.abstain", "report.prevalence"}
MACHINE_KEYS = {"data.residency", "trainer.accelerator", "trainer.devices"}  # part of a point only where swept
DATA_PATHS = ("data.root", "data.groups", "data.domain")
LONGEST_FOLDER = 120  # characters; file systems allow 255 bytes


@dataclasses.dataclass(frozen=True)
class Point:
    """One training of a sweep.

    Attributes:
        overrides: What Hydra composes it from.
        directory: Its run directory.
    """

    overrides: tuple[str, ...]
    directory: Path

    @property
    def metrics(self) -> dict[str, Any]:
        """What its ``metrics.json`` holds by now; without a point's beginning, only ``status`` = ``missing``."""
        try:
            return runs.read_metrics(self.directory)
        except RequestError:
            return {"status": "missing"}

    @property
    def status(self) -> str:
        """``missing``, or as in ``metrics.json``."""
        return str(self.metrics["status"])

    @property
    def auroc(self) -> float | None:
        """The validation AUROC of a completed point."""
        metrics = self.metrics
        return metrics["val"]["auroc"]["value"] if metrics["status"] == "completed" else None


class Sweep:
    """Which points there are and where each lies: ``sweep.json``.

    Args:
        directory: The sweep's folder.
        fixed: Overrides that hold for all points.
        keys: Keys and groups that are swept.
        configs: The points' composed configurations where they are known beforehand (``listed``), else one that
            stands for all.
        listed: Whether the points are known beforehand; else several processes may choose them.
    """

    def __init__(
        self, directory: Path, fixed: list[str], keys: list[str], configs: list[DictConfig], listed: bool
    ) -> None:
        self.directory = directory
        self.points: list[Point] = []
        self._fixed = fixed
        self._listed = listed
        self._keys = list(dict.fromkeys(keys))
        saved = read_index(directory)
        flat = [flat_config(config) for config in configs]
        varying = {key for key in flat[0] if any(other[key] != flat[0][key] for other in flat)}
        groups = () if listed else tuple(f"{key}." for key in keys)
        varying |= {key for key in flat[0] if key in keys or key.startswith(groups)}
        self._swept = varying | set(saved["swept"])
        self._ignored = NOT_PART_OF_A_POINT | (MACHINE_KEYS - self._swept) | self._younger(flat[0], saved)
        self._base = {key: value for key, value in flat[0].items() if key not in self._ignored | self._swept}
        self._folders: dict[str, str] = saved["points"]
        self._composed: dict[tuple[str, ...], str] = {}  # folders by the overrides of their points
        if self._folders:
            self._refuse_another_base(saved["base"])

    def _younger(self, flat: dict[str, Any], saved: dict[str, Any]) -> set[str]:
        """Return the keys that came into being after the sweep did and that nobody sets: they tell no points apart."""
        if not saved["points"]:
            return set()
        given = {override.lstrip("+").partition("=")[0] for override in self._fixed}
        return flat.keys() - saved["base"].keys() - self._swept - given

    def _refuse_another_base(self, saved: dict[str, Any]) -> None:
        different = [
            f"{key}={_typed(saved.get(key))}, not {_typed(self._base.get(key))}"
            for key in sorted(saved.keys() | self._base)
            if key not in self._ignored | self._swept and saved.get(key) != self._base.get(key)
        ]
        if different:
            raise RequestError(
                f"{shown(self.directory)} holds a sweep with {'; '.join(different[:3])}: choose another name=NAME"
            )

    @property
    def repeats(self) -> bool:
        """Whether its points train one configuration, in other folds or with other seeds: none of them is the best."""
        return bool(self._swept) and self._swept.issubset(runs.REPEATED)

    def point(self, values: Sequence[str], config: DictConfig | None = None) -> Point:
        """Find a point's folder by its configuration, or allot a new one."""
        folder = self._allotted(values, config)
        point = Point(self.job(folder, values), self.directory / folder)
        if all(known.directory != point.directory for known in self.points):
            self.points.append(point)
        return point

    def job(self, folder: str, values: Sequence[str] = ()) -> tuple[str, ...]:
        """Return the overrides of a launcher's job in one of the sweep's folders."""
        place = (f"hydra.sweep.dir={_quoted(str(self.directory))}", f"hydra.sweep.subdir={_quoted(folder)}")
        # Hydra lays a job's overrides over those of its own node, and would take a "+hydra.…" twice for a mistake.
        overrides = [*self._fixed, *as_typed(values)]
        return (*(override for override in overrides if not re.match(r"\+*hydra[./]", override)), *place)

    def compose(self, values: Sequence[str]) -> DictConfig:
        """Compose the configuration of a point."""
        return compose_config([*self._fixed, *as_typed(values)])

    def current(self) -> list[Point]:
        """Return the points of this command; where they are not known beforehand, all that were chosen so far."""
        return list(self.points) if self._listed else [Point((), path) for path in point_folders(self.directory)]

    def reload(self) -> None:
        """Read which points other processes have chosen meanwhile."""
        self._folders = read_index(self.directory)["points"]

    def _allotted(self, values: Sequence[str], config: DictConfig | None) -> str:
        """Find the folder of a point, whose configuration is composed once."""
        key = tuple(values)
        if key not in self._composed:
            config = self.compose(values) if config is None else config
            parts = {name: value for name, value in flat_config(config).items() if name not in self._ignored}
            digest = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
            if digest not in self._folders:
                self._folders[digest] = self._new_folder(values, config)
            self._composed[key] = self._folders[digest]
        return self._composed[key]

    def _new_folder(self, values: Sequence[str], config: DictConfig) -> str:
        used = set(self._folders.values()) | {path.name for path in self.directory.iterdir()}
        numbers = (int(match[0]) for name in used if (match := re.match(r"\d+", name)))
        number = max(len(self._folders), 1 + max(numbers, default=-1))
        if not any(override.startswith("hydra.sweep.subdir=") for override in self._fixed):
            return folder_name(number, values, self._keys)
        with open_dict(config):
            config.hydra.job.num = config.hydra.job.id = number
        folder = str(config.hydra.sweep.subdir)
        if not _stays_inside(folder):
            raise RequestError(
                f"hydra.sweep.subdir={folder} leads out of the sweep: give a name such as ${{hydra.job.num}}"
            )
        if folder in self._folders.values():
            raise RequestError(f"hydra.sweep.subdir gives two points the folder {folder}: put ${{hydra.job.num}} in it")
        return folder

    def ready(self, point: Point) -> None:
        """Clear the folder of a point that is to be trained of its failed attempt.

        Raises:
            RequestError: The folder is a link, or holds files of others where the sweep has not trained yet.
        """
        root = self.directory.resolve()
        if point.directory.resolve() != root / point.directory.relative_to(self.directory):
            raise RequestError(f"{shown(point.directory)} is a link: put the folder itself there, or delete the link")
        if point.status == "missing":
            files.check_unused(point.directory)
        elif point.status == "failed":
            runs.clear_attempt(point.directory)

    def save(self) -> None:
        """Write ``sweep.json``: before the first of its points begins."""
        index = {"base": self._base, "swept": sorted(self._swept), "points": self._folders}
        files.write_atomically(self.directory / "sweep.json", json.dumps(index, indent=2) + "\n")


def _typed(value: Any) -> str:
    """Write a value as on the command line: ``null``, ``true``."""
    return value if isinstance(value, str) else json.dumps(value)


def read_index(directory: Path) -> dict[str, Any]:
    """Read ``sweep.json``, empty in a new folder.

    Raises:
        RequestError: It is damaged, or names a folder outside the sweep.
    """
    path = directory / "sweep.json"
    with files.reading(path):
        if not path.exists():
            return {"base": {}, "swept": [], "points": {}}
        content = path.read_bytes()
    try:
        index = json.loads(content)
        index = {"base": dict(index["base"]), "swept": list(index["swept"]), "points": dict(index["points"])}
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise RequestError(f"{path} is damaged: choose another name=NAME") from error
    for folder in index["points"].values():
        if not _stays_inside(folder):
            raise RequestError(f"{path} is damaged: {folder} is no folder in it; choose another name=NAME")
    return index


def point_folders(directory: Path) -> list[Path]:
    """List the folders of a sweep's points, of whatever command; none where it has no ``sweep.json`` yet."""
    return [directory / folder for folder in read_index(directory)["points"].values()]


def _stays_inside(folder: object) -> bool:
    """Say whether the name of a point's folder lies in the sweep; it is composed by Hydra, which resolves ``${``."""
    if not isinstance(folder, str) or "${" in folder:
        return False
    path = PurePath(folder)
    return bool(path.parts) and not path.is_absolute() and ".." not in path.parts


def flat_config(config: DictConfig) -> dict[str, Any]:
    """Map every key of the schema, dotted, to its resolved value; paths of data become absolute.

    Raises:
        RequestError: A value refers to a key that doesn't exist.
    """
    try:
        flat = {key: OmegaConf.select(config, key) for key in valid_keys()}
    except OmegaConfBaseException as error:
        raise RequestError(" ".join(str(error).split())) from error
    for key in DATA_PATHS:
        if flat[key] is not None and flat[key] != "source":
            flat[key] = os.path.abspath(os.path.expanduser(flat[key]))
    return {key: OmegaConf.to_container(value) if OmegaConf.is_config(value) else value for key, value in flat.items()}


def folder_name(number: int, values: Sequence[str], keys: Sequence[str]) -> str:
    """Name a point's folder by its number and the swept keys, readable and safe on every file system.

    >>> folder_name(3, ["optimizer.lr=0.001", "model.name=timm/vit", "seed=1"], ["optimizer.lr", "model.name"])
    '3_lr=0.001,model.name=timm-vit'
    """
    counts = collections.Counter(key.rpartition(".")[2] for key in keys)
    parts = []
    for override in values:
        key, _, value = override.lstrip("+").partition("=")
        if key in keys:
            short = key.rpartition(".")[2]
            parts.append(f"{key if counts[short] > 1 or short in ('name', 'seed') else short}={_short(value)}")
    return files.file_name("_".join([str(number), *([",".join(parts)] if parts else [])]), ",=+", LONGEST_FOLDER)


def _short(value: str) -> str:
    """Take the quotes off a text, and round a long number, as a search draws it, to six digits."""
    value = value[1:-1] if len(value) > 1 and value[0] == value[-1] and value[0] in "'\"" else value
    try:
        return min(value, f"{float(value):.6g}", key=len)
    except ValueError:
        return value


def _quoted(value: str) -> str:
    """Quote a path for Hydra, which resolves no ``${`` of its name."""
    return quoted(value.replace("${", "\\${"))


def shown(directory: Path) -> Path:
    """Shorten a path for people: relative to the working directory where it lies below it."""
    here = Path.cwd()
    return directory.relative_to(here) if directory.is_relative_to(here) else directory
