"""Kill it anywhere, start it again, compare: `python benchmarks/kill.py [KILLS]`.

Packing, training, sweeping and predicting are first done undisturbed, which also says how long each takes. Then
each is started again and again and killed at a random moment of that time, by SIGKILL and SIGTERM in turn; moments are
counted in CPU seconds, so that a busy machine does not shift them. What lies
under a final name at that moment must be whole. Started again until it is done, it must give the undisturbed result:
the same bytes of the pack, of the predictions and the splits, the same figures, the same files. Exit status 1 if not.

Every trial is a fork of this process, which has imported everything and done nothing: so that a kill hits the work and
not the imports.
"""

from __future__ import annotations

import json
import math
import os
import platform
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import yaml
from PIL import Image
from tables import csv_printer
from tqdm import tqdm

from histolight import api, cli, runs

SIZE = 32
TILES = 1024  # four blocks of a pack; 60 of them train
NOT_COMPARED = {
    "seconds",
    "tiles_per_second",
    "data_wait_seconds",
    "peak_memory_mb",
    "anonymous_memory_mb",
    "git_commit",
}
PAST_THE_END = 1.02  # of the undisturbed time: a few kills come too late, and say so


@dataclass(frozen=True)
class Work:
    """One kind of work.

    Attributes:
        begin: Starts it, in the current folder; returns the exit status.
        go_on: Starts it again as a user is told to.
        result: Reads what must be the same, from the current folder.
    """

    begin: Callable[[], int]
    go_on: Callable[[], int]
    result: Callable[[], dict[str, Any]]


