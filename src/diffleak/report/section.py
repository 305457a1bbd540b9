"""A `Section`: one part of a report, written once; `media` renders it as HTML, terminal text and Markdown.

To add one, write a function that makes it from a record (in `sections`) and name that function in the list of its page (`pages`).
"""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, ClassVar, Literal

from markupsafe import Markup, escape

from diffleak.errors import visible
from diffleak.report.table import Table
from diffleak.report.wording import moment

Where = Literal["everywhere", "page", "text", "terminal", "file"]  # page: HTML; text: terminal and Markdown; file: HTML and Markdown
Medium = Literal["page", "terminal", "markdown"]
SHOWN_IN: dict[Where, tuple[Medium, ...]] = {
    "everywhere": ("page", "terminal", "markdown"),
    "page": ("page",),
    "text": ("terminal", "markdown"),
    "terminal": ("terminal",),
    "file": ("page", "markdown"),
}


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
        return (*((self.table.oracle,) if self.table.oracle else ()), *self.notes)


@dataclass(frozen=True)
class Facts:
    """Terms and what they are: in `look` "limits" a list of names with sentences behind them."""

    rows: tuple[tuple[str, str], ...]
    look: Literal["facts", "limits"] = "facts"
    where: Where = "file"

    @property
    def macro(self) -> str:
        return self.look

    @property
    def data(self) -> dict[str, Any]:
        """The arguments of the macro."""
        return {"rows" if self.look == "facts" else "items": self.rows}


@dataclass(frozen=True)
class Drawn:
    """A part that only a page shows, such as a figure: a macro of the template `blocks` and its arguments."""

    macro: str
    data: dict[str, Any]
    where: ClassVar[Where] = "page"


Block = Sentences | Tabulated | Facts | Drawn


@dataclass(frozen=True)
class Section:
    """A part of a report: a page shows `title`, text shows `brief`, its short form (none where empty).

    `later` makes further blocks for a page when it is rendered: drawing figures takes time, and text needs none.
    A verdict, warnings and a summary stand together at the top of a page and of the terminal. Checks are a list under a label.
    `question` stands over a verdict, which answers it. A page shows what is `folded` under these words, after a click. `explains` makes
    the blocks of a page from the words of all others: a glossary.
    """

    name: str
    title: str
    blocks: tuple[Block, ...]
    menu: str = ""  # its name in the page's table of contents
    brief: str = ""
    kind: Literal["part", "verdict", "warnings", "summary", "checks"] = "part"
    level: str = ""  # of a verdict
    later: Callable[[], Iterable[Block]] = tuple
    question: str = ""
    folded: str = ""
    explains: "Callable[[str], Iterable[Block]] | None" = None

    @property
    def leads(self) -> bool:
        return self.kind in ("verdict", "warnings", "summary")

    def on(self, medium: Medium) -> tuple[Block, ...]:
        """The blocks that a page, a terminal or Markdown shows."""
        blocks = (*self.blocks, *self.later()) if medium == "page" else self.blocks
        return tuple(b for b in blocks if medium in SHOWN_IN[b.where])


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


def page_of(record: Any, found: Iterable[Section | None], **said: Any) -> Page:
    """The page of a record with the sections that it has; said: the rest of the page's fields."""
    version = record.diffleak if hasattr(record, "diffleak") else record.environment.diffleak
    return Page(created=visible(moment(record.created)), version=version, sections=tuple(s for s in found if s), **said)


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


def words(part: Any) -> str:
    """Every text in sections or blocks, for a search; images and drawings are left out."""
    if isinstance(part, str):
        return "" if part.startswith(("<svg", "data:")) else part
    if isinstance(part, dict):
        part = list(part.values())
    elif is_dataclass(part):
        part = [getattr(part, field.name) for field in fields(part)] + [
            getattr(part, name, "") for name in ("title", "remarks")
        ]  # what is made of several fields
    return "\n".join(filter(None, map(words, part))) if isinstance(part, list | tuple) else ""


def figure(svg: str, notes: Sequence[str], key: Sequence[Any] = ()) -> Drawn:
    """A figure with its key and what it shows."""
    return drawn("figure", svg=Markup(svg), entries=key, notes=notes)


def breakable(text: str) -> Markup:
    """A long name that breaks after its separators, not in the middle of a word."""
    return Markup(re.sub(r"([_,/(\[])", r"\1<wbr>", str(escape(text))))
