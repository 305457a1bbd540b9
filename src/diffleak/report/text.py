"""The report as text: a terminal table that fits its width, and Markdown."""

import re
import textwrap
from collections.abc import Sequence
from functools import partial

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table as RichTable
from rich.text import Text

from diffleak.errors import visible
from diffleak.records.audit import AuditRecord, Result
from diffleak.report.beyond import TITLE, reference_table
from diffleak.report.beyond import sentences as reference_sentences
from diffleak.report.gates import gate_line, gates_title
from diffleak.report.geometry import sentences as geometry_sentences
from diffleak.report.judgement import Verdict, verdict
from diffleak.report.masked import masks_table, summaries
from diffleak.report.table import ORACLE_NOTE, Cell, Column, Table, columns, table
from diffleak.report.wording import count

COLOURS = {
    "leak": "bold red",
    "no-leak-found": "bold cyan",
    "undecided": "bold",
    "lowers": "bold cyan",
    "not-shown": "bold",
    "invalid": "bold yellow",
}
LINE = 100  # longer lines of prose are hard to read, however wide the terminal
LABEL = 24  # room for an attack with one parameter; longer labels fold, so that they do not push numbers out


def print_terminal(record: AuditRecord, console: Console) -> None:
    """Prints the verdict, the limits, the table and the warnings; of an invalid audit only why it is.

    A narrow terminal leaves out the least important columns.
    """
    say = partial(say_to, console)
    judged = verdict(record)
    if judged.level == "invalid":
        return print_verdict(judged, (), console)
    print_verdict(judged, record.warnings, console)
    if record.gates:
        say(gates_title(record.gates), "bold")
        for gate in record.gates:
            say(gate_line(gate), "" if gate.passed else "red", indent=2)
    if record.results:
        print_table(table(record), console)
    masks = masks_table(record)
    if masks:
        console.print()
        say("What masks add", "bold")
        for sentence in summaries(record):
            say(sentence, indent=2)
        print_table(masks, console, flat=True)
    beside = reference_table(record)
    if beside:
        console.print()
        say(TITLE, "bold")
        for sentence in reference_sentences(record):
            say(sentence, indent=2)
        print_table(beside, console, flat=True)
    found = geometry_sentences(record)
    if found:
        console.print()
        say("Geometry", "bold")
        for sentence in found:
            say(sentence, indent=2)
    if record.omitted:
        say(_omitted(record), "yellow")


def print_verdict(judged: Verdict, warnings: Sequence[str], console: Console) -> None:
    """Prints what a record means, and what to be careful about."""
    say_to(console, judged.title, COLOURS[judged.level])
    for sentence in judged.sentences:
        say_to(console, sentence, indent=2)
    for warning in warnings:
        say_to(console, f"warning: {visible(warning)}", "yellow")


def say_to(console: Console, text: str, style: str = "", indent: int = 0) -> None:
    """Prints a paragraph, wrapped, in characters that the terminal has."""
    shown = _encodable(text, console)
    # textwrap breaks no line at a no-break space, so a number keeps its percent sign; rich would.
    margin = " " * indent
    width = max(20, min(console.width, LINE))
    filled = textwrap.fill(shown.replace(" %", "\u00a0%"), width, initial_indent=margin, subsequent_indent=margin)
    console.print(Text(filled.replace("\u00a0", " "), style))


def print_table(content: Table, console: Console, flat: bool = False, first: str = "Attack") -> None:
    """The columns that fit and the notes that they need; `flat` keeps each row on one line, `first` heads the names."""
    say = partial(say_to, console)
    shown = _fitting(content, console, flat)
    console.print()
    console.print(_rich(content, shown, console, flat, first))
    hidden = [c.title for c in content.columns if c not in shown]
    if hidden:
        say(f"Not shown at this width: {', '.join(hidden)}.", "dim")
    for i, note in enumerate(content.notes, 1):
        if any(row.cells[content.columns.index(c)].note == i for row in content.rows for c in shown):
            say(f"({i}) {note}", "dim")
    if any(c.faint for c in shown):
        say(ORACLE_NOTE, "dim")


def print_result(result: Result, console: Console | None = None) -> None:
    """Prints the statistics of one score file, a line each, with the reason where one cannot be estimated."""
    console = console or Console()
    drawn = RichTable(box=None, show_header=False, pad_edge=False)
    drawn.add_column(no_wrap=True)
    drawn.add_column(no_wrap=True, justify="right")
    drawn.add_column(style="dim")
    for column in columns([result]):
        cell = column.cell(result)
        if cell.text != "-":
            drawn.add_row(column.title, cell.text, Text("; ".join([*cell.details, *map(visible, filter(None, [cell.reason]))])))
    console.print(drawn)
    sizes = f"{count(result.n_members)} members, {count(result.n_nonmembers)} non-members"
    console.print(Text(f"{sizes}; convention {result.convention}; intervals are 95 %", "dim"))


