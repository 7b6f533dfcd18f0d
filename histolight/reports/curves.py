"""What a run's logger recorded while it trained, and figures of it."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from histolight.reports.figures import ACCENT, INK, LEFT, PALE

CURVES = ("train/loss", "val/nll", "train/auroc", "val/auroc", "learning_rate")


def read_curves(directory: Path) -> dict[str, pd.Series]:
    """Read the curves of a run, whichever logger wrote them.

    Args:
        directory: The run directory, with ``tensorboard/`` or ``csv/metrics.csv``.

    Returns:
        Of :data:`CURVES` those that there are: values by step, sorted; of a step that was repeated the last one. None
        of a damaged log.
    """
    try:
        found = _from_tensorboard(directory / "tensorboard") or _from_csv(directory / "csv" / "metrics.csv")
    except (ValueError, KeyError):
        return {}
    curves = {name: values[~values.index.duplicated(keep="last")].sort_index() for name, values in found.items()}
    return {name: curves[name] for name in CURVES if name in curves}


def _from_tensorboard(folder: Path) -> dict[str, pd.Series]:
    if not any(folder.glob("events.out.tfevents.*")):
        return {}
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    kept = {"scalars": 0, "images": 1, "histograms": 1, "compressedHistograms": 1, "tensors": 1}  # 0 is all of them
    events = EventAccumulator(str(folder), size_guidance=kept)
    events.Reload()
    curves = {}
    for name in set(CURVES) & set(events.Tags()["scalars"]):
        points = events.Scalars(name)
        curves[name] = pd.Series([point.value for point in points], index=[point.step for point in points])
    return curves


def _from_csv(path: Path) -> dict[str, pd.Series]:
    if not path.is_file():
        return {}
    table = pd.read_csv(path).set_index("step")
    return {name: table[name].dropna() for name in CURVES if name in table and table[name].notna().any()}


def curve_figures(curves: dict[str, pd.Series]) -> dict[str, tuple[Figure, str]]:
    """Draw loss, AUROC and learning rate against the step: figure and caption by name, of those that there are."""
    ends = [step for step in curves.get("val/auroc", pd.Series(dtype=float)).index if step > 0]
    drawn = {
        "training_loss": (
            {"train/loss": "training (loss of single batches)", "val/nll": "validation (NLL)"},
            "loss",
            "Loss of training batches, weighted and smoothed as configured, and the plain NLL of the validation tiles.",
        ),
        "training_auroc": (
            {"train/auroc": "training, augmented", "val/auroc": "validation"},
            "AUROC",
            "AUROC after each epoch; that of the training tiles is of a network that was still changing. "
            "The ring marks the epoch that was kept.",
        ),
        "training_learning_rate": ({"learning_rate": ""}, "learning rate", "Learning rate at each step."),
    }
    return {
        name: (_figure({key: curves[key] for key in lines if key in curves}, lines, label, ends), caption)
        for name, (lines, label, caption) in drawn.items()
        if any(key in curves for key in lines)
    }


def _figure(curves: dict[str, pd.Series], names: dict[str, str], label: str, ends: list[int]) -> Figure:
    figure = Figure(figsize=(5.6, 3.6))
    axes = figure.add_axes((LEFT, 0.15, 0.97 - LEFT, 0.76))
    for end in ends if len(ends) <= 50 else []:
        axes.axvline(end, color=PALE, linewidth=0.6, zorder=0)
    for key, values in curves.items():
        colour = ACCENT if key.startswith("val/") or len(names) == 1 else INK
        dense = len(values) > 50 or key in ("train/loss", "learning_rate")
        marker = "" if dense and len(values) > 1 else "o"  # a line of one point is not seen
        axes.plot(values.index, values, color=colour, linewidth=1.6, marker=marker, markersize=4, label=names[key])
    if "val/auroc" in curves:
        best = int(curves["val/auroc"].argmax())
        kept = curves["val/auroc"].iloc[[best]]
        axes.plot(kept.index, kept, "o", color="none", markeredgecolor=ACCENT, markersize=11, markeredgewidth=1.4)
    axes.set(xlabel="step (lines: ends of epochs)" if 0 < len(ends) <= 50 else "step", ylabel=label)
    axes.spines[["top", "right"]].set_visible(False)
    if any(names[key] for key in curves):
        axes.legend(fontsize=8, frameon=False)
    return figure
