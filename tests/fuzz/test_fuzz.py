"""Damaged and hostile files of every kind end in one line, in an answer that is right, or are moved aside and done again."""

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from diffleak.errors import UserError
from fuzz import KINDS, trial
from fuzz.__main__ import failures, table, tried
from fuzz.trial import Kind, Outcome, finite, in_turn, make_example, outcome_of, try_input

SEED, INPUTS = 1, 300
TOO_MUCH = 2**30 if Path("/proc/self/statm").exists() else 2**45  # numbers: 8 GiB, where the fuzz limits memory


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_a_spoilt_file_ends_in_one_line_or_in_an_answer_that_is_right(tmp_path, kind):
    order, example = in_turn(KINDS), make_example(kind, tmp_path)
    for number in (number for number in range(INPUTS) if order[number % len(order)] is kind):
        outcome = try_input(example, SEED, number)
        again = f"again: make fuzz KIND={kind.name!r} NUMBER={number} SEED={SEED}"
        assert outcome.result != "failure", f"{outcome.what}: {outcome.why}\n{again}"


# what the fuzz itself sees


def raising(error: BaseException) -> Callable[[Path], Any]:
    def read(folder: Path) -> Any:
        raise error

    return read


def aside(folder: Path) -> float:
    (folder / "a.npy.damaged").touch()
    return 1.0


def coloured(folder: Path) -> float:
    print("a\x1b[31mb", file=sys.stderr)
    return 1.0


OUTCOMES: dict[str, tuple[Callable[[Path], Any], Any, str, str]] = {
    "a traceback": (raising(KeyError("x")), None, "failure", "KeyError"),
    "no memory left": (lambda folder: np.empty(TOO_MUCH), None, "failure", "MemoryError"),
    "a hang": (lambda folder: time.sleep(60), None, "failure", "more than 0.2 seconds"),
    "a line with colours": (coloured, finite, "failure", "a line on stderr with control characters"),
    "another answer without a word": (
        lambda folder: [1.0, {"a": np.array([1.0, 3.0])}],
        None,
        "failure",
        "another answer, without a word: ",
    ),
    "an answer that is not finite": (lambda folder: [np.nan, 2.0], finite, "failure", "a wrong answer: AssertionError it is not finite"),
    "one line": (raising(UserError("a\nb\x1b[2J" + 500 * "x")), None, "refused", ""),
    "no line": (raising(UserError("")), None, "failure", "not one clean line"),
    "the right answer": (lambda folder: 1.0, None, "same", ""),
    "the right answer, done again": (aside, None, "redone", ""),
    "another answer": (lambda folder: 2.0, finite, "other", ""),
}


@pytest.mark.parametrize("name", OUTCOMES)
def test_each_outcome_is_told_from_the_others(tmp_path, monkeypatch, name):
    monkeypatch.setattr(trial, "SECONDS", 0.2)
    read, right, result, why = OUTCOMES[name]
    whole = [1.0, {"a": np.array([1.0, 2.0])}] if "word" in name else 1.0
    found = outcome_of(Kind("a kind", lambda folder: read, ("*",), right), tmp_path, read, whole, "nothing")
    assert found[:2] == Outcome(result, "nothing")[:2] and found.why.startswith(why) and bool(found.why) == bool(why)


def test_an_input_is_decided_by_its_kind_its_seed_and_its_number(tmp_path):
    def example(folder: Path) -> Callable[[Path], str]:
        (folder / "a.json").write_text('{"a": [1, 2, {"b": "text"}]}')
        return lambda case: (case / "a.json").read_bytes().hex() if (case / "a.json").is_file() else "none"

    made = make_example(Kind("a kind", example, ("*.json",)), tmp_path)
    content = lambda: made.read(tmp_path / "a-kind" / "case")
    first = [(try_input(made, 0, number).what, content()) for number in range(15)]
    again = [(try_input(made, 0, number).what, content()) for number in range(15)]
    assert first == again and len({content for _, content in first}) > 10
    assert first != [(try_input(made, 1, number).what, content()) for number in range(15)]


CRASHING = """
import json, os, sys
for number in range(int(sys.argv[1]), int(sys.argv[2])):
    print(json.dumps([number, "a kind"]), flush=True)
    if number == 2:
        os.abort()
    print(json.dumps(["same", "nothing", ""]), flush=True)
"""


def test_an_input_that_ends_the_process_is_a_failure_and_the_next_ones_are_tried():
    found = tried(0, 5, lambda seed, start, stop, root: [sys.executable, "-c", CRASHING, str(start), str(stop)])
    assert [(number, outcome.result) for number, _, outcome in found] == [(n, "failure" if n == 2 else "same") for n in range(5)]
    assert found[2][2].why.startswith("the process ended with -6")
    assert table(found).splitlines()[-1].split() == ["all", "5", "0", "4", "0", "0", "1"]
    assert failures(found, 0).splitlines()[1] == "    again: make fuzz KIND='a kind' NUMBER=2 SEED=0"
