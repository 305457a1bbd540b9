"""Tables of results: the same columns and cells for the terminal, Markdown and HTML; here that of all attacks."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeVar

from diffleak.errors import visible
from diffleak.records.audit import AuditRecord, Gain, RateAtFNR, RateAtFPR, Result
from diffleak.records.base import Estimate
from diffleak.records.scores import Unit
from diffleak.report.selection import shown
from diffleak.report.wording import count, counted, interval, percent, signed, signed_interval
from diffleak.stats.evaluation import NEEDS_ALL
from diffleak.stats.metrics import FEW

NOT_ESTIMABLE = "n/e"
MASKED = "masked minus unmasked on the same test {several}. In brackets: 95 % interval."
TIMESTEP = "The timestep, or setting; chosen on the calibrate part where there is one."
R = TypeVar("R")
ORACLE_NOTE = (
    "Oracle AUC: the best timestep or setting picked on the test {several} themselves, as papers do. "
    "It is too high, and given only for comparison with their tables."
)


@dataclass(frozen=True)
class Cell:
    """One number: `text`, small print under it in `details`, and the reason for a flag, which becomes a footnote."""

    text: str
    details: tuple[str, ...] = ()
    reason: str | None = None
    note: int | None = None

    @property
    def marked(self) -> str:
        """The number with that of its footnote."""
        return f"{self.text} ({self.note})" if self.note else self.text


@dataclass(frozen=True)
class Column:
    """A column; `lines` are its title, `hint` says what it holds, with {members} and other names of `Counted` for what is counted.

    `importance` decides what a narrow terminal leaves out (1 stays longest). A `faint` column is for comparison only, a `left` one holds
    words, and one of `how` a sentence. `width` is the least in a terminal.
    """

    lines: tuple[str, ...]
    hint: str
    importance: int
    cell: Callable[[Any], Cell]
    look: Literal["", "faint", "left", "how"] = ""
    width: int = 0

    @property
    def title(self) -> str:
        return " ".join(self.lines)


@dataclass(frozen=True)
class Row:
    """One result and its cells, in the order of the columns."""

    attack: str
    access: str
    headline: bool
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class Table:
    """A table of results; `notes` are the footnotes that cells refer to by their number, from 1."""

    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...]

    @property
    def oracle(self) -> str:
        """The note on the oracle; empty where no column needs it."""
        return next((column.hint for column in self.columns if column.look == "faint"), "")


def table(record: AuditRecord) -> Table:
    """The main table: what each attack that is shown achieves."""
    results = shown(record)
    head = lambda r: (r.attack, r.access, r.attack == record.headline and r.leads)
    return tabulate(results, columns(results), head, record.split.unit)


def tabulate(results: Sequence[R], drawn: tuple[Column, ...], head: Callable[[R], tuple[str, str, bool]], unit: Unit = "image") -> Table:
    """A row per result; `head` gives its name, small print and whether it is marked. Equal reasons share one footnote.

    unit: what the results count, in the words of hints.
    """
    notes: list[str] = []
    drawn = tuple(replace(column, hint=counted(unit).filled(column.hint)) for column in drawn)

    def numbered(column: Column, cell: Cell) -> Cell:
        if not cell.reason:
            return cell
        text = f"{column.title}: {visible(cell.reason)}"
        if text not in notes:
            notes.append(text)
        return replace(cell, note=notes.index(text) + 1)

    rows = []
    for r in results:
        attack, access, marked = head(r)
        cells = tuple(numbered(c, c.cell(r)) for c in drawn)
        rows.append(Row(visible(attack), visible(access), marked, cells))
    return Table(drawn, tuple(rows), tuple(notes))


def columns(results: Sequence[Result]) -> tuple[Column, ...]:
    """The columns; that of the achieved FPR names its target, which small calibrate parts raise to 10 %.

    That of the oracle is there if any result has one.
    """
    targets = sorted({r.achieved_fpr.target for r in results if r.achieved_fpr.target is not None})
    named = f"(target {' or '.join(percent(t, 0) for t in targets)})" if targets else ""
    kept = [c for c in COLUMNS if c.cell is not _oracle or any(r.oracle.auc is not None for r in results)]
    return tuple(replace(c, lines=(*c.lines, named)) if c.cell is _achieved and named else c for c in kept)


def missing(reason: str | None) -> Cell:
    return Cell(NOT_ESTIMABLE, reason=reason or "not estimable (the record gives no reason)")


def cell_or(found: Result | None, cell: Callable[[Result], Cell], why: str) -> Cell:
    """The cell of a result, where the record has it."""
    return missing(why) if found is None else cell(found)


def auc_cell(result: Result) -> Cell:
    return estimate_cell(result.auc)


def estimate_cell(auc: Estimate) -> Cell:
    """An AUC with its interval."""
    return missing(auc.reason) if auc.value is None else Cell(f"{auc.value:.3f}", _interval(auc, in_percent=False))


def differences(importances: tuple[int, int, int]) -> tuple[Column, ...]:
    """The columns of what a mask adds: to AUC, to attack success and to the TPR at 1 % FPR."""
    auc, asr, tpr = importances
    return (
        Column(("AUC", "difference"), f"AUC, {MASKED}", auc, gain_cell(lambda g: g.auc, in_percent=False)),
        Column(("Attack success", "difference (points)"), f"In points of percent, {MASKED}", asr, gain_cell(lambda g: g.asr)),
        Column(("TPR at 1 % FPR", "difference (points)"), f"In points of percent, {MASKED}", tpr, gain_cell(lambda g: g.tpr_at_1pct)),
    )


def gain_cell(pick: Callable[[Gain], Estimate], in_percent: bool = True) -> Callable[[Result], Cell]:
    """The cell of one difference of a masked result or one beside a reference; empty for the attack itself."""

    def cell(result: Result) -> Cell:
        if result.plain:
            return Cell("")
        return difference_cell(pick(result.gain), in_percent) if result.gain else missing("the difference is not in the record")

    return cell


def difference_cell(estimate: Estimate, in_percent: bool = False) -> Cell:
    """A difference with its interval; without an interval, the reason becomes a footnote."""
    if estimate.value is None:
        return missing(estimate.reason)
    ends = signed_interval(estimate, in_percent)
    return Cell(signed(estimate.value, in_percent), (ends,) if ends else (), None if ends else estimate.reason)


def _interval(estimate: Estimate, in_percent: bool = True) -> tuple[str, ...]:
    text = interval(estimate, in_percent)
    return (text,) if text else ()


def rate_cell(rate: RateAtFPR | RateAtFNR, few: str = "false alarms") -> Cell:
    if rate.value is None:
        return missing(rate.reason)
    reason = f"low support (fewer than {FEW} {few} decide it; the interval allows for that)" if rate.support == "low" else None
    return Cell(percent(rate.value), _interval(rate), reason)


def tpr_cell(fpr: float) -> Callable[[Result], Cell]:
    return lambda result: rate_cell(result.tpr(fpr))


def tnr_cell(result: Result) -> Cell:
    return rate_cell(result.tnr(0.01), "missed members")


def asr_cell(result: Result) -> Cell:
    asr = result.asr
    if asr.value is None:
        return missing(asr.reason)
    baseline = (f"baseline {percent(asr.baseline)}",) if asr.baseline is not None and asr.baseline > 0.505 else ()
    return Cell(percent(asr.value), (*_interval(asr), *baseline))


def setting_cell(chosen: Any) -> Cell:
    """The timestep of a result, or the setting of one that has none."""
    return Cell(_setting(chosen) or ("-" if chosen.timestep is None else str(chosen.timestep)))


def _setting(chosen: Any) -> str:
    """The setting that was chosen; nothing where it is the strength C of a regression, which says nothing to a reader."""
    return "" if (chosen.setting or "").startswith("C=") else chosen.setting or ""


def _queries(result: Result) -> Cell:
    if result.queries is None:
        return Cell("-")
    alone = result.queries_at_timestep
    return Cell(count(result.queries), (f"{count(alone)} for the chosen",) if alone is not None and alone != result.queries else ())


def _achieved(result: Result) -> Cell:
    rate = result.achieved_fpr
    if rate.value is None:
        return missing(rate.reason)
    return Cell(percent(rate.value), _interval(rate))


def _oracle(result: Result) -> Cell:
    if result.oracle.auc is None:
        return missing(result.oracle.reason) if result.oracle.reason == NEEDS_ALL else Cell("-")
    at = f"t = {result.oracle.timestep}" if result.oracle.timestep is not None else _setting(result.oracle)
    return Cell(f"{result.oracle.auc:.3f}", (at,) if at else ())


COLUMNS = (
    Column(("AUC",), "How often the attack picks the {member} out of a pair; 0.5 is guessing. In brackets: 95 % interval.", 1, auc_cell),
    Column(("TPR at", "10 % FPR"), "Share of {members} caught when 10 % of the {all_held_out} raise a false alarm.", 6, tpr_cell(0.1)),
    Column(("TPR at", "1 % FPR"), "Share of {members} caught when 1 % of the {all_held_out} raise a false alarm.", 2, tpr_cell(0.01)),
    Column(("TPR at", "0.1 % FPR"), "Share of {members} caught when 1 in 1,000 {all_held_out} raises a false alarm.", 7, tpr_cell(0.001)),
    Column(
        ("TNR at", "1 % FNR"),
        "Share of {all_held_out} that are cleared when 1 % of the {members} are missed.",
        8,
        tnr_cell,
    ),
    Column(("Attack", "success"), "Share of right answers at the threshold set on the calibrate part.", 3, asr_cell),
    Column(("Timestep",), TIMESTEP, 4, setting_cell),
    Column(("Queries", "per image"), "Forwards of the denoiser for all timesteps; below, for the chosen one only.", 5, _queries),
    Column(("Achieved FPR",), "False alarms on the test part, at the threshold that was set on the calibrate part.", 9, _achieved),
    Column(("Oracle", "AUC"), ORACLE_NOTE, 10, _oracle, look="faint"),
)
