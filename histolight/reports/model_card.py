"""A model card: what the network is for, what it is not for, and the limits that follow from how it was made.

After M. Mitchell and others, "Model Cards for Model Reporting", 2019.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from histolight.data.sources import is_artificial
from histolight.data.table import SPLITS
from histolight.reports.page import Cell, Table
from histolight.reports.parts import what_was_chosen
from histolight.statistics.clusters import FEW_SLIDES
from histolight.statistics.figures import error_by_chance

POORLY_CALIBRATED = 0.05  # ECE
SURE = 1.645  # standard deviations above what chance makes of scores that are right: one set in twenty of such
CARD = {"backbone": "url", "licence of the backbone": "licence", "citation of the backbone": "citation"}


def model_card(
    metrics: dict[str, Any],
    config: dict[str, Any],
    training: dict[str, Any],
    predictions: Mapping[str, pd.DataFrame] | None = None,
) -> Table:
    """Fill the card.

    Args:
        metrics: ``metrics.json`` of a run or an evaluation.
        config: Its ``config.yaml``.
        training: The configuration of the training: of a run the same, of an evaluation its ``training.yaml``.
        predictions: Those of each part that was measured.
    """
    rows = [
        ("intended use", "Research on the detection of metastatic tissue in histology tiles."),
        ("not for", "Diagnosis, or any decision about a patient. It is not a medical device."),
        ("network", _network(metrics, training)),
        *_backbone(training),
        ("training", _training(metrics, training)),
        ("pixel size", _pixel_size(training)),
        ("answer", _answer(config)),
        *(("known limit", text) for text in known_limits(metrics, config, predictions or {})),
    ]
    return Table(["", ""], [[Cell(name), Cell(text)] for name, text in rows if text], words=2)


def _network(metrics: dict[str, Any], config: dict[str, Any]) -> str:
    model = config.get("model", {})
    size = f", {metrics['parameters'] / 1e6:.2f} million parameters" if metrics.get("parameters") else ""
    start = {"imagenet": "ImageNet weights", "hub": "the weights that the hub has of it", None: "random weights"}.get(
        model.get("weights"), f"{model.get('weights')}"
    )
    return f"{model.get('name')}{size}, one logit; training started from {start}." if model else ""


def _backbone(config: dict[str, Any]) -> list[tuple[str, str]]:
    """Say what the pretrained backbone obliges to, and whether its own code was run."""
    model = config.get("model", {})
    card = (model.get("card") or {}) if model.get("weights") is not None else {}
    rows = [(name, str(card[key])) for name, key in CARD.items() if card.get(key)]
    if model.get("trust_remote_code"):
        rows.append(("code", f"The network is built by code that came with {model.get('name')} (trust_remote_code)."))
    return rows


def _training(metrics: dict[str, Any], config: dict[str, Any]) -> str:
    if not {"trainer", "optimizer", "scheduler", "augment", "data"} <= set(config):
        return ""
    if chosen := (metrics.get("probe") or {}).get("chosen"):
        kind, value = next(iter(chosen.items()))
        return (
            f"The last layer alone, fitted on a frozen network's features (model.probe={metrics['probe']['kind']}), "
            f"{kind}: {value:g}, the best of {len(metrics['probe']['tried'])} by validation AUROC."
        )
    epochs, optimizer = config["trainer"]["max_epochs"], config["optimizer"]
    return (
        f"{epochs} epoch{'s' * (epochs != 1)} of {optimizer['name']}, schedule {config['scheduler']['name']} with a "
        f"peak learning rate of {optimizer['lr']:g}, {_step(metrics, config)}, "
        f"geometric augmentation: {config['augment']['geometry']}; the epoch with the highest validation "
        "AUROC was kept."
    )


def _step(metrics: dict[str, Any], config: dict[str, Any]) -> str:
    """Say how many tiles a step of the optimizer had."""
    batch, batches = config["data"]["batch_size"], config["trainer"].get("accumulate", 1)
    devices = metrics.get("devices") or 1
    parts = [f"{batch} a batch", f"{batches} batches" * (batches > 1), f"{devices} devices" * (devices > 1)]
    known = ", ".join(filter(None, parts[1:]))
    return f"{batch * batches * devices} tiles a step" + (f" ({parts[0]}, {known})" if known else "")


def _pixel_size(config: dict[str, Any]) -> str:
    mpp = config.get("data", {}).get("mpp")
    if mpp is None:
        return "Unknown: data.mpp was not given. Tiles cut at another pixel size may be scored wrongly."
    return f"{mpp:g} µm, of the tiles as cut; tiles of another pixel size must be resampled to it first."


def _answer(config: dict[str, Any]) -> str:
    size = config.get("data", {}).get("image_size", 96)
    return (
        f"A score between 0 and 1 for a tile of {size}x{size} pixels: whether its centre 32x32 holds any tumour. It "
        "says nothing of the rest of the tile, of the slide or of the patient."
    )


def known_limits(metrics: dict[str, Any], config: dict[str, Any], predictions: Mapping[str, pd.DataFrame]) -> list[str]:
    """List the limits that this run has."""
    data = config.get("data", {})
    lead = next((part for part in ("test", "val") if part in metrics), None)
    limits = []
    if is_artificial(data.get("source")):
        limits.append("Trained or measured on synthetic tiles: on real tissue it is worth nothing.")
    if metrics.get("split") in ("random", "overlap"):
        limits.append(
            f"Measured by a {SPLITS[metrics['split']].partition(':')[0]}: how it does on other slides was not measured."
        )
    elif 0 < metrics.get("slides", 0) < FEW_SLIDES:
        limits.append(f"Only {metrics['slides']} slides are known: figures and intervals rest on few slides.")
    limits.append(
        "Other laboratories, scanners, stains, magnifications and organs than those of its tiles were not measured."
        if metrics.get("split") != "other"
        else "Laboratories, scanners, stains, magnifications and organs beyond these tiles were not measured."
    )
    if lead is not None:
        counts = metrics["tiles"][lead]
        share = counts.get("1", 0) / max(1, sum(counts.values()))
        limits.append(
            f"Accuracy, F1, average precision, NLL and ECE hold where {share:.0%} of the tiles are tumour, as here; "
            "of a whole slide usually far fewer are."
        )
        if lead in predictions:
            limits += _about_scores(metrics[lead]["ece"]["value"], predictions[lead]["score"].to_numpy())
    if adapted := metrics.get("adapted"):
        limits.append(f"The figures are of a network {adapted['sentence']}: on other tiles it must be adapted anew.")
    if lead == "val" and metrics.get("split") != "other":
        chosen = what_was_chosen(metrics) or "the threshold"
        limits.append(f"There is no test part: the figures are of the tiles on which {chosen} was chosen.")
    return limits


def _about_scores(ece: float, scores: np.ndarray) -> list[str]:
    """Say whether a score is a probability, where these tiles show that it is not or are too few to show it."""
    if ece <= POORLY_CALIBRATED:
        return []
    mean, spread = error_by_chance(scores)
    if ece > mean + SURE * spread:
        return [
            f"A score is not a probability here: on average the two are {ece:.3f} apart (ECE); scores that are right "
            f"would have about {mean:.3f} on these {len(scores):,} tiles."
        ]
    return [
        f"These {len(scores):,} tiles don't show whether a score is a probability: the ECE is {ece:.3f}, and scores "
        f"that are right would have about {mean:.3f}."
    ]
