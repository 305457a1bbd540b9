"""A report as terminal text that fits its width."""

import re
import textwrap
from dataclasses import replace
from functools import partial

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table as RichTable
from rich.text import Text

from diffleak.errors import visible
from diffleak.report.section import Page, Section, Sentences, Tabulated
from diffleak.report.table import Cell, Column

COLOURS = {
    "leak": "bold red",
    "no-leak-found": "bold cyan",
    "undecided": "bold",
    "lowers": "bold cyan",
    "not-shown": "bold",
    "invalid": "bold yellow",
}
TONES = {"": "", "caution": "yellow", "small": "dim"}
LINE = 100  # longer lines of prose are hard to read, however wide the terminal
LABEL = 24  # room for an attack with one parameter; longer labels fold, so that they do not push numbers out
NARROWEST = 12  # of names that are cut
COMMAND = re.compile(r"(.+: )(diffleak [a-z]+ .+[^.])")  # a sentence that ends with a command, and so with no stop
NUMBER = 10  # room for a number, which is never cut


def print_page(page: Page, console: Console) -> None:
    """Prints the sections of a page that say something in text; a narrow terminal leaves out the least important columns."""
    for section in page.leading_first():
        _print_section(section, console)


def _print_section(section: Section, console: Console) -> None:
    blocks, titled = section.on("terminal"), section.brief and section.kind != "warnings"
    if blocks and titled:
        if section.kind == "part":
            console.print()
        if section.question:
            _say(console, section.question, "dim")
        _say(console, section.brief, COLOURS.get(section.level, "bold"))
    for block in blocks:
        if isinstance(block, Tabulated):
            _print_table(block, console)
        elif isinstance(block, Sentences):
            for line in block.lines:
                said = f"warning: {line}" if section.kind == "warnings" else line
                style = "red" if line.startswith("failed:") and block.marks else TONES[block.tone]
                _say(console, said, style, 2 if titled else 0) if block.wrapped else console.print(Text(_encodable(said, console), style))


def _say(console: Console, text: str, style: str = "", indent: int = 0) -> None:
    """Prints a paragraph, wrapped, in characters that the terminal has; a command at its end has a line of its own, as it is pasted."""
    if ends := COMMAND.fullmatch(text):
        _say(console, ends[1], style, indent)
        return console.print(Text(" " * indent + _encodable(ends[2], console), style), soft_wrap=True)
    shown = _encodable(text, console)
    # textwrap breaks no line at a no-break space, so a number keeps its percent sign; rich would.
    margin = " " * indent
    width = max(20, min(console.width, LINE))
    filled = textwrap.fill(shown.replace(" %", "\u00a0%"), width, initial_indent=margin, subsequent_indent=margin)
    console.print(Text(filled.replace("\u00a0", " "), style))


def _print_table(block: Tabulated, console: Console) -> None:
    """The columns that fit and the notes that they need."""
    say, content = partial(_say, console), block.table
    shown = _fitting(block, console)
    console.print()
    console.print(_rich(block, shown, console))
    hidden = [c.title for c in content.columns if c not in shown]
    if hidden:
        say(f"Not shown at this width: {', '.join(hidden)}.", "dim")
    for i, note in enumerate(content.notes, 1):
        if any(row.cells[content.columns.index(c)].note == i for row in content.rows for c in shown):
            say(f"({i}) {note}", "dim")
    if any(c.look == "faint" for c in shown):
        say(content.oracle, "dim")


def _fitting(block: Tabulated, console: Console) -> tuple[Column, ...]:
    """As many columns as the terminal has room for, the most important first; at least one."""
    columns = block.table.columns
    by_importance = sorted(columns, key=lambda c: c.importance)
    unlimited = console.options.update(max_width=10_000)
    wrapped = block if block.quoted else replace(block, first=max(block.first.split(), key=len))  # a heading of two words takes two lines
    for kept in range(len(by_importance), 1, -1):
        chosen = tuple(c for c in columns if c in by_importance[:kept])
        if Measurement.get(console, unlimited, _rich(wrapped, chosen, console)).maximum <= console.width:
            return chosen
    return tuple(by_importance[:1])


def _rich(block: Tabulated, chosen: tuple[Column, ...], console: Console) -> RichTable:
    drawn = RichTable(show_edge=False, pad_edge=False, show_lines=False, header_style="bold", caption_style="dim")
    if block.quoted:
        left = console.width - sum(max(len(c.title), NUMBER) + 3 for c in chosen)
        drawn.add_column(block.first, no_wrap=True, overflow="ellipsis", max_width=max(NARROWEST, left))
    else:
        drawn.add_column(block.first, overflow="fold", max_width=LABEL, vertical="top")
    for column in chosen:
        justify, style = "left" if column.look == "left" else "right", "dim" if column.look == "faint" else ""
        drawn.add_column("\n".join(column.lines), justify=justify, no_wrap=True, min_width=column.width or None, style=style)  # type: ignore[arg-type]
    indices = [block.table.columns.index(c) for c in chosen]
    for row in block.table.rows:
        shown = _encodable(row.attack, console)
        if len(shown) > LABEL and not block.quoted:  # a line per parameter, and one for its mask
            shown = shown.replace(",", ",\n ").replace(")[", ")\n [")
        name = Text(shown, "bold" if row.headline else "")
        drawn.add_row(name, *(_rich_cell(row.cells[i], block.flat) for i in indices))
    return drawn


def _encodable(text: str, console: Console) -> str:
    """A terminal that cannot show a character must not end the report, and no character may move its cursor."""
    return visible(text).encode(console.encoding, "backslashreplace").decode(console.encoding)


def _rich_cell(cell: Cell, flat: bool) -> Text:
    return Text(" " if flat else "\n").join([Text(visible(cell.marked)), *(Text(visible(detail), "dim") for detail in cell.details)])
