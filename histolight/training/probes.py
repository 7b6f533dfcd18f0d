"""``model.probe``: a last layer that is fitted at once on kept features, what is free in it chosen on validation."""

from __future__ import annotations

import time
import warnings
from typing import TYPE_CHECKING, Any

import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.preprocessing import StandardScaler
from torch import nn
from torch.nn.functional import normalize

from histolight.config.schema import AugmentConfig, Config
from histolight.errors import RequestError
from histolight.models.neighbours import NearestNeighbours, vote

if TYPE_CHECKING:
    from histolight.training.fit import Training

PENALTIES = (100.0, 10.0, 1.0, 1e-1, 1e-2, 1e-3, 1e-4, 1e-5)  # of the squared weights of standardised features
NEIGHBOURS = (5, 10, 20, 50, 100, 200)
ITERATIONS = 1000
BLOCK = 1024  # tiles whose similarities are computed at once

Features = tuple[torch.Tensor, torch.Tensor]  # (n, F) float32 and labels (n,) float32 of a part
Fitted = tuple[list[dict[str, float]], int]  # what was tried, with its validation AUROC, and the place of the best


def check_probe(config: Config) -> None:
    """Raise :class:`RequestError` for a probe with keys that it has no use for."""
    if config.model.probe == "none":
        return
    needed = {
        "model.freeze=backbone": config.model.freeze == "backbone",
        "augment=none": config.augment == AugmentConfig("none"),
        "model.dropout=0": config.model.dropout == 0,
        "loss.label_smoothing=0": config.loss.label_smoothing == 0,
        "data.sampler=shuffle": config.data.sampler == "shuffle",
        "trainer.ema=null": config.trainer.ema is None,
        "trainer.swa=null": config.trainer.swa is None,
        "trainer.find_lr=false": not config.trainer.find_lr,
    }
    if missing := [words for words, given in needed.items() if not given]:
        raise RequestError(f"model.probe={config.model.probe} is fitted on kept features: add {' '.join(missing)}")


def fit_probe(training: Training) -> dict[str, Any]:
    """Fit the last layer and keep the network as ``best.ckpt``; return what it cost, as ``metrics.json`` holds it.

    Raises:
        RequestError: The network does not end in one layer on vectors, or several processes would train.
    """
    begun = time.perf_counter()
    classifier, trainer, kind = training.classifier, training.trainer, training.config.model.probe
    if trainer.world_size > 1:
        raise RequestError(f"model.probe={kind} needs a single process: use trainer.devices=1")
    if training.datamodule.features is None:
        name = training.config.model.name
        raise RequestError(f"model.probe={kind} needs a network that ends in one layer on vectors, unlike {name}")
    classifier.to(trainer.strategy.root_device)
    training.datamodule.trainer = trainer
    train, val = ((training.datamodule.part_features(name).cpu(), _labels(training, name)) for name in ("train", "val"))
    classifier.cpu()
    head = classifier.backbone.get_submodule(classifier.head)
    if isinstance(head, NearestNeighbours):
        tried, best = fit_neighbours(head, train, val)
    else:
        assert isinstance(head, nn.Linear)
        tried, best = fit_linear(head, train, val, classifier.pos_weight)
    trainer.strategy.connect(classifier)
    trainer.save_checkpoint(training.directory / "checkpoints" / "best.ckpt")
    if trainer.logger is not None:
        for step, figures in enumerate(tried):
            trainer.logger.log_metrics({f"probe/{name}": value for name, value in figures.items()}, step)
    seconds = time.perf_counter() - begun
    return {"seconds": seconds, "probe": {"kind": kind, "chosen": tried[best], "tried": tried}}


def _labels(training: Training, part: str) -> torch.Tensor:
    return torch.tensor(training.data.part(part)["label"].to_numpy(), dtype=torch.float32)


def fit_linear(head: nn.Linear, train: Features, val: Features, pos_weight: float) -> Fitted:
    """Fit a logistic regression for each of ``PENALTIES`` and take the one with the best validation AUROC.

    Minimises mean(weight_i * loss_i) + penalty / 2 * |w|^2 by L-BFGS, over features that were standardised on the
    training tiles; ``head`` gets the weights for the features as they are.

    Args:
        head: The last layer, changed.
        train: What is fitted.
        val: What chooses.
        pos_weight: Weight of positive tiles.
    """
    scaler = StandardScaler().fit(train[0].numpy())
    inputs, chosen_on = (scaler.transform(part[0].numpy()) for part in (train, val))
    model = LogisticRegression(class_weight={0: 1.0, 1: pos_weight}, warm_start=True, max_iter=ITERATIONS, tol=1e-5)
    tried: list[dict[str, float]] = []
    for penalty in PENALTIES:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # the weakest penalties on separable tiles
            model.set_params(C=1 / (penalty * len(inputs))).fit(inputs, train[1].numpy())
        auroc = float(roc_auc_score(val[1].numpy(), model.decision_function(chosen_on)))
        if all(auroc > figures["val_auroc"] for figures in tried):
            best, weights = len(tried), model.coef_[0] / scaler.scale_
            bias = float(model.intercept_[0]) - float(weights @ scaler.mean_)
        tried.append({"penalty": penalty, "val_auroc": auroc})
    with torch.no_grad():
        head.weight.copy_(torch.from_numpy(weights)[None])
        head.bias.fill_(bias)
    return tried, best


def fit_neighbours(head: NearestNeighbours, train: Features, val: Features) -> Fitted:
    """Keep the training tiles, and of ``NEIGHBOURS`` the number with the best validation AUROC.

    Args:
        head: The last layer, changed.
        train: What votes.
        val: What chooses.
    """
    counts = [count for count in NEIGHBOURS if count < len(train[0])] or [len(train[0])]
    stored = normalize(train[0])
    nearest = [(normalize(block) @ stored.T).topk(counts[-1]) for block in val[0].split(BLOCK)]
    similarities, places = (torch.cat(parts) for parts in zip(*nearest, strict=True))
    logits = [vote(similarities, train[1][places], count)[:, 0] for count in counts]
    aurocs = [float(roc_auc_score(val[1].numpy(), found.numpy())) for found in logits]
    best = aurocs.index(max(aurocs))
    head.remember(*train, counts[best])
    return [{"neighbours": count, "val_auroc": auroc} for count, auroc in zip(counts, aurocs, strict=True)], best
