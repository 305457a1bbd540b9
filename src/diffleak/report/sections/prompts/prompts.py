"""The prompts that look most memorised."""

from diffleak.records.prompts import PromptScore, PromptsRecord
from diffleak.report.section import Section, Tabulated
from diffleak.report.sections.prompts.statistics import labelled
from diffleak.report.table import Cell, Column, tabulate
from diffleak.report.wording import count

MOST_ROWS = 200  # prompts in the page; prompts.csv has all
MOST_PRINTED = 10


def section(record: PromptsRecord) -> Section:
    """The prompts, the largest magnitude first."""
    scores = (
        Column(("Magnitude",), "", 1, lambda p: Cell(f"{p.magnitude:.4g}")),
        Column(("t-error",), "", 2, lambda p: Cell(f"{p.t_error:.4g}")),
    )
    on_list = Column(("List",), "", 3, lambda p: Cell(side(p)), width=10)
    name = lambda p: (p.prompt, "", False)
    shown = record.prompts[:MOST_ROWS]
    whole = "All prompts, as in prompts.csv."
    if len(shown) < len(record.prompts):
        whole = f"The first {count(len(shown))} of {count(len(record.prompts))} prompts; prompts.csv has all."
    listed = tabulate(shown, (*((on_list,) if labelled(record) else ()), *scores), name)
    printed = tabulate(record.prompts[:MOST_PRINTED], (*scores, on_list), name)
    blocks = (
        Tabulated(printed, first="Most memorised by magnitude", quoted=True, where="text"),
        Tabulated(listed, f"{whole} The page is as private as the prompts are.", "Prompt", look="prompts", quoted=True, where="page"),
    )
    return Section("prompts", "Prompts, the largest magnitude first", blocks, "Prompts")


def side(row: PromptScore) -> str:
    """The list that a prompt is on, in a word."""
    return {True: "memorised", False: "ordinary", None: ""}[row.memorised]
