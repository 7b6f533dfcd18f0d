"""Installed packages: versions that are known to be bad, versions out of bounds, and extras.

Only the metadata of packages is read: none is imported, as a malicious release would run.
"""

from __future__ import annotations

import platform
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, metadata, requires, version

from packaging.requirements import Requirement

from histolight.diagnosis.finding import Finding, checkout

# What each extra is for; pyproject.toml has their packages.
EXTRAS = {
    "joblib": "several points of a sweep at a time on one machine (hydra/launcher=joblib)",
    "submitit": "sweeps on a SLURM cluster (hydra/launcher=submitit_slurm)",
    "ray": "sweeps on a Ray cluster (hydra/launcher=ray)",
    "optuna": "searches, and stopping what loses (histolight train -m sweep=optuna, sweep=asha)",
    "timm": "networks and foundation models of timm (model=timm, uni2_h, virchow2 …)",
    "hf": "foundation models of transformers (model=phikon_v2, dinov2_b …)",
    "onnx": "histolight export",
    "slides": "whole slides (histolight predict data=slides)",
    "mlflow": "logger=mlflow",
    "wandb": "logger=wandb",
    "parquet": "histolight embed, and tiles in Parquet files (data=parquet)",
    "labels": "labels that other runs doubt (histolight explore runs=...)",
    "lora": "low-rank adapters for transformers (model.lora_rank)",
}

MALICIOUS = {"lightning": ("2.6.2", "2.6.3")}


def examine_packages() -> Iterator[Finding]:
    """Say which versions are installed, whether each is one that histolight works with, and which extras there are."""
    yield Finding("python", f"{platform.python_version()}, {sys.prefix}")
    root = checkout()
    yield Finding("histolight", f"{version('histolight')}, {f'source tree {root}' if root else 'installed package'}")
    requirements = [Requirement(text) for text in requires("histolight") or []]
    faults = list(_faults([it for it in requirements if it.marker is None or it.marker.evaluate({"extra": ""})]))
    if not faults:
        yield Finding("packages", "every required package is installed, in a version that histolight works with")
    yield from faults
    yield from _extras(requirements)


def _faults(requirements: list[Requirement]) -> Iterator[Finding]:
    for requirement in requirements:
        name, installed = requirement.name, _installed(requirement.name)
        if is_malicious(name):
            yield Finding(
                "packages",
                f"{name} {installed} is a malicious release",
                f"uninstall it now without running it, renew the passwords and tokens that this account can read, and "
                f"install another: {_install(str(requirement))}",
                serious=True,
            )
        elif installed is None:
            yield Finding("packages", f"{name} is not installed", _install(str(requirement)), serious=True)
        elif not requirement.specifier.contains(installed, prereleases=True):
            text = f"{name} {installed} is not a version that histolight works with ({requirement.specifier})"
            yield Finding("packages", text, _install(str(requirement)), serious=True)


def is_malicious(name: str) -> bool:
    """Say whether the installed release of a package is one of :data:`MALICIOUS`."""
    return _installed(name) in MALICIOUS[name] if name in MALICIOUS else False


def _extras(requirements: list[Requirement]) -> Iterator[Finding]:
    absent = False
    for extra in metadata("histolight").get_all("Provides-Extra") or []:
        of_extra = [it for it in requirements if it.marker is not None and it.marker.evaluate({"extra": extra})]
        missing = [it.name for it in of_extra if _installed(it.name) is None]
        old = [
            f"{it.name} {_installed(it.name)} ({it.specifier} is needed)"
            for it in of_extra
            if it.name not in missing and not it.specifier.contains(str(_installed(it.name)), prereleases=True)
        ]
        purpose = EXTRAS.get(extra, "")
        if missing:
            absent = True
            yield Finding("extras", f"{extra:<9} no   {purpose}")
        elif old:
            yield Finding("extras", f"{extra:<9} old  {purpose}: {', '.join(old)}", install_extra(extra))
        else:
            yield Finding("extras", f"{extra:<9} yes  {purpose}")
    if absent:
        yield Finding("extras", "to install one, such as slides:", install_extra("slides"))


def _installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def install_extra(extra: str) -> str:
    """Return the command that installs an extra of histolight, as it was installed itself."""
    return f"uv sync --inexact --extra {extra}" if checkout() else _install(f"histolight[{extra}]")


def _install(requirement: str) -> str:
    return f'uv pip install "{requirement}"' if checkout() else f'pip install "{requirement}"'
