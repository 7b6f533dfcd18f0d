"""The machine: what PyTorch can compute on, in which precision, and what keeps it from a GPU that is there."""

from __future__ import annotations

import importlib
import os
import platform
import shutil
import subprocess
from collections.abc import Iterator
from importlib.metadata import version
from typing import Any

from histolight.diagnosis.finding import Finding, size_text

PAIR = "install the two from one index in one command: pip install --force-reinstall torch torchvision"


def examine_machine() -> Iterator[Finding]:
    """Say what system, memory and cores there are."""
    memory = ""
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        memory = f", {size_text(os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE'))} of memory"
    yield Finding("machine", f"{platform.platform(terse=True)}, {platform.machine()}, {os.cpu_count()} cores{memory}")


def examine_torch() -> Iterator[Finding]:
    """Import PyTorch and torchvision, and say what they compute on and how precisely."""
    try:
        torch = importlib.import_module("torch")
    except Exception as error:  # a broken installation raises anything
        yield Finding("torch", f"it can't be imported: {_line(error)}", PAIR, serious=True)
        return
    cuda = torch.version.cuda or torch.version.hip
    built = f"built for {'CUDA' if torch.version.cuda else 'ROCm'} {cuda}" if cuda else "built without CUDA"
    text = f"{torch.__version__}, {built}; torchvision {version('torchvision')}"
    try:
        importlib.import_module("torchvision")
    except Exception as error:
        yield Finding("torch", f"{text}, which can't be imported beside it: {_line(error)}", PAIR, serious=True)
    else:
        yield Finding("torch", text)
    yield from _devices(torch)
    yield from _compiler()


def _devices(torch: Any) -> Iterator[Finding]:
    cards = nvidia_cards()
    if torch.cuda.is_available():
        for number in range(torch.cuda.device_count()):
            driver = f", driver {cards[0][1]}" if cards else ""
            yield _gpu(torch, number, driver)
        from histolight.hardware import resolve_precision

        precision = resolve_precision("auto", "gpu")
        why = "this GPU computes in bf16" if precision == "bf16-mixed" else "this GPU has no bf16"
        yield Finding("precision", f"trainer.precision=auto is {precision}: {why}")
        return
    if torch.backends.mps.is_available():
        yield Finding("device", "Apple's GPU (mps)")
    elif cards:
        yield _unused(torch, cards)
    else:
        yield Finding("device", f"the CPU, {torch.get_num_threads()} threads: no GPU was found")
    yield Finding("precision", "trainer.precision=auto is 32-true: bf16 is slow where it is emulated")


def _gpu(torch: Any, number: int, driver: str) -> Finding:
    """Compute something on a GPU: a build of PyTorch that lacks its kernels fails only then."""
    name = f"cuda:{number}, {torch.cuda.get_device_name(number)}"
    try:
        torch.ones(2, device=f"cuda:{number}").sum().item()
        free, total = torch.cuda.mem_get_info(number)
    except RuntimeError as error:
        return Finding(
            "device",
            f"{name}{driver}, which can't compute: {_line(error)}",
            "where it is out of memory, another process holds it (nvidia-smi shows which); else install a torch built "
            "for this GPU, or use trainer=cpu",
            serious=True,
        )
    return Finding("device", f"{name}, {size_text(total)} of which {size_text(free)} are free{driver}")


def _unused(torch: Any, cards: list[tuple[str, str]]) -> Finding:
    """Say why PyTorch does not see a GPU that the driver sees."""
    name, driver = cards[0]
    text = f"the CPU, though there is an {name} (driver {driver})"
    if not torch.version.cuda:
        return Finding("device", f"{text}: this torch was built without CUDA", f"for the GPU, {PAIR}")
    if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        return Finding("device", f"{text}: CUDA_VISIBLE_DEVICES hides it", "unset CUDA_VISIBLE_DEVICES to use it")
    return Finding(
        "device",
        f"{text}: torch can't use it",
        f"update the driver to one that knows CUDA {torch.version.cuda}, or install a torch built for an older CUDA",
    )


def nvidia_cards() -> list[tuple[str, str]]:
    """Return name and driver version of each NVIDIA GPU, as the driver's own program lists them."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    query = [program, "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return []
    rows = [line.rsplit(",", 1) for line in done.stdout.splitlines()] if done.returncode == 0 else []
    return [(row[0].strip(), row[1].strip()) for row in rows if len(row) == 2]


def _compiler() -> Iterator[Finding]:
    names = ("cl",) if os.name == "nt" else ("c++", "g++", "clang++")
    found = next((path for path in map(shutil.which, (os.environ.get("CXX") or names[0], *names)) if path), None)
    if found:
        yield Finding("compiler", f"{found}, for trainer.compile")
    else:
        yield Finding(
            "compiler", "none, which trainer.compile needs", f"to use it, install a C++ compiler ({names[-1]})"
        )


def _line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
