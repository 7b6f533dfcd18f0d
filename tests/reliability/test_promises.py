from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs/reliability.md").read_text()
NAMED = re.findall(r"`((?:\w+/)*test_\w+\.py)(?:::(test_\w+)(…?))?`", TEXT)


def test_no_name_is_overlooked() -> None:
    assert sum(bool(name) for _, name, _ in NAMED) == TEXT.count("::") > 30


@pytest.mark.parametrize(("path", "name", "shortened"), NAMED)
def test_every_test_that_a_promise_names_is_there(path: str, name: str, shortened: str) -> None:
    defined = re.findall(r"^def (test_\w+)\(", (ROOT / "tests" / path).read_text(), re.MULTILINE)
    assert any(one == name or (one.startswith(name) and (shortened or not name)) for one in defined)
