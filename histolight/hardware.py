"""What the machine allows: the precision of its device, its memory, and whether it can compile."""

from __future__ import annotations

import contextlib
import logging
import os
import re
from collections.abc import Iterator

import torch

log = logging.getLogger("histolight")

REDUCED = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}  # in which autocast computes, by the precision


def resolve_precision(precision: str, accelerator: str) -> str:
    """Choose for ``trainer.precision=auto``: a CPU emulates bf16 slowly, and an old GPU has none."""
    if precision != "auto":
        return precision
    if accelerator == "cpu" or not torch.cuda.is_available():
        return "32-true"
    return "bf16-mixed" if torch.cuda.is_bf16_supported(including_emulation=False) else "16-mixed"


def prepare_matrix_products() -> None:
    """Let float32 products be fast, and all of them repeatable where a training of this process asks for it.

    PyTorch looks at cuBLAS's setting once, at the first product on a GPU: ``trainer.deterministic=true`` fails where a
    training or a prediction without it came before.
    """
    torch.set_float32_matmul_precision("high")
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


def is_out_of_memory(error: BaseException | None) -> bool:
    """Say whether a GPU's memory was too small: PyTorch's own error, or what CUDA, cuBLAS or cuDNN say."""
    return isinstance(error, torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and re.search("CUDA error: out of memory|ALLOC_FAILED", str(error)) is not None
    )


def free_memory(device: torch.device) -> float:
    """Return the bytes of a GPU that this process may still take: those free, within its own share of the GPU."""
    free, total = torch.cuda.mem_get_info(device)
    share = torch.cuda.get_per_process_memory_fraction(device) * total
    return min(free, share - torch.cuda.memory_reserved(device))


@contextlib.contextmanager
def quick_look_for_gpus() -> Iterator[None]:
    """Where there is no GPU, let PyTorch ask CUDA whether there is one, as it does in each step of Adam.

    Lightning has it ask NVML instead, which keeps CUDA from being initialised, and which takes a tenth of the step of a
    linear probe where the library is looked for in vain each time.
    """
    name = "PYTORCH_NVML_BASED_CUDA_CHECK"
    asked = None if torch.cuda.device_count() else os.environ.pop(name, None)
    try:
        yield
    finally:
        if asked is not None:
            os.environ[name] = asked


def compile_module(module: torch.nn.Module, mode: str, device: torch.device) -> None:
    """Compile a module in place, which leaves the checkpoint's keys alone; without a compiler only warn."""
    try:
        torch.compile(torch.nn.GELU(), mode=mode)(torch.zeros(8, 8, device=device))  # one kernel to generate
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        log.warning("trainer.compile=%s is not possible here, training goes on without it: %s", mode, reason)
    else:
        module.compile(mode=mode)
