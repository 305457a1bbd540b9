"""A report as GitHub Markdown."""

import re

from markupsafe import Markup

from diffleak.errors import visible
from diffleak.report.section import Facts, Page, Section, Sentences, Tabulated
from diffleak.report.table import Row


def to_markdown(page: Page) -> str:
    """The sections of a page that say something in text."""
    paragraphs = [f"## {escape(page.heading)}", *(p for section in page.sections for p in _section(section))]
    return "\n\n".join(paragraphs) + "\n"


def _section(section: Section) -> list[str]:
    blocks = section.on("markdown")
    if not blocks:
        return []
    found = _title(section)
    for block in blocks:
        if isinstance(block, Sentences):
            listed = bool(found)  # one under no title is a paragraph
            found.append("\n".join(f"- {escape(line)}" if listed else escape(line) for line in block.lines))
        elif isinstance(block, Tabulated):
            found += _table(block)
        elif isinstance(block, Facts):
            found.append(
                "\n".join(f"- **{_plain(term)}**{'' if _plain(term)[-1] in '.:?' else ':'} {_plain(what)}" for term, what in block.rows)
            )
    return found


def _title(section: Section) -> list[str]:
    title = escape(section.brief)
    match section.kind:
        case "verdict":
            return [*([escape(section.question)] if section.question else []), f"**{title}**"]
        case "warnings" | "checks":
            return [f"{title}:"]
    return [f"### {title}"] if title else []


def _table(block: Tabulated) -> list[str]:
    content = block.table
    lines = [f"| {block.first} | " + " | ".join(escape(c.title) for c in content.columns) + " |"]
    lines += ["| :-- |" + " --: |" * len(content.columns), *map(_row, content.rows)]
    legend = " ".join(filter(None, [block.legend, content.oracle]))
    notes = "\n".join(f"{i}. {escape(note)}" for i, note in enumerate(content.notes, 1))
    return list(filter(None, ["\n".join(lines), legend, notes]))


def _row(row: Row) -> str:
    name = f"**{escape(row.attack)}**" if row.headline else escape(row.attack)
    cells = [" ".join([cell.marked, *(d if d.startswith("[") else f"({d})" for d in cell.details)]) for cell in row.cells]
    return "| " + " | ".join([name, *map(escape, cells)]) + " |"


def _plain(text: str) -> str:
    """A text that may be our own HTML, without its tags."""
    return escape(text.striptags() if isinstance(text, Markup) else text)


def escape(text: str) -> str:
    """Plain text for Markdown: nothing in it is a tag, a table border, a mention or emphasis, and nothing moves a terminal's cursor."""
    return re.sub(r"([\\`*_\[\]|~#])", r"\\\1", visible(text)).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
