"""Changes of stats and attacks that no test notices: a seeded sample, each against the tests that call the changed function.

    OMP_NUM_THREADS=1 python benchmarks/mutation.py --sample 150 --seed 0 [--rooms stats,attacks] [--log FILE]
    OMP_NUM_THREADS=1 python benchmarks/mutation.py --again FILE --sample 0 [--rooms stats,attacks]      # what survived, after new tests

The tests are collected once. Which test calls which function is learnt in a first run. Every change is then made in a fork of the
process, in the code of the function alone, and its tests run, the fastest first, until one fails. Nothing is written into the
sources, and no fixture or cache of an earlier run is seen. Constants of modules, defaults, decorators, annotations, messages of
errors and the `strict` of zip, which is an assertion, are not changed.
"""

import argparse
import ast
import gc
import importlib
import json
import os
import random
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import accumulate
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any, NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "diffleak"
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
OTHER_OPERATOR: dict[type, type] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
}
OTHER_OPERATOR |= {ast.In: ast.NotIn, ast.NotIn: ast.In, ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.And: ast.Or, ast.Or: ast.And}
OTHER_OPERATOR |= {ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Div, ast.Pow: ast.Mult}
OTHER_OPERATOR |= {ast.Mod: ast.Mult, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd}
OTHER_NAME = {
    "min": "max",
    "max": "min",
    "all": "any",
    "any": "all",
    "argmin": "argmax",
    "argmax": "argmin",
    "ceil": "floor",
    "floor": "ceil",
}
OTHER_NAME |= {"minimum": "maximum", "maximum": "minimum", "left": "right", "right": "left"}
NOTICED = ("killed", "timed out")
SECONDS = 30  # beyond three times what the tests took


class Mutant(NamedTuple):
    """A change: the file, the function, the place of the node in the order of `ast.walk`, which of its changes, its line, and the words."""

    file: Path
    function: str
    node: int
    which: int
    line: int
    change: str

    def __str__(self) -> str:
        return f"{self.file.relative_to(SOURCE)}:{self.line} {self.function}: {self.change}"


def changes(node: ast.AST) -> Iterator[tuple[str, Callable[[], None]]]:
    """The changes of a node in words, each with what makes it in place."""
    if isinstance(node, ast.Compare):
        for place, operator in enumerate(node.ops):
            if other := OTHER_OPERATOR.get(type(operator)):
                yield f"{type(operator).__name__} to {other.__name__}", partial(node.ops.__setitem__, place, other())
    elif isinstance(node, ast.BinOp | ast.BoolOp | ast.AugAssign) and (other := OTHER_OPERATOR.get(type(node.op))):
        yield f"{type(node.op).__name__} to {other.__name__}", partial(setattr, node, "op", other())
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not | ast.USub):
        words = {ast.Not: "not left out", ast.USub: "minus left out"}[type(node.op)]
        yield words, partial(setattr, node, "op", ast.UAdd() if isinstance(node.op, ast.USub) else _Twice())
    elif isinstance(node, ast.Constant) and isinstance(node.value, bool):
        yield f"{node.value} to {not node.value}", partial(setattr, node, "value", not node.value)
    elif isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        yield f"{node.value} to {node.value + 1}", partial(setattr, node, "value", node.value + 1)
    elif isinstance(node, ast.If | ast.IfExp):
        yield "condition reversed", partial(setattr, node, "test", ast.UnaryOp(ast.Not(), node.test))
    elif isinstance(node, ast.Name) and node.id in OTHER_NAME:
        yield f"{node.id} to {OTHER_NAME[node.id]}", partial(setattr, node, "id", OTHER_NAME[node.id])
    elif isinstance(node, ast.Attribute) and node.attr in OTHER_NAME:
        yield f"{node.attr} to {OTHER_NAME[node.attr]}", partial(setattr, node, "attr", OTHER_NAME[node.attr])


class _Twice(ast.Not):
    """Marks a `not` that is to go."""


class _WithoutNot(ast.NodeTransformer):
    def visit_UnaryOp(self, node: ast.UnaryOp) -> ast.AST:
        self.generic_visit(node)
        return node.operand if isinstance(node.op, _Twice) else node


