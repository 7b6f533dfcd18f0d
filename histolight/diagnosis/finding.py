"""One line of a diagnosis, and the way in which sizes are written in it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Finding:
    """What is the case, and what to do about it.

    Attributes:
        topic: Such as ``device``.
        text: One line.
        remedy: What to change; empty where nothing needs to be changed.
        serious: Whether trainings fail, or are not safe, until it is changed.
    """

    topic: str
    text: str
    remedy: str = ""
    serious: bool = False


def size_text(size: float) -> str:
    """Write a number of bytes.

    >>> size_text(0), size_text(12_345_678), size_text(6_083_251_200)
    ('0 MB', '12 MB', '6.1 GB')
    """
    return f"{size / 1e9:,.1f} GB" if size >= 1e9 else f"{size / 1e6:,.0f} MB"


def checkout() -> Path | None:
    """Return the folder of the source tree that this package is run from; None for an installed wheel."""
    root = Path(__file__).resolve().parents[2]
    return root if (root / "pyproject.toml").is_file() else None