def main(kills: int = 100, seed: int = 0) -> int:
    torch.set_num_threads(1)
    chance = random.Random(seed)
    failures, began = 0, time.monotonic()
    with tempfile.TemporaryDirectory(prefix="kill") as name:
        base = Path(name)
        write_tiles(base / "tiles")
        works = make_works(base)
        expected, times = undisturbed(works, base)
        survived: Counter[tuple[str, str]] = Counter()
        for number in tqdm(range(kills), unit="kill"):
            kind = list(works)[number % len(works)]
            number_of_signal = (signal.SIGKILL, signal.SIGTERM)[number // len(works) % 2]
            moment = chance.uniform(0, PAST_THE_END * times[kind])
            place = base / "trial"
            place.mkdir()
            fault = trial(works[kind], place, number_of_signal, moment, expected[kind], survived, kind)
            if fault:
                failures += 1
                tqdm.write(
                    f"kill {number}: {kind}, {number_of_signal.name} after {moment:.2f} CPU s: {fault}", file=sys.stderr
                )
            shutil.rmtree(place)
    print_row = csv_printer("work", "cpu_seconds_undisturbed", "sigkill", "sigterm", "said_how_to_continue", "too_late")
    for kind in works:
        counts = [survived[kind, what] for what in ("SIGKILL", "SIGTERM", "said", "late")]
        print_row(kind, f"{times[kind]:.1f}", *counts)
    machine = f"torch {torch.__version__}, {platform.platform()}, {os.cpu_count()} CPUs"
    print(f"{kills} kills, {failures} failures; {time.monotonic() - began:.0f} s; {machine}", file=sys.stderr)
    return int(failures > 0)


def make_works(base: Path) -> dict[str, Work]:
    data = ["data=folder", f"data.root={base / 'tiles'}", f"data.image_size={SIZE}", "data.batch_size=8"]
    small = [*data, f"data.cache={base / 'cache'}", "data.limit=60", "logger=csv", "trainer=cpu"]
    small += ["model.name=shufflenet_v2_x0_5", "model.weights=null"]
    train = ["train", *small, "trainer.max_epochs=3", "model.dropout=0.2", "hydra.run.dir=run"]
    sweep = ["train", "-m", *small, "trainer.max_epochs=1", "optimizer.lr=1e-3,1e-2", "name=X"]
    predict = ["predict", f"run={base / 'training' / 'run'}", f"data.root={base / 'tiles'}", "data=folder"]
    predict += ["tta=flips", "hydra.run.dir=out"]

    def pack() -> int:
        return int(len(api.load_tiles([*data, "data.cache=cache"]).table) != TILES)

    def go_on_training() -> int:
        begun = Path("run/metrics.json").exists() and Path("run/config.yaml").exists()
        return cli.main(["train", "run=run"]) if begun else cli.main(train)

    return {
        "packing": Work(pack, pack, packed),
        "training": Work(lambda: cli.main(train), go_on_training, lambda: run_result(Path("run"))),
        "sweeping": Work(lambda: cli.main(sweep), lambda: cli.main(sweep), sweep_result),
        "predicting": Work(lambda: cli.main(predict), lambda: cli.main(predict), predicted),
    }


def undisturbed(works: dict[str, Work], base: Path) -> tuple[dict[str, Any], dict[str, float]]:
    """Do everything once, for its result and the CPU seconds that it takes."""
    expected: dict[str, Any] = {}
    times: dict[str, float] = {}
    for kind, work in works.items():
        folder = base / kind
        folder.mkdir()
        status, times[kind] = wait(start(work.begin, folder))
        if status != 0:
            raise SystemExit(f"{kind} fails undisturbed:\n{(folder / 'output').read_text()}")
        expected[kind] = in_folder(folder, work.result)
    return expected, times


def trial(
    work: Work, place: Path, number: int, moment: float, expected: dict[str, Any], survived: Counter, kind: str
) -> str | None:
    """Kill once and go on; return what is wrong, or None."""
    process = start(work.begin, place)
    while cpu_seconds(process) < moment:
        time.sleep(0.002)
    os.kill(process, number)
    status, _ = wait(process)
    output = (place / "output").read_text()
    if "Traceback" in output:
        return f"a traceback\n{output}"
    if damaged := list(half_written(place)):
        return f"half-written: {damaged}"
    late = status == 0
    if late:
        survived[kind, "late"] += 1
    elif number == signal.SIGTERM and ("continue with" in output or "the same command" in output):
        survived[kind, "said"] += 1
    status, _ = wait(start(work.go_on, place))
    output = (place / "output").read_text()
    nothing_to_do = "is completed: nothing to continue" in output or (late and "holds files already" in output)
    if status != 0 and not nothing_to_do:
        return f"exit status {status} when started again\n{output}"
    result = in_folder(place, work.result)
    if result != expected:
        found = differences(expected, result)
        return f"another result: {', '.join(found[:4])}, {len(found)} in all"
    survived[kind, signal.Signals(number).name] += 1
    return None


def start(function: Callable[[], int], folder: Path) -> int:
    """Fork a process that does the work in a folder, and return its id."""
    sys.stdout.flush()  # or the fork would write what was said so far into its own output
    process = os.fork()
    if process == 0:
        status = 1
        try:
            os.chdir(folder)
            output = os.open("output", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(output, 1)
            os.dup2(output, 2)
            status = function()
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
    return process


def wait(process: int) -> tuple[int, float]:
    """Wait for the end of a process: its exit status, minus the number of the signal that ended it; CPU seconds."""
    _, status, used = os.wait4(process, 0)
    return os.waitstatus_to_exitcode(status), used.ru_utime + used.ru_stime


def cpu_seconds(process: int) -> float:
    """CPU seconds that a process has used so far; infinite once it has ended."""
    state, *fields = Path(f"/proc/{process}/stat").read_text().rpartition(") ")[2].split()
    if state == "Z":
        return math.inf
    return (int(fields[10]) + int(fields[11])) / os.sysconf("SC_CLK_TCK")


def in_folder(folder: Path, function: Callable[[], Any]) -> Any:
    before = Path.cwd()
    os.chdir(folder)
    try:
        return function()
    finally:
        os.chdir(before)


# ----------------------------------------------------------------------------------------------------- results


def packed() -> dict[str, Any]:
    made = [path for path in files(Path("cache")) if path.suffix != ".lock"]
    return {str(path.relative_to("cache")): path.read_bytes() for path in made}


def run_result(run: Path) -> dict[str, Any]:
    """What must not depend on interruptions; a log of curves, which repeats what was cut off, is left out."""
    result: dict[str, Any] = {"metrics": without_costs(run)}
    for path in files(run):
        name = str(path.relative_to(run))
        if name.startswith("csv/") or path.name == ".histolight.lock":
            continue
        if path.suffix in (".csv", ".yaml"):
            result[name] = path.read_bytes()
        elif path.suffix == ".ckpt":
            state = torch.load(path, weights_only=True)
            result[name] = {key: value.numpy().tobytes() for key, value in state["state_dict"].items()}
            result[f"{name} step"] = state["global_step"]
        else:
            result[name] = "there"
    return result


def sweep_result() -> dict[str, Any]:
    sweep = Path("outputs/sweeps/X")
    points = sorted(path.parent for path in sweep.glob("*/metrics.json"))
    return {str(point): run_result(point) for point in points} | {"index": (sweep / "sweep.json").read_text()}


def predicted() -> dict[str, Any]:
    about = json.loads(Path("out/prediction.json").read_text())
    tables = {path.name: path.read_bytes() for path in files(Path("out")) if path.suffix == ".csv"}
    names = [path.name for path in files(Path("out")) if path.name != ".histolight.lock"]
    return tables | {"files": names, "about": {name: about[name] for name in about if name not in NOT_COMPARED}}


def without_costs(run: Path) -> dict[str, Any]:
    return {name: value for name, value in runs.read_metrics(run).items() if name not in NOT_COMPARED}


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def differences(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    found = []
    for key in sorted(one.keys() | other.keys()):
        if one.get(key) != other.get(key):
            nested = isinstance(one.get(key), dict) and isinstance(other.get(key), dict)
            found += [f"{key}: {name}" for name in differences(one[key], other[key])] if nested else [key]
    return found


def half_written(place: Path) -> Iterator[str]:
    """Name every file under a final name that is not whole; names with a dot, or .partial, are not final."""
    for path in files(place):
        relative = path.relative_to(place)
        if any(part.startswith(".") or part.endswith(".partial") for part in relative.parts) or path.name == "output":
            continue
        try:
            match path.suffix:
                case ".json":
                    json.loads(path.read_text())
                case ".csv":
                    assert path.read_bytes().endswith(b"\n")
                    pd.read_csv(path, dtype=str)
                case ".yaml":
                    assert isinstance(yaml.safe_load(path.read_text()), dict)
                case ".ckpt":
                    torch.load(path, weights_only=True)
                case ".png":
                    with Image.open(path) as image:
                        image.load()
                case ".html":
                    assert path.read_text().rstrip().endswith("</html>")
                case ".npy":
                    np.load(path)
        except Exception as error:
            yield f"{relative} ({type(error).__name__}: {error})"


def write_tiles(root: Path) -> None:
    random_numbers = np.random.default_rng(0)
    for number in range(TILES):
        label = number % 2
        tile = random_numbers.normal(170, 40, (SIZE, SIZE, 3))
        tile[8:24, 8:24] -= 45 * label
        path = root / str(label) / f"tile_{number:04d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(tile.clip(0, 255).astype(np.uint8)).save(path)


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:])))
