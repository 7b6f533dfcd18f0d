"""Signals that end the work as Ctrl-C does."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
from collections.abc import Iterator


@contextlib.contextmanager
def signals_interrupt() -> Iterator[None]:
    """Make SIGTERM a KeyboardInterrupt, and in a job of SLURM SIGUSR1, which puts it back into the queue.

    Lightning's ``SLURMEnvironment(auto_requeue=True)`` does not serve: it acts within ``fit`` alone, not while tiles
    are packed or measured, and continues in the middle of an epoch, which would not repeat the run bit for bit. Where
    this handler is set, Lightning sets none of its own. All signals are given back as they were (Lightning leaves
    Ctrl-C ignored).
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    job = os.environ.get("SLURM_JOB_ID") if hasattr(signal, "SIGUSR1") else None
    if "SLURM_ARRAY_JOB_ID" in os.environ:
        job = f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ.get('SLURM_ARRAY_TASK_ID', '0')}"

    def interrupt(number: int, frame: object) -> None:
        if number != signal.SIGTERM and os.environ.get("SLURM_PROCID", "0") == "0":
            with contextlib.suppress(OSError):  # no scontrol: the message still says how to continue
                subprocess.run(["scontrol", "requeue", str(job)], check=False)
        raise KeyboardInterrupt

    caught = [signal.SIGTERM, *([signal.SIGUSR1] if job else [])]
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, *caught)}
    for number in caught:
        signal.signal(number, interrupt)
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
