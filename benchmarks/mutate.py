"""Do the tests notice? Change the splits, the statistics and the ranking a little, and run the tests of that place.

A mutant is a module with one comparison, sum, number, name, condition or returned value changed. What no test should
fix is left alone: texts and messages, type hints, decorators, ``strict`` of ``zip``, and the looks of progress bars and
drawings (``LOOKS``: sizes, colours, places of labels). A mutant is asked those tests of its module that reach the
changed statement, the quick ones first, for a few seconds of CPU altogether, and is killed when one fails or takes ten
times as long (and two seconds more). A mutant that no test reaches survives, and so does one that only a longer test
would notice. Survivors are printed with their line: either a test is missing, or the change makes no difference. Exit
status 1 when one survives, or when the tests fail without a change. The draw depends on the module's code alone.

    python benchmarks/mutate.py 40        # 40 of the mutants of each module, drawn at random
    python benchmarks/mutate.py 0         # all of them; Ctrl-C ends it with the table so far
    python benchmarks/mutate.py 8 histolight/statistics/metrics.py    # of these modules only

Every mutant is a fork. One of a function is a fork of a process that has collected the tests: the function, wherever
others have imported it, gets the other code. One outside of functions is a fork of a process that has imported all but
histolight, and gets the changed module when its tests import it.
"""

from __future__ import annotations

import ast
import contextlib
import gc
import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import multiprocessing
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import CodeType, FrameType, FunctionType
from typing import Any

import pytest
from tables import csv_printer
from tqdm import tqdm

ROOT = Path(__file__).resolve().parents[1]
IMPORTED = "captum.attr h5py hydra lightning matplotlib.figure pandas scipy.optimize sklearn.metrics torch torchmetrics"
IMPORTED += " sklearn.linear_model sklearn.model_selection tensorboard.backend.event_processing.event_accumulator"
FILES = {
    **{
        f"histolight/statistics/{name}.py": [f"tests/statistics/test_{name}.py"]
        for name in ("planning", "slides", "metrics", "calibration", "verdict", "decisions")
    },
    "histolight/statistics/intervals.py": ["tests/statistics/test_intervals.py"],
    "histolight/statistics/clusters.py": [f"tests/statistics/test_{name}.py" for name in ("clusters", "intervals")],
    "histolight/statistics/figures.py": [
        f"tests/statistics/test_{name}.py" for name in ("intervals", "figures", "metrics")
    ],
    **{
        f"histolight/ranking/{name}.py": [f"tests/ranking/test_{name}.py" for name in ("words", "figures", "page")]
        for name in ("answer", "figures", "page", "plan", "tables")
    },
    "histolight/ranking/searched.py": ["tests/ranking/test_searched.py"],
    **{
        f"histolight/ranking/{name}.py": [f"tests/ranking/test_{name}.py" for name in ("rows", "runs", "ranking")]
        for name in ("ranking", "rows", "runs")
    },
    "histolight/data/splits.py": [
        f"tests/data/test_{name}.py" for name in ("splits", "given_splits", "rare_classes", "domains")
    ],
    "histolight/data/overlaps.py": [f"tests/data/test_{name}.py" for name in ("overlaps", "given_splits")],
    **{f"histolight/inference/{name}.py": [f"tests/inference/test_{name}.py"] for name in ("adaptation", "levels")},
    "histolight/training/memory.py": ["tests/training/test_memory.py"],
}
ASKED = 4.0  # seconds of CPU of the tests that a mutant is asked
LONGEST = 1.5  # of one of them
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
LOOKS = (  # keywords, and functions with all that they are given
    *("alpha", "bbox", "color", "colors", "dpi", "figsize", "fontsize", "height", "labelsize", "length", "linewidth"),
    *("markeredgewidth", "markersize", "pad", "textcoords", "zorder", "set_visible", "text", "tick_params", "vlines"),
    *("annotate", "frameon", "legend", "margins", "set_box_aspect", "strict", "leave", "tqdm"),
)
NAMES = {"min": "max", "max": "min", "any": "all", "all": "any", "argmin": "argmax", "argmax": "argmin"}


def main(count: str = "40", *modules: str) -> int:
    os.chdir(ROOT)
    sys.path.insert(0, str(ROOT))
    for name in IMPORTED.split():
        importlib.import_module(name)
    print_row = csv_printer("module", "places", "tried", "killed", "survived")
    status = 0
    together: dict[tuple[str, ...], list[str]] = {}  # modules that have the same tests
    for path in modules or FILES:
        together.setdefault(tuple(FILES[path]), []).append(path)
    for paths in together.values():
        places = {path: range(len(changes(ast.parse(Path(path).read_text())))) for path in paths}
        drawn = [
            (path, place)
            for path, there in places.items()
            for place in random.Random(0).sample(there, min(int(count) or len(there), len(there)))
        ]
        answers: dict[Mutant, bool] = {}
        with contextlib.suppress(KeyboardInterrupt):  # the table is of what was tried until then
            for one, lives in tqdm(try_mutants(paths, drawn), total=len(drawn), unit="mutant", disable=None):
                answers[one] = lives
                if lives:
                    tqdm.write(describe(*one), file=sys.stderr)
        for path in paths:
            of_module = [lives for one, lives in answers.items() if one[0] == path]
            print_row(
                path.removeprefix("histolight/"),
                len(places[path]),
                len(of_module),
                of_module.count(False),
                of_module.count(True),
            )
        status |= any(answers.values())
    return status


