"""Every attack that all runs have, on each run."""

from typing import NamedTuple

from diffleak.errors import visible
from diffleak.records.comparison import ComparedResult, Comparison, Entry
from diffleak.report.section import Section, Tabulated
from diffleak.report.sections.comparison.verdict import artefact
from diffleak.report.table import Cell, Column, Table, difference_cell, estimate_cell, rate_cell, setting_cell, tabulate

FIRST = "Entry and attack"


class Compared(NamedTuple):
    """A row of the table of all attacks."""

    entry: Entry
    result: ComparedResult


def section(record: Comparison) -> Section:
    """The table of all attacks."""
    caption = (
        f"Every attack that all runs have, on each run. Differences are to the same attack on {visible(record.baseline.name)}. Small "
        "print: 95 % intervals. Marked: the worst of each entry."
    )
    return Section("attacks", "All attacks", (Tabulated(attacks_table(record), caption, FIRST, where="page"),), "All attacks")


def in_text(record: Comparison) -> Tabulated:
    """The same table for text, where it follows that of the worst attacks."""
    return Tabulated(attacks_table(record), first=FIRST, where="text")


def attacks_table(record: Comparison) -> Table:
    """A row per attack, entry and run, attacks in the order of the baseline; marked: the worst of each entry."""
    rows = [Compared(e, r) for attack in record.attacks for e in record.entries for r in e.results if r.attack == attack]
    of = lambda pick, pct=False: lambda c: difference_cell(pick(c.result.difference), pct) if c.result.difference else Cell("baseline")
    drawn = (
        Column(("AUC",), "On the test part. In brackets: 95 % interval.", 1, lambda c: estimate_cell(c.result.auc)),
        Column(("AUC", "difference"), "To the same attack on the baseline, on shared test images.", 2, of(lambda d: d.auc)),
        Column(("TPR at", "1 % FPR"), "On the test part.", 3, lambda c: rate_cell(c.result.tpr_at_1pct, "held-out images")),
        Column(("TPR at 1 % FPR", "difference (points)"), "In points of percent.", 4, of(lambda d: d.tpr_at_1pct, True)),
        Column(("TPR at 10 % FPR", "difference (points)"), "In points of percent.", 5, of(lambda d: d.tpr_at_10pct, True)),
        Column(("Timestep",), "Or setting, chosen on the calibrate part.", 6, lambda c: setting_cell(c.result)),
    )
    return tabulate(rows, drawn, lambda c: (f"{c.entry.name}: {c.result.attack}", _run_of(c), _is_worst(c)))


def _run_of(compared: Compared) -> str:
    return artefact(compared.result.run) if len(compared.entry.runs) > 1 else ""


def _is_worst(compared: Compared) -> bool:
    return compared.entry.worst_result == compared.result
