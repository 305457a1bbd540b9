"""The docstring of every public callable is one that the site renders as tables, and names the arguments that the signature has."""

import inspect
import re
from dataclasses import is_dataclass
from typing import Any

import pytest
from pydantic import BaseModel

import diffleak
from diffleak.attacks import ATTACKS

SECTION = re.compile(r"^(Args|Returns|Raises|Source):\n((?:    .*\n|\n)*)", flags=re.M)
CALLABLES = {name: getattr(diffleak, name) for name in diffleak.__all__ if callable(getattr(diffleak, name))}
RECORDS = {name for name, kind in CALLABLES.items() if inspect.isclass(kind) and issubclass(kind, BaseModel)} | {"Scores"}
ERRORS = {name for name, kind in CALLABLES.items() if inspect.isclass(kind) and issubclass(kind, Exception)}
FUNCTIONS = {name: each for name, each in CALLABLES.items() if inspect.isfunction(each)}
CLASSES = {name: each for name, each in CALLABLES.items() if is_dataclass(each) and name not in RECORDS}
METHODS = {
    "Audit.save": diffleak.Audit.save,
    "Denoiser.from_function": diffleak.Denoiser.from_function,
    "Result.tpr": diffleak.Result.tpr,
    "Schedule.add_noise": diffleak.Schedule.add_noise,
    "Subject.draw": diffleak.Subject.draw,
    "Subject.eps": diffleak.Subject.eps,
}


def sections(documented: Any) -> dict[str, str]:
    return dict(SECTION.findall(inspect.cleandoc(documented.__doc__) + "\n"))


def said(documented: Any) -> list[str]:
    """The arguments that a docstring names."""
    return re.findall(r"^    (\*{0,2}\w+): \S", sections(documented).get("Args", ""), flags=re.M)


def taken(callable_: Any) -> list[str]:
    """The arguments that a signature has, but for self."""
    stars = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}
    return [stars.get(each.kind, "") + name for name, each in inspect.signature(callable_).parameters.items() if name != "self"]


@pytest.mark.parametrize("name", CALLABLES)
def test_the_first_line_is_a_sentence(name: str) -> None:
    first = inspect.cleandoc(CALLABLES[name].__doc__).partition("\n")[0]
    assert re.match(r'[A-Z`"]', first) or first.startswith(("audit.json", "inquiry.json")), first
    assert first.endswith((".", "?")), first


@pytest.mark.parametrize("name", [*FUNCTIONS, *METHODS])
def test_a_function_says_what_it_takes_returns_and_raises(name: str) -> None:
    function = {**FUNCTIONS, **METHODS}[name]
    assert said(function) == taken(function)
    assert sections(function)["Returns"].strip()
    if name != "Schedule.add_noise":  # arithmetic
        assert re.findall(r"^    (\w+): ", sections(function)["Raises"], flags=re.M)


@pytest.mark.parametrize("name", CLASSES)
def test_a_class_says_what_it_is_made_of(name: str) -> None:
    assert said(CLASSES[name]) == taken(CLASSES[name])


def test_an_attack_names_its_source_and_its_formula() -> None:
    public = [kind for kind in CLASSES.values() if kind in ATTACKS.values()]
    assert len(public) > 10
    for kind in public:
        assert re.search(r"arXiv \d{4}\.\d{5}", sections(kind)["Source"]), kind
        assert re.search(r"^Formula: .*`.+`", inspect.cleandoc(kind.__doc__), flags=re.M), kind


def test_nothing_public_is_left_out() -> None:
    assert set(CALLABLES) == {*FUNCTIONS, *CLASSES, *RECORDS, *ERRORS, "Denoiser"}
