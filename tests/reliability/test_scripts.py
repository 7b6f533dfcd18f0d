"""Short forms of the long scripts of ``benchmarks/``: kills at random moments, bad input and changed code at random."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"

# Modules all of whose mutants are known to die (python benchmarks/mutate.py 0 MODULE).
MUTATED = ["histolight/statistics/metrics.py", "histolight/training/memory.py"]


def run_script(name: str, *arguments: str) -> str:
    command = [sys.executable, str(BENCHMARKS / name), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_bad_input_is_refused_in_one_line() -> None:
    assert "160 cases, 0 faults" in run_script("fuzz.py", "160")


def test_what_was_killed_goes_on_to_the_same_result() -> None:
    assert "4 kills, 0 failures" in run_script("kill.py", "4", "7")


def test_changes_of_the_code_are_noticed_by_its_tests() -> None:
    printed = run_script("mutate.py", "8", *MUTATED)  # it ends with 1 when a mutant survives
    counts = re.findall(r"^\w+/[^,]+,\d+,(\d+),(\d+),(\d+),", printed, re.MULTILINE)
    assert counts == [("8", "8", "0")] * len(MUTATED)
