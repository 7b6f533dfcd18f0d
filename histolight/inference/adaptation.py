"""A network fitted to other tiles without their labels: how frequent tumour is there, or what the tiles look like."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from scipy.special import expit, logit
from torch import nn

from histolight.config.schema import TrainerConfig
from histolight.data.datamodule import to_floats
from histolight.data.loader import TileLoader
from histolight.data.pack import Tiles
from histolight.data.prepare import PackedTiles
from histolight.errors import RequestError
from histolight.inference.networks import inference_device, predict_logits
from histolight.models.classifier import Classifier
from histolight.statistics.calibration import estimate_prior, fit_line, speaks_for_both

log = logging.getLogger("histolight")

FEWEST_TILES = 100  # fewer were hardly measured: docs/adaptation.md
SAMPLE = 500  # tiles that say whether there are both classes
SHARES_APART = 0.15  # of tumour: at a difference of 0.2 the calls of adapted scores were worse than those of plain ones
BATCH = 128  # tiles whose statistics are averaged: those of few tiles, each normalised by them, are far off


@dataclass(frozen=True)
class Adapted:
    """How a network was fitted to unlabelled tiles.

    Attributes:
        how: ``prior`` or ``batch_norm``.
        tiles: How many they were.
        prevalence: The share of tumour that was estimated for them, with ``prior``.
        slope: What logits are multiplied by, with ``prior``.
        shift: What is then added to them.
    """

    how: str
    tiles: int
    prevalence: float | None = None
    slope: float = 1.0
    shift: float = 0.0

    @property
    def sentence(self) -> str:
        """Say so in a few words, which stand beside every figure."""
        means = (
            f"the prior, {self.prevalence:.1%} tumour by estimate"
            if self.prevalence is not None
            else "batch-norm statistics"
        )
        return f"adapted to {self.tiles:,} unlabelled tiles ({means})"

    def table(self, table: pd.DataFrame) -> pd.DataFrame:
        """Change the logits and scores of a table of predictions."""
        if self.prevalence is None:
            return table
        adapted = (self.slope * table["logit"].astype(np.float64) + self.shift).astype(np.float32)
        return table.assign(logit=adapted, score=expit(adapted))

    def score(self, score: float) -> float:
        """Return what becomes of a score, such as a threshold, which then makes the same calls."""
        return score if self.prevalence is None else float(expit(self.slope * logit(score) + self.shift))


def check_adaptable(how: str, tiles: int) -> None:
    """Raise :class:`RequestError` where there are too few tiles to adapt to."""
    if how != "none" and tiles < FEWEST_TILES:
        raise RequestError(
            f"adapt={how} needs at least {FEWEST_TILES} tiles, and there are {tiles}: fewer say too little; "
            "leave adapt out"
        )


def check_both_classes(
    how: str, logits: npt.ArrayLike, groups: pd.Series, labelled: pd.DataFrame
) -> tuple[float, float]:
    """Refuse unlabelled tiles that seem to be of one class: the estimate means nothing then, and statistics mislead.

    Args:
        how: ``prior`` or ``batch_norm``, for the message.
        logits: (N,) of the network as it was trained.
        groups: (N,) the slide of each tile, or the component of overlapping tiles, or missing.
        labelled: Predictions of that network on labelled tiles, on which the logits are calibrated.

    Returns:
        The slope and the intercept of the calibration.

    Raises:
        RequestError: The tiles don't show both classes, or are too few; or ``labelled`` can't be calibrated.
    """
    values = np.asarray(logits, dtype=np.float64)
    check_adaptable(how, len(values))
    slope, intercept = fit_line(labelled["logit"], labelled["label"])
    line, before = slope * values + intercept, float(labelled["label"].mean())
    if not speaks_for_both(line, before, groups.to_numpy()):
        raise RequestError(
            f"adapt={how} can't tell whether these {len(values):,} tiles hold both classes (estimate: "
            f"{estimate_prior(line, before):.1%} tumour), and for tiles of one class, or of one slide, there is "
            "nothing to go by: leave adapt out"
        )
    return slope, intercept


def adapt_batch_norm(classifier: Classifier, tiles: Tiles, rows: np.ndarray, settings: TrainerConfig) -> Adapted:
    """Replace the means and variances of batch normalisation by those of unlabelled tiles, in place.

    Li, Wang, Shi, Liu and Hou, "Revisiting batch normalization for practical domain adaptation", 2016. The tiles come
    in random order, as those of one class often lie side by side.

    Args:
        classifier: In evaluation mode, and so it stays.
        tiles: The tile store.
        rows: ``(N,)`` int64: which of them.
        settings: The device.

    Raises:
        RequestError: The network has no batch normalisation.
    """
    layers = [module for module in classifier.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    layers = [layer for layer in layers if layer.track_running_stats]
    if not layers:
        raise RequestError("adapt=batch_norm needs a network with batch normalisation, and this one has none")
    device = inference_device(settings)
    classifier.to(device)
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None  # the plain mean over batches
        layer.train()
    order = np.random.default_rng(0).permutation(rows)
    whole = len(order) - len(order) % BATCH or len(order)  # a smaller batch would weigh as much as the others
    with torch.no_grad():
        for batch in TileLoader(tiles, order[:whole], np.zeros(whole), BATCH, pin=device.type == "cuda"):
            classifier(to_floats(batch.tiles.to(device, non_blocking=True), classifier.stain))
    classifier.eval()
    return Adapted("batch_norm", whole)


def adapt_to_tiles(
    classifier: Classifier, packed: PackedTiles, labelled: pd.DataFrame, settings: TrainerConfig, batch_size: int
) -> Adapted:
    """Adapt the batch-norm statistics to packed tiles, after a sample of them has shown both classes.

    Warns where the sample's share of tumour is not about that of validation.

    Args:
        classifier: As in :func:`adapt_batch_norm`.
        packed: The tiles.
        labelled: The network's own predictions on validation, before it is adapted.
        settings: The device.
        batch_size: Tiles per batch of the sample.

    Raises:
        RequestError: As :func:`check_both_classes` and :func:`adapt_batch_norm`.
    """
    table, store = packed.table, packed.pack.tiles
    sample = table.sample(min(len(table), SAMPLE), random_state=0)
    batches = predict_logits([classifier], store, sample["row"].to_numpy(), settings, batch_size)
    logits = np.concatenate(list(batches))[:, 0]
    slope, intercept = check_both_classes("batch_norm", logits, sample["cluster"], labelled)
    before = float(labelled["label"].mean())
    share = estimate_prior(slope * logits.astype(np.float64) + intercept, before)
    if abs(share - before) > SHARES_APART:
        log.warning(
            f"adapt=batch_norm: by estimate {share:.0%} of these tiles are tumour, and {before:.0%} of validation's: "
            "the order of the scores gains, their level does not; choose a threshold on labelled tiles of a like share"
        )
    return adapt_batch_norm(classifier, store, table["row"].to_numpy(), settings)


def adapt_prior(table: pd.DataFrame, labelled: pd.DataFrame) -> Adapted:
    """Estimate the share of tumour among unlabelled tiles from their scores, and what it does to these.

    The logits are calibrated on labelled tiles, slope and intercept, before the share is estimated: Alexandari, Kundaje
    and Shrikumar, "Maximum likelihood with bias-corrected calibration is hard-to-beat at label shift adaptation", ICML
    2020. Then they are shifted by the difference of the log odds of both shares.

    Args:
        table: Predictions on the tiles; their labels are not looked at.
        labelled: Predictions on labelled tiles, of validation.

    Raises:
        RequestError: There are too few tiles, or nearly all of them look like one class; or ``labelled`` can't be
            calibrated.
    """
    slope, intercept = check_both_classes("prior", table["logit"], table["cluster"], labelled)
    before = float(labelled["label"].mean())
    prevalence = estimate_prior(slope * table["logit"].to_numpy(np.float64) + intercept, before)
    return Adapted("prior", len(table), prevalence, slope, intercept + float(logit(prevalence) - logit(before)))
