"""In the tests every call of the package is checked: types, shapes that must agree, and what is returned."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import beartype
import jaxtyping
import numpy as np
import pytest
from beartype.roar import BeartypeCallHintViolation
from jaxtyping import Float64

from diffleak.records.scores import Scores
from diffleak.stats import metrics

Row = Float64[np.ndarray, " n"]
checked = jaxtyping.jaxtyped(typechecker=beartype.beartype)  # what the import hook puts on every function and class
ROW = np.zeros(2)


@checked
def joined(one: Row, other: list[Row], *, times: "int" = 1) -> Row:
    return np.concatenate([one, other[0]]) if times == 2 else one


@checked
def text(number: int) -> str:
    return "number" if number else None


@checked
def sized(side: int, of: Literal["zeros", "ones"] = "zeros") -> Float64[np.ndarray, "{side}"]:
    return np.zeros(3) if of == "zeros" else np.ones(side)


@checked
@dataclass(frozen=True)
class Pair:
    one: Row
    other: Row

    @property
    @checked
    def size(self) -> int:
        return "two"

    @staticmethod
    @checked
    def of(size: int) -> "Pair":
        return Pair(np.zeros(size), np.zeros(size))


WRONG: dict[str, Callable[[], Any]] = {
    "a type": lambda: text("1"),
    "a returned type": lambda: text(0),
    "a dimension": lambda: joined(np.zeros((2, 2)), [ROW]),
    "shapes that differ": lambda: joined(ROW, [np.zeros(3)]),
    "a returned shape": lambda: joined(ROW, [ROW], times=2),
    "a shape by an argument": lambda: sized(2),
    "a word": lambda: sized(3, "twos"),
    "a type in quotes": lambda: joined(ROW, [ROW], times="2"),
    "fields that differ": lambda: Pair(ROW, np.zeros(3)),
    "a property": lambda: Pair.of(2).size,
    "a static method": lambda: Pair.of("2"),
    "a function of the package": lambda: metrics.threshold_at(np.zeros((2, 2)), 1),
    "a record of the package": lambda: Scores("sima", "large", (10,), ("a", "b"), np.zeros(2)),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_wrong_one_is_seen(what):
    with pytest.raises((BeartypeCallHintViolation, jaxtyping.TypeCheckError)):
        WRONG[what]()


def test_a_right_one_is_let_through():
    assert joined(ROW, [ROW]) is ROW and text(1) == "number" and Pair.of(3).one.shape == (3,)
    assert sized(3).shape == (3,) and sized(2, "ones").shape == (2,)
    assert metrics.threshold_at(np.arange(4.0), 1) == pytest.approx(metrics.threshold_at(np.arange(4.0)[::-1].copy(), 1))
