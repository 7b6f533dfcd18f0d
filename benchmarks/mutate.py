"""Do the tests notice? Change the splits and the measures a little, one place at a time, and run their own tests.

A mutant is a module with one comparison, sum, number, name, condition or returned value changed; texts, and options
given by keyword, are left alone. It is killed when a test fails or takes a minute of CPU. Survivors are printed with
their line: either a test is missing, or the change makes no difference. Exit status 1 when one survives, or when the
tests fail without a change.

    python benchmarks/mutate.py 100       # 100 of all mutants, drawn at random
    python benchmarks/mutate.py 0         # all of them, in a random order; Ctrl-C ends it with the table so far
    python benchmarks/mutate.py 8 histolight/statistics/metrics.py    # of these modules only

Every mutant is a fork of this process, which has imported all but histolight.
"""

from __future__ import annotations

import ast
import contextlib
import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import os
import random
import resource
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import CodeType

import pytest
from tables import csv_printer
from tqdm import tqdm

ROOT = Path(__file__).resolve().parents[1]
IMPORTED = "captum.attr h5py hydra lightning matplotlib.figure pandas scipy.optimize sklearn.metrics torch torchmetrics"
IMPORTED += " sklearn.linear_model sklearn.model_selection tensorboard.backend.event_processing.event_accumulator"
FILES = {
    "histolight/data/splits.py": ["tests/data/test_splits.py", "tests/data/test_given_splits.py"],
    **{
        f"histolight/statistics/{name}.py": [f"tests/statistics/test_{name}.py"]
        for name in ("calibration", "figures", "intervals", "metrics", "slides", "verdict")
    },
    "histolight/statistics/clusters.py": ["tests/statistics/test_intervals.py", "tests/statistics/test_verdict.py"],
    "histolight/statistics/planning.py": ["tests/statistics/test_verdict.py", "tests/ranking/test_ranking.py"],
    **{
        f"histolight/ranking/{name}.py": ["tests/ranking/test_ranking.py", "tests/ranking/test_runs.py"]
        for name in ("answer", "plan", "ranking", "rows", "runs", "tables")
    },
}
OPPOSITE = [
    "Lt",
    "LtE",
    "Gt",
    "GtE",
    "Eq",
    "NotEq",
    "Is",
    "IsNot",
    "In",
    "NotIn",
    "Add",
    "Sub",
    "Mult",
    "Div",
    "BitAnd",
    "BitOr",
    "And",
    "Or",
]
SWAPS = {getattr(ast, name): getattr(ast, OPPOSITE[place ^ 1]) for place, name in enumerate(OPPOSITE)}
NAMES = {"min": "max", "max": "min", "any": "all", "all": "any", "argmin": "argmax", "argmax": "argmin"}
SECONDS = 60  # of CPU, for the tests of one mutant


def main(count: str = "100", *modules: str) -> int:
    os.chdir(ROOT)
    sys.path.insert(0, str(ROOT))
    for name in IMPORTED.split():
        importlib.import_module(name)
    paths = modules or tuple(FILES)
    for path in paths:
        if run_tests(path) != 0:
            raise SystemExit(f"the tests of {path} fail without a change")
    every = [(path, place) for path in paths for place in range(len(changes(ast.parse(Path(path).read_text()))))]
    drawn = random.Random(0).sample(every, min(int(count) or len(every), len(every)))
    tried: Counter[str] = Counter()
    survived: Counter[str] = Counter()
    with contextlib.suppress(KeyboardInterrupt):  # the table is of what was tried until then
        for path, place in tqdm(drawn, unit="mutant"):
            tree = ast.parse(Path(path).read_text())
            line, change = changes(tree)[place]
            before = ast.unparse(tree).splitlines()
            change()
            after = ast.unparse(ast.fix_missing_locations(tree)).splitlines()
            lives = run_tests(path, tree) == 0
            tried[path] += 1
            survived[path] += lives
            if lives:
                old, new = next(pair for pair in zip(before, after, strict=False) if pair[0] != pair[1])
                tqdm.write(f"{path}:{line}\n  - {old.strip()}\n  + {new.strip()}", file=sys.stderr)
    print_row = csv_printer("module", "places", "tried", "killed", "survived")
    for path in paths:
        there = sum(one == path for one, _ in every)
        print_row(path, there, tried[path], tried[path] - survived[path], survived[path])
    return int(survived.total() > 0)