Mutant = tuple[str, int]  # module and place
Tests = dict[str, tuple[float, set[tuple[str, int]]]]  # seconds of CPU, and files and lines reached


def try_mutants(paths: list[str], drawn: list[Mutant]) -> Iterator[tuple[Mutant, bool]]:
    """Say of each mutant whether it lives, those of functions first."""
    listed = {path: changes(ast.parse(Path(path).read_text())) for path in paths}
    inside = [(path, place) for path, place in drawn if listed[path][place][1]]
    answers = in_fork(lambda send: run_pytest(paths, Trial(paths, inside, send)))
    tests = next(answers, f"pytest --collect-only {' '.join([*paths, *FILES[paths[0]]])}")
    if isinstance(tests, str):
        raise SystemExit(f"without a change fails: {tests}")
    yield from answers
    for one in drawn:
        if one not in inside:
            finder = Finder(*one, tests_of(tests, str(ROOT / one[0]), range(10**6)))
            yield one, any(in_fork(lambda send, finder=finder: send(run_pytest(paths, finder) == 0)))


def tests_of(tests: Tests, file: str, lines: range) -> dict[str, float]:
    """Choose the tests that reach some lines of a file, the quick ones first, with their seconds of CPU."""
    chosen: dict[str, float] = {}
    for name, (seconds, reached) in sorted(tests.items(), key=lambda test: test[1][0]):
        if sum(chosen.values()) + seconds <= ASKED and any(one == file and line in lines for one, line in reached):
            chosen[name] = seconds
    return chosen


def run_pytest(paths: list[str], plugin: object) -> int:
    """Run the tests of some modules and their examples."""
    return pytest.main(["-n0", "-q", "--tb=no", "-p", "no:cacheprovider", *paths, *FILES[paths[0]]], [plugin])


def in_fork(work: Callable[[Callable[[Any], None]], object]) -> Iterator[Any]:
    """Do some work quietly in a fork, and yield what it sends; a fork that breaks down sends no more."""
    receiver, sender = multiprocessing.Pipe(duplex=False)
    process = os.fork()
    if process == 0:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.dup2(null, 2)
        try:
            work(sender.send)
        finally:
            os._exit(0)
    sender.close()
    with contextlib.suppress(EOFError):
        while True:
            yield receiver.recv()
    os.waitpid(process, 0)


def passes(item: pytest.Item, seconds: float) -> bool:
    """Run one test, with fixtures of its own; after some seconds of CPU a signal ends the process."""
    signal.setitimer(signal.ITIMER_PROF, seconds)
    item.config.hook.pytest_runtest_protocol(item=item, nextitem=None)
    return not item.session.testsfailed


class Trial:
    """Tries mutants of functions on the tests that pytest has collected; a plugin of pytest.

    It sends what it measured of the tests, and each mutant with whether it lives; only its name where a test fails.
    """

    def __init__(self, paths: list[str], mutants: list[Mutant], send: Callable[[Any], None]) -> None:
        self.files, self.mutants, self.send = {str(ROOT / path) for path in paths}, mutants, send

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool:  # noqa: D102
        gc.unfreeze()  # what the tests' conftest.py has frozen would not be listed
        live = [one for one in gc.get_objects() if isinstance(one, FunctionType)]
        gc.freeze()  # so that collections in the forks do not copy what they share
        tests = measure(session, self.files)
        self.send(tests)
        if isinstance(tests, str):
            return True
        items = {item.nodeid: item for item in session.items}
        for path, place in self.mutants:
            file, (lines, name, _) = str(ROOT / path), changes(ast.parse(Path(path).read_text()))[place]
            code = {one.co_firstlineno: one for one in codes(mutant(path, place)) if one.co_qualname == name}
            same = [one for one in live if (one.__code__.co_filename, one.__code__.co_qualname) == (file, name)]
            asked = tests_of(tests, file, lines)

            def ask(send: Callable[[Any], None]) -> None:
                for one in same:  # noqa: B023
                    one.__code__ = code[one.__code__.co_firstlineno]  # noqa: B023
                send(all(passes(items[name], 10 * seconds + 2) for name, seconds in asked.items()))  # noqa: B023

            self.send(((path, place), any(in_fork(ask))))
        return True


def measure(session: pytest.Session, files: set[str]) -> Tests | str:
    """Measure those tests that do not take too long, each in a fork that the timer ends; or name one that fails."""
    tests: Tests = {}
    for item in session.items:
        for passed, seconds, reached in in_fork(lambda send, item=item: send(measured(item, files))):
            if not passed:
                return item.nodeid
            tests[item.nodeid] = seconds, reached
    return tests


