"""How long `histolight compare` takes.

    python benchmarks/compare.py [RUNS [TILES]] > benchmarks/compare.csv

Writes run directories as `train` writes them, with simulated scores, into a temporary folder, and compares them in a
process of its own, imports, figures and pages included. *single*: every run is a row of its own. *folds*: 5 folds x 2
seeds of each row, a fifth of the tiles in each fold.
"""

from __future__ import annotations

import itertools
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from fake_runs import fake_run
from tables import csv_printer

# Linux says of a process itself how large it was; of a child that has ended, it counts what the parent was, too.
COMMAND = """
import sys
from histolight.commands.compare import main
main(sys.argv[1:])
sys.stderr.write(open("/proc/self/status").read())
"""


def single(runs: int) -> Iterator[dict[str, Any]]:
    for number in range(runs):
        yield {"optimizer__lr": 1e-4 * (1 + number % 20), "optimizer__weight_decay": 1e-5 * (number // 20)}


def folds(runs: int) -> Iterator[dict[str, Any]]:
    for rate, fold, seed in itertools.product(range(runs // 10), range(5), range(2)):
        yield {"optimizer__lr": 1e-4 * (1 + rate), "data__fold": fold, "seed": seed}


def main() -> None:
    given = [int(argument) for argument in sys.argv[1:]]
    runs, tiles = [*given, *(200, 40_000)[len(given) :]]
    print_row = csv_printer("runs", "predictions_each", "kind", "slides", "wall_seconds", "cpu_seconds", "peak_mb")
    for kind, number, size, slides in (
        (single, runs, tiles, 0),
        (single, runs, tiles, 54),
        (folds, 20, tiles // 5, 0),
        (folds, 20, tiles // 5, 11),
    ):
        with tempfile.TemporaryDirectory() as folder:
            for place, changes in enumerate(kind(number)):
                split = "slide" if slides else "random"
                fake_run(Path(folder, "sweep", str(place)), 2.0, size, slides, split, **changes)
            arguments = [f"runs={folder}/sweep", f"hydra.run.dir={folder}/out"]
            before, started = os.times(), time.perf_counter()
            done = subprocess.run(
                [sys.executable, "-c", COMMAND, *arguments], check=True, capture_output=True, text=True
            )
            wall, after = time.perf_counter() - started, os.times()
            used = after.children_user + after.children_system - before.children_user - before.children_system
            peak = int(re.findall(r"VmHWM:\s+(\d+) kB", done.stderr)[-1]) * 1024 / 1e6
            print_row(number, size, kind.__name__, slides, f"{wall:.1f}", f"{used:.1f}", f"{peak:.0f}")


if __name__ == "__main__":
    main()
