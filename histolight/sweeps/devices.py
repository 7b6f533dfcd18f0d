"""Which GPU each worker process of a sweep takes, and how much of it."""

from __future__ import annotations

import contextlib
import itertools
import os
from pathlib import Path

from omegaconf import DictConfig, open_dict

from histolight.errors import HistolightError, RequestError
from histolight.locks import HeldError, Lock

SLACK = 0.95  # of a share: what the contexts of the other processes take is not theirs to give


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
        points_per_gpu: Places on each GPU; each has its share of the memory.

    Raises:
        HistolightError: The GPU's memory is taken by others.
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
    if points_per_gpu > 1:
        _take_share(gpu, points_per_gpu)


def _take_share(gpu: str, points_per_gpu: int) -> None:
    """Keep this process within its share of the memory, which must be there."""
    global _held
    free, total = gpus.memory()
    if free < SLACK * total / points_per_gpu:
        assert _held is not None
        _held.release()
        _held = None
        raise HistolightError(
            f"GPU {gpu} has {free / 1e9:.1f} GB free, but with sweep.points_per_gpu={points_per_gpu} a point may take "
            f"{total / points_per_gpu / 1e9:.1f} GB: end what else runs there, or let fewer points share it"
        )
    gpus.limit(1 / points_per_gpu)
