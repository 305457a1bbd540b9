"""The ROC curves of all attacks."""

from diffleak.errors import visible
from diffleak.report.audited import Audited
from diffleak.report.section import Block, Section, figure, prose

NO_SCORES = "There are no scores of both sides to draw."


def section(audit: Audited) -> Section:
    """Members caught against false alarms, on logarithmic axes."""
    return Section("roc", "Members caught against false alarms", (), "ROC", later=lambda: _curves(audit))


def _curves(audit: Audited) -> tuple[Block, ...]:
    from diffleak.report.figures.audit import key, roc

    lead = audit.verdict.attack
    svg = roc(audit.results, audit.scores, lead)
    read = (
        f"Each point of a line is one threshold, on {audit.tested}. Both axes are logarithmic, because what hurts is the left: many "
        f"members caught at few false alarms. A line on the dotted diagonal is guessing.{audit.divisions}"
    )
    band = f"The shaded band is the 95 % interval of {visible(lead or '')}, point by point."
    return (figure(svg, (read, band), key(audit.results, audit.ordered, lead)) if svg else prose(NO_SCORES, ""),)
