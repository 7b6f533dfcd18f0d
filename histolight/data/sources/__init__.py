"""The kinds of data, one module each, with ``load(config) -> Source``."""

from __future__ import annotations

import dataclasses
import importlib
import logging
from pathlib import Path

from histolight.config.schema import DataConfig
from histolight.data.table import Source, read_groups, with_groups
from histolight.errors import RequestError

log = logging.getLogger("histolight")


def load_source(config: DataConfig, labelled: bool = True) -> Source:
    """List the tiles of the configured source, and give them their slides where these are known.

    Args:
        config: The data part of a run's configuration.
        labelled: False lists the unlabelled tiles instead, for prediction. Their table has no ``label``.

    Raises:
        RequestError: The folder or a file in it is not what the source needs (:class:`DataError` for single tiles).
    """
    if config.source == "slides":
        raise RequestError("data=slides has no labelled tiles: it is for histolight predict run=DIR data=slides")
    module = importlib.import_module(f"histolight.data.sources.{config.source}")
    if not labelled and not hasattr(module, "load_unlabelled"):
        raise RequestError(f"data={config.source} has no unlabelled tiles to predict: use data=kaggle, pcam or folder")
    try:
        source: Source = module.load(config) if labelled else module.load_unlabelled(config)
    except OSError as error:
        raise RequestError(f"{error.filename or config.root} cannot be read: {error.strerror or error}") from error
    groups = _groups_file(config) if labelled else None
    if groups is None:
        return source
    table = with_groups(source.table, read_groups(groups))
    if table["group"].isna().all():
        raise RequestError(
            f"data.groups={groups} names the slide of none of the {len(table)} tiles: its ids must be those of the "
            f"tiles, such as {table['id'].iloc[0]}"
        )
    return dataclasses.replace(source, table=table)


def data_root(config: DataConfig) -> Path:
    """Return the absolute folder of ``data.root``."""
    root = Path(config.root or "").expanduser().absolute()
    if not config.root or not root.is_dir():
        raise RequestError(
            f"data.root={config.root} is not a folder; give the one that holds the tiles: data.root=FOLDER"
        )
    return root


def _groups_file(config: DataConfig) -> Path | None:
    if config.groups is not None:
        return Path(config.groups).expanduser().absolute()
    if config.source != "kaggle":
        return None
    found = sorted(data_root(config).glob("patch_id_wsi*.csv"))
    if len(found) == 1:
        log.info("slides are read from %s", found[0])
        return found[0]
    if found:
        log.warning("%d lists of slides in %s: choose one with data.groups=FILE", len(found), found[0].parent)
    return None
