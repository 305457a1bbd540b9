r"""Tables for papers in LaTeX: booktabs, names escaped so that pdflatex, xelatex and lualatex take them.

A cell is plain text; the interval of a number stands in brackets behind it. What cannot be estimated is "n/e".
"""

from collections.abc import Sequence

from diffleak.errors import visible
from diffleak.records.audit import AuditRecord
from diffleak.records.base import Estimate
from diffleak.records.comparison import Comparison
from diffleak.report.counting import held_out, trained
from diffleak.report.results import variant
from diffleak.report.sections.public import without_files
from diffleak.report.table import NOT_ESTIMABLE
from diffleak.report.wording import last_part
from diffleak.stats.calibration import PLAIN

SPECIAL = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    **{c: rf"\{c}" for c in "&%$#_{}"},
}
LAST_LETTER = 0x17F  # Latin letters up to here are in every font; others are spelled out


def escape(text: str) -> str:
    """A name as LaTeX that compiles and shows it: special characters escaped, letters that a font may lack spelled out."""
    known = lambda c: c.isascii() or (c.isalpha() and 0xC0 <= ord(c) <= LAST_LETTER)
    spelled = "".join(c if known(c) else c.encode("unicode_escape").decode() for c in visible(text))
    return "".join(SPECIAL.get(c, c) for c in spelled)


def results_latex(record: AuditRecord) -> str:
    """The results of an audit, a row each but for those of which calibration took nothing out. It names no path."""
    record = without_files(record, (attack["attack"] for attack in record.plan.attacks))
    record = record.model_copy(update={"plan": record.plan.model_copy(update={"model": last_part(record.plan.model)})})
    rows = [
        (result.attack, variant(result), number(result.auc), number(result.tpr(0.01), 100, 1), number(result.asr, 100, 1))
        for result in record.results
        if result.complexity != PLAIN
    ]
    head = ("Attack", "Variant", "AUC", "TPR at 1 % FPR (%)", "Attack success (%)")
    sizes = f"{trained(record, 'members')} and {held_out(record)}"
    return tabular(head, rows, f"Membership inference on {record.plan.model}: {sizes}. In brackets: 95 % intervals.")


def comparison_latex(record: Comparison) -> str:
    """A comparison, a row an attack and entry: pooled over seeds with --pool, else a row a run. No attack names a path."""
    record = without_files(record, record.attacks)
    if record.pooled:
        rows = [
            (p.attack, p.entry, str(p.seeds), number(p.auc), decimal(p.auc_spread), number(p.tpr_at_1pct, 100, 1), number(p.difference))
            for p in record.pooled
        ]
        head = ("Attack", "Entry", "Seeds", "AUC", "sd over seeds", "TPR at 1 % FPR (%)", "AUC difference")
        return tabular(head, rows, f"Means over seeds. Differences are to {record.baseline.name}. In brackets: 95 % intervals.")
    found = [(attack, e.name, r) for attack in record.attacks for e in record.entries for r in e.results if r.attack == attack]
    plain = [
        (attack, name, number(r.auc), number(r.tpr_at_1pct, 100, 1), number(r.difference.auc if r.difference else None))
        for attack, name, r in found
    ]
    columns = ("Attack", "Entry", "AUC", "TPR at 1 % FPR (%)", "AUC difference")
    return tabular(columns, plain, f"Differences are to the same attack on {record.baseline.name}. In brackets: 95 % intervals.")


def number(estimate: Estimate | None, times: int = 1, digits: int = 3) -> str:
    """An estimate with its interval; nothing for one that there is not."""
    if estimate is None:
        return ""
    if estimate.value is None:
        return NOT_ESTIMABLE
    text = decimal(estimate.value, times, digits)
    if estimate.low is None or estimate.high is None:
        return text
    return f"{text} [{decimal(estimate.low, times, digits)}, {decimal(estimate.high, times, digits)}]"


def decimal(value: float | None, times: int = 1, digits: int = 3) -> str:
    return NOT_ESTIMABLE if value is None else f"{value * times:.{digits}f}"


def tabular(head: Sequence[str], rows: Sequence[Sequence[str]], caption: str) -> str:
    """A floating table; the first comment says the package that it needs."""
    line = lambda cells: "{} " + " & ".join(map(escape, cells)) + r" \\"  # a name that begins with [ is no argument of the line before
    body = "\n".join(f"  {line(row)}" for row in rows)
    caption += f" {NOT_ESTIMABLE}: not estimable." if any(NOT_ESTIMABLE in row for row in rows) else ""
    return (
        "% needs \\usepackage{booktabs} and \\usepackage[T1]{fontenc}\n"
        f"\\begin{{table}}\n  \\centering\n  \\caption{{{escape(caption)}}}\n  \\begin{{tabular}}{{{'l' * len(head)}}}\n"
        f"  \\toprule\n  {line(head)}\n  \\midrule\n{body}\n  \\bottomrule\n  \\end{{tabular}}\n\\end{{table}}\n"
    )
