"""Which prompts look memorised, in words, as terminal tables and as one HTML file. No torch."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from jaxtyping import Float64

from diffleak.errors import visible
from diffleak.records.audit import Result
from diffleak.records.prompts import PromptScore, PromptsRecord, Statistic
from diffleak.report.judgement import Verdict
from diffleak.report.table import Cell, Column, Table, asr_cell, auc_cell, rate_cell, tabulate
from diffleak.report.wording import count, percent, spoken

if TYPE_CHECKING:
    from rich.console import Console

MOST_ROWS = 200  # prompts in the page; prompts.csv has all
MOST_PRINTED = 10
BINS = 24


class Wording(NamedTuple):
    """A statistic's name and what it says."""

    title: str
    meaning: str


STATISTICS: dict[Statistic, Wording] = {
    "magnitude": Wording("Magnitude", "how far the prompt moves the model's prediction while it draws; larger = memorised"),
    "t_error": Wording("t-error", "how far the model is from finding its way back to what it drew; smaller = memorised"),
}
GLOSSARY = (
    ("Memorised", "for such a prompt the model draws (nearly) the same image every time: one that it was trained on."),
    ("Ordinary", "a prompt of the same kind that the model was not trained on, or for which it draws something new."),
    ("AUC", "how often a statistic ranks a random memorised prompt above a random ordinary one; 0.5 is guessing, 1 is always right."),
    ("TPR at 1 % FPR", "share of memorised prompts found when 1 % of the ordinary ones may raise a false alarm."),
    ("Success", "share of right answers at a threshold that was chosen on other prompts."),
    ("Member, non-member", "in a footnote: a memorised and an ordinary prompt."),
)


def verdict(record: PromptsRecord) -> Verdict:
    """Whether the statistics tell the two lists apart; never that nothing is memorised."""
    if not record.results:
        title = "The prompts were scored; how well the scores tell memorised from ordinary ones was not measured."
        return Verdict("invalid", title, (f"{_sentence(record.reason or 'not estimable')}.",))
    sentences = tuple(_measured(result) for result in record.results)
    if any(r.auc.low is not None and r.auc.low > 0.5 for r in record.results):
        return Verdict("leak", "Memorised prompts stand out from ordinary ones.", sentences)
    bound = max((r.auc.high for r in record.results if r.auc.high is not None), default=1.0)
    said = f"That a memorised prompt ranks first in more than {percent(bound)} of pairs can be excluded, less cannot."
    return Verdict("no-leak-found", "No difference between memorised and ordinary prompts was found.", (*sentences, said))


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]


def _measured(result: Result) -> str:
    title = STATISTICS[_name(result)].title
    if result.auc.value is None or result.auc.low is None or result.auc.high is None:
        return f"{title}: {visible(result.auc.reason or 'not estimable')}."
    value, ends = spoken(result.auc)
    return (
        f"{title}: ranks a memorised prompt above an ordinary one in {value} of pairs (95 % interval {ends}; "
        f"{count(result.n_members)} and {count(result.n_nonmembers)} prompts)."
    )


def _name(result: Result) -> Statistic:
    return "magnitude" if result.attack == "magnitude" else "t_error"


def table(record: PromptsRecord) -> Table:
    """What each statistic achieves."""
    return tabulate(record.results, COLUMNS, lambda r: (STATISTICS[_name(r)].title, "", False))


def _caught(result: Result) -> Cell:
    return rate_cell(result.tpr(0.01), "ordinary prompts")


COLUMNS = (
    Column(("AUC",), "How often a memorised prompt ranks above an ordinary one; 0.5 is guessing. In brackets: 95 % interval.", 1, auc_cell),
    Column(("TPR at", "1 % FPR"), "Share of memorised prompts found when 1 % of the ordinary ones raise a false alarm.", 2, _caught),
    Column(("Success",), "Share of right answers at a threshold chosen on other prompts.", 3, asr_cell),
)


