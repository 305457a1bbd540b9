"""The words of the house: turns that a reader stumbles over stay out of messages, help, docstrings and pages of documentation."""

import ast
import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCE = sorted((ROOT / "src" / "diffleak").rglob("*.py"))
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
FORBIDDEN = {  # turn: what to write in its place
    r"\btold\b(?! apart)": "say who says or does what: 'the model gets a caption', 'an audit detects'",
    r"\basked\b": "'given', 'named', 'queried', 'chosen by the user'",
    r"\b[Ww]hoever\b": "'anyone who', 'someone with'",
    r"\bstrangers?\b": "name the reader",
    r"\bwhat there is not\b": "say what is missing",
}
AT_THE_START = re.compile(r"(?:Whether|What whoever)\b")  # of a docstring, which is a sentence that says what the thing does
IN_CODE = re.compile(r"`[^`\n]*`|\{[^{}]*\}")


def texts(source: str) -> Iterator[tuple[int, str, bool]]:
    """Line, text and if it is a docstring, of every string of a module that holds words; field documentation is a docstring too."""
    tree = ast.parse(source)
    alone = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    parts = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in parts and " " in node.value:
            yield node.lineno, node.value, id(node) in alone
        elif isinstance(node, ast.JoinedStr):
            said = "".join(part.value if isinstance(part, ast.Constant) else "{}" for part in node.values)
            if " " in said:
                yield node.lineno, said, False


def turns(text: str) -> list[str]:
    """The forbidden turns in a text, with what to write."""
    plain = IN_CODE.sub("", text)
    return [f"{found[0]!r}: write {instead}" for turn, instead in FORBIDDEN.items() for found in re.finditer(turn, plain)]


@pytest.mark.parametrize("path", SOURCE, ids=lambda path: str(path.relative_to(ROOT / "src" / "diffleak")))
def test_messages_help_and_docstrings_are_in_plain_words(path: Path) -> None:
    said = list(texts(path.read_text(encoding="utf-8")))
    assert [(line, found) for line, text, _ in said for found in turns(text)] == []
    assert [(line, text[:60]) for line, text, documents in said if documents and AT_THE_START.match(text)] == []


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_pages_of_documentation_are_in_plain_words(path: Path) -> None:
    plain = re.sub(r"^```.*?^```", lambda block: "\n" * block[0].count("\n"), path.read_text(encoding="utf-8"), flags=re.M | re.S)
    quoted = re.compile(r'^\| ".*')  # tables of sentences that readers did not understand
    lines = [(n, line) for n, line in enumerate(plain.splitlines(), 1) if not quoted.match(line)]
    assert [(n, found) for n, line in lines for found in turns(line)] == []


def test_the_turns_are_found_where_they_stand_and_nowhere_else() -> None:
    body = 'asked = told  # asked\n    raise E(f"whoever {told} it", "a sword told from", "told apart")'
    made = f'def f(told):\n    """Whether x."""\n    {body}\n'
    found = list(texts(made))
    assert [(line, len(turns(text))) for line, text, _ in found if turns(text)] == [(4, 1), (4, 1)]
    assert [text for _, text, documents in found if documents and AT_THE_START.match(text)] == ["Whether x."]
    assert turns("`asked` is a name, {told} too") == []


VERB = re.compile(r"(?: of [^.,;:(\"]*)? (?:are|have|were|do)\b")


def unmatched(source: str) -> list[int]:
    """Lines of f-strings in which a number, written with `:,`, `len` or `count`, has a verb in the plural right behind it."""
    found, tree = [], ast.parse(source)
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)]
    given = {id(part) for call in calls if call.func.id in ("one_or_more", "of_them") for each in call.args[1:] for part in ast.walk(each)}
    for node in ast.walk(tree):
        parts = node.values if isinstance(node, ast.JoinedStr) and id(node) not in given else []
        for number, behind in pairwise(parts):
            if isinstance(number, ast.FormattedValue) and isinstance(behind, ast.Constant) and VERB.match(str(behind.value)):
                grouped = number.format_spec is not None and ast.unparse(number.format_spec) == "f','"
                called = isinstance(number.value, ast.Call) and isinstance(number.value.func, ast.Name) and number.value.func.id
                found += [node.lineno] if grouped or called in ("len", "count") else []
    return found


@pytest.mark.parametrize("path", SOURCE, ids=lambda path: str(path.relative_to(ROOT / "src" / "diffleak")))
def test_a_number_and_its_verb_are_written_by_one_or_more(path: Path) -> None:
    assert unmatched(path.read_text(encoding="utf-8")) == []


def test_a_verb_in_the_plural_behind_a_number_is_found() -> None:
    assert unmatched('f"{n:,} images were left out"') == [] and unmatched('f"{n:,} were left out"') == [1]
    assert unmatched('f"{len(x)} of {m} are none"') == [] and unmatched('f"{len(x)} of them are none"') == [1]
