"""Which GPU each worker process of a sweep takes, and how much of it."""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import time
from pathlib import Path

from omegaconf import DictConfig, open_dict

from histolight.errors import RequestError
from histolight.locks import HeldError, Lock

SLACK = 0.95  # of a share is a process's own; CUDA itself takes some memory for each process beside it
POLL = 5.0  # seconds between two looks at a GPU that is taken

log = logging.getLogger("histolight")


class Gpus:
    """The GPUs of this machine, as PyTorch sees them."""

    def count(self) -> int:
        """Return how many there are."""
        import torch

        return torch.cuda.device_count()

    def memory(self) -> tuple[int, int]:
        """Return the free and the total bytes of this process's GPU."""
        import torch

        return torch.cuda.mem_get_info()

    def limit(self, fraction: float) -> None:
        """Keep this process within a fraction of its GPU's memory."""
        import torch

        torch.cuda.set_per_process_memory_fraction(fraction)


gpus = Gpus()
_held: Lock | None = None  # this worker's place, until the process ends
_limited = False  # whether this worker keeps within its share


def share_out(config: DictConfig, points_per_gpu: int) -> None:
    """Have the launcher start as many points at a time as the GPUs take, and refuse what can't go well.

    Args:
        config: Of the sweep, Hydra's own node included; changed.
        points_per_gpu: So many points share a GPU at a time.

    Raises:
        RequestError: More points at a time than places, or a launcher that trains one after another.
    """
    launcher, kind = config.hydra.launcher, str(config.hydra.launcher._target_)
    if points_per_gpu > 1 and "Basic" in kind:
        raise RequestError(
            f"sweep.points_per_gpu={points_per_gpu} needs points that train side by side: add hydra/launcher=joblib or "
            "hydra/launcher=ray"
        )
    count = 0 if config.trainer.accelerator == "cpu" or not {"Joblib", "Ray"} & _words(kind) else gpus.count()
    if not count:
        return
    with open_dict(launcher):
        if "Ray" in kind:
            launcher.ray.remote.setdefault("num_gpus", 1 / points_per_gpu)
            return
        places = count * points_per_gpu
        if launcher.n_jobs > places:
            raise RequestError(
                f"hydra.launcher.n_jobs={launcher.n_jobs}, but {count} GPUs take {places} points at a time: use "
                f"hydra.launcher.n_jobs={places}, or a larger sweep.points_per_gpu"
            )
        if launcher.n_jobs < 0:
            launcher.n_jobs = places


def _words(target: str) -> set[str]:
    return {word for word in ("Joblib", "Ray") if word in target}


def claim_gpu(directory: Path, points_per_gpu: int = 1) -> None:
    """Take a place on a GPU for this worker process, on the one that the fewest others have taken.

    Args:
        directory: The sweep's folder, where the places are locked.
        points_per_gpu: Places on each GPU; each has its share of the memory, and is waited for while others take it.
    """
    global _held
    count = gpus.count()
    if _held is not None or count == 0 or (count == 1 and points_per_gpu == 1):
        return
    visible = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(count)))
    for share, gpu in ((share, gpu) for share in itertools.count() for gpu in visible.split(",")):
        lock = Lock(directory / f".histolight-gpu-{gpu}-{share}.lock")
        with contextlib.suppress(HeldError):
            lock.acquire(watch=False)
            _held = lock
            os.environ["CUDA_VISIBLE_DEVICES"] = gpu  # in time: CUDA reads it once, at its first use
            break
    take_share(gpu, points_per_gpu)


def take_share(gpu: str, points_per_gpu: int) -> None:
    """Wait until a share of the memory is free, and keep this process within it; once is enough.

    Args:
        gpu: Its name, for the message.
        points_per_gpu: So many processes share it; 1 leaves all of it to this one.
    """
    global _limited
    if _limited or points_per_gpu == 1 or gpus.count() == 0:
        return
    free, total = gpus.memory()
    share = SLACK * total / points_per_gpu
    if free < share:
        log.warning(
            "GPU %s has %.1f GB free, and with sweep.points_per_gpu=%d a point may take %.1f GB: it waits until these "
            "are free", gpu, free / 1e9, points_per_gpu, share / 1e9
        )  # fmt: skip
    while gpus.memory()[0] < share:
        time.sleep(POLL)
    gpus.limit(SLACK / points_per_gpu)
    _limited = True
