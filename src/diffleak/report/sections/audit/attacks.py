"""The main table: the results of every attack."""

from markupsafe import Markup

from diffleak.report.audited import Audited
from diffleak.report.section import Section, Tabulated, prose
from diffleak.report.table import table

LEGEND = "Bold: the attack chosen on the calibrate part. Intervals are 95 %; rates are of the test part."


def section(audit: Audited) -> Section:
    """The table of all attacks, without most masks where there are many."""
    record, content = audit.record, table(audit.record)
    caption = Markup("What each attack achieves on {}. Small print: 95 % intervals, in percent for rates. ").format(audit.tested)
    if record.headline:
        caption += "Marked: the attack chosen on the calibrate part. "
    caption += "n/e: not estimable, with the reason below."
    if any(r.mask is not None for r in record.results if r not in audit.results):
        caption += Markup(' Attacks under other masks are below, in <a href="#masks">What masks add</a>.')
    conventions = ", ".join(sorted({r.convention for r in record.results} - {"member-exact"}))
    notes = (f"Computed by the convention of a paper's code ({conventions}), not exactly.",) if conventions else ()
    shown = Tabulated(content, caption, legend=LEGEND, notes=notes) if content.rows else prose("The record holds no results.", "")
    return Section("attacks", "All attacks", (shown,), "All attacks")
