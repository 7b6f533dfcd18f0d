"""What a sweep shows while its points train, wherever they do: read from the points' own files."""

from __future__ import annotations

import collections
import contextlib
import statistics
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tqdm import tqdm

from histolight.sweeps.points import Sweep

REFRESH = 0.5  # seconds between two looks at the points


@contextlib.contextmanager
def live_line(sweep: Sweep, total: int, progress: bool) -> Iterator[None]:
    """Say on stderr how many points are done, their best or mean so far and the time left, from their own files."""
    if not progress:
        yield
        return
    done: dict[Path, tuple[str, float | None]] = {}

    def look() -> None:
        for point in sweep.current():
            if point.directory not in done and (status := point.status) in ("completed", "failed", "pruned"):
                done[point.directory] = (status, point.auroc)

    def words() -> str:
        aurocs = [(auroc, path.name) for path, (_, auroc) in done.items() if auroc is not None]
        counts = collections.Counter(status for status, _ in done.values())
        said = []
        if aurocs and sweep.repeats:
            said = [f"mean AUROC {statistics.mean(auroc for auroc, _ in aurocs):.4f}"]
        elif aurocs:
            best, name = max(aurocs, key=lambda one: one[0])  # the first of equals, as in the sweep's last lines
            said = [f"best AUROC {best:.4f} ({name})"]
        return ", ".join(said + [f"{counts[status]} {status}" for status in ("pruned", "failed") if counts[status]])

    def show(bar: Any) -> None:
        if terminal or (len(done), words()) != (bar.n, bar.postfix or ""):  # a log has each line once
            bar.n = len(done)
            bar.set_postfix_str(words())

    for point in sweep.current():
        if (status := point.status) in ("completed", "pruned"):
            done[point.directory] = (status, point.auroc)
    form = "{desc}: {n_fmt} of {total_fmt} points done{postfix}, {elapsed} elapsed, {remaining} left"
    ended, terminal = threading.Event(), sys.stderr.isatty()
    settings: dict[str, Any] = {"desc": sweep.directory.name, "bar_format": form, "file": sys.stderr, "leave": terminal}
    with tqdm(total=total, initial=len(done), postfix=words(), **settings) as bar:

        def watch() -> None:
            while not ended.wait(REFRESH):
                look()
                show(bar)

        thread = threading.Thread(target=watch, daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()
            look()
            show(bar)
