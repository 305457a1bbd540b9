"""Damaged and hostile files of every kind end in one line, in the right answer, or are moved aside and done again."""

import io
import time
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
from fuzz import data, models, runs, trial
from fuzz.mutations import mutate
from fuzz.trial import Kind, finite, in_turn, make_example, try_input

SEED, INPUTS = 1, 300
KINDS = (*data.KINDS, *runs.KINDS, *models.KINDS)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_a_spoilt_file_ends_in_one_line_or_in_an_answer_that_is_right(tmp_path, kind):
    order, example = in_turn(KINDS), make_example(kind, tmp_path)
    for number in (number for number in range(INPUTS) if order[number % len(order)] is kind):
        outcome = try_input(example, SEED, number)
        again = f"again: PYTHONPATH=src:tests python -m fuzz --kind {kind.name!r} --number {number} --seed {SEED}"
        assert outcome.result != "failure", f"{outcome.what}: {outcome.why}\n{again}"
