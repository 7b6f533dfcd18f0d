"""What goes on where nothing can be counted: a line on the terminal that is gone when the work is done."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator

from histolight import files


@contextlib.contextmanager
def waiting(what: str) -> Iterator[None]:
    """Show on a terminal what is waited for; in a file, a pipe or a process beside the main one, nothing.

    Args:
        what: Such as ``starting PyTorch``.
    """
    if not (sys.stderr.isatty() and files.is_main_process()):
        yield
        return
    line = f"{what} …"
    print(f"\r{line}", end="", file=sys.stderr, flush=True)
    try:
        yield
    finally:
        print(f"\r{' ' * len(line)}\r", end="", file=sys.stderr, flush=True)
