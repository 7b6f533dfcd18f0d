"""What a sweep shows while its points train, wherever they do: read from the points' own files."""

from __future__ import annotations

import collections
import contextlib
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
    """Say on stderr how many points are done, the best so far and the time left, from the points' own files."""
    if not progress:
        yield
        return
    done: dict[Path, tuple[str, float | None]] = {}

    def look() -> None:
        for point in sweep.current():
            if point.directory not in done and (status := point.status) in ("completed", "failed", "pruned"):
                done[point.directory] = (status, point.auroc)

    def show(bar: Any) -> None:
        best = max(((auroc, path.name) for path, (_, auroc) in done.items() if auroc is not None), default=None)
        counts = collections.Counter(status for status, _ in done.values())
        words = [f"best AUROC {best[0]:.4f} ({best[1]})"] if best else []
        words += [f"{counts[status]} {status}" for status in ("pruned", "failed") if counts[status]]
        bar.n = len(done)
        bar.set_postfix_str(", ".join(words))

    for point in sweep.current():
        if (status := point.status) in ("completed", "pruned"):
            done[point.directory] = (status, point.auroc)
    form = "{desc}: {n_fmt} of {total_fmt} points done{postfix}, {elapsed} elapsed, {remaining} left"
    ended = threading.Event()
    with tqdm(total=total, initial=len(done), desc=sweep.directory.name, bar_format=form, file=sys.stderr) as bar:

        def watch() -> None:
            while not ended.wait(REFRESH):
                before = len(done)
                look()
                if len(done) != before or sys.stderr.isatty():
                    show(bar)

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
