"""Say how well runs do on other slides, and what is missing there: the tables of docs/accuracy.md.

Takes folders of `histolight evaluate run=RUN data=… calibrate=true`. Beside their own figures: the ECE of the
calibrated scores once they are told the share of tumour (the difference of its log odds from validation's added to
the logits; Saerens, Latinne and Decaestecker 2002), and the accuracy at the threshold that is best on the other
slides, which nobody knows beforehand. The last row takes the mean of the logits of all of them.

    python benchmarks/other_slides.py EVALUATION [EVALUATION ...]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from scipy.special import logit
from sklearn.metrics import roc_curve

from histolight import api
from histolight.statistics.metrics import classification_metrics

FIGURES = [
    "AUROC",
    "accuracy at 0.5",
    "accuracy at the threshold",
    "ECE",
    "ECE, calibrated",
    "and told the prevalence",
    "accuracy at the best threshold",
]


def measured(logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Return the figures of logits (N,) on tiles with labels (N,)."""
    return classification_metrics(torch.tensor(logits), torch.tensor(labels))


def best_accuracy(logits: np.ndarray, labels: np.ndarray) -> float:
    """Return the highest accuracy that any threshold has on these very tiles."""
    false_positives, true_positives, _ = roc_curve(labels, logits, drop_intermediate=False)
    prevalence = labels.mean()
    return float((true_positives * prevalence + (1 - false_positives) * (1 - prevalence)).max())


def main() -> None:
    """Print one row an evaluation, their mean, and their ensemble."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("evaluations", nargs="+", type=Path)
    print(f"| evaluation | {' | '.join(FIGURES)} |\n|:---|{'---:|' * len(FIGURES)}")
    rows, ensemble = [], []
    for directory in parser.parse_args().evaluations:
        evaluation = api.load_run(directory)
        metrics, tiles = evaluation.metrics, evaluation.predictions("test").sort_values("id")
        validation = api.load_run(metrics["run"]).predictions("val")
        logits, labels = tiles["logit"].to_numpy(np.float64), tiles["label"].to_numpy()
        prior = logit(labels.mean()) - logit(validation["label"].mean())
        test = metrics["test"]
        rows.append(
            [
                test["auroc"]["value"],
                test["accuracy"]["value"],
                metrics["test_at_threshold"]["accuracy"]["value"],
                test["ece"]["value"],
                metrics["test_calibrated"]["ece"]["value"],
                measured(logits / metrics["temperature"] + prior, labels)["ece"],
                best_accuracy(logits, labels),
            ]
        )
        ensemble.append(tiles.set_index("id")[["logit", "label"]])
        interval = f" [{test['auroc']['low']:.3f}, {test['auroc']['high']:.3f}]"
        print(row(f"{directory.name}, AUROC in{interval}", rows[-1]), flush=True)
    print(row("mean", np.mean(rows, axis=0)))
    together = pd.concat(ensemble).groupby("id").mean()
    logits, labels = together["logit"].to_numpy(), together["label"].to_numpy(np.int64)
    figures = measured(logits, labels)
    print(
        f"| ensemble | {figures['auroc']:.3f} | {figures['accuracy']:.3f} | | {figures['ece']:.3f} | | "
        f"| {best_accuracy(logits, labels):.3f} |"
    )


def row(name: str, figures: np.ndarray | list[float]) -> str:
    """Return a row of the table."""
    return f"| {name} | {' | '.join(f'{figure:.3f}' for figure in figures)} |"


if __name__ == "__main__":
    main()
