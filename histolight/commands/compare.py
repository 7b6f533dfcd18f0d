"""``histolight compare``: which of these runs is best, and what the tests allow one to say."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from histolight import files
from histolight.config.keys import key_of, new_folder, own_keys, read_paths
from histolight.errors import RequestError, nearest
from histolight.progress import waiting

KEYS = ("runs", "by", "among", "plan", "hydra.run.dir")
USAGE = """\
keys (KEY=VALUE):
  runs=DIR           a sweep, a folder of runs, a run, or a list of these: runs=[DIR,DIR]
  by=KEY             show each value of this key of the configuration at its own best point: by=model.name
  among=A,B,C        compare only these rows, named before anyone saw figures: row names or run folders
  plan=DIR           before a sweep: how many tiles, slides and seeds detect a difference, from earlier runs
  hydra.run.dir=DIR  where the comparison goes; outputs/compare/NAME-TIME unless given
"""


@dataclass(frozen=True)
class CompareConfig:
    """What to compare.

    Attributes:
        runs: Sweeps, folders of runs or run directories.
        by: A configuration key, such as ``model.name``, each value of which is shown at its own best point.
        among: Names or folders of the rows to compare, as written; None compares all.
        directory: Where the comparison goes.
    """

    runs: list[Path]
    by: str | None
    among: str | None
    directory: Path


def main(overrides: list[str]) -> int:
    """Run the command; return the exit status."""
    if plan := parse_plan(overrides):
        from histolight.ranking.plan import plan_table
        from histolight.reports.page import as_text

        table, notes = plan_table(plan)
        print("\n".join([as_text(table), "", *notes]))
        return 0
    config = parse_request(overrides)
    from histolight.ranking.page import terminal_text, write_report
    from histolight.ranking.ranking import compare_runs

    ranking = compare_runs(config.runs, config.by, config.among)
    with files.claimed(config.directory), waiting("ranking, and drawing the page"):
        write_report(ranking, config.directory, f"Comparison of {_title(config.runs)}")
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    print(terminal_text(ranking, width))
    print(f"\nreport       {config.directory / 'report.html'}")
    print(f"tables       {config.directory / 'comparison.csv'}, comparison.json, comparison.md")
    return 0


def parse_plan(overrides: Sequence[str]) -> list[Path]:
    """Read ``plan=…``, which stands alone; empty where it isn't given.

    >>> parse_plan(["plan=outputs/runs/a"])
    [PosixPath('outputs/runs/a')]
    """
    plans = [override for override in overrides if key_of(override) == "plan"]
    if not plans:
        return []
    if len(overrides) > 1:
        raise RequestError("plan= stands alone: histolight compare plan=FOLDER, with an earlier run or sweep")
    return read_paths("plan", own_keys(plans, KEYS)[0]["plan"])


def parse_request(overrides: Sequence[str]) -> CompareConfig:
    """Read ``runs=…``, ``by=…``, ``among=…`` and ``hydra.run.dir=…``.

    Raises:
        RequestError: A key is unknown or missing, or a list can't be read.

    >>> parse_request(["runs=[my runs/a (1),'b,c']", "hydra.run.dir=out"]).runs
    [PosixPath('my runs/a (1)'), PosixPath('b,c')]
    """
    values, others = own_keys(overrides, KEYS)
    if others:
        key = others[0].partition("=")[0]
        raise RequestError(f"{key} is not a key of histolight compare: {nearest(key, KEYS)}")
    if "runs" not in values:
        raise RequestError("runs= is missing: histolight compare runs=FOLDER, with a sweep or a folder of runs")
    runs = read_paths("runs", values["runs"])
    folder = new_folder(values.get("hydra.run.dir"), "compare", _title(runs))
    return CompareConfig(runs, values.get("by"), values.get("among"), folder)


def _title(runs: Sequence[Path]) -> str:
    name = runs[0].resolve().name
    return name if len(runs) == 1 else f"{name} and {len(runs) - 1} more"
