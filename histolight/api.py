"""histolight from Python: what the commands do, with objects in the place of printed lines.

Nothing here prints but warnings, on stderr, where progress bars show too. Every call gives the process back as it was.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from histolight import runs
from histolight.config.compose import compose_config, saved_config, typed
from histolight.config.keys import PLACES, argument_error, key_of, new_folder, own_keys, run_config
from histolight.config.overrides import Overrides, as_words
from histolight.config.schema import Config
from histolight.errors import RequestError
from histolight.process import unchanged

if TYPE_CHECKING:
    from histolight.data.prepare import PackedTiles
    from histolight.explanation.grad_cam import Explanation
    from histolight.inference.export_run import Export
    from histolight.models.classifier import Classifier
    from histolight.training.embed import Embedding


@dataclass(frozen=True)
class Run:
    """A run directory, or the folder of an evaluation, which holds the same files.

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


@dataclass(frozen=True)
class Prediction:
    """Scores of tiles without labels, or of whole slides.

    Attributes:
        directory: Where they were written.
        table: One row a tile: ``id``, ``logit``, ``score``; of an ensemble also ``score_1`` and so on for its members.
            Of whole slides one row a slide, as in ``slides.csv``.
        submission: Kaggle's file where its tiles were predicted, else None.
        problems: For each slide that could not be scored, by the name of its file, what is wrong with it.
    """

    directory: Path
    table: pd.DataFrame
    submission: Path | None
    problems: dict[str, str] = field(default_factory=dict)


Runs = str | Path | Run | Sequence[str | Path | Run]


def _several(folders: Runs) -> list[str | Path | Run]:
    return list(folders) if isinstance(folders, Iterable) and not isinstance(folders, str) else [folders]


def _paths(name: str, folders: Runs) -> list[Path]:
    paths = [it.directory if isinstance(it, Run) else it for it in _several(folders)]
    if wrong := [it for it in paths if not isinstance(it, str | PathLike)]:
        raise RequestError(f"{name}: {type(wrong[0]).__name__} is neither a folder nor a Run")
    if not paths:
        raise RequestError(f"{name} is empty: give at least one folder or Run")
    return [Path(it).expanduser() for it in paths]


def _one_path(name: str, folder: str | Path | Run) -> Path:
    path, *others = _paths(name, folder)
    if others:
        raise RequestError(f"{name} is one folder or Run, not {1 + len(others)}: several can be predicted and compared")
    return path


@unchanged()
def load_tiles(overrides: Overrides = ()) -> PackedTiles:
    """Find, check and pack tiles: ``table`` has a row for each, ``pack.tiles.gather(rows)`` their pixels.

    Args:
        overrides: As on the command line, such as ``["data=kaggle", "data.root=DIR", "data.limit=1000"]``, as a
            dictionary, or a whole :class:`Config`.

    Raises:
        RequestError: There are no such tiles; :class:`DataError` where they are damaged.
    """
    from histolight.data import checks, prepare
    from histolight.data.sources import load_source

    config = typed(compose_config(as_words(overrides))).data
    source = load_source(config)
    checks.check_table(source.table, config)
    return prepare.load_tiles(source, config)


@unchanged("lightning", "matplotlib")
def train(overrides: Overrides = (), progress: bool = False) -> Run:
    """Train one run as ``histolight train`` does.

    Args:
        overrides: As on the command line, such as ``["data=kaggle", "data.root=DIR", "model=resnet34"]``, as a
            dictionary, such as ``{"data": "kaggle", "data.root": "DIR", "optimizer": {"lr": 1e-3}}``, or a
            :class:`Config`.
        progress: Show on stderr how far it is.

    Raises:
        HistolightError: As the command: :class:`RequestError` for a wrong request or wrong data, else what went wrong.
    """
    from histolight.training.run import train_run

    return Run(train_run(as_words(overrides), progress))


