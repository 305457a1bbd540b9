"""The worst attack on each entry."""

from collections.abc import Callable

from diffleak.errors import visible
from diffleak.records.comparison import Comparison, Entry
from diffleak.report.section import Section, Tabulated
from diffleak.report.sections.comparison import attacks
from diffleak.report.sections.comparison.verdict import QUALITY, artefact
from diffleak.report.table import Cell, Column, Table, difference_cell, estimate_cell, missing, rate_cell, tabulate

TABULATED = ("kid", "frechet", "copy_rate")


def section(record: Comparison) -> Section:
    """A row per entry; in text the attack has a column of its own."""
    caption = (
        "A row per entry; under its name the attack with the highest AUC on the calibrate part. Differences are to the worst attack on "
        f"{visible(record.baseline.name)}, on the images that both were tested on; below 0 the attack does worse on the entry. Small "
        "print: 95 % intervals. n/e: not estimable, with the reason below."
    )
    text = Tabulated(entries_table(record, names=True), first="Entry", where="text")
    page = Tabulated(entries_table(record, names=False), caption, "Entry", where="page")
    return Section("worst", "The worst attack on each", (text, attacks.in_text(record), page), "Worst attacks")


def entries_table(record: Comparison, names: bool) -> Table:
    """A row per entry, its worst attack; `names` has that attack in a column, else it is small print."""
    worst = Column(
        ("Worst", "attack"), "The attack with the highest AUC on the calibrate part.", 2, lambda e: Cell(visible(e.worst.attack))
    )
    against = lambda pick: lambda e: difference_cell(pick(e.worst.difference)) if e.worst.difference else Cell("baseline")
    rates = lambda pick: lambda e: difference_cell(pick(e.worst.difference), True) if e.worst.difference else Cell("")
    measured = (
        Column(
            ("AUC",), "Of the worst attack, on the test part. In brackets: 95 % interval.", 1, lambda e: estimate_cell(e.worst_result.auc)
        ),
        Column(("AUC", "difference"), "To the worst attack on the baseline, on shared test images.", 1, against(lambda d: d.auc)),
        Column(("Not excluded:", "AUC up to"), "The upper end of the 95 % interval of the AUC.", 4, _upper),
        Column(("TPR at", "1 % FPR"), "Members caught when 1 % of the held-out images raise a false alarm.", 3, _one_percent),
        Column(("TPR at 1 % FPR", "difference (points)"), "In points of percent.", 5, rates(lambda d: d.tpr_at_1pct)),
        Column(("TPR at 10 % FPR", "difference (points)"), "In points of percent.", 6, rates(lambda d: d.tpr_at_10pct)),
    )
    found = {m.name for e in record.entries if e.quality for m in e.quality.metrics}
    shown = [m for m in TABULATED if m in found]  # as many as a page is wide; quality.json has the others
    quality = tuple(Column((QUALITY.get(m, visible(m)),), "From quality.json.", 7 + i, _quality(m)) for i, m in enumerate(shown))
    drawn = (*((worst,) if names else ()), *measured, *quality)
    return tabulate(record.entries, drawn, lambda e: (e.name, _small_print(e), False))


def _small_print(entry: Entry) -> str:
    return f"{entry.worst.attack}, {artefact(entry.worst.run)}" if len(entry.runs) > 1 else entry.worst.attack


def _upper(entry: Entry) -> Cell:
    return missing(entry.worst_result.auc.reason) if entry.worst.not_excluded is None else Cell(f"{entry.worst.not_excluded:.3f}")


def _one_percent(entry: Entry) -> Cell:
    return rate_cell(entry.worst_result.tpr_at_1pct, "held-out images")


def _quality(name: str) -> Callable[[Entry], Cell]:
    def cell(entry: Entry) -> Cell:
        found = next((m for m in entry.quality.metrics if m.name == name), None) if entry.quality else None
        if found is None:
            return Cell("-")
        if found.value is None:
            return missing(found.reason)
        digits = 3 if abs(found.value) < 2 else 2
        ends = (f"[{found.low:.{digits}f}, {found.high:.{digits}f}]",) if found.low is not None and found.high is not None else ()
        return Cell(f"{found.value:.{digits}f}", ends)

    return cell
