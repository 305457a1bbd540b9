"""A `Section`: one part of a report, written once; `media` renders it as HTML, terminal text and Markdown.

To add one, write a function that makes it from a record (in `sections`) and name that function in the list of its page (`pages`).
"""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from markupsafe import Markup, escape

from diffleak.report.table import ORACLE_NOTE, Table

Where = Literal["everywhere", "page", "text"]  # page: HTML only; text: terminal and Markdown only


@dataclass(frozen=True)
class Sentences:
    """Findings, a sentence each: a list, or on a page paragraphs. `marks` are words before them, such as passed.

    `tone` is how a terminal prints them, and whether it wraps them at the length of a line that reads well.
    """

    said: tuple[str, ...]
    marks: tuple[str, ...] = ()
    tone: Literal["", "caution", "small"] = ""
    wrapped: bool = True
    listed: bool = True
    where: Where = "everywhere"
    macro: ClassVar[str] = "sentences"

    @property
    def lines(self) -> tuple[str, ...]:
        """The sentences, with their marks where they have any."""
        return tuple(f"{mark}: {s}" for mark, s in zip(self.marks, self.said, strict=True)) if self.marks else self.said


@dataclass(frozen=True)
class Tabulated:
    """A table. A page captions it and may fold it away; a terminal may keep rows on one line (`flat`).

    Names that are `quoted`, such as prompts, are no labels: a page shows them as they are, a terminal cuts them.
    """

    table: Table
    caption: str = ""
    first: str = "Attack"  # heads the names of the rows
    legend: str = ""  # the caption in Markdown
    notes: tuple[str, ...] = ()  # of the page, after the footnotes
    folded: str = ""  # what the page shows in place of a folded table
    look: str = ""  # a CSS class
    under: str = ""  # the name of the heading that the table stands under, if not its section's
    flat: bool = False
    quoted: bool = False
    where: Where = "everywhere"
    macro: ClassVar[str] = "table"

    @property
    def remarks(self) -> tuple[str, ...]:
        """The sentences of a page on the whole table."""
        return (*((ORACLE_NOTE,) if self.table.oracle else ()), *self.notes)


@dataclass(frozen=True)
class Drawn:
    """A part that only a page shows, such as a figure: a macro of the template `blocks` and its arguments."""

    macro: str
    data: dict[str, Any]
    where: ClassVar[Where] = "page"


Block = Sentences | Tabulated | Drawn


@dataclass(frozen=True)
class Section:
    """A part of a report: a page shows `title`, text shows `brief`, its short form (none where empty).

    `later` makes further blocks for a page when it is rendered: drawing figures takes time, and text needs none.
    A verdict, warnings and a summary stand together at the top of a page and of the terminal. Checks are a list under a label.
    """

    name: str
    title: str
    blocks: tuple[Block, ...]
    menu: str = ""  # its name in the page's table of contents
    brief: str = ""
    kind: Literal["part", "verdict", "warnings", "summary", "checks"] = "part"
    level: str = ""  # of a verdict
    later: Callable[[], Iterable[Block]] = tuple

    @property
    def leads(self) -> bool:
        return self.kind in ("verdict", "warnings", "summary")

    def on(self, where: Where) -> tuple[Block, ...]:
        """The blocks that a page, or text, shows."""
        blocks = (*self.blocks, *self.later()) if where == "page" else self.blocks
        return tuple(b for b in blocks if b.where in (where, "everywhere"))


@dataclass(frozen=True)
class Page:
    """A report: its head, and its sections in the order of Markdown."""

    title: str
    heading: str
    meta: str
    created: str
    version: str
    sections: tuple[Section, ...]
    handling: str = ""
    style: str = ""  # a template with the CSS of this page alone

    def leading_first(self) -> list[Section]:
        return sorted(self.sections, key=lambda s: not s.leads)


def sections(found: Iterable[Section | None]) -> tuple[Section, ...]:
    """The sections that a record has."""
    return tuple(s for s in found if s is not None)


def drawn(macro: str, **data: Any) -> Drawn:
    return Drawn(macro, data)


def prose(text: str, look: str = "prose") -> Drawn:
    """A paragraph that explains, in a CSS class."""
    return drawn("prose", text=text, look=look)


def heading(text: str, name: str = "") -> Drawn:
    """A heading inside of a section; a name makes it the heading of a table."""
    return drawn("heading", text=text, name=name)


def facts(rows: Iterable[tuple[str, str]]) -> Drawn:
    """Terms and what they are."""
    return drawn("facts", rows=tuple(rows))


def figure(svg: str, notes: Sequence[str], key: Sequence[Any] = ()) -> Drawn:
    """A figure with its key and what it shows."""
    return drawn("figure", svg=Markup(svg), entries=key, notes=notes)


def breakable(text: str) -> Markup:
    """A long name that breaks after its separators, not in the middle of a word."""
    return Markup(re.sub(r"([_,/(\[])", r"\1<wbr>", str(escape(text))))