@unchanged("lightning", "matplotlib")
def sweep(overrides: Overrides, progress: bool = False) -> list[Run]:
    """Train every point of a sweep as ``histolight train -m`` does; a failed one says why in its ``metrics``.

    Args:
        overrides: As for :func:`train`; several values, ``"seed=0,1"`` or ``{"seed": [0, 1]}``, are swept.
        progress: Show on stderr how many points are done.

    Raises:
        HistolightError: As the command, but for the faults of single points.
    """
    from histolight.sweeps.sweep import run_sweep

    return [Run(point.directory) for point in run_sweep(as_words(overrides), progress).points]


def load_run(directory: str | Path) -> Run:
    """Open a run directory.

    Raises:
        RequestError: It is none.
    """
    run = Run(_one_path("directory", directory))
    runs.read_metrics(run.directory)
    return run


@unchanged("lightning", "matplotlib")
def evaluate(
    run: str | Path | Run,
    overrides: Overrides = (),
    *,
    tta: str = "none",
    calibrate: bool | str = False,
    chosen_on: str | Path | Run | None = None,
    adapt: str = "none",
    directory: str | Path | None = None,
) -> Run:
    """Measure a completed run on its own tiles, or on others, as ``histolight evaluate`` does.

    Args:
        run: The run.
        overrides: Other tiles, such as ``["data=folder", "data.root=DIR"]``, or another device or batch size.
        tta: ``none``, ``flips`` or ``dihedral``.
        calibrate: Measure the scores also as a temperature changes them (True), or slope and intercept (``line``).
        chosen_on: An earlier evaluation of the run, whose tiles choose threshold and temperature; None is the run's
            validation.
        adapt: ``none``, or what is fitted to the tiles without their labels: ``prior`` or ``batch_norm``.
        directory: An unused folder; None is ``outputs/evaluations/NAME-TIME``.

    Returns:
        The folder of the evaluation, with ``metrics`` and ``predictions``.

    Raises:
        HistolightError: As the command.
    """
    from histolight.inference.evaluate import evaluate as measure
    from histolight.inference.evaluate_request import evaluate_config

    place = None if directory is None else str(directory)
    chosen = None if chosen_on is None else _one_path("chosen_on", chosen_on)
    path, words = _one_path("run", run), as_words(overrides)
    request = evaluate_config(path, words, tta, str(calibrate).lower(), place, chosen, adapt)
    measure(request)
    return Run(request.directory)


@unchanged("lightning")
def predict(
    folders: Runs,
    overrides: Overrides = (),
    *,
    best: int | None = None,
    tta: str = "none",
    mean: str = "logit",
    adapt: str = "none",
    directory: str | Path | None = None,
) -> Prediction:
    """Score tiles without labels, or whole slides, with one run or an ensemble, as ``histolight predict`` does.

    Args:
        folders: A run, or several runs, sweeps or folders of runs.
        overrides: The tiles, such as ``["data=folder", "data.root=DIR"]``, or the slides, ``data=slides`` with
            ``slides.KEY``, and the device.
        best: Of all runs take so many, by validation AUROC; None takes all.
        tta: ``none``, ``flips`` or ``dihedral``.
        mean: How the members are averaged: ``logit`` or ``probability``.
        adapt: ``none``, or what of one run is fitted to the tiles: ``prior`` or ``batch_norm``.
        directory: An unused folder, or one of an interrupted prediction; None is ``outputs/predictions/NAME-TIME``.

    Raises:
        HistolightError: As the command.
    """
    from histolight.inference import predict as prediction

    place = None if directory is None else str(directory)
    members = prediction.members_of(_paths("folders", folders), best)
    words = as_words(overrides)
    own = [word for word in words if key_of(word).startswith("slides.")]
    values, unknown = own_keys(own, prediction.SLIDES)
    others = [word for word in words if word not in own]
    request = prediction.predict_config(members, [*others, *unknown], tta, mean, place, adapt)
    if (options := prediction.slides_options(request, values)) is not None:
        from histolight.inference.slides import predict_slides

        [slides, _], problems = predict_slides(request, options, progress=False)
        return Prediction(request.directory, pd.read_csv(slides, converters={"slide": str}), None, problems)
    written = prediction.predict(request, progress=False)
    table = pd.read_csv(written[0], dtype={"id": str}, keep_default_na=False)  # a tile may be called NA
    return Prediction(request.directory, table, written[1] if len(written) > 1 else None)