def inside(tree: ast.Module) -> dict[ast.AST, str]:
    """Every node of the bodies of functions and methods, with the function's qualified name."""
    found: dict[ast.AST, str] = {}

    def enter(body: list[ast.stmt], prefix: str) -> None:
        for each in body:
            if isinstance(each, ast.ClassDef):
                enter(each.body, f"{prefix}{each.name}.")
            elif isinstance(each, FUNCTIONS):
                for statement in each.body:
                    collect(statement, prefix + each.name)

    def collect(node: ast.AST, name: str) -> None:
        if isinstance(node, ast.Raise | ast.JoinedStr | ast.arguments) or (isinstance(node, ast.keyword) and node.arg == "strict"):
            return
        found[node] = name
        for field, value in ast.iter_fields(node):
            if field not in ("annotation", "returns", "decorator_list"):
                for child in value if isinstance(value, list) else [value]:
                    if isinstance(child, ast.AST):
                        collect(child, name)

    enter(tree.body, "")
    return found


def mutants(file: Path) -> Iterator[Mutant]:
    """Every change of a file."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    where = inside(tree)
    for number, node in enumerate(ast.walk(tree)):
        if node in where:
            for which, (words, _) in enumerate(changes(node)):
                yield Mutant(file, where[node], number, which, node.lineno, words)  # type: ignore[attr-defined]


def apply(mutant: Mutant) -> None:
    """Gives the functions in memory the changed code; raises where there is none."""
    tree = ast.parse(mutant.file.read_text(encoding="utf-8"))
    node = next(node for number, node in enumerate(ast.walk(tree)) if number == mutant.node)
    _, make = list(changes(node))[mutant.which]
    make()
    changed = ast.fix_missing_locations(_WithoutNot().visit(tree))
    code = codes(compile(changed, str(mutant.file), "exec", dont_inherit=True))[mutant.function]
    gc.unfreeze()
    named = [f for f in gc.get_objects() if isinstance(f, FunctionType) and key(f.__code__) == (str(mutant.file), mutant.function)]
    assert named, f"{mutant} is of no function in memory"
    for function in named:
        function.__code__ = code


def codes(code: CodeType) -> dict[str, CodeType]:
    """The code of every function in a module's, by qualified name."""
    found = {}
    for each in code.co_consts:
        if isinstance(each, CodeType):
            found |= {each.co_qualname: each, **codes(each)}
    return found


def key(code: CodeType) -> tuple[str, str]:
    return code.co_filename, code.co_qualname.partition(".<locals>")[0]


