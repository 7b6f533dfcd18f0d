"""What Optuna's study of a sweep says of its parameters, drawn by Optuna itself."""

from __future__ import annotations

import contextlib
import importlib.util
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from optuna import Study

JOURNAL, STUDY = "optuna.journal", "histolight"  # in the sweep's folder, and the name of the study in it
FEWEST = 4  # completed trials, below which importances are noise alone


def search_figures(directories: Iterable[Path]) -> Iterator[tuple[str, Figure, str]]:
    """Draw importances and slices of the searches that runs belong to: name, figure, caption.

    Args:
        directories: The run directories.
    """
    import matplotlib.pyplot as plt
    import numpy as np

    sweeps = dict.fromkeys(parent for path in directories for parent in (path.parent, path.parent.parent))
    for sweep in sweeps:
        study = _read_study(sweep / JOURNAL)
        if study is None or (completed := sum(trial.value is not None for trial in study.trials)) < FEWEST:
            continue
        from optuna.visualization import matplotlib as drawn

        basis = f"of {sweep.name}, by the validation AUROC of its {completed} points with a result"
        captions = {
            "importances": f"Importance of each parameter {basis} (Optuna's default, which sees no pruned point). "
            "They add up to 1 even where none matters: from few points they are mostly chance.",
            "slices": f"AUROC against each parameter {basis}: a dot for each trial, darker the later it began.",
        }
        for name, draw in (("importances", drawn.plot_param_importances), ("slices", drawn.plot_slice)):
            with plt.style.context("default"), warnings.catch_warnings(), contextlib.suppress(ValueError, RuntimeError):
                warnings.simplefilter("ignore")
                figure = np.asarray(draw(study, target_name="validation AUROC"), dtype=object).flat[0].figure
                plt.close(figure)
                yield f"{name}_{sweep.name}", figure, captions[name]


def _read_study(path: Path) -> Study | None:
    """Read a study; None where there is none, or none that can be read."""
    if not path.is_file() or importlib.util.find_spec("optuna") is None:
        return None
    import optuna
    from optuna.storages.journal import JournalFileBackend

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            backend = JournalFileBackend(str(path))
            return optuna.load_study(study_name=STUDY, storage=optuna.storages.JournalStorage(backend))
    except Exception:  # a damaged journal costs its figures only
        return None
