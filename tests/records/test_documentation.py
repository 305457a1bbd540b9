"""Every field that is written to disk says what it is, in a string under it: its unit, its range, and when it is null."""

import ast
import importlib
import inspect
import re
from dataclasses import is_dataclass
from itertools import pairwise
from pathlib import Path
from types import NoneType
from typing import get_args

import pytest

from diffleak import records
from diffleak.data import split
from diffleak.records.base import Record

NAMES = [f"diffleak.records.{path.stem}" for path in Path(records.__path__[0]).glob("*.py") if path.stem != "__init__"]
MODULES = [split, *map(importlib.import_module, NAMES)]
UNIT = re.compile(
    r"\[|\(0|seconds|pixels|number|forwards|seed|version|steps|scale|rounds|factor|log singular|cycles|score|unit of|at least|end of"
    r"|value that",
    re.IGNORECASE,
)
KINDS = [
    kind
    for module in MODULES
    for kind in vars(module).values()
    if inspect.isclass(kind) and kind.__module__ == module.__name__ and (is_dataclass(kind) or issubclass(kind, Record))
]
FIELDS = [(kind, name) for kind in KINDS for name in vars(kind).get("__annotations__", {})]


def documentation(kind: type) -> dict[str, str]:
    """The string under each field of a class, by the field's name."""
    (definition,) = ast.parse(inspect.getsource(kind)).body
    assert isinstance(definition, ast.ClassDef)
    return {
        field.target.id: inspect.cleandoc(below.value.value)
        for field, below in pairwise(definition.body)
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
        if isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant) and isinstance(below.value.value, str)
    }


def test_all_kinds_of_record_are_looked_at():
    assert {"Result", "Plan", "QualityRecord", "Comparison", "PromptsRecord", "Scores", "Samples", "Tally"} <= {k.__name__ for k in KINDS}
    assert len(FIELDS) > 250


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_field_has_a_sentence_that_says_more_than_its_name(kind):
    said = documentation(kind)
    for name in vars(kind).get("__annotations__", {}):
        words = re.findall(r"[\w-]+", said.get(name, "").lower())
        assert len(words) >= 3, f"{kind.__name__}.{name} has no documentation"
        assert set(words) - {"the", "a", "an", "of", "this", *name.split("_")}, f"{kind.__name__}.{name} repeats its name"
        assert re.match(r'["A-Z]', said[name]), f"{kind.__name__}.{name} is no sentence"


@pytest.mark.parametrize("kind", [kind for kind in KINDS if issubclass(kind, Record)], ids=lambda kind: kind.__name__)
def test_a_field_that_may_be_null_says_when(kind):
    for name in vars(kind).get("__annotations__", {}):
        if NoneType in get_args(kind.model_fields[name].annotation):
            assert re.search(r"\b[Nn]ull\b", documentation(kind)[name]), f"{kind.__name__}.{name} does not say when it is null"


@pytest.mark.parametrize("kind", [kind for kind in KINDS if issubclass(kind, Record)], ids=lambda kind: kind.__name__)
def test_a_number_says_its_unit_its_range_or_that_it_counts(kind):
    """A fraction or an AUC has its range, a timestep too, a duration seconds; what is counted is said to be a number of something."""
    for name in vars(kind).get("__annotations__", {}):
        annotation = kind.model_fields[name].annotation
        if {int, float} & {annotation, *get_args(annotation)}:
            assert UNIT.search(documentation(kind)[name]), f"{kind.__name__}.{name} has no unit"
