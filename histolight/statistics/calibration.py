"""Temperature scaling: one number that makes scores say how often they are right.

Guo, Pleiss, Sun and Weinberger, "On Calibration of Modern Neural Networks", ICML 2017, section 4.2.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize_scalar

from histolight.errors import RequestError
from histolight.statistics.intervals import check_scores

LARGEST = 100.0  # temperatures are sought between 1 / LARGEST and LARGEST


def negative_log_likelihood(logits: npt.ArrayLike, labels: npt.ArrayLike, temperature: float = 1.0) -> float:
    """Return the mean binary cross-entropy of ``sigmoid(logits / temperature)`` in nats.

    Args:
        logits: ``(N,)`` float.
        labels: ``(N,)`` 0 or 1.
        temperature: Above 0.
    """
    signs = np.where(np.asarray(labels) == 1, -1.0, 1.0)
    return float(np.logaddexp(0, signs * np.asarray(logits, dtype=np.float64) / temperature).mean())


def fit_temperature(logits: npt.ArrayLike, labels: npt.ArrayLike) -> float:
    """Find the temperature at which the mean negative log-likelihood is smallest.

    Fit it on validation tiles, and use it on others: scores become ``sigmoid(logits / temperature)``, which changes
    neither the order of the tiles nor which of them lie above 0.5.

    Args:
        logits: ``(N,)`` float.
        labels: ``(N,)`` 0 or 1, both present.

    Returns:
        Above 1 where the scores are too sure, below 1 where they are not sure enough.

    Raises:
        RequestError: A class is missing; or no temperature is best: the tiles are all called rightly, so that surer is
            always better, or the scores are no better than chance, so that less sure is.
        HistolightError: A logit is NaN or infinite.

    >>> round(fit_temperature([2.0, 2.0, 2.0, 2.0, -2.0], [1, 1, 1, 0, 0]), 3)
    1.443
    """
    values, positive = check_scores(logits, labels)
    minimum = minimize_scalar(
        lambda log_temperature: negative_log_likelihood(values, positive, math.exp(log_temperature)),
        bounds=(-math.log(LARGEST), math.log(LARGEST)),
        method="bounded",
        options={"xatol": 1e-9},
    )
    temperature = math.exp(minimum.x)
    if not 1.01 / LARGEST < temperature < LARGEST / 1.01:
        why = "no better than chance" if temperature > 1 else "all on the right side of 0.5"
        raise RequestError(
            f"calibrate=true finds no temperature: the scores of the {len(values)} validation tiles are {why}"
        )
    return temperature
