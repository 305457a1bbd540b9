"""The tables of a comparison: the strongest attack on each entry, and every attack that all runs have on each run."""

from collections.abc import Callable
from typing import NamedTuple

from diffleak.errors import visible
from diffleak.records.base import Estimate
from diffleak.records.comparison import ComparedResult, Comparison, Entry, PooledResult
from diffleak.report.section import Section, Tabulated
from diffleak.report.sections.comparison.verdict import QUALITY, artefact, chosen_on
from diffleak.report.table import TIMESTEP, Cell, Column, Table, difference_cell, estimate_cell, missing, rate_cell, setting_cell, tabulate

FIRST = "Entry and attack"


class Compared(NamedTuple):
    """A row of the table of all attacks."""

    entry: Entry
    result: ComparedResult


def section(record: Comparison) -> Section:
    """The table of all attacks."""
    caption = (
        f"Every attack that all runs have, on each run. Differences are to the same attack on {visible(record.baseline.name)}. Small "
        "print: 95 % intervals. Marked: the strongest of each entry."
    )
    return Section("attacks", "All attacks", (Tabulated(attacks_table(record), caption, FIRST, where="page"),), "All attacks")


def attacks_table(record: Comparison) -> Table:
    """A row per attack, entry and run, attacks in the order of the baseline; marked: the strongest of each entry."""
    rows = [Compared(e, r) for attack in record.attacks for e in record.entries for r in e.results if r.attack == attack]
    of = lambda pick, pct=False: lambda c: difference_cell(pick(c.result.difference), pct) if c.result.difference else Cell("baseline")
    drawn = (
        Column(("AUC",), "On the test part. In brackets: 95 % interval.", 1, lambda c: estimate_cell(c.result.auc)),
        Column(("AUC", "difference"), "To the same attack on the baseline, on shared test {several}.", 2, of(lambda d: d.auc)),
        Column(("TPR at", "1 % FPR"), "On the test part.", 3, lambda c: rate_cell(c.result.tpr_at_1pct)),
        Column(("TPR at 1 % FPR", "difference (points)"), "In points of percent.", 4, of(lambda d: d.tpr_at_1pct, True)),
        Column(("TPR at 10 % FPR", "difference (points)"), "In points of percent.", 5, of(lambda d: d.tpr_at_10pct, True)),
        Column(("Timestep",), TIMESTEP, 6, lambda c: setting_cell(c.result)),
    )
    named = lambda c: (f"{c.entry.name}: {c.result.attack}", _run_of(c), c.entry.worst_result == c.result)
    return tabulate(rows, drawn, named, record.unit)


def _run_of(compared: Compared) -> str:
    return artefact(compared.result.run) if len(compared.entry.runs) > 1 else ""


TABULATED = ("kid", "frechet", "copy_rate", "kid_difference")


def worst(record: Comparison) -> Section:
    """A row per entry; in text the attack has a column of its own."""
    caption = (
        f"A row per entry; under its name the attack with the highest AUC on {chosen_on(record)}. Differences are to the strongest attack "
        f"on {visible(record.baseline.name)}, on the images that both were tested on; below 0 the attack does worse on the entry. Small "
        "print: 95 % intervals. n/e: not estimable, with the reason below."
    )
    text = Tabulated(entries_table(record, names=True), first="Entry", where="text")
    every = Tabulated(attacks_table(record), first=FIRST, where="text")
    page = Tabulated(entries_table(record, names=False), caption, "Entry", where="page")
    return Section("worst", "The strongest attack on each", (text, every, page), "Strongest attacks")


