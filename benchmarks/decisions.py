"""Simulate intervals of what calls are worth, and what is said beside them: benchmarks/decisions.csv.

Tiles of two classes with normal logits, alone or of slides whose logits share an effect; thresholds and prevalence are
fixed beforehand, so the truth is known in closed form. `noted`: share of studies that say of the figure that its wrong
calls come from few slides; `missed_unsaid`: whose interval misses the truth without a word.

    python benchmarks/decisions.py > benchmarks/decisions.csv
"""

from __future__ import annotations

import numpy as np
from scipy.special import expit
from scipy.stats import norm
from tables import csv_printer

from histolight.statistics.decisions import Band, abstention, predictive_values
from histolight.statistics.figures import LabelledScores, accuracy, sensitivity, specificity

STUDIES = 2000
PREVALENCE = 0.05
EDGE = 0.8  # of the band, on the logit scale
CELLS = [  # tiles, slides, spread of their effects, distance of each class's mean from 0
    *((100, 0, 0.0, 1.5), (1000, 0, 0.0, 1.5), (1000, 20, 0.7, 1.5), (1000, 100, 0.7, 1.5)),
    *((1000, 20, 1.0, 3.0), (1000, 100, 1.0, 3.0)),
]


def truth(spread: float, gap: float) -> dict[str, float]:
    """Return the figures of infinitely many tiles."""
    width = np.hypot(1, spread)
    right, low = norm.cdf(gap / width), norm.cdf((-gap - EDGE) / width)
    kept = low + norm.sf((EDGE - gap) / width)
    return {
        "coverage": kept,
        "error": low / kept,
        "PPV": PREVALENCE * right / (PREVALENCE * right + (1 - PREVALENCE) * (1 - right)),
        "NPV": (1 - PREVALENCE) * right / ((1 - PREVALENCE) * right + PREVALENCE * (1 - right)),
        **dict.fromkeys(("sensitivity", "specificity", "accuracy"), right),
    }


def main() -> None:
    """Print a row for each cell and figure."""
    row = csv_printer(
        *("tiles", "slides", "right", "figure", "truth", "studies", "no_interval", "held", "too_low", "too_high"),
        *("noted", "missed_unsaid"),
    )
    random = np.random.default_rng(0)
    for tiles, slides, spread, gap in CELLS:
        exact, right = truth(spread, gap), norm.cdf(gap / np.hypot(1, spread))
        ends: dict[str, list[tuple[float, float, bool]]] = {name: [] for name in exact}
        for _ in range(STUDIES):
            groups = random.integers(0, slides, tiles) if slides else None
            positive = random.random(tiles) < 0.5
            effect = random.normal(0, spread, slides)[groups] if groups is not None else 0.0
            logits = (random.normal(np.where(positive, gap, -gap), 1) + effect).astype(np.float32)
            drawn = LabelledScores(logits, positive, 0.5, groups, 0.95)
            kept, rare = abstention(drawn, Band(expit(-EDGE), expit(EDGE))), predictive_values(drawn, PREVALENCE)
            plain = (measure(drawn) for measure in (sensitivity, specificity, accuracy))
            for name, figure in zip(exact, (*kept.values(), *rare.values(), *plain), strict=True):
                ends[name].append((figure.low, figure.high, "may be too short" in figure.note))
        for name, value in exact.items():
            low, high, noted = np.array(ends[name]).T
            outside = high < value, low > value
            held = (low <= value) & (value <= high)
            unsaid = (outside[0] | outside[1]) & (noted == 0)
            shares = (share.mean() for share in (np.isnan(low), held, *outside, noted, unsaid))
            row(tiles, slides or "", f"{right:.3f}", name, f"{value:.3f}", STUDIES, *(f"{one:.3f}" for one in shares))


if __name__ == "__main__":
    main()