def markdown(record: AuditRecord) -> str:
    """The verdict, the table, its notes and the warnings as GitHub Markdown."""
    judged = verdict(record)
    lines = ["## Membership audit", "", f"**{_escape(judged.title)}**", ""]
    lines += [f"- {_escape(sentence)}" for sentence in judged.sentences]
    if judged.level == "invalid":
        return "\n".join(lines) + "\n"
    content = table(record)
    if record.gates:
        lines += ["", f"{_escape(gates_title(record.gates))}:", "", *(f"- {_escape(gate_line(gate))}" for gate in record.gates)]
    if record.warnings:
        lines += ["", "Warnings:", "", *(f"- {_escape(visible(w))}" for w in record.warnings)]
    if content.rows:
        key = "Bold: the attack chosen on the calibrate part. Intervals are 95 %; rates are of the test part."
        lines += [*_markdown_table(content), "", f"{key} {ORACLE_NOTE}"]
    lines += _markdown_notes(content)
    masks, found = masks_table(record), geometry_sentences(record)
    if masks:
        lines += ["", "### What masks add", "", *(f"- {_escape(sentence)}" for sentence in summaries(record))]
        lines += [*_markdown_table(masks), *_markdown_notes(masks)]
    beside = reference_table(record)
    if beside:
        lines += ["", f"### {TITLE}", "", *(f"- {_escape(sentence)}" for sentence in reference_sentences(record))]
        lines += [*_markdown_table(beside), *_markdown_notes(beside)]
    if found:
        lines += ["", "### Geometry", "", *(f"- {_escape(sentence)}" for sentence in found)]
    if record.omitted:
        lines += ["", _omitted(record)]
    return "\n".join(lines) + "\n"


def _omitted(record: AuditRecord) -> str:
    files = len(record.omitted)
    return "1 file was left out; audit.json names it." if files == 1 else f"{count(files)} files were left out; audit.json names them."


def _markdown_table(content: Table) -> list[str]:
    lines = ["", "| Attack | " + " | ".join(_escape(c.title) for c in content.columns) + " |"]
    lines += ["| :-- |" + " --: |" * len(content.columns)]
    return lines + [_markdown_row(row.attack, row.headline, row.cells) for row in content.rows]


def _markdown_notes(content: Table) -> list[str]:
    return ["", *(f"{i}. {_escape(note)}" for i, note in enumerate(content.notes, 1))] if content.notes else []


def _markdown_row(attack: str, headline: bool, cells: tuple[Cell, ...]) -> str:
    name = f"**{_escape(attack)}**" if headline else _escape(attack)
    return "| " + " | ".join([name, *(_escape(_on_one_line(cell)) for cell in cells)]) + " |"


def _on_one_line(cell: Cell) -> str:
    return " ".join([cell.text + _mark(cell), *(d if d.startswith("[") else f"({d})" for d in cell.details)])


def _escape(text: str) -> str:
    """Plain text for Markdown: nothing in it is a tag, a table border, a mention or emphasis."""
    return re.sub(r"([\\`*_\[\]|~#])", r"\\\1", text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _mark(cell: Cell) -> str:
    return f" ({cell.note})" if cell.note else ""


def _fitting(content: Table, console: Console, flat: bool = False) -> tuple[Column, ...]:
    """As many columns as the terminal has room for, the most important first; at least the AUC."""
    by_importance = sorted(content.columns, key=lambda c: c.importance)
    unlimited = console.options.update(max_width=10_000)
    for kept in range(len(by_importance), 1, -1):
        chosen = tuple(c for c in content.columns if c in by_importance[:kept])
        if Measurement.get(console, unlimited, _rich(content, chosen, console, flat)).maximum <= console.width:
            return chosen
    return tuple(by_importance[:1])


def _rich(content: Table, chosen: tuple[Column, ...], console: Console, flat: bool, first: str = "Attack") -> RichTable:
    drawn = RichTable(show_edge=False, pad_edge=False, show_lines=False, header_style="bold", caption_style="dim")
    drawn.add_column(first, overflow="fold", max_width=LABEL, vertical="top")
    for column in chosen:
        drawn.add_column("\n".join(column.lines), justify="right", no_wrap=True, style="dim" if column.faint else "")
    indices = [content.columns.index(c) for c in chosen]
    for row in content.rows:
        name = Text(_encodable(_broken(row.attack), console), "bold" if row.headline else "")
        drawn.add_row(name, *(_rich_cell(row.cells[i], flat) for i in indices))
    return drawn


def _encodable(text: str, console: Console) -> str:
    """A terminal that cannot show a character must not end the report."""
    return text.encode(console.encoding, "backslashreplace").decode(console.encoding)


def _broken(attack: str) -> str:
    """A long label with a line per parameter, and one for its mask."""
    return attack.replace(",", ",\n ").replace(")[", ")\n [") if len(attack) > LABEL else attack


def _rich_cell(cell: Cell, flat: bool) -> Text:
    return Text(" " if flat else "\n").join([Text(cell.text + _mark(cell)), *(Text(detail, "dim") for detail in cell.details)])
