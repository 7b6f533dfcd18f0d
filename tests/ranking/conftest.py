from __future__ import annotations

from pathlib import Path

import pytest
from fake_runs import fake_run


@pytest.fixture
def three(tmp_path: Path) -> Path:
    """A sweep of two models that can't be told apart, and one that is clearly worse."""
    sweep = tmp_path / "sweep"
    for number, (name, shift) in enumerate([("resnet18", 1.0), ("resnet34", 2.5), ("densenet121", 2.5)]):
        fake_run(sweep / f"{number}_{name}", shift, model__name=name)
    return sweep
