"""A training as it is asked for: the request checked, its folder held, the data prepared, the run trained."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Sequence
from pathlib import Path

from histolight import files
from histolight.config.checks import check_weights_file
from histolight.config.request import BEGINNING, training_request
from histolight.progress import waiting


def train_run(overrides: Sequence[str], progress: bool = True) -> Path:
    """Train one run and return its directory.

    Args:
        overrides: As on the command line.
        progress: Say on stderr which tiles there are, and show how far the training is.

    Raises:
        HistolightError: The request or the data are wrong (:class:`RequestError`), or the training failed.
    """
    config, directory, resume = training_request(overrides)
    from histolight.data.sources import check_labelled

    check_labelled(config.data)
    check_weights_file(config.model.weights)
    with waiting("starting PyTorch"):  # not before it must
        from histolight.training import fit as training

        config = training.check_request(config)
    otherwise = f"make it writable for you, or use like={directory} hydra.run.dir=FOLDER" if resume else ""
    held = files.claimed(directory, continued=resume, own=BEGINNING, otherwise=otherwise or files.ANOTHER_RUN)
    with held if files.is_main_process() else contextlib.nullcontext():
        data = training.prepare_data(config, directory)
        if progress:
            slides, split = data.slides or "no known", f"split: {data.split_kind}"
            print(f"{len(data.table):,} tiles, {slides} slides, {split}; writing {directory}", file=sys.stderr)
        training.train(config, data, directory, resume, progress)
    return directory
