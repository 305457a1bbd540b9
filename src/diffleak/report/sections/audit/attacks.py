"""The main table: the results of every attack."""

from markupsafe import Markup

from diffleak.errors import visible
from diffleak.records.audit import AuditRecord
from diffleak.records.base import Estimate
from diffleak.records.variants import COMBINED
from diffleak.report.audited import Audited
from diffleak.report.section import Section, Tabulated, prose
from diffleak.report.selection import masked
from diffleak.report.table import difference_cell, table
from diffleak.report.wording import count, percent

TITLE = "All attacks"


def section(audit: Audited) -> Section:
    """The table of all attacks, without most masks where there are many."""
    record, content = audit.record, table(audit.record)
    caption = Markup("What each attack achieves on {}. Small print: 95 % intervals, in percent for rates. ").format(audit.tested)
    if record.headline:
        caption += "Marked: the attack chosen on the calibrate part. "
    caption += "n/e: not estimable, with the reason below."
    if any(r not in audit.results for r in masked(record)):
        caption += Markup(' Attacks under other masks are below, in <a href="#masks">What masks add</a>.')
    conventions = ", ".join(sorted({r.convention for r in record.results} - {"member-exact"}))
    notes = (f"Computed by the convention of a paper's code ({conventions}), not exactly.",) if conventions else ()
    bold = "Bold: the attack chosen on the calibrate part. " if record.headline else ""
    legend = f"{bold}Intervals are 95 %; rates are of {audit.tested}."
    shown = Tabulated(content, caption, legend=legend, notes=(*notes, *unequal(record), *together(record)))
    return Section("attacks", TITLE, (shown if content.rows else prose("The record holds no results.", ""),), TITLE)


def unequal(record: AuditRecord) -> tuple[str, ...]:
    """What naming the larger side already reaches where the sides are unequal; nothing where they are about equal."""
    sides, baselines = (record.split.members, record.split.nonmembers), [r.asr.baseline for r in record.results if r.asr.baseline]
    if max(sides) <= 1.5 * min(sides) or not baselines:
        return ()
    return (
        f"The sides are unequal ({count(sides[0])} and {count(sides[1])}), and always naming the larger one is right "
        f"{percent(max(baselines))} of the time: that is the baseline of attack success.",
    )


def together(record: AuditRecord) -> tuple[str, ...]:
    """What `combined` is and what it adds; nothing where the record has none."""
    found = next((r for r in record.results if r.attack == COMBINED), None)
    if found is None:
        return ()
    used, best = found.parameters.get("attacks", ()), visible(str(found.parameters.get("compared_with", "the best attack")))
    also = " and the complexity of the images" if found.parameters.get("complexity") else ""
    said = f"{COMBINED}: a logistic regression on the numbers of {count(len(used))} attacks{also}, fitted on the calibrate part."
    if not found.parameters.get("clearly_better", True):
        return (
            f"{said} On the calibrate part it was not clearly better than {best}, the best of them alone, so its row repeats the numbers "
            "of that attack.",
        )
    if found.gain is None:
        return (said,)
    gains = (("AUC", found.gain.auc, False), ("TPR at 1 % FPR, in points,", found.gain.tpr_at_1pct, True))
    added = ", ".join(" ".join(filter(None, (name, *_difference(gain, in_percent)))) for name, gain, in_percent in gains)
    return (f"{said} Its difference to {best}, the best of them by the calibrate part: {added}.",)


def _difference(estimate: Estimate, in_percent: bool) -> tuple[str, ...]:
    cell = difference_cell(estimate, in_percent)
    return (cell.text, *cell.details)
