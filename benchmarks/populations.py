"""Simulated tiles with a known AUROC, drawn from a population of slides: what the statistics are tried on.

The score of a tile under a training (a row and a seed) is ``shift x label`` plus normal terms: of the tile's cluster,
shared by all trainings (variance 0.25) and of the row's own (0.1), and of the tile, shared (0.65), of the row's own
(0.25) and of the seed's own (0.1). Two tiles of different clusters then have the AUROC Phi(shift / sqrt(2 x 1.35)).
Seeds differ in their shift, normally, so that their AUROCs spread as asked.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import stats

SHARED_CLUSTER, OWN_CLUSTER, SHARED_TILE, OWN_TILE, SEED_TILE = 0.25, 0.1, 0.65, 0.25, 0.1
TOTAL = SHARED_CLUSTER + OWN_CLUSTER + SHARED_TILE + OWN_TILE + SEED_TILE


@dataclass(frozen=True)
class Population:
    """Where the tiles of a study come from.

    Attributes:
        unit: ``tiles`` (independent), ``components`` (of overlapping tiles: one in two stands alone, the others in
            threes on average) or ``slides``.
        tiles: In a study, or in a fold of it.
        slides: In a study, or in a fold of it; 0 where ``unit`` is not ``slides``.
        tumour: Slides with tumour (half of their tiles, the others having none); 0: every slide has some of both.
        unequal: Slides' sizes spread (log-normal, sigma 1) instead of being equal.
        prevalence: Share of tumour among independent tiles.
    """

    unit: str
    tiles: int = 600
    slides: int = 0
    tumour: int = 0
    unequal: bool = False
    prevalence: float = 0.4

    def draw(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Labels and clusters of one study, drawn again until both classes lie in two clusters."""
        while True:
            labels, clusters = self._draw(rng)
            if min(len(np.unique(clusters[labels == one])) for one in (0, 1)) >= 2:
                return labels, clusters

    def _draw(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        if self.unit == "tiles":
            return (rng.random(self.tiles) < self.prevalence).astype(int), np.arange(self.tiles)
        if self.unit == "components":
            sizes = np.where(rng.random(self.tiles) < 0.75, 1, 1 + rng.geometric(0.4, self.tiles))
            clusters = np.repeat(np.arange(self.tiles), sizes)[: self.tiles]
            tumour = rng.random(self.tiles) < 0.4
            return np.where(rng.random(self.tiles) < 0.05, ~tumour[clusters], tumour[clusters]).astype(int), clusters
        sizes = rng.lognormal(0, 1, self.slides) if self.unequal else np.ones(self.slides)
        clusters = np.repeat(np.arange(self.slides), 1 + np.floor(self.tiles * sizes / sizes.sum()).astype(int))
        share = np.where(np.arange(self.slides) < self.tumour, 0.5, 0.0) if self.tumour else rng.beta(2, 3, self.slides)
        return (rng.random(len(clusters)) < share[clusters]).astype(int), clusters

    @property
    def has_clusters(self) -> bool:
        """Whether the tiles are given with groups."""
        return self.unit != "tiles"


def shift_for(auroc: np.ndarray | float, seed_spread: np.ndarray | float = 0.0) -> np.ndarray | float:
    """The mean shift at which the mean AUROC over seeds is this one; ``seed_spread`` is that of the shift."""
    return stats.norm.ppf(auroc) * np.sqrt(2 * TOTAL + np.square(seed_spread))


def spread_of_shift(auroc: float, seed_spread: np.ndarray | float) -> np.ndarray | float:
    """The standard deviation of the shift at which AUROCs of seeds spread by ``seed_spread``."""
    return seed_spread * np.sqrt(2 * TOTAL) / stats.norm.pdf(stats.norm.ppf(auroc))


def draw_scores(
    labels: np.ndarray, clusters: np.ndarray, shifts: np.ndarray, has_clusters: bool, rng: np.random.Generator
) -> np.ndarray:
    """Scores (rows x seeds, tiles) float32 of trainings with these shifts (rows, seeds)."""
    rows, seeds = shifts.shape
    count = int(clusters.max()) + 1

    def normal(variance: float, *shape: int) -> np.ndarray:
        return np.float32(np.sqrt(variance)) * rng.standard_normal(shape, dtype=np.float32)

    if has_clusters:
        cluster = normal(SHARED_CLUSTER, 1, count) + normal(OWN_CLUSTER, rows, count)
        row = cluster[:, clusters] + normal(SHARED_TILE, 1, len(labels)) + normal(OWN_TILE, rows, len(labels))
    else:
        shared = normal(SHARED_CLUSTER + SHARED_TILE, 1, len(labels))
        row = shared + normal(OWN_CLUSTER + OWN_TILE, rows, len(labels))
    scores = row[:, None] + normal(SEED_TILE, rows, seeds, len(labels))
    scores[:, :, labels == 1] += shifts.astype(np.float32)[:, :, None]
    return scores.reshape(rows * seeds, -1)
