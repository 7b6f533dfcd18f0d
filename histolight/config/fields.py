"""How a field of the schema says which values it takes; :mod:`histolight.config.checks` reads it."""

from __future__ import annotations

from dataclasses import field
from typing import Any


def choice(default: str, *choices: str) -> Any:
    """Declare a choice of words, the default first."""
    return field(default=default, metadata={"choices": (default, *choices)})


def number(default: float | None, **limits: float) -> Any:
    """Declare a number with limits: ``least``/``most`` are allowed themselves, ``above``/``below`` are not."""
    return field(default=default, metadata=limits)
