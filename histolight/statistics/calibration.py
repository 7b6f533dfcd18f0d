"""Calibration: what makes scores say how often they are right, here or where tumour is more or less frequent.

Temperature: Guo, Pleiss, Sun and Weinberger, "On Calibration of Modern Neural Networks", ICML 2017, section 4.2. Slope
and intercept: Platt, "Probabilistic outputs for support vector machines", 1999.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
from scipy.optimize import brentq, minimize, minimize_scalar
from scipy.special import expit, logit

from histolight.errors import RequestError
from histolight.statistics.clusters import FEWEST_CLUSTERS, effective_clusters, find_clusters
from histolight.statistics.intervals import check_scores, t_quantile

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
            f"calibrate=true finds no temperature: the scores of the {len(values)} tiles that choose it are {why}"
        )
    return temperature


def fit_line(logits: npt.ArrayLike, labels: npt.ArrayLike) -> tuple[float, float]:
    """Find the slope and the intercept at which the mean negative log-likelihood is smallest.

    Scores become ``sigmoid(slope * logit + intercept)``: a logistic regression on the logit alone. Where it fits the
    tiles, these are probabilities for tiles of the same prevalence.

    Args:
        logits: ``(N,)`` float.
        labels: ``(N,)`` 0 or 1, both present.

    Returns:
        The slope, above 0, and the intercept.

    Raises:
        RequestError: A class is missing; or no line is best: the classes are apart, or the scores are no better than
            chance.
        HistolightError: A logit is NaN or infinite.

    >>> slope, intercept = fit_line([1.0, 1.0, 1.0, -1.0, -1.0], [1, 1, 0, 0, 1])
    >>> round(intercept + slope, 3), round(abs(intercept - slope), 3)  # the log odds of 2 : 1 and of 1 : 1
    (0.693, 0.0)
    """
    values, positive = check_scores(logits, labels)
    values, signs = values.astype(np.float64), np.where(positive, -1.0, 1.0)

    def loss(line: npt.NDArray[np.float64]) -> tuple[float, npt.NDArray[np.float64]]:
        exponent = signs * (line[0] * values + line[1])
        slope = signs * expit(exponent) / len(values)
        return float(np.logaddexp(0, exponent).mean()), np.array([slope @ values, slope.sum()])

    found = minimize(loss, np.zeros(2), jac=True, method="BFGS", options={"gtol": 1e-9})
    slope, intercept = (float(number) for number in found.x)
    apart = values[positive].min() >= values[~positive].max()  # the steeper the better, without end
    if apart or slope < 1 / LARGEST:
        how = "completely" if apart else "no better than chance"
        raise RequestError(f"no calibration is best: the logits separate the classes of the {len(values)} tiles {how}")
    return slope, intercept


def estimate_prior(logits: npt.ArrayLike, prior: float) -> float:
    """Estimate the share of positive tiles among unlabelled ones from calibrated logits.

    The share of highest likelihood, where tiles differ from those that the logits are calibrated for by it alone. It is
    what expectation-maximisation converges to in Saerens, Latinne and Decaestecker, "Adjusting the outputs of a
    classifier to new a priori probabilities", Neural Computation 14 (2002), 21-41; the likelihood being concave in it,
    it is the zero of its derivative.

    Args:
        logits: (N,) float: log odds that a tile is positive, where ``prior`` of the tiles are.
        prior: In (0, 1).

    Returns:
        In [0, 1]; 0 where the mean ratio of the densities, of positive to negative, is at most 1, and 1 where that of
        negative to positive is.

    >>> round(estimate_prior([3.0, 3.0, 3.0, -3.0], 0.5), 3)
    0.776
    """
    odds = np.asarray(logits, dtype=np.float64) - logit(prior)  # log of the ratio of the densities of the classes

    def derivative(share: float) -> float:
        """Of the mean log-likelihood, times share (1 - share): the posterior's mean less the share."""
        return float(expit(odds + logit(share)).mean()) - share

    smallest = 1e-9
    if derivative(smallest) <= 0:
        return 0.0
    return float(brentq(derivative, smallest, 1 - smallest)) if derivative(1 - smallest) < 0 else 1.0


def speaks_for_both(logits: npt.ArrayLike, prior: float, groups: npt.ArrayLike | None = None) -> bool:
    """Say whether unlabelled tiles show that there are some of both classes, as far as calibrated logits show it.

    By a likelihood-ratio test of :func:`estimate_prior` against a share of 0, and against 1, each at 5 %: of tiles of
    one class it finds both in one set of twenty at most, as 0 and 1 lie at the border (Self and Liang, Journal of the
    American Statistical Association 82 (1987), 605-610). Tiles of one slide count for fewer: the ratio is divided by
    what they add to the variance of the score, J / H (Rotnitzky and Jewell, Biometrika 77 (1990), 485-497), and
    compared with a squared quantile of t of ``n_eff - 1`` degrees of freedom. This holds of logits that are calibrated
    for such tiles; where those of one class look otherwise than the calibration has it, it finds the other more often.

    Args:
        logits: As in :func:`estimate_prior`.
        prior: Likewise.
        groups: (N,) slide of each tile; missing values are clusters of their own. Of one slide nothing is shown.

    >>> speaks_for_both([-3.0] * 20 + [6.0], 0.5), speaks_for_both([-3.0] * 20 + [1.0], 0.5)
    (True, False)
    """
    share = estimate_prior(logits, prior)
    odds = np.asarray(logits, dtype=np.float64) - logit(prior)
    codes = find_clusters(groups, len(odds)).codes
    n_eff = effective_clusters(codes)
    if share in (0.0, 1.0) or n_eff < FEWEST_CLUSTERS:
        return False
    best = float(np.logaddexp(np.log(share) + odds, np.log1p(-share)).sum())
    ratio = 2 * (best - max(0.0, float(odds.sum())))
    posterior = expit(odds + logit(share))
    scores = posterior / share - (1 - posterior) / (1 - share)  # derivatives of the log-likelihood: H is minus its next
    sums = np.bincount(codes, weights=scores)
    inflation = n_eff / (n_eff - 1) * float(sums @ sums) / float(scores @ scores)
    return ratio / max(inflation, 1.0) > t_quantile(0.95, n_eff - 1) ** 2
