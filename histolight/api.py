"""histolight from Python: what the commands do, with objects in the place of printed lines."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from histolight import files, runs
from histolight.config.compose import compose_config, saved_config, typed
from histolight.config.request import BEGINNING, training_request
from histolight.config.schema import Config
from histolight.errors import RequestError
from histolight.process import unchanged

if TYPE_CHECKING:
    from histolight.data.prepare import PackedTiles
    from histolight.models.classifier import Classifier


@dataclass(frozen=True)
class Run:
    """A run directory.

    Attributes:
        directory: Where it lies.
    """

    directory: Path

    @property
    def metrics(self) -> dict[str, Any]:
        """What ``metrics.json`` holds by now."""
        return runs.read_metrics(self.directory)

    @property
    def config(self) -> Config:
        """The configuration that it was trained with."""
        return typed(saved_config(self.directory))

    def predictions(self, part: str = "val") -> pd.DataFrame:
        """Read the predictions for ``val`` or ``test``: ``id``, ``label``, ``group``, ``logit``, ``score``.

        Raises:
            RequestError: The run has no such predictions.
        """
        path = self.directory / "predictions" / f"{part}.csv"
        if not path.is_file():
            raise RequestError(f"{path} is missing: the run has no {part} part, or did not finish")
        return runs.read_predictions(path)

    @unchanged("lightning")
    def classifier(self) -> Classifier:
        """Load the network of the best epoch, in evaluation mode, on the CPU.

        Raises:
            RequestError: The run is not completed, or its checkpoint is missing or damaged.
        """
        from histolight.inference.networks import load_classifier

        return load_classifier(self.directory)


@dataclass(frozen=True)
class Comparison:
    """What a comparison of runs allows one to say.

    Attributes:
        best_set: Names of the rows that may be the best: no row is surely above them.
        rows: One dictionary for each ranked row, as in ``comparison.json``: ``row``, ``auroc``, ``low``, ``high``,
            ``rank``, ``in_best_set``, ``unit``, ``seeds`` and more.
        not_ranked: One dictionary for each run or row without a rank: ``row``, ``status``, ``reason``, ``runs``.
        population: ``tiles`` or ``slides``: of what the claims hold.
        split: Kind of the split.
        method: Method and degrees of freedom, in one line.
        answer: In sentences, the one that answers first.
        table: One row for each ranked row: what ``comparison.csv`` holds.
    """

    best_set: list[str]
    rows: list[dict[str, Any]]
    not_ranked: list[dict[str, Any]]
    population: str
    split: str
    method: str
    answer: list[str]
    table: pd.DataFrame


@unchanged()
def load_tiles(overrides: Sequence[str] = ()) -> PackedTiles:
    """Find, check and pack tiles: ``table`` has a row for each, ``pack.tiles.gather(rows)`` their pixels.

    Args:
        overrides: As on the command line, such as ``["data=kaggle", "data.root=DIR", "data.limit=1000"]``.

    Raises:
        RequestError: There are no such tiles; :class:`DataError` where they are damaged.
    """
    from histolight.data import checks, prepare
    from histolight.data.sources import load_source

    config = typed(compose_config(overrides)).data
    source = load_source(config)
    checks.check_table(source.table, config)
    return prepare.load_tiles(source, config)


@unchanged("lightning", "matplotlib")
def train(overrides: Sequence[str] = ()) -> Run:
    """Train one run as ``histolight train`` does.

    Args:
        overrides: As on the command line, such as ``["data=kaggle", "data.root=DIR", "model=resnet34"]``.

    Raises:
        HistolightError: As the command: :class:`RequestError` for a wrong request or wrong data, else what went wrong.
    """
    config, directory, resume = training_request(overrides)
    from histolight.training import fit as training  # imports torch: not before it must

    config = training.check_request(config)
    held = files.claimed(directory, continued=resume, own=BEGINNING)
    with held if files.is_main_process() else contextlib.nullcontext():
        data = training.prepare_data(config, directory)
        slides = data.slides or "no known"
        split = f"split: {data.split_kind}"
        print(f"{len(data.table):,} tiles, {slides} slides, {split}; writing {directory}", file=sys.stderr)
        training.train(config, data, directory, resume)
    return Run(directory)


@unchanged("lightning", "matplotlib")
def sweep(overrides: Sequence[str]) -> list[Run]:
    """Train every point of a sweep as ``histolight train -m`` does; a failed one says why in its ``metrics``.

    Raises:
        HistolightError: As the command, but for the faults of single points.
    """
    from histolight.sweeps.sweep import run_sweep

    return [Run(point.directory) for point in run_sweep(overrides).points]


def load_run(directory: str | Path) -> Run:
    """Open a run directory.

    Raises:
        RequestError: It is none.
    """
    run = Run(Path(directory).expanduser())
    runs.read_metrics(run.directory)
    return run


@unchanged()
def compare(
    folders: str | Path | Sequence[str | Path], by: str | None = None, among: str | Sequence[str] | None = None
) -> Comparison:
    """Compare runs as ``histolight compare`` does, without writing anything.

    Args:
        folders: A sweep, a folder of runs, a run, or several of these.
        by: A configuration key, each value of which is shown at its own best point.
        among: Rows named beforehand, by name or by the folder of a run; the others are left out.

    Raises:
        RequestError: There is no run to compare, or ``by`` or ``among`` names what isn't there.
    """
    from histolight.ranking.answer import answer
    from histolight.ranking.ranking import compare_runs
    from histolight.ranking.tables import comparison_csv, comparison_data

    several = [folders] if isinstance(folders, str | Path) else folders
    ranking = compare_runs([Path(folder).expanduser() for folder in several], by, among)
    return Comparison(**comparison_data(ranking), answer=answer(ranking), table=comparison_csv(ranking))