@unchanged("lightning", "matplotlib")
def explain(
    run: str | Path | Run,
    overrides: Overrides = (),
    *,
    part: str = "val",
    tiles: int = 8,
    directory: str | Path | None = None,
) -> Explanation:
    """Show where in its tiles a completed run finds what speaks for its calls, as ``histolight explain`` does.

    Args:
        run: The run.
        overrides: Where its tiles lie, if they have moved, such as ``["data.root=DIR"]``.
        part: The tiles to explain: ``val`` or ``test``.
        tiles: How many of the surest right calls, of the surest wrong ones and of the closest are shown, 1 to 64.
        directory: An unused folder; None is ``outputs/explain/NAME-TIME``.

    Returns:
        The maps (``maps``), their tiles (``table``), the share of the maps in the centre (``shares``), and the folder
        with ``report.html`` (``directory``).

    Raises:
        HistolightError: As the command.
    """
    from histolight.inference.explain import explain_run

    path = _one_path("run", run)
    config = run_config(path, as_words(overrides), ("run", "part", "tiles", "hydra.run.dir"), PLACES, "explain")
    return explain_run(path, config, part, tiles, _folder(directory, "explain", path))


@unchanged("lightning")
def export(run: str | Path | Run, overrides: Overrides = (), *, directory: str | Path | None = None) -> Export:
    """Write the network of a completed run as ``model.onnx``, as ``histolight export`` does.

    Args:
        run: The run.
        overrides: Where its tiles lie, if they have moved, such as ``["data.root=DIR"]``.
        directory: An unused folder; None is ``outputs/export/NAME-TIME``.

    Returns:
        The file (``path``), and how far its scores are from torch's (``difference``).

    Raises:
        HistolightError: As the command.
    """
    from histolight.inference.export_run import export_run

    path = _one_path("run", run)
    config = run_config(path, as_words(overrides), ("run", "hydra.run.dir"), PLACES, "export")
    return export_run(path, config, _folder(directory, "export", path))


@unchanged("lightning")
def embed(overrides: Overrides = (), *, directory: str | Path | None = None) -> Embedding:
    """Write the features of every tile as Parquet, as ``histolight embed`` does.

    Args:
        overrides: The tiles and the network, such as ``["data=kaggle", "data.root=DIR", "model=dinov2_s"]``.
        directory: An unused folder; None is ``outputs/embed/NAME-TIME``.

    Returns:
        The file (``path``), how many ``tiles`` it has, and the ``width`` of their features.

    Raises:
        HistolightError: As the command.
    """
    from histolight.training.embed import embed as write

    words = as_words(overrides)
    if "hydra.run.dir" in map(key_of, words):
        raise argument_error("embed", "hydra.run.dir")
    config = typed(compose_config(words))
    folder = new_folder(None if directory is None else str(directory), "embed", config.name)
    return write(config, folder, progress=False)


def _folder(directory: str | Path | None, kind: str, run: Path) -> Path:
    return new_folder(None if directory is None else str(directory), kind, run.resolve().name)


@unchanged()
def compare(folders: Runs, by: str | None = None, among: Runs | None = None) -> Comparison:
    """Compare runs as ``histolight compare`` does, without writing anything.

    Args:
        folders: A sweep, a folder of runs, a run, or several of these; as paths or :class:`Run`.
        by: A configuration key, each value of which is shown at its own best point.
        among: Rows named beforehand, by name, or by a run of theirs as a path or :class:`Run`; the others are left out.

    Raises:
        RequestError: There is no run to compare, or ``by`` or ``among`` names what isn't there.
    """
    from histolight.ranking.answer import answer
    from histolight.ranking.ranking import compare_runs
    from histolight.ranking.tables import comparison_csv, comparison_data

    named = None
    if among is not None:
        several = _several(among)
        paths = _paths("among", several)
        named = [it if isinstance(it, str) else str(path) for it, path in zip(several, paths, strict=True)]
    ranking = compare_runs(_paths("folders", folders), by, named)
    return Comparison(**comparison_data(ranking), answer=answer(ranking), table=comparison_csv(ranking))