def side(row: PromptScore) -> str:
    """The list that a prompt is on, in a word."""
    return {True: "memorised", False: "ordinary", None: ""}[row.memorised]


def print_memorised(record: PromptsRecord, console: "Console") -> None:
    """Prints the verdict, what the statistics achieve, and the prompts that look most memorised."""
    from rich.table import Table as RichTable
    from rich.text import Text

    from diffleak.report.text import print_table, print_verdict

    print_verdict(verdict(record), record.warnings, console)
    if record.results:
        print_table(table(record), console, first="Statistic")
    drawn = RichTable(show_edge=False, pad_edge=False, header_style="bold")
    numbers = ("Magnitude", "t-error", "List")
    taken = sum(max(len(title), 10) + 3 for title in numbers)  # a long prompt is cut, never a number
    drawn.add_column("Most memorised by magnitude", no_wrap=True, overflow="ellipsis", max_width=max(12, console.width - taken))
    for title in numbers:
        drawn.add_column(title, justify="right", no_wrap=True, min_width=max(len(title), 10 if title == "List" else 0))
    for row in record.prompts[:MOST_PRINTED]:
        drawn.add_row(Text(visible(row.prompt)), f"{row.magnitude:.4g}", f"{row.t_error:.4g}", side(row))
    console.print()
    console.print(drawn)


def html(record: PromptsRecord) -> str:
    """The whole page: no script, no request; the same record gives the same bytes."""
    from diffleak.report.page import template

    page = template("memorised.html.j2").render(
        record=record,
        verdict=verdict(record),
        table=table(record),
        figures=[(said.title, said.meaning, histogram(record, name)) for name, said in STATISTICS.items()],
        rows=[(visible(r.prompt), side(r), f"{r.magnitude:.4g}", f"{r.t_error:.4g}") for r in record.prompts[:MOST_ROWS]],
        labelled=any(row.memorised is not None for row in record.prompts),
        glossary=GLOSSARY,
    )
    return page.encode("utf-8", "backslashreplace").decode("utf-8")


def histogram(record: PromptsRecord, name: Statistic) -> str:
    """One statistic of the memorised (filled) and the ordinary prompts (line); of all, filled, where there are no lists.

    The outermost bars hold all that lies beyond them.
    """
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    from diffleak.report.figures import HELD_OUT, MEMBERS, canvas, settings, svg

    of = lambda wanted: np.array([getattr(row, name) for row in record.prompts if wanted(row.memorised)], dtype=np.float64)
    filled, line = of(lambda memorised: memorised is not False), of(lambda memorised: memorised is False)
    edges = _edges(np.concatenate([filled, line]))
    share: Callable[[Any], Any] = lambda values: 100 * np.histogram(np.clip(values, edges[0], edges[-1]), edges)[0] / len(values)
    with settings():
        figure, axes = canvas(4.4, 2.8)
        axes.stairs(share(filled), edges, fill=True, color=MEMBERS, alpha=0.45)
        if len(line):
            axes.stairs(share(line), edges, color=HELD_OUT, linewidth=1.8)
        axes.xaxis.set_major_locator(MaxNLocator(4))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}"))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g} %"))
        axes.grid(visible=False, axis="x")
        axes.margins(x=0.01)
        axes.set(xlabel=STATISTICS[name].title, ylabel="share of prompts")
        what = "memorised against ordinary prompts" if len(line) else "all prompts"
        return svg(figure, name, f"Histogram of the {STATISTICS[name].title.lower()}: {what}")


def _edges(values: Float64[np.ndarray, " n"]) -> Sequence[float]:
    low, high = np.quantile(values, [0.005, 0.995])
    if not high > low:
        low, high = low - 0.05 * max(1.0, abs(low)), high + 0.05 * max(1.0, abs(high))
    return np.linspace(low, high, BINS + 1).tolist()  # type: ignore[no-any-return]
