r"""What a point of a sweep costs beside its training, and how soon a wrong request is refused, as CSV.

    OMP_NUM_THREADS=1 python benchmarks/sweep.py [POINTS] > sweep.csv
    python benchmarks/sweep.py --grid data=kaggle data.root=FOLDER data.limit=1000 model=mobilenet_v2 \
        model.weights=FILE trainer=cpu trainer.max_epochs=1 >> sweep.csv
    OMP_NUM_THREADS=1 python benchmarks/sweep.py --probes data=parquet data.root=FOLDER data.limit=10000 \
        model=mobilenet_v2 model.weights=FILE trainer=cpu >> sweep.csv
    OMP_NUM_THREADS=1 python benchmarks/sweep.py --epoch data=parquet data.root=FOLDER data.limit=10000 \
        model=mobilenet_v2 model.weights=FILE trainer=cpu >> sweep.csv

Points of hardly any work: 60 tiles of 32 pixels, one epoch, ShuffleNetV2 x0.5. What counts are processor seconds,
which other work on the machine moves little; wall time stands beside them. With a launcher the cost of a further point
is what ``POINTS`` of them take beyond ``FEW``, so that the start of its processes is left out. ``--grid`` measures the
27 points of sweep=grid, one after another and two at a time; ``--probes`` those of experiment=linear_probe with three
seeds, on features that an earlier run has kept, all of them together, from the start of the command to the end of
``histolight compare``; ``--epoch`` an epoch of one of them, the least of five measurements.
"""

from __future__ import annotations

import importlib.util
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image
from tables import csv_printer

from histolight.sweeps.sweep import run_sweep
from histolight.training.run import train_run

SIZE, FEW = 32, 8
JOBLIB = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]
LAUNCHERS = {"serial": [], "joblib, two workers": JOBLIB, "Ray, two workers": ["hydra/launcher=ray"]}
FIRST_BATCH = "import sys; from histolight.training.bench import first_batch; first_batch(sys.argv[2:], sys.argv[1])"


def main(points: int = 100) -> None:
    print_row = printer()
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        small = write_tiles(base)
        for what in ("data=kaggle data.root=nowhere", f"data=folder data.root={base / 'tiles'} model.weights=no.pth"):
            _, pages, wall = process("-m", "histolight", "train", *what.split())
            print_row(f"refuse {what.split()[-1].partition('=')[0]}", 0, f"{pages:.2f}", "", f"{wall:.2f}")
        run_sweep([*small, "seed=1000", f"hydra.sweep.dir={base / 'first'}"], progress=False)  # imports, and the pack
        _, starting, wall = process("-c", FIRST_BATCH, str(base / "batch"), *small)
        print_row("from the start to the first batch", 0, f"{starting:.2f}", "", f"{wall:.2f}")
        for name, launcher in LAUNCHERS.items():
            if name.startswith("Ray") and importlib.util.find_spec("ray") is None:
                continue
            costs = []
            for count in (FEW, points):
                sweep = [*small, *launcher, f"seed=range({count})", f"hydra.sweep.dir={base / f'{name[:3]}{count}'}"]
                costs.append(cost(lambda sweep=sweep: run_sweep(sweep, progress=False)))
            each = [(more - fewer) / (points - FEW) for fewer, more in zip(*costs, strict=True)]
            print_row(f"a further point, {name}", points, *(f"{seconds:.2f}" for seconds in each))


def grid(overrides: list[str]) -> None:
    """Measure the 27 points of sweep=grid, one after another and two at a time."""
    print_row = printer()
    with tempfile.TemporaryDirectory() as folder:
        for name, launcher in (("one after another", []), ("two at a time", JOBLIB)):
            sweep = [*overrides, "sweep=grid", *launcher, f"hydra.sweep.dir={folder}/{len(launcher)}"]
            own, pages, wall = cost(lambda sweep=sweep: run_sweep(sweep, progress=False))
            print_row(f"sweep=grid, {name}", 27, f"{own / 27:.2f}", f"{pages / 27:.2f}", f"{wall / 27:.2f}")