def measured(item: pytest.Item, files: set[str]) -> tuple[bool, float, set[tuple[str, int]]]:
    """Say whether a test passes, after how many seconds of CPU, and which lines of some files it reaches."""
    reached: set[tuple[str, int]] = set()

    def note(frame: FrameType, *_: object) -> Callable[..., Any] | None:
        if frame.f_code.co_filename not in files:
            return None
        reached.add((frame.f_code.co_filename, frame.f_lineno))
        return note

    started = time.process_time()
    threading.settrace(note)
    sys.settrace(note)
    passed = passes(item, LONGEST)
    sys.settrace(None)
    threading.settrace(None)
    return passed, time.process_time() - started, reached


class Finder(importlib.abc.MetaPathFinder):
    """Finds one module, and gives it other code; a plugin of pytest, whose own finder would else come first."""

    def __init__(self, path: str, place: int, seconds: dict[str, float]) -> None:
        # Folders of histolight are namespace packages: the module's own doctests know it by its last name.
        self.names = (path.removesuffix(".py").replace("/", "."), Path(path).stem)
        self.path, self.code, self.seconds = str(ROOT / path), mutant(path, place), seconds

    def pytest_configure(self) -> None:  # noqa: D102
        sys.meta_path.insert(0, self)

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:  # noqa: D102
        items[:] = sorted(
            (item for item in items if item.nodeid in self.seconds), key=lambda item: self.seconds[item.nodeid]
        )

    def pytest_runtest_setup(self, item: pytest.Item) -> None:  # noqa: D102
        signal.setitimer(signal.ITIMER_PROF, 10 * self.seconds[item.nodeid] + 2)

    def find_spec(self, name: str, *_: object) -> importlib.machinery.ModuleSpec | None:  # noqa: D102
        if name not in self.names:
            return None
        loader = importlib.machinery.SourceFileLoader(name, self.path)
        loader.get_code = lambda _: self.code  # type: ignore[method-assign]
        return importlib.util.spec_from_file_location(name, self.path, loader=loader)


def mutant(path: str, place: int) -> CodeType:
    """Compile a module with one change."""
    tree = ast.parse(Path(path).read_text())
    changes(tree)[place][2]()
    return compile(ast.fix_missing_locations(tree), str(ROOT / path), "exec")


def codes(code: CodeType) -> Iterator[CodeType]:
    """List the code of every function, however deep."""
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield constant
            yield from codes(constant)


def describe(path: str, place: int) -> str:
    """Show what a mutant changes."""
    tree = ast.parse(Path(path).read_text())
    lines, _, change = changes(tree)[place]
    before = ast.unparse(tree).splitlines()
    change()
    after = ast.unparse(ast.fix_missing_locations(tree)).splitlines()
    old, new = next(pair for pair in zip(before, after, strict=False) if pair[0] != pair[1])
    return f"{path}:{lines.start}\n  - {old.strip()}\n  + {new.strip()}"


def changes(tree: ast.Module) -> list[tuple[range, str, Callable[[], object]]]:
    """List what can be changed.

    Returns:
        The lines of the statement (of one with a body those before it), the outermost function, or an empty string
        outside of functions, and a function that changes the tree in place.
    """
    found: list[tuple[range, str, Callable[[], object]]] = []

    def visit(node: ast.AST, lines: range, scope: tuple[str, ...], function: str) -> None:
        match node:
            case ast.Raise() | ast.ImportFrom() | ast.JoinedStr() | ast.If(test=ast.Name(id="TYPE_CHECKING")):
                return
            case ast.Expr() if ast.unparse(node).startswith(("log.", "'", '"')):
                return
            case ast.keyword(arg=name) | ast.Call(func=ast.Name(id=name) | ast.Attribute(attr=name)) if name in LOOKS:
                return
        if isinstance(node, ast.stmt):
            body = getattr(node, "body", None)
            lines = range(node.lineno, body[0].lineno if body else (node.end_lineno or node.lineno) + 1)
            lines = lines or range(node.lineno, node.lineno + 1)
        found.extend((lines, function, change) for change in _changes(node))
        scope = (*scope, node.name) if isinstance(node, (ast.ClassDef, ast.FunctionDef)) else scope
        for name, field in ast.iter_fields(node):
            entered = ".".join(scope) if isinstance(node, ast.FunctionDef) and name == "body" else ""
            for child in field if isinstance(field, list) else [field]:
                if isinstance(child, ast.AST) and name not in ("annotation", "returns", "decorator_list"):
                    visit(child, lines, scope, function or entered)

    visit(tree, range(0), (), "")
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
        case ast.Return(value=ast.AST() as value) if ast.unparse(value) not in ("None", "False", "''"):
            return [lambda: setattr(node, "value", ast.Constant(None))]
    return []


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
