"""CONTRIBUTING's rules on where code may stand, checked from the code's own imports."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "histolight"
# From the ground to the roof: a room imports the rooms before its own alone.
ORDER = [
    "errors",
    "interrupts",
    "hardware",
    "locks",
    "files",
    "threads",
    "progress",
    "runs",
    "config",
    "diagnosis",
    "process",
    "statistics",
    "augment",
    "slides",
    "data",
    "models",
    "reports",
    "exploration",
    "explanation",
    "ranking",
    "heatmaps",
    "inference",
    "training",
    "sweeps",
    "api",
    "commands",
    "cli",
    "__main__",
]
MOST_LINES = 400
LOOSE = {
    "errors",
    "interrupts",
    "hardware",
    "locks",
    "files",
    "threads",
    "progress",
    "runs",
    "process",
    "api",
    "cli",
    "__main__",
    "__init__",
}


def modules() -> dict[str, Path]:
    paths = {path.relative_to(PACKAGE.parent).with_suffix(""): path for path in PACKAGE.rglob("*.py")}
    return {".".join(name.parts): path for name, path in paths.items() if "conf" not in name.parts}


def imported(source: str) -> list[str]:
    """Names below ``histolight`` that a module imports, in functions and for type checkers too."""
    names = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names += [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        assert not isinstance(node, ast.ImportFrom) or node.level == 0, "imports are absolute"
    return [name for name in names if name.startswith("histolight.")]


def faults(name: str, source: str) -> list[str]:
    """Imports of a module that go up the house, or from one command to another."""
    room = name.split(".")[1]
    found = []
    for target in imported(source):
        other = target.split(".")[1]
        if other == room == "commands":
            found.append(f"{name} imports the command {target}")
        elif other != room and ((room == "__init__" and other != "api") or ORDER.index(other) > ORDER.index(room)):
            found.append(f"{name} imports {target}, which stands above it")
    return found


def test_imports_go_down_and_no_command_imports_another() -> None:
    assert [
        fault
        for name, path in modules().items()
        if name != "histolight.__init__"
        for fault in faults(name, path.read_text(encoding="utf-8"))
    ] == []


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("histolight.models.x", "from histolight.training.fit import train"),
        ("histolight.augment.x", "def f():\n    from histolight.data import table"),
        ("histolight.files", "import histolight.config.keys"),
        ("histolight.commands.x", "from histolight.commands.train import main"),
        ("histolight.reports.x", "if TYPE_CHECKING:\n    from histolight.ranking import runs"),
    ],
)
def test_an_import_that_goes_up_is_found(name, source) -> None:
    assert len(faults(name, source)) == 1


def test_every_room_has_its_place_and_few_modules_are_loose() -> None:
    rooms = {path.parent.name for path in PACKAGE.glob("*/*.py")} - {"conf"}
    loose = {path.stem for path in PACKAGE.glob("*.py")}
    assert loose == LOOSE
    assert rooms | loose - {"__init__"} == set(ORDER)


def test_one_module_alone_imports_hydra() -> None:
    importing = {
        name
        for name, path in modules().items()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        for target in (
            [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else []
        )
        if target.split(".")[0] in ("hydra", "hydra_plugins")
    }
    assert importing == {"histolight.config.hydra_adapter"}


def test_no_file_is_long() -> None:
    lengths = {name: len(path.read_text(encoding="utf-8").splitlines()) for name, path in modules().items()}
    assert {name: lines for name, lines in lengths.items() if lines > MOST_LINES} == {}
