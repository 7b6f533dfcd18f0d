"""benchmarks/gpu.sh: its parts, their limits and its status with a stand-in for Python, and all of it on the CPU."""

from __future__ import annotations

import csv
import os
import re
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[1] / "benchmarks" / "gpu.sh"
STAND_IN = """#!/bin/sh
echo "asked: $*"
echo "path: $PYTHONPATH"
case "$*" in
  *"version("*) exit 1 ;;
  *gpu.py\\ loops*) exit 1 ;;
  *gpu.py\\ profile*) echo kernels ;;
esac
"""


def measure(arguments: list[str], **environment: str) -> subprocess.CompletedProcess[str]:
    command = ["bash", str(SCRIPT), *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=5400, check=False, env={**os.environ, **environment}
    )


def test_every_part_has_its_turn_and_one_that_fails_ends_none_of_the_others(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text(STAND_IN)
    python.chmod(0o755)
    (tmp_path / "wheels").mkdir()
    (tmp_path / "wheels" / "one.whl").touch()
    done = measure([str(tmp_path / "out")], PYTHON=str(python), WHEELS=str(tmp_path / "wheels"), COMMIT="abc")
    assert done.returncode == 1
    parts = re.findall(r"^== (\w+), at most (\d+) s", done.stdout, re.MULTILINE)
    assert [name for name, _ in parts] == ["tests", "steps", "loops", "whole", "sweep", "features", "profile"]
    assert int(parts[-1][1]) <= 540  # with what the parts before left over
    assert re.findall(r"^== (\w+) ended with status ([1-9])", done.stdout, re.MULTILINE) == [("loops", "1")]
    assert (tmp_path / "out" / "log.txt").read_text() in done.stdout
    assert (tmp_path / "out" / "profile.txt").read_text().endswith("kernels\n")
    [tests] = [line for line in done.stdout.splitlines() if "-m pytest" in line]
    assert "-m gpu" in tests
    assert "tests/training/test_devices_agree.py" in tests
    assert len(re.findall(r"gpu.py ready", done.stdout)) == 1
    assert "--target" in done.stdout.splitlines()[0]
    scratch = re.search(r"--target (\S+)/site", done.stdout)
    assert scratch is not None
    assert f"path: {SCRIPT.parents[1]}:{scratch[1]}/site" in done.stdout
    assert not Path(scratch[1]).exists()


def test_without_a_folder_it_says_how_to_call_it() -> None:
    done = measure(["--rehearse"])
    assert (done.returncode, done.stderr) == (2, "usage: bash benchmarks/gpu.sh [--rehearse] OUT [PART …]\n")


def test_parts_that_are_named_run_alone(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text(STAND_IN)
    python.chmod(0o755)
    done = measure([str(tmp_path / "out"), "whole", "features"], PYTHON=str(python), COMMIT="abc")
    assert done.returncode == 0
    assert re.findall(r"^== (\w+), at most (\d+) s", done.stdout, re.MULTILINE) == [
        ("whole", "105"),
        ("features", "130"),
    ]
    assert re.findall(r"gpu.py (\w+)", done.stdout) == ["whole", "features"]


@pytest.mark.slow
def test_every_line_runs_on_the_cpu(tmp_path: Path) -> None:
    done = measure(["--rehearse", str(tmp_path)])
    assert done.returncode == 0, done.stdout[-5000:]
    with (tmp_path / "gpu.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(dict.fromkeys(row["part"] for row in rows)) == ["tests", "steps", "loops", "whole", "sweep", "features"]
    assert all(float(row["value"]) > 0 for row in rows if row["part"] != "tests")
    assert {row["target"] for row in rows} >= {"≥ 0.97", "≥ 5", "≥ 1.5", "≤ 180", "≤ 600"}
    assert all(row["date"] and row["machine"].startswith("CPU") and row["commit"] for row in rows)
    assert "aten::" in (tmp_path / "profile.txt").read_text()
