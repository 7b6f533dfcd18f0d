"""Run directories as ``train`` writes them, with simulated scores, so that the truth is known."""

from __future__ import annotations

import copy
import functools
import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml
from omegaconf import OmegaConf
from scipy.special import expit

from histolight import files, runs
from histolight.config.schema import Config
from histolight.statistics.figures import FIGURES
from histolight.statistics.intervals import auroc_interval


def fake_run(
    directory: Path,
    shift: float = 1.5,
    tiles: int = 200,
    slides: int = 0,
    split: str = "random",
    parts: tuple[str, ...] = ("val",),
    status: str = "completed",
    reason: str | None = None,
    costs: dict[str, float] | None = None,
    **overrides: Any,
) -> Path:
    """Write a run whose true AUROC is Phi(shift / sqrt 2); keys of ``overrides`` have ``__`` in place of dots.

    The tiles follow from data.seed, data.fold and their number; models find the same tiles hard.
    """
    config = _config(overrides)
    tables = {part: _predictions(config, part, shift, tiles, slides, str(sorted(overrides.items()))) for part in parts}
    return write_run(directory, tables if status == "completed" else {}, split, status, reason, costs, **overrides)


def write_run(
    directory: Path,
    tables: dict[str, pd.DataFrame],
    split: str = "random",
    status: str = "completed",
    reason: str | None = None,
    costs: dict[str, float] | None = None,
    **overrides: Any,
) -> Path:
    """Write a run with these predictions: for ``val``, and maybe ``test``, id, label, group, logit and score."""
    files.write_atomically(
        directory / "config.yaml", yaml.safe_dump(_config(overrides), sort_keys=False, allow_unicode=True)
    )
    metrics: dict[str, Any] = {"status": status, "reason": reason, "split": split, "tiles": {}, "selected_on": "val"}
    for part, table in tables.items():
        files.write_csv(directory / "predictions" / f"{part}.csv", table)
        groups = table["group"] if table["group"].notna().any() else None
        figures = {name: {"value": 0.8, "low": 0.7, "high": 0.9, "method": "wilson"} for name in FIGURES}
        metrics[part] = figures | {"auroc": auroc_interval(table["score"], table["label"], groups)}
        metrics["tiles"][part] = {str(label): int((table["label"] == label).sum()) for label in (0, 1)}
    if status == "completed":
        metrics |= {"seconds": 60.0, "tiles_per_second": 500.0, "parameters": 11_000_000, **(costs or {})}
    runs.update_metrics(directory, data_fingerprint="fake", **metrics)
    return directory


@functools.cache
def _defaults() -> dict[str, Any]:
    return OmegaConf.to_container(OmegaConf.structured(Config()))  # which takes longer than all else of a run


def _config(overrides: dict[str, Any]) -> dict[str, Any]:
    config = copy.deepcopy(_defaults())
    for key, value in overrides.items():
        *sections, name = key.split("__")
        section = functools.reduce(dict.__getitem__, sections, config)
        assert name in section, f"{key} is no key of the configuration"
        section[name] = value
    return config


def _predictions(config: dict[str, Any], part: str, shift: float, tiles: int, slides: int, model: str) -> pd.DataFrame:
    fold = config["data"]["fold"] if part == "val" else None
    seed = config["data"]["seed"]
    truth = np.random.default_rng([seed, 99 if fold is None else fold, part == "test"])
    stems = [f"{part}{fold}-{seed}-{number}" for number in range(tiles)]
    ids = sorted(hashlib.sha1(stem.encode()).hexdigest() for stem in stems)
    labels = truth.permutation(np.arange(tiles) % 5 < 2).astype(int)
    hardness = truth.normal(size=tiles)
    noise = np.random.default_rng(list(hashlib.sha1(model.encode()).digest())).normal(size=tiles)
    logits = (shift * labels + 0.8 * hardness + 0.6 * noise - shift / 2).astype(np.float32)
    groups = [f"slide_{fold}_{number % slides}" for number in range(tiles)] if slides else None
    return pd.DataFrame({"id": ids, "label": labels, "group": groups, "logit": logits, "score": expit(logits)})
