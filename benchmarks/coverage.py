"""How often the 95 % intervals hold the true figure: `python benchmarks/coverage.py`.

Simulated tiles: score = shift x label + slide effect + noise, the effect normal with a quarter of the noise's
variance, drawn once a slide; the share of positive tiles differs between slides (Beta(0.8, 1.2)). A positive and a
negative tile of two random slides then have a true AUROC of Phi(shift / sqrt(2 x 1.25)), which the script checks on
2,000,000 such pairs. Data sets for which no method can give an interval (all tiles of one class on one slide) are drawn
again. The bootstrap (over slides where there are any) is slow: it sees every fourth data set, with 200 resamples each.

The second table has the other figures, on independent tiles whose true logit is normal with standard deviation 2; the
model's logit is the true one divided by a temperature (1 is perfectly calibrated: the true ECE is 0). It sees 500 data
sets a row, with 200 resamples each; the true figures come from 1,000,000 tiles.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from scipy import special, stats

from histolight.statistics.intervals import auroc_interval, auroc_with_variance, bootstrap_auroc, metric_intervals

TILES, AUROCS, SLIDES = (100, 800), (0.8, 0.95, 0.99), (None, 8, 22, 54)
TEMPERATURES = (1.0, 0.7)
EFFECT_VARIANCE = 0.25
DATA_SETS = 2000
RESAMPLES, BOOTSTRAP_EVERY = 200, 4


def shift_for(auroc: float, effect_variance: float) -> float:
    return stats.norm.ppf(auroc) * np.sqrt(2 * (1 + effect_variance))


def check_shift(auroc: float, rng: np.random.Generator, pairs: int = 2_000_000) -> None:
    noise = rng.normal(size=(2, pairs)) + np.sqrt(EFFECT_VARIANCE) * rng.normal(size=(2, pairs))
    found = np.mean(shift_for(auroc, EFFECT_VARIANCE) + noise[0] > noise[1])
    if abs(found - auroc) > 0.001:
        raise SystemExit(f"the simulated AUROC is {found:.4f} instead of {auroc}")


def draw(tiles: int, slides: int | None, auroc: float, rng: np.random.Generator) -> tuple[np.ndarray, ...]:
    """Scores, labels and slides of one data set; without slides, tiles are independent and 40 % positive."""
    while True:
        slide = np.arange(tiles) % (slides or tiles)
        variance = EFFECT_VARIANCE if slides else 0.0
        prevalence = rng.beta(0.8, 1.2, size=slides) if slides else np.full(tiles, 0.4)
        labels = rng.random(tiles) < prevalence[slide]
        if min(len(np.unique(slide[labels])), len(np.unique(slide[~labels]))) < 2:
            continue
        effect = np.sqrt(variance) * rng.normal(size=slides or tiles)
        return shift_for(auroc, variance) * labels + effect[slide] + rng.normal(size=tiles), labels, slide


def holds(interval: tuple[float, float], auroc: float) -> bool:
    return interval[0] <= auroc <= interval[1]


def auroc_coverage(tiles: int, slides: int | None, auroc: float) -> dict[str, float]:
    rng = np.random.default_rng([tiles, slides or 0, round(1000 * auroc)])
    hits: dict[str, int] = dict.fromkeys(["Wald DeLong", "logit DeLong", "Obuchowski, logit, t", "bootstrap"], 0)
    for number in range(DATA_SETS):
        scores, labels, slide = draw(tiles, slides, auroc, rng)
        groups = slide if slides else None
        value, variance = auroc_with_variance(scores, labels)
        half = stats.norm.ppf(0.975) * np.sqrt(variance)
        plain, clustered = auroc_interval(scores, labels), auroc_interval(scores, labels, groups)
        hits["Wald DeLong"] += holds((value - half, value + half), auroc)
        hits["logit DeLong"] += holds((plain.low, plain.high), auroc)
        hits["Obuchowski, logit, t"] += holds((clustered.low, clustered.high), auroc)
        if number % BOOTSTRAP_EVERY == 0:
            drawn = bootstrap_auroc(scores, labels, groups, resamples=RESAMPLES, seed=number)
            hits["bootstrap"] += BOOTSTRAP_EVERY * holds((drawn.low, drawn.high), auroc)
    return {method: count / DATA_SETS for method, count in hits.items()}


def draw_calibrated(tiles: int, temperature: float, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Logits and labels."""
    true_logits = 2 * rng.normal(size=tiles)
    return true_logits / temperature, rng.random(tiles) < special.expit(true_logits)


def figure_coverage(tiles: int, temperature: float) -> dict[str, float]:
    rng = np.random.default_rng([tiles, round(10 * temperature)])
    truth = metric_intervals(*draw_calibrated(1_000_000, temperature, rng), resamples=1)
    if temperature == 1:
        truth["ece"] = replace(truth["ece"], value=0.0)
    hits = dict.fromkeys(truth, 0)
    data_sets = DATA_SETS // BOOTSTRAP_EVERY
    for number in range(data_sets):
        found = metric_intervals(*draw_calibrated(tiles, temperature, rng), resamples=RESAMPLES, seed=number)
        for name, interval in found.items():
            hits[name] += holds((interval.low, interval.high), truth[name].value)
    return {name: count / data_sets for name, count in hits.items()}


def print_aurocs() -> None:
    print("| tiles | slides | AUROC | Wald DeLong | logit DeLong | Obuchowski, logit, t | bootstrap |")
    print("|---:|---:|---:|---:|---:|---:|---:|")
    for slides in SLIDES:
        for tiles in TILES:
            for auroc in AUROCS:
                cells = [f"{rate:.3f}" for rate in auroc_coverage(tiles, slides, auroc).values()]
                if not slides:
                    cells[2] = "n/a"
                print(f"| {tiles} | {slides or 'independent'} | {auroc} | {' | '.join(cells)} |", flush=True)


def print_figures() -> None:
    for place, (tiles, temperature) in enumerate(
        (tiles, temperature) for tiles in TILES for temperature in TEMPERATURES
    ):
        rates = figure_coverage(tiles, temperature)
        if place == 0:
            print(f"\n| tiles | temperature | {' | '.join(rates)} |")
            print("|---:" * (len(rates) + 2) + "|")
        print(f"| {tiles} | {temperature} | {' | '.join(f'{rate:.3f}' for rate in rates.values())} |", flush=True)


if __name__ == "__main__":
    for auroc in AUROCS:
        check_shift(auroc, np.random.default_rng(0))
    print_aurocs()
    print_figures()
