"""CPU seconds of the tests, by folder, file and test: `python benchmarks/suite.py [--most 30] [PYTEST ARGUMENTS]`.

CPU time of the process and of those that it has waited for, since a loaded machine stretches every other clock. Works with `-n 2`, too.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

FILE = "DIFFLEAK_SUITE_FILE"


def spent() -> float:
    """CPU seconds so far, of all threads and of finished children."""
    now = os.times()
    return time.process_time() + now.children_user + now.children_system


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Notes what a test took with its fixtures."""
    before = spent()
    result = yield
    with open(os.environ[FILE], "a", encoding="utf-8") as file:
        file.write(json.dumps([item.nodeid, spent() - before]) + "\n")
    return result


def pytest_collection_finish() -> None:
    """Notes what imports and collection took."""
    with open(os.environ[FILE], "a", encoding="utf-8") as file:
        file.write(json.dumps(["imports and collection", spent()]) + "\n")


def table(name: str, seconds: Counter[str], most: int) -> None:
    print(f"\n{name}")
    for key, value in seconds.most_common(most):
        print(f"{value:8.1f}  {key}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--most", type=int, default=30, help="rows of a table")
    given, rest = parser.parse_known_args()
    here = str(Path(__file__).parent)
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "seconds.jsonl"
        os.environ |= {FILE: str(path), "PYTHONPATH": os.pathsep.join([here, *sys.path[1:]])}
        sys.path.insert(0, here)
        code = pytest.main(["-p", "suite", *rest])
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    folders, files, tests = Counter[str](), Counter[str](), Counter[str]()
    for test, seconds in rows:
        file = test.partition("::")[0]
        folders[str(Path(file).parent) if "::" in test else file] += seconds
        files[file] += seconds
        tests[test] += seconds
    for name, counted in (("by folder", folders), ("by file", files), ("by test", tests)):
        table(name, counted, given.most)
    print(f"\n{sum(folders.values()):8.1f}  CPU seconds in all, of {len(tests) - 1} tests")
    return int(code)


if __name__ == "__main__":
    sys.exit(main())