def probes(overrides: list[str]) -> None:
    """Measure 27 linear probes, three seeds each, on kept features, the start and the comparison included."""
    print_row = printer()
    train = ["-m", "histolight", "train", "experiment=linear_probe", *overrides]
    with tempfile.TemporaryDirectory() as folder:
        process(*train, "trainer.max_epochs=1", f"hydra.run.dir={folder}/first")  # keeps the features
        sweep = ["sweep=grid", "seed=0,1,2", *JOBLIB, f"hydra.sweep.dir={folder}/sweep"]
        costs = [process(*train, *sweep), process("-m", "histolight", "compare", f"runs={folder}/sweep")]
        done = [path for path in Path(folder, "sweep").glob("*/metrics.json") if '"completed"' in path.read_text()]
        _, own, wall = map(sum, zip(*costs, strict=True))
        print_row("all linear probes, two at a time", len(done), f"{own:.0f}", "", f"{wall:.0f}")


def epoch(overrides: list[str]) -> None:
    """Measure an epoch of a linear probe on kept features: what forty of them take beyond one."""
    print_row = printer()
    with tempfile.TemporaryDirectory() as folder:

        def trained(name: str, epochs: int) -> tuple[float, float, float]:
            words = ["experiment=linear_probe", *overrides, f"trainer.max_epochs={epochs}"]
            return cost(lambda: train_run([*words, f"hydra.run.dir={folder}/{name}"], progress=False))

        trained("first", 1)  # imports, and keeps the features
        few, many = ([trained(f"{number}-{epochs}", epochs) for number in range(5)] for epochs in (1, 40))
        own, wall = ((min(each[of] for each in many) - min(each[of] for each in few)) / 39 for of in (0, 2))
        print_row("an epoch of a linear probe", 1, f"{own:.3f}", "", f"{wall:.3f}")


def printer() -> Callable[..., None]:
    columns = ("measured", "points", "cpu_seconds", "cpu_seconds_of_pages", "wall_seconds")
    return csv_printer(*columns, file=sys.stdout)


def process(*arguments: str) -> tuple[float, float, float]:
    """Run Python: as :func:`cost`."""
    return cost(lambda: subprocess.run([sys.executable, *arguments], capture_output=True, check=False))


def cost(work: Callable[[], object]) -> tuple[float, float, float]:
    """Processor seconds of this process and of those that it waited for, and wall seconds."""
    before, began = usage(), time.perf_counter()
    work()
    after = usage()
    return after[0] - before[0], after[1] - before[1], time.perf_counter() - began


def usage() -> tuple[float, float]:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return used[0].ru_utime + used[0].ru_stime, used[1].ru_utime + used[1].ru_stime


def write_tiles(base: Path) -> list[str]:
    random = np.random.default_rng(0)
    for number in range(60):
        tile = random.normal(170, 40, (SIZE, SIZE, 3))
        tile[8:24, 8:24] -= 45 * (number % 2)
        path = base / "tiles" / str(number % 2) / f"tile_{number:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(tile.clip(0, 255).astype(np.uint8)).save(path)
    data = ["data=folder", f"data.root={base / 'tiles'}", f"data.cache={base / 'cache'}", f"data.image_size={SIZE}"]
    network = ["model=resnet18", "model.name=shufflenet_v2_x0_5", "model.weights=null"]
    return [*data, *network, "data.batch_size=8", "trainer=cpu", "trainer.max_epochs=1"]


if __name__ == "__main__":
    if "--grid" in sys.argv:
        grid(sys.argv[2:])
    elif "--probes" in sys.argv:
        probes(sys.argv[2:])
    elif "--epoch" in sys.argv:
        epoch(sys.argv[2:])
    else:
        main(*map(int, sys.argv[1:]))