class Mutation:
    """A pytest plugin that runs the collected tests once for each change."""

    def __init__(self, files: list[Path], given: argparse.Namespace) -> None:
        self.files, self.log = {str(file) for file in files}, given.log
        self.by_name, self.budget = given.by_name, given.budget
        self.said = os.fdopen(os.dup(2), "w")  # what pytest does not capture
        found = [sorted(mutants(file)) for file in files]
        everything = [mutant for of_file in found for mutant in of_file]
        draw = random.Random(given.seed)
        groups = found if given.each else [everything]
        self.sample = [mutant for group in groups for mutant in draw.sample(group, min(given.each or given.sample, len(group)))]
        if given.again:
            left = [line for line in given.again.read_text(encoding="utf-8").splitlines() if not line.startswith(NOTICED)]
            again = [mutant for mutant in everything if any(f" {mutant} (" in line for line in left)]
            self.sample = [*again, *(mutant for mutant in self.sample if mutant not in again)]
        self.number = len(everything)

    def say(self, line: str) -> None:
        print(line, file=self.said, flush=True)
        if self.log:
            with self.log.open("a", encoding="utf-8") as file:
                file.write(line + "\n")

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        began = time.perf_counter()
        for file in self.files:  # also those that no test has imported yet, since a test that does so would find the code as it is
            importlib.import_module(".".join(Path(file).relative_to(SOURCE.parent).with_suffix("").parts))
        calls, seconds = self.named(session) if self.by_name else self.baseline(session)
        self.say(f"{len(session.items)} tests in {time.perf_counter() - began:.0f} s; {len(self.sample)} of {self.number} changes")
        counts: dict[str, int] = {}
        for mutant in self.sample:
            able = [i for i, called in enumerate(calls) if f"{mutant.file}\0{mutant.function}" in called]
            able.sort(key=seconds.__getitem__)
            chosen = [i for i, sofar in zip(able, accumulate(seconds[i] for i in able), strict=True) if sofar <= self.budget]
            outcome = self.tried(session, mutant, chosen, sum(seconds[i] for i in chosen))
            counts[outcome] = counts.get(outcome, 0) + 1
            self.say(f"{outcome:<11} {mutant} ({len(chosen)} of {len(able)} tests)")
        self.say(", ".join(f"{number} {outcome}" for outcome, number in sorted(counts.items())))
        return True

    def named(self, session: pytest.Session) -> tuple[list[list[str]], list[float]]:
        """For each test the functions of the file that its own file is named for, without a first run."""
        names = {file: {mutant.function for mutant in mutants(Path(file))} for file in self.files}
        of = {f"test_{Path(file).name}": [f"{file}\0{name}" for name in found] for file, found in names.items()}
        return [of.get(item.path.name, []) for item in session.items], [1.0] * len(session.items)

    def baseline(self, session: pytest.Session) -> tuple[list[list[str]], list[float]]:
        """For each test the functions that it calls, and its seconds."""
        with tempfile.NamedTemporaryFile() as file:
            if not (child := os.fork()):
                found = []
                for i in range(len(session.items)):
                    called: set[CodeType] = set()
                    look = lambda frame, event, _, called=called: (
                        called.add(frame.f_code) if event == "call" and frame.f_code.co_filename in self.files else None
                    )
                    began = time.perf_counter()
                    threading.setprofile(look)
                    sys.setprofile(look)
                    run(session, [i])
                    sys.setprofile(None)
                    own = sorted({"\0".join(key(code)) for code in called})
                    found.append((own, time.perf_counter() - began))
                Path(file.name).write_text(json.dumps([found, session.testsfailed]))
                os._exit(0)
            os.waitpid(child, 0)
            found, failed = json.loads(Path(file.name).read_text())
        assert not failed, f"{failed} tests fail without any change"
        return [own for own, _ in found], [seconds for _, seconds in found]

    def tried(self, session: pytest.Session, mutant: Mutant, chosen: list[int], seconds: float) -> str:
        if not chosen:
            return "not called"
        if not (child := os.fork()):
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(int(SECONDS + 3 * seconds))
            try:
                apply(mutant)
            except (AssertionError, ValueError, KeyError):
                os._exit(3)
            run(session, chosen)
            os._exit(bool(session.testsfailed))
        _, status = os.waitpid(child, 0)
        if os.WIFSIGNALED(status):
            return "timed out" if os.WTERMSIG(status) == signal.SIGALRM else "killed"
        return {0: "SURVIVED", 1: "killed", 3: "no change"}.get(os.WEXITSTATUS(status), "killed")


def run(session: pytest.Session, chosen: list[int]) -> None:
    """Runs some of the tests, in a process that says nothing, up to the first that fails."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    items: list[Any] = [session.items[i] for i in chosen]
    for item, following in zip(items, [*items[1:], None], strict=True):
        item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
        if session.testsfailed:
            return


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sample", type=int, default=150)
    parser.add_argument("--each", type=int, help="so many changes of each file, in place of --sample of all of them")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rooms", default="stats,attacks", help="folders or files of the source")
    parser.add_argument("--log", type=Path)
    parser.add_argument("--again", type=Path, help="a log: first try once more what no test noticed there")
    parser.add_argument("--budget", type=float, default=float("inf"), help="seconds of tests for each change, the fastest tests first")
    parser.add_argument("--by-name", action="store_true", help="the tests of a file are those of test_FILE: no first run")
    parser.add_argument("--alone", action="store_true", help="without tests/conftest.py: no torch, no checks of types, faster")
    parser.add_argument("tests", nargs="*", help="default: the folders of tests with the names of the rooms")
    given = parser.parse_args()
    rooms = given.rooms.split(",")
    files = [file for room in rooms for file in (sorted((SOURCE / room).rglob("*.py")) or [SOURCE / room])]
    tests = given.tests or [str(ROOT / "tests" / room) for room in rooms]
    plugin = Mutation(files, given)
    alone = ["--noconftest"] if given.alone else []
    sys.exit(pytest.main(["-q", "-m", "not slow", *alone, *tests], plugins=[plugin]))


if __name__ == "__main__":
    main()
