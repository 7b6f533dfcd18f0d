"""What a newcomer waits for: from a clone and an empty cache of uv to the first trained network, as CSV.

    python benchmarks/start.py > benchmarks/start.csv

The clone, its environment and both caches lie in a temporary folder. Nothing else should run meanwhile.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
import time
from pathlib import Path

from tables import csv_printer

ROOT = Path(__file__).resolve().parents[1]
LEFT_OUT = ("VIRTUAL_ENV", "PYTHONDONTWRITEBYTECODE", "PYTHONPYCACHEPREFIX", "PYTHONPATH")


def main() -> None:
    print_row = csv_printer("step", "seconds")
    with tempfile.TemporaryDirectory() as folder:
        clone, caches = Path(folder, "histolight"), Path(folder, "cache")
        environment = {name: value for name, value in os.environ.items() if name not in LEFT_OUT}
        environment |= {"UV_CACHE_DIR": f"{caches}/uv", "XDG_CACHE_HOME": str(caches)}

        def seconds(*command: str, **changed: str) -> float:
            began = time.perf_counter()
            subprocess.run(command, cwd=clone, env=environment | changed, check=True, capture_output=True)
            return time.perf_counter() - began

        subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
        install, train = seconds("uv", "sync"), seconds("uv", "run", "histolight", "train")
        (run,) = (clone / "outputs" / "runs").iterdir()
        print_row("install the packages", round(install, 1))
        print_row("train for the first time", round(train, 1))
        print_row("of which epochs", round(json.loads((run / "metrics.json").read_text())["seconds"], 1))
        print_row("both", round(install + train, 1))
        print_row("show the help", round(seconds("uv", "run", "histolight", "--help"), 1))


if __name__ == "__main__":
    main()
