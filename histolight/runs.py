"""The run directory: written by ``train`` as things happen, read by everyone else.

======================== ==============================================================================================
``config.yaml``          the complete, resolved configuration
``metrics.json``         status, figures with intervals, what the run cost, versions
``splits.csv``           id, split, pixels and luma (hashes by which a tile is recognised), group, cluster
``leaks.csv``            copies and overlaps across the parts, if any: id_1, split_1, id_2, split_2, dy, dx
``predictions/PART.csv`` id, label, group, cluster, logit, score, for val and test
``checkpoints/``         best.ckpt (by validation AUROC) and last.ckpt
``tensorboard/``         curves, pictures, hyperparameters
``figures/``             PNGs
``data_problems.csv``    what the checks of the data found: id, problem, detail
======================== ==============================================================================================
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import platform
import subprocess
import warnings
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from histolight import files
from histolight.errors import HistolightError, InterruptionError, PrunedError, RequestError, system_reason

if TYPE_CHECKING:
    import pandas as pd  # half a second, which --help and --cfg need not pay

# What an attempt would otherwise find of an earlier one; metrics.json, which says that it failed, goes last.
_OF_AN_ATTEMPT = (
    *("config.yaml", "splits.csv", "leaks.csv", "data_problems.csv", "report.html", "traceback.txt"),
    *("predictions/val.csv", "predictions/test.csv", "checkpoints/best.ckpt", "checkpoints/last.ckpt"),
    *("csv/metrics.csv", "csv/earlier.csv", "csv/hparams.yaml", "mlflow/run_id", "wandb/run_id"),
    *("tensorboard/events.out.tfevents.*", "tensorboard/hparams.yaml", "metrics.json"),
)

HASHES = ("pixels", "luma")
REPEATED = ("seed", "data.fold")  # keys in which trainings of one configuration may differ

PACKAGES = (
    "histolight",
    "torch",
    "torchvision",
    "lightning",
    "torchmetrics",
    "numpy",
    "pandas",
    "pillow",
    "scikit-learn",
)


def read_metrics(directory: Path) -> dict[str, Any]:
    """Read ``metrics.json`` of a run.

    Raises:
        RequestError: The folder holds no run, or the file is damaged.
    """
    path = directory / "metrics.json"
    try:
        with files.reading(path):
            if not directory.is_dir():
                raise RequestError(f"{directory} is not a folder: give a run directory such as outputs/runs/NAME")
            if not path.is_file():
                sweep = ", but a sweep: give one of its runs" if (directory / "sweep.json").is_file() else ""
                raise RequestError(f"{directory} is not a run directory{sweep or ': it has no metrics.json'}")
            metrics = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise RequestError(f"{path} is damaged: {error}") from error
    if not isinstance(metrics, dict) or "status" not in metrics:
        raise RequestError(f"{path} is damaged: it has no status")
    return metrics


def update_metrics(directory: Path, **values: Any) -> None:
    """Set entries of ``metrics.json``, keeping the others; NaN and infinity become null, which JSON has."""
    path = directory / "metrics.json"
    metrics = read_metrics(directory) if path.is_file() else {}
    files.write_atomically(path, json.dumps(_plain({**metrics, **values}), indent=2, allow_nan=False) + "\n")


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = dataclasses.asdict(value)
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def clear_attempt(directory: Path) -> None:
    """Delete the files of a failed run, so that it begins afresh; whatever else lies among them stays."""
    for pattern in _OF_AN_ATTEMPT:
        for path in directory.glob(pattern):
            if not path.parent.is_symlink() and (path.is_file() or path.is_symlink()):
                path.unlink()


@contextlib.contextmanager
def recorded(directory: Path) -> Iterator[None]:
    """Record in ``metrics.json`` how the work inside ended: completed, failed, interrupted or pruned, and why."""
    update_metrics(directory, status="running", reason=None)
    try:
        yield
    except (KeyboardInterrupt, InterruptionError) as error:
        update_metrics(directory, status="interrupted", reason=str(error) or "interrupted")
        raise
    except PrunedError as error:
        update_metrics(directory, status="pruned", reason=str(error), epochs=error.epoch)
        raise
    except BaseException as error:
        with contextlib.suppress(HistolightError):  # a full disk must not hide the error that it caused
            update_metrics(directory, status="failed", reason=f"{str(error) or type(error).__name__}".splitlines()[0])
        raise
    update_metrics(directory, status="completed")


def read_config(path: Path) -> dict[str, Any]:
    """Read a saved configuration, which may be another's, as plain data: mappings, lists, words and numbers.

    Raises:
        RequestError: The file is missing or damaged, or holds what is no plain data: a tag, an alias, or an
            interpolation, ``${...}``, which would put what this machine knows into what is written here.
    """
    import yaml

    safe = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        with files.named(path):
            text = path.read_text(encoding="utf-8")
        for event in yaml.parse(text, Loader=safe):
            tag = getattr(event, "tag", None)
            if tag is not None or isinstance(event, yaml.AliasEvent):
                raise RequestError(f"it holds {'an alias' if tag is None else f'the tag {tag}'}, and needs none")
        config = yaml.load(text, Loader=safe)
        if not isinstance(config, dict):
            raise RequestError("it is not a configuration")
        _check_plain(config, "")
    except FileNotFoundError:
        raise RequestError(f"{path.parent} is not a run directory: it has no {path.name}") from None
    except OSError as error:
        raise RequestError(f"{path} can't be read: {system_reason(error)}") from error
    except (yaml.YAMLError, ValueError, RecursionError, RequestError) as error:
        raise RequestError(f"{path} is damaged: {error or type(error).__name__}") from error
    return config


def _check_plain(value: Any, key: str) -> None:
    if isinstance(value, dict):
        for name, item in value.items():
            _check_plain(str(name), key)
            _check_plain(item, f"{key}.{name}".removeprefix("."))
    elif isinstance(value, list):
        for item in value:
            _check_plain(item, key)
    elif isinstance(value, str):
        if "${" in value:
            raise RequestError(f"{key or value} holds an interpolation, {value}: write the value itself")
    elif not isinstance(value, int | float | None):
        raise RequestError(f"{key}={value} is neither a word nor a number")


def recorded_split(directory: Path) -> str | None:
    """Return the kind of split that a run recorded; None where it ended before it had one."""
    split = read_metrics(directory).get("split") if (directory / "metrics.json").is_file() else None
    return None if split is None else str(split)


def completed_metrics(directory: Path) -> dict[str, Any]:
    """Read ``metrics.json`` of a completed run.

    Raises:
        RequestError: As :func:`read_metrics`, or the run is not completed, or lacks what a completed one has.
    """
    metrics = read_metrics(directory)
    if metrics["status"] != "completed":
        raise unfinished_error(directory, metrics)
    if lacking := [name for name in ("val", "split", "threshold", "data_fingerprint") if metrics.get(name) is None]:
        raise RequestError(f"{directory / 'metrics.json'} is damaged: it has no {', '.join(lacking)}")
    return metrics


def unfinished_error(directory: Path, metrics: Mapping[str, Any]) -> RequestError:
    """Say that a run is not completed, and how to go on: what failed by its configuration would fail again."""
    again = f"continue it with histolight train run={directory}"
    if metrics["status"] == "failed":
        again = f"once that is mended {again}, or change its configuration with like={directory}"
    return RequestError(f"{directory} is {metrics['status']}, not completed{failure(metrics)}: {again}")


def failure(metrics: Mapping[str, Any]) -> str:
    """Say in parentheses why a run failed; empty where it did not."""
    return f" ({metrics.get('reason')})" if metrics["status"] == "failed" else ""


def read_predictions(path: Path) -> pd.DataFrame:
    """Read a table of predictions exactly as it was written; nothing but an empty field is missing.

    Returns:
        One row a tile: ``id`` (str), ``label`` (int8, 0 or 1), ``group`` (slide, str, or missing), ``cluster`` (str, or
        missing: what intervals take for one sample, a slide or tiles that overlap; older runs have slides only),
        ``logit`` and ``score`` (float32, finite); and ``domain`` (str) of a run with ``data.domain``.

    Raises:
        RequestError: The file is missing or damaged.
    """
    import numpy as np

    numbers = dict.fromkeys(("label", "logit", "score"), np.float32)
    table = _read_table(path, {"id": object, "group": object, **numbers}, {"cluster": object, "domain": object})
    if "cluster" not in table:
        table["cluster"] = table["group"]
    _refuse_missing(table, path, ["id", *numbers])
    if not np.isfinite(table[["logit", "score"]]).all(axis=None):
        raise RequestError(f"{path} is damaged: it has infinite scores")
    if not table["label"].isin([0, 1]).all():
        raise RequestError(f"{path} is damaged: it has labels other than 0 and 1")
    return table.astype({"label": np.int8})[
        ["id", "label", "group", "cluster", "logit", "score", *(["domain"] if "domain" in table else [])]
    ]


def write_splits(directory: Path, table: pd.DataFrame) -> None:
    """Write ``splits.csv`` of a run.

    Args:
        directory: The run directory.
        table: ``id``, ``split``, ``pixels``, ``luma`` (uint64 hashes), ``group`` and ``cluster``.
    """
    hashes = {name: table[name].map("{:016x}".format) for name in HASHES}
    files.write_csv(directory / "splits.csv", table.assign(**hashes)[["id", "split", *HASHES, "group", "cluster"]])


def read_splits(directory: Path) -> pd.DataFrame:
    """Read ``splits.csv`` of a run.

    Returns:
        ``split`` (train, val or test) by id; and, but in runs that are older than these, ``pixels`` and ``luma``, the
        hashes of each tile in hexadecimal digits, and ``group``, its slide, or missing.

    Raises:
        RequestError: The file is missing or damaged.
    """
    path = directory / "splits.csv"
    table = _read_table(path, {"id": object, "split": object}, dict.fromkeys((*HASHES, "group"), object))
    _refuse_missing(table, path, [str(name) for name in table if name != "group"])
    return table.set_index("id")


def _read_table(path: Path, types: dict[str, type], more: Mapping[str, type] = MappingProxyType({})) -> pd.DataFrame:
    """Read the columns of ``types``, and those of ``more`` that are there."""
    import pandas as pd

    try:
        with files.named(path), warnings.catch_warnings():
            # Pandas only warns when rows are longer than the header, and drops the rest of them.
            warnings.simplefilter("error", pd.errors.ParserWarning)
            table = pd.read_csv(
                path,
                usecols=lambda name: name in types or name in more,
                dtype={**types, **more},
                index_col=False,
                keep_default_na=False,  # a tile or a slide may be called NA
                na_values=[""],
            )
    except FileNotFoundError:
        raise RequestError(f"{path} is missing: the run can't be used without it") from None
    except OSError as error:
        raise RequestError(f"{path} can't be read: {system_reason(error)}") from error
    except (ValueError, pd.errors.ParserWarning) as error:  # pandas' parser errors are ValueErrors too
        raise RequestError(f"{path} is damaged: {' '.join(str(error).split())}") from error
    if lacking := [name for name in types if name not in table]:
        raise RequestError(f"{path} has no column {', '.join(lacking)}")
    return table[[*types, *(name for name in more if name in table)]]


def _refuse_missing(table: pd.DataFrame, path: Path, columns: list[str]) -> None:
    for column in columns:
        if count := int(table[column].isna().sum()):
            raise RequestError(f"{path} has {count} missing values (NaN) in column {column}")
    if table.empty:
        raise RequestError(f"{path} is damaged: it has no rows")
    if not table["id"].is_unique:
        raise RequestError(f"{path} names a tile twice")


def provenance() -> dict[str, Any]:
    """Say which versions, commit and machine a run was made with."""
    return {
        "versions": {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
        "git_commit": _git_commit(),
        "machine": {"platform": platform.platform(), "cpus": os.cpu_count()},
    }


def _git_commit() -> str | None:
    """Return the commit of a histolight checkout, with ``-dirty`` when it has changes; None for an installed wheel."""
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return result.stdout.strip() or None
