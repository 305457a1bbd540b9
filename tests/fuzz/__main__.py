"""Spoils files, thousands of times, and counts what comes of it; or tries one input again: --kind KIND --number I --seed S.

The inputs run in a process of their own, which says what it begins before it does. Where it dies, the input in flight is a failure, and
another process goes on behind it. Ends with a table, and with exit code 1 where there are failures.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import get_args

from fuzz import KINDS
from fuzz.trial import Example, Outcome, Result, in_turn, make_example, try_input

BLOCK = 2500  # inputs of one process, so that what libraries leak is given back
EVERY = 30.0  # seconds between two lines of progress
RESULTS = get_args(Result)
HEADS = ("refused in one line", "same result", "redone", "other valid answer", "failures")


def block(seed: int, start: int, stop: int, root: Path) -> None:
    """Tries some inputs; a line of JSON on stdout before and after each."""
    journal = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever else is printed is no part of the journal
    order, examples = in_turn(KINDS), dict[str, Example]()
    for number in range(start, stop):
        kind = order[number % len(order)]
        if kind.name not in examples:
            examples[kind.name] = make_example(kind, root)
        print(json.dumps([number, kind.name]), file=journal)
        print(json.dumps(try_input(examples[kind.name], seed, number)), file=journal)


def own_process(seed: int, start: int, stop: int, root: str) -> list[str]:
    """The command that calls `block`."""
    return [sys.executable, "-m", "fuzz", "--block", str(seed), str(start), str(stop), root]


def tried(seed: int, inputs: int, command: Callable[[int, int, int, str], list[str]] = own_process) -> list[tuple[int, str, Outcome]]:
    """The number, the kind and the outcome of every input."""
    found, began, told = list[tuple[int, str, Outcome]](), time.monotonic(), time.monotonic()
    while len(found) < inputs:
        before, stop = len(found), min(inputs, len(found) + BLOCK)
        with tempfile.TemporaryDirectory() as root, (Path(root) / "stderr").open("w+") as said:
            process = subprocess.Popen(command(seed, before, stop, root), stdout=subprocess.PIPE, stderr=said, text=True)
            assert process.stdout is not None
            number, kind = before, "none yet"
            for line in process.stdout:
                parts = json.loads(line)
                if len(parts) == 2:
                    number, kind = parts
                    continue
                found.append((number, kind, Outcome(*parts)))
                if time.monotonic() - told > EVERY:
                    told = time.monotonic()
                    failed = sum(outcome.result == "failure" for _, _, outcome in found)
                    print(f"{len(found):,} of {inputs:,} inputs, {failed} failures, {told - began:.0f} s", file=sys.stderr, flush=True)
            process.wait()
            said.seek(0)
            last = " | ".join(line.strip() for line in said.read().strip().splitlines()[-4:])
        if len(found) < stop:
            if len(found) == before and kind == "none yet":
                raise SystemExit(f"no example could be made: {last}")
            found.append((number, kind, Outcome("failure", "not known", f"the process ended with {process.returncode}: {last[-400:]}")))
    return found


def table(found: list[tuple[int, str, Outcome]]) -> str:
    """A line for every kind, and one for all."""
    tallies: dict[str, Counter[str]] = defaultdict(Counter)
    for _, kind, outcome in found:
        for name in (kind, "all"):
            tallies[name][outcome.result] += 1
    rows = [["kind", "inputs", *HEADS]]
    rows += [
        [name, str(tally.total()), *(str(tally[r]) for r in RESULTS)]
        for name, tally in sorted(tallies.items(), key=lambda i: i[0] == "all")
    ]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))) for row in rows
    )


def failures(found: list[tuple[int, str, Outcome]], seed: int) -> str:
    """Every way to fail once, with how often and how to see it again."""
    ways: dict[tuple[str, str], list[tuple[int, str, Outcome]]] = defaultdict(list)
    for one in found:
        if one[2].result == "failure":
            ways[one[1], one[2].why.rpartition(", in ")[2]].append(one)
    lines = []
    for (kind, _), ones in ways.items():
        number, _, outcome = ones[0]
        lines += [f"{kind}: {len(ones)} times, first {outcome.what[:200]}: {outcome.why}"]
        lines += [f"    again: make fuzz KIND={kind!r} NUMBER={number} SEED={seed}"]
    return "\n".join(lines)


def again(name: str, number: int, seed: int) -> Outcome:
    """One input, whose folder is left for a look."""
    (kind,) = (kind for kind in KINDS if kind.name == name)
    root = Path(tempfile.mkdtemp(prefix="fuzz-"))
    outcome = try_input(make_example(kind, root), seed, number)
    print(f"{outcome.result}: {outcome.what}\n{outcome.why}\nfiles: {root}")
    return outcome


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m fuzz", description=__doc__)
    parser.add_argument("--inputs", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kind")
    parser.add_argument("--number", type=int)
    parser.add_argument("--block", nargs=4, help=argparse.SUPPRESS)
    given = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    if given.block:
        seed, start, stop, root = given.block
        block(int(seed), int(start), int(stop), Path(root))
        return 0
    if given.kind:
        return int(again(given.kind, given.number, given.seed).result == "failure")
    found = tried(given.seed, given.inputs)
    print(table(found))
    failed = failures(found, given.seed)
    print(failed or "no failures")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
