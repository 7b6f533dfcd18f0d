"""``histolight explore``: what a set of tiles holds, what it looks like, and what is wrong with it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from histolight import files, runs
from histolight.config.compose import compose_config, typed
from histolight.config.keys import PLACES, key_of, new_folder, own_keys, read_path, read_paths, run_config
from histolight.config.schema import DataConfig
from histolight.errors import DataError, RequestError

USAGE = """\
keys (KEY=VALUE):
  run=DIR            the tiles of a run, with the sides that its split gave them
  runs=SWEEP         labels that are doubted by runs that did not train on their tiles: a sweep over data.fold, or a
                     list, runs=[DIR,DIR]; doubtful_labels.csv
  data=SOURCE data.root=DIR data.groups=FILE data.classes=[NEGATIVE,POSITIVE] data.limit=N data.image_size=N
                     the tiles: synthetic, kaggle, pcam, folder, parquet, wilds or several
  data=slides data.root=DIR slides.KEY=VALUE
                     annotated slides (docs/slides.md): also where the tiles lie
  data.seed=N        draws the tiles that are shown, and those of data.limit
  data.cache=DIR     folder for packs
  name=NAME          name of the folder; the source's name unless given
  hydra.run.dir=DIR  where the page goes; outputs/explore/NAME-TIME unless given

exit status: 2 also where tiles are damaged or labels wrong: then the page shows which
"""


def main(overrides: list[str]) -> int:
    """Run the command; return the exit status."""
    request = parse_request(overrides)
    with files.claimed(request.directory):
        sentences = explore(request)
    print("\n".join(sentences))
    print(f"report       {request.directory / 'report.html'}")
    return 0


@dataclass(frozen=True)
class ExploreConfig:
    """What to look at.

    Attributes:
        data: Where the tiles come from.
        title: Of the page.
        directory: Where the page goes.
        run: The run whose split is shown, or None.
        judges: The runs whose predictions doubt labels; the tiles themselves are then not looked at.
    """

    data: DataConfig
    title: str
    directory: Path
    run: Path | None = None
    judges: Sequence[Path] = ()


def parse_request(overrides: Sequence[str]) -> ExploreConfig:
    """Read the command line.

    Raises:
        RequestError: A key is unknown or has no place here, a value is wrong, or the folder holds files.
    """
    if any(key_of(override) == "run" for override in overrides):
        values, others = own_keys(overrides, ("run", "hydra.run.dir"))
        run = read_path(values["run"])
        config = run_config(run, others, ("run", "hydra.run.dir"), PLACES, "explore")
        name = run.resolve().name
        directory = new_folder(values.get("hydra.run.dir"), "explore", name)
        return ExploreConfig(config.data, f"Tiles of {name}", directory, run)
    if any(key_of(override) == "runs" for override in overrides):
        from histolight.inference.predict import members_of

        values, others = own_keys(overrides, ("runs", "hydra.run.dir"))
        folders = read_paths("runs", values["runs"])
        judges = members_of(folders, None)
        config = run_config(judges[0], others, ("runs", "hydra.run.dir"), PLACES, "explore")
        name = folders[0].resolve().name
        directory = new_folder(values.get("hydra.run.dir"), "explore", f"labels-{name}")
        return ExploreConfig(config.data, f"Doubtful labels: {name}", directory, judges=judges)
    composed = compose_config(overrides)
    keys = [key_of(override) for override in overrides]
    for key in keys:
        if key not in ("data", "name", "hydra.run.dir") and not key.startswith(("data.", "slides.")):
            raise RequestError(
                f"{key}= has no place in histolight explore; it takes run, runs, data, data.*, slides.*, name and "
                "hydra.run.dir"
            )
    config = typed(composed)
    given = composed.hydra.run.dir if "hydra.run.dir" in keys else None
    directory = new_folder(given, "explore", config.name)
    where = f" in {config.data.root}" if config.data.root else ""
    return ExploreConfig(config.data, f"Tiles of {config.name}{where}", directory)


def explore(request: ExploreConfig) -> list[str]:
    """Check the tiles, look at them and write the page; return what it says first.

    Raises:
        DataError: Tiles or labels are not fit to train on; the page shows them.
        HistolightError: The tiles can't be found or packed, or the page can't be written.
    """
    config, title, directory = request.data, request.title, request.directory
    if request.judges:
        from histolight.exploration.labels import read_out_of_fold, write_doubts

        return write_doubts(read_out_of_fold(request.judges, config), directory, title)
    sides = None if request.run is None else runs.read_splits(request.run)["split"]
    from histolight.data.sources import check_labelled, load_source

    check_labelled(config)
    from histolight.data.checks import check_table
    from histolight.data.prepare import load_tiles
    from histolight.data.table import larger_samples
    from histolight.exploration.page import write_exploration, write_problems

    table = None
    try:
        source = load_source(config)
        check_table(source.table, config)
        table = source.table
        tiles = load_tiles(source, config)
        labels = tiles.table["label"].unique()
        if len(labels) < 2:
            larger = larger_samples(table, config.limit, config.seed)
            limit = next((limit for limit, drawn in larger if drawn["label"].nunique() == 2), "null")
            raise RequestError(f"all {len(tiles.table)} tiles have the label {labels[0]}: use data.limit={limit}")
    except DataError as error:
        write_problems(error.problems, table, directory, title, error.advice)
        raise DataError(f"{error}; all of them: {directory / 'report.html'}", error.problems) from error
    return write_exploration(tiles, config, directory, title, sides)