def changes(tree: ast.Module) -> list[tuple[int, Callable[[], object]]]:
    """List what can be changed: the line, and a function that changes the tree in place."""
    found: list[tuple[int, Callable[[], object]]] = []

    def visit(node: ast.AST) -> None:
        silent = isinstance(node, (ast.Raise, ast.ImportFrom, ast.JoinedStr))
        if silent or (isinstance(node, ast.Expr) and ast.unparse(node).startswith(("log.", "'", '"'))):
            return
        found.extend((getattr(node, "lineno", 0), change) for change in _changes(node))
        for name, field in ast.iter_fields(node):
            for child in field if isinstance(field, list) else [field]:
                if isinstance(child, ast.AST) and name not in ("annotation", "returns"):
                    visit(child)

    visit(tree)
    return found


def _changes(node: ast.AST) -> list[Callable[[], object]]:
    match node:
        case ast.Compare(ops=[op]) if type(op) in SWAPS:
            return [lambda: node.ops.__setitem__(0, SWAPS[type(op)]())]
        case ast.BinOp(op=op) | ast.BoolOp(op=op) if type(op) in SWAPS:
            return [lambda: setattr(node, "op", SWAPS[type(op)]())]
        case ast.Constant(value=bool() as value):
            return [lambda: setattr(node, "value", not value)]
        case ast.Constant(value=int() | float() as value):
            return [lambda: setattr(node, "value", value + 1)]
        case ast.If() | ast.IfExp():
            return [lambda: setattr(node, "test", ast.UnaryOp(ast.Not(), node.test))]
        case ast.UnaryOp(op=ast.Not() | ast.Invert() | ast.USub() as op, operand=operand):
            return [lambda: setattr(node, "operand", ast.UnaryOp(op, operand))]
        case ast.Name(id=name) if name in NAMES:
            return [lambda: setattr(node, "id", NAMES[name])]
        case ast.Attribute(attr=name) if name in NAMES:
            return [lambda: setattr(node, "attr", NAMES[name])]
        case ast.Return(value=ast.AST()):
            return [lambda: setattr(node, "value", ast.Constant(None))]
    return []


def run_tests(path: str, tree: ast.Module | None = None) -> int:
    """Run the tests of a file in a fork, quietly with the tree in its place; 0 when all pass."""
    process = os.fork()
    if process == 0:
        if tree is not None:
            resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, 1)
            os.dup2(null, 2)
        arguments = ["-n0", "-x", "-q", "--tb=short", "-p", "no:cacheprovider", path, *FILES[path]]
        os._exit(pytest.main(arguments, [Finder(path, compile(tree, path, "exec"))] if tree else []))
    return os.waitpid(process, 0)[1]


class Finder(importlib.abc.MetaPathFinder):
    """Finds one module, and gives it other code; a plugin of pytest, whose own finder would else come first."""

    def __init__(self, path: str, code: CodeType) -> None:
        # Folders of histolight are namespace packages: the module's own doctests know it by its last name.
        self.names = (path.removesuffix(".py").replace("/", "."), Path(path).stem)
        self.path, self.code = str(ROOT / path), code

    def pytest_configure(self) -> None:  # noqa: D102
        sys.meta_path.insert(0, self)

    def find_spec(self, name: str, *_: object) -> importlib.machinery.ModuleSpec | None:  # noqa: D102
        if name not in self.names:
            return None
        loader = importlib.machinery.SourceFileLoader(name, self.path)
        loader.get_code = lambda _: self.code  # type: ignore[method-assign]
        return importlib.util.spec_from_file_location(name, self.path, loader=loader)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
