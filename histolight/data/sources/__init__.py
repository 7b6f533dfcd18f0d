"""The kinds of data, one module each, which registers what it can do as its ``KIND``; ``data.source`` is its name."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import logging
import pkgutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from histolight.config.schema import DataConfig
from histolight.data.table import CENTRES, MEANT, UNUSED, Source, matching_ids, read_groups, read_parts, with_groups
from histolight.errors import RequestError, nearest, system_reason
from histolight.progress import waiting

log = logging.getLogger("histolight")


@dataclass(frozen=True)
class Kind:
    """What one kind of data can do.

    Attributes:
        load: Lists the labelled tiles; None where there are none.
        load_unlabelled: Lists the tiles to predict, whose table has no ``label``; None where there are none.
        check: Refuses a ``data.root`` that lacks files that ``load`` needs, by a glance at their names; None looks only
            whether the folder is there.
        find_groups: Finds a list of slides, as ``data.groups`` names one, that lies beside the tiles.
        list_files: Lists the files of the labelled tiles (columns ``path`` and ``size`` in bytes); None where a tile is
            no file.
        needs_root: Whether ``data.root`` must be given.
        root_is_file: Whether it is a file, not a folder.
        unlabelled_apart: Whether the tiles to predict lie in another ``data.root`` than the labelled ones.
        artificial: Whether the tiles are of no tissue: training on them starts from random weights, and figures on them
            say nothing about tissue.
        whole_slides: Whether it has whole slides, which are cut into tiles while they are scored.
    """

    load: Callable[[DataConfig], Source] | None
    load_unlabelled: Callable[[DataConfig], Source] | None = None
    check: Callable[[DataConfig], object] | None = None
    find_groups: Callable[[DataConfig], Path | None] | None = None
    list_files: Callable[[DataConfig], pd.DataFrame] | None = None
    needs_root: bool = True
    root_is_file: bool = False
    unlabelled_apart: bool = False
    artificial: bool = False
    whole_slides: bool = False


def source_names() -> list[str]:
    """List the valid values of ``data.source``."""
    return [module.name for module in pkgutil.iter_modules(__path__)]


def find_kind(name: str) -> Kind:
    """Return what a kind of data can do.

    Raises:
        RequestError: There is no such kind; the message gives the nearest ones.
    """
    if name not in source_names():
        raise RequestError(f"data.source={name} is not known: {nearest(name, source_names())}")
    kind: Kind = importlib.import_module(f"{__name__}.{name}").KIND
    return kind


def is_artificial(name: object) -> bool:
    """Whether a configuration's ``data.source``, of whichever version, has tiles of no tissue."""
    return name in source_names() and find_kind(str(name)).artificial


def check_source(config: DataConfig) -> Kind:
    """Return the configured kind of data.

    Raises:
        RequestError: There is no such kind, or its folder isn't given, or one is given that it would not look at.
    """
    kind = find_kind(config.source)
    if config.root and not kind.needs_root:
        kinds = ", ".join(name for name in source_names() if find_kind(name).load and find_kind(name).needs_root)
        raise RequestError(
            f"data={config.source} has no folder, and data.root is given: say what lies in it, data={kinds}"
        )
    if kind.needs_root and not config.root:
        raise RequestError(f"data={config.source} needs data.root=FOLDER, the folder with the tiles")
    return kind


def check_labelled(config: DataConfig) -> None:
    """Refuse what a glance at the labelled tiles shows to be wrong, before PyTorch is imported.

    Raises:
        RequestError: As :func:`check_source`, or a folder or file that the configuration names is missing.
    """
    kind = check_source(config)
    try:
        if kind.needs_root and kind.load is not None and not kind.root_is_file:
            data_root(config)
        if kind.check is not None:
            kind.check(config)
        with _unsaid():  # loading reads these tables again
            if config.groups is not None:
                read_groups(Path(config.groups).expanduser().absolute())
            if config.domain not in (None, "source"):
                read_groups(Path(str(config.domain)).expanduser().absolute(), "data.domain", CENTRES)
            if config.split not in ("auto", "random"):
                read_parts(Path(config.split).expanduser())
    except OSError as error:
        raise RequestError(f"{error.filename or config.root} cannot be read: {system_reason(error)}") from error


@contextlib.contextmanager
def _unsaid() -> Iterator[None]:
    """Keep warnings back."""

    def nothing(record: logging.LogRecord) -> bool:
        return False

    log.addFilter(nothing)
    try:
        yield
    finally:
        log.removeFilter(nothing)


