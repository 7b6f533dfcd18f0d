"""Which model finds metastatic tissue in histology tiles best, and how sure are we?"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from histolight.api import (
        Comparison,
        Config,
        Prediction,
        Run,
        compare,
        embed,
        evaluate,
        explain,
        export,
        load_run,
        load_tiles,
        predict,
        sweep,
        train,
    )

__all__ = [
    "Comparison",
    "Config",
    "Prediction",
    "Run",
    "compare",
    "embed",
    "evaluate",
    "explain",
    "export",
    "load_run",
    "load_tiles",
    "predict",
    "sweep",
    "train",
]


def __getattr__(name: str) -> Any:
    """Import the API with its first use, so that ``histolight --help`` answers without it."""
    if name in __all__:
        return getattr(importlib.import_module("histolight.api"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
