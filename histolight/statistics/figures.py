"""The figures of merit, in one table: whoever measures, compares, draws or tabulates them reads it.

A new figure of merit is one entry of :data:`FIGURES`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Basis = Literal["order", "calls", "scores"]


@dataclass(frozen=True)
class FigureOfMerit:
    """One figure of merit of a binary classifier.

    Attributes:
        name: Its key in ``metrics.json`` and, behind the part, in TensorBoard: ``val/auroc``.
        heading: What people call it.
        basis: What it depends on: the ``order`` of the scores alone, the ``calls`` at a threshold, or the ``scores``
            themselves. A temperature changes neither order nor calls at 0.5; only calls need a threshold.
        higher_is_better: Its direction.
    """

    name: str
    heading: str
    basis: Basis
    higher_is_better: bool = True


FIGURES = {
    figure.name: figure
    for figure in (
        FigureOfMerit("auroc", "AUROC", "order"),
        FigureOfMerit("average_precision", "average precision", "order"),
        FigureOfMerit("accuracy", "accuracy", "calls"),
        FigureOfMerit("balanced_accuracy", "balanced accuracy", "calls"),
        FigureOfMerit("f1", "F1", "calls"),
        FigureOfMerit("sensitivity", "sensitivity", "calls"),
        FigureOfMerit("specificity", "specificity", "calls"),
        FigureOfMerit("nll", "NLL", "scores", higher_is_better=False),
        FigureOfMerit("ece", "ECE", "scores", higher_is_better=False),
    )
}


def names_of(*bases: Basis) -> list[str]:
    """List the names of the figures that depend on any of these.

    >>> names_of("scores")
    ['nll', 'ece']
    """
    return [figure.name for figure in FIGURES.values() if figure.basis in bases]