def load_source(config: DataConfig, labelled: bool = True, keep_domains: bool = False) -> Source:
    """List the tiles of the configured source, and give them their slides where these are known.

    Args:
        config: The data part of a run's configuration.
        labelled: False lists the unlabelled tiles instead, for prediction. Their table has no ``label``.
        keep_domains: Leave the domains that the data bring in the table, whether ``data.domain`` asks for them or not.

    Raises:
        RequestError: The folder or a file in it is not what the source needs (:class:`DataError` for single tiles).
    """
    kind = check_source(config)
    load = kind.load if labelled else kind.load_unlabelled
    if load is None and labelled:
        raise RequestError(
            f"data={config.source} has no labelled tiles: it is for histolight predict run=DIR data={config.source}"
        )
    if load is None:
        others = " or ".join(name for name in source_names() if find_kind(name).load_unlabelled)
        raise RequestError(f"data={config.source} has no unlabelled tiles to predict: use data={others}")
    try:
        with waiting("listing the tiles"):
            source = load(config)
        groups = _groups_file(config, kind) if labelled else None
    except OSError as error:
        raise RequestError(f"{error.filename or config.root} cannot be read: {system_reason(error)}") from error
    if labelled and config.split not in ("auto", "random"):
        source = dataclasses.replace(source, table=_with_parts(source.table, Path(config.split)))
    table = source.table
    if groups is not None:
        table = with_groups(table, _listed(groups, "data.groups", table))
    if labelled and not keep_domains:
        table = _with_domains(table, config)
    return dataclasses.replace(source, table=table)


def _listed(path: Path, key: str, table: pd.DataFrame) -> pd.DataFrame:
    """Read the slides or domains of tiles: columns ``id``, as the tiles have it, and ``group``."""
    listed = read_groups(path, key, *([CENTRES] if key == "data.domain" else []))
    listed["id"] = matching_ids(listed["id"], table["id"], path)
    if listed["id"].duplicated().any():
        twice = listed.loc[listed["id"].duplicated(), "id"].iloc[0]
        raise RequestError(f"{key}={path} names {twice} twice, with the suffix of an image and without")
    if listed.loc[listed["id"].isin(table["id"]), "group"].isna().all():
        raise RequestError(
            f"{key}={path} names the {MEANT[key]} of none of the {len(table)} tiles: its ids must be those of the "
            f"tiles, such as {table['id'].iloc[0]}"
        )
    named = table["id"].map(listed.set_index("id")["group"]).dropna()
    if key == "data.groups" and "label" in table and (named == table["label"].astype(str)[named.index]).all():
        raise RequestError(
            f"{key}={path} names the labels of the tiles, not their slides: give a CSV id,<slide column>"
        )
    return listed


def _with_domains(table: pd.DataFrame, config: DataConfig) -> pd.DataFrame:
    """Give each tile its domain, or none of them one where none is asked for.

    Raises:
        RequestError: A tile has no domain, or a slide has two.
    """
    if config.domain is None:
        return table.drop(columns="domain", errors="ignore")
    if config.domain != "source":
        listed = _listed(Path(config.domain).expanduser().absolute(), "data.domain", table)
        table = table.assign(domain=table["id"].map(listed.set_index("id")["group"]).astype(object))
    elif "domain" not in table or table["domain"].isna().all():
        raise RequestError(
            f"data.domain=source: data={config.source} does not say where tiles come from; data.domain=FILE.csv does "
            "(columns id and centre)"
        )
    lacking = table["domain"].isna()
    if lacking.any():
        raise RequestError(
            f"data.domain={config.domain} gives no domain to {lacking.sum()} of {len(table)} tiles, such as "
            f"{table.loc[lacking, 'id'].iloc[0]}: each tile needs one"
        )
    domains = table.groupby("group")["domain"].nunique()
    if (domains > 1).any():
        raise RequestError(
            f"data.domain={config.domain} puts the slide {domains.index[domains > 1][0]} into several domains: a slide "
            "is of one"
        )
    return table


def _with_parts(table: pd.DataFrame, path: Path) -> pd.DataFrame:
    parts = read_parts(path.expanduser())
    parts.index = pd.Index(matching_ids(parts.index.to_series(), table["id"], path))
    if parts.index.duplicated().any():
        twice = parts.index[parts.index.duplicated()][0]
        raise RequestError(f"data.split={path} names {twice} twice, with the suffix of an image and without")
    given = table["id"].map(parts)
    if given.isna().all():
        raise RequestError(
            f"data.split={path} names none of the {len(table)} tiles: its ids must be those of the tiles, such as "
            f"{table['id'].iloc[0]}"
        )
    if unnamed := int(given.isna().sum()):
        log.warning("%d tiles are not named in %s and are left out", unnamed, path)
    foreign = parts.index[~parts.index.isin(table["id"])]
    if len(foreign):
        log.warning("%d ids of %s are not among the tiles, first %s", len(foreign), path, foreign[0])
    return table.assign(split=given.where(given.notna(), UNUSED).astype(object))


def data_root(config: DataConfig) -> Path:
    """Return the absolute folder of ``data.root``."""
    root = Path(config.root or "").expanduser().absolute()
    if not config.root or not root.is_dir():
        raise RequestError(
            f"data.root={config.root} is not a folder; give the one that holds the tiles: data.root=FOLDER"
        )
    return root


def _groups_file(config: DataConfig, kind: Kind) -> Path | None:
    if config.groups is not None:
        return Path(config.groups).expanduser().absolute()
    return None if kind.find_groups is None else kind.find_groups(config)
