"""The scores of members and held-out images."""

from markupsafe import Markup

from diffleak.errors import visible
from diffleak.report.audited import Audited
from diffleak.report.section import Block, Section, breakable, drawn, figure, heading, prose
from diffleak.report.sections.audit.roc import NO_SCORES


def section(audit: Audited) -> Section:
    """A histogram of the lead's scores, and small ones of the other attacks."""
    return Section("scores", "How the scores are spread", (), "Scores", later=lambda: _histograms(audit))


def _histograms(audit: Audited) -> list[Block]:
    from diffleak.report.figures.audit import histogram
    from diffleak.report.figures.keys import sides

    lead, samples = audit.lead, audit.scores
    svg = histogram(samples, lead, "scores", small=False) if lead else None
    shown: list[Block] = [prose(NO_SCORES, "")]
    if lead and svg:
        read = (
            f"Scores of {visible(lead.attack)} on {audit.tested}. The more the two shapes come apart, the better the attack tells the two "
            f"sides apart. The outermost bars also hold everything beyond them.{audit.divisions}"
        )
        shown = [figure(svg, (read,), sides("members", "held-out images", threshold=lead.asr.threshold is not None))]
    others = [r for r in audit.results if r is not lead]
    if others:
        small = [(breakable(visible(r.attack)), histogram(samples, r, f"scores-{i}", small=True)) for i, r in enumerate(others)]
        shown += [heading("The other attacks"), drawn("multiples", figures=[(name, Markup(svg)) for name, svg in small if svg])]
    return shown
