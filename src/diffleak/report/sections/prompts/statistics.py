"""Both statistics: a table of their success, and histograms."""

from markupsafe import Markup

from diffleak.records.audit import Result
from diffleak.records.prompts import PromptsRecord
from diffleak.report.section import Block, Section, Tabulated, drawn
from diffleak.report.sections.prompts.verdict import STATISTICS, statistic
from diffleak.report.table import Cell, Column, Table, asr_cell, auc_cell, rate_cell, tabulate


def section(record: PromptsRecord) -> Section:
    """A row per statistic where there are two lists, and a histogram of each."""
    content = table(record)
    caption = "In brackets: 95 % intervals over the choice of prompts. n/e: not estimable, with the reason below."
    found = (Tabulated(content, caption, "Statistic"),) if content.rows else ()
    return Section("statistics", "Both statistics", found, "Both statistics", later=lambda: _histograms(record))


def _histograms(record: PromptsRecord) -> tuple[Block, ...]:
    from diffleak.report.figures import keys
    from diffleak.report.figures.prompts import histogram

    key = drawn("key", entries=keys.sides("memorised prompts", "ordinary prompts"))
    figures = [(f"{said.title}: {said.meaning}", Markup(histogram(record, name))) for name, said in STATISTICS.items()]
    return *((key,) if labelled(record) else ()), drawn("multiples", figures=figures)


def labelled(record: PromptsRecord) -> bool:
    """True where the lists of the prompts are known."""
    return any(row.memorised is not None for row in record.prompts)


def table(record: PromptsRecord) -> Table:
    """The success of each statistic."""
    return tabulate(record.results, COLUMNS, lambda r: (STATISTICS[statistic(r)].title, "", False))


def _caught(result: Result) -> Cell:
    return rate_cell(result.tpr(0.01), "ordinary prompts")


COLUMNS = (
    Column(("AUC",), "How often a memorised prompt ranks above an ordinary one; 0.5 is guessing. In brackets: 95 % interval.", 1, auc_cell),
    Column(("TPR at", "1 % FPR"), "Share of memorised prompts found when 1 % of the ordinary ones raise a false alarm.", 2, _caught),
    Column(("Success",), "Share of right answers at a threshold chosen on other prompts.", 3, asr_cell),
)