def entries_table(record: Comparison, names: bool) -> Table:
    """A row per entry, its strongest attack; `names` has that attack in a column, else it is small print."""
    attack = Column(
        ("Strongest", "attack"), f"The attack with the highest AUC on {chosen_on(record)}.", 2, lambda e: Cell(visible(e.worst.attack))
    )
    against = lambda pick: lambda e: difference_cell(pick(e.worst.difference)) if e.worst.difference else Cell("baseline")
    rates = lambda pick: lambda e: difference_cell(pick(e.worst.difference), True) if e.worst.difference else Cell("")
    upper = lambda e: missing(e.worst_result.auc.reason) if e.worst.not_excluded is None else Cell(f"{e.worst.not_excluded:.3f}")
    caught = lambda e: rate_cell(e.worst_result.tpr_at_1pct)
    measured = (
        Column(
            ("AUC",),
            "Of the strongest attack, on the test part. In brackets: 95 % interval.",
            1,
            lambda e: estimate_cell(e.worst_result.auc),
        ),
        Column(("AUC", "difference"), "To the strongest attack on the baseline, on shared test {several}.", 1, against(lambda d: d.auc)),
        Column(("Not excluded:", "AUC up to"), "The upper end of the 95 % interval of the AUC.", 4, upper),
        Column(("TPR at", "1 % FPR"), "Share of {members} caught when 1 % of the {all_held_out} raise a false alarm.", 3, caught),
        Column(("TPR at 1 % FPR", "difference (points)"), "In points of percent.", 5, rates(lambda d: d.tpr_at_1pct)),
        Column(("TPR at 10 % FPR", "difference (points)"), "In points of percent.", 6, rates(lambda d: d.tpr_at_10pct)),
    )
    found = {m.name for e in record.entries if e.quality for m in e.quality.metrics}
    shown = [m for m in TABULATED if m in found]  # as many as a page is wide; quality.json has the others
    quality = tuple(Column((QUALITY.get(m, visible(m)),), "From quality.json.", 7 + i, _quality(m)) for i, m in enumerate(shown))
    drawn = (*((attack,) if names else ()), *measured, *quality)
    attacked = lambda e: f"{e.worst.attack}, {artefact(e.worst.run)}" if len(e.runs) > 1 else e.worst.attack
    return tabulate(record.entries, drawn, lambda e: (e.name, attacked(e), False), record.unit)


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


def pooled(record: Comparison) -> Section | None:
    """The means over seeds, attack by attack; nothing where the runs were not pooled."""
    if not record.pooled:
        return None
    caption = (
        "Every attack, its mean over the runs of an entry. The interval covers the choice of seeds and of images; sd: standard deviation "
        f"over the seeds. Differences are to the same attack on {visible(record.baseline.name)}; their intervals take the two means for "
        "independent."
    )
    drawn = (
        Column(("AUC",), "Mean over seeds. In brackets: 95 % interval.", 1, lambda p: estimate_cell(p.auc)),
        Column(("AUC", "sd"), "Standard deviation over seeds.", 3, lambda p: _spread(p.auc_spread, 1, 3)),
        Column(("AUC", "difference"), "To the same attack on the baseline.", 2, _against),
        Column(("TPR at", "1 % FPR (%)"), "Mean over seeds.", 4, lambda p: Cell(*_percents(p.tpr_at_1pct))),
        Column(("TPR", "sd (points)"), "Standard deviation over seeds.", 5, lambda p: _spread(p.tpr_spread, 100, 1)),
        Column(("Seeds",), "Number of runs.", 6, lambda p: Cell(str(p.seeds))),
    )
    made = tabulate(record.pooled, drawn, lambda p: (f"{p.entry}: {p.attack}", "", False), record.unit)
    return Section("pooled", "Over seeds", (Tabulated(made, caption, FIRST),), "Over seeds", "Over seeds")


def _against(result: PooledResult) -> Cell:
    return Cell("baseline") if result.difference is None else difference_cell(result.difference)


def _spread(value: float | None, times: int, digits: int) -> Cell:
    return missing("some run has no number") if value is None else Cell(f"{value * times:.{digits}f}")


def _percents(rate: Estimate) -> tuple[str, tuple[str, ...], str | None]:
    """A rate in percent with its interval and, where one of them is not there, the reason."""
    if rate.value is None:
        cell = missing(rate.reason)
        return cell.text, (), cell.reason
    ends = () if rate.low is None or rate.high is None else (f"[{100 * rate.low:.1f}, {100 * rate.high:.1f}]",)
    return f"{100 * rate.value:.1f}", ends, None if ends else rate.reason
