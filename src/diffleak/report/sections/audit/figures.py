"""The figures of an audit: two rates in large print, the ROC curves, the AUC of each timestep and the spread of the scores."""

from markupsafe import Markup

from diffleak.errors import visible
from diffleak.report.audited import Audited
from diffleak.report.section import Block, Section, breakable, drawn, figure, heading, prose
from diffleak.report.wording import counted, percent, spoken


def tiles(audit: Audited) -> Section | None:
    """The AUC and the TPR at 1 % FPR of the lead, where they have intervals."""
    lead = audit.lead
    if lead is None:
        return None
    caught = lead.tpr(0.01)
    words = counted(audit.record.split.unit)
    pair = f"of pairs ranked right, a {words.member} over a {words.held_out} (not a share of images or people)"
    rates = ((pair, lead.auc, 0.5), (f"of the tested {words.members} caught at 1 % false alarms", caught, 0.01))
    tiles = [
        {"title": title, "value": spoken(e)[0], "ends": spoken(e)[1], "guess": percent(guess, 0), "at": guess, "estimate": e}
        for title, e, guess in rates
        if None not in (e.value, e.low, e.high)
    ]
    return Section("tiles", "", (drawn("tiles", tiles=tiles),), kind="summary") if tiles else None


NO_SCORES = "There are no scores of both sides to draw."


def roc(audit: Audited) -> Section:
    """Members caught against false alarms, on logarithmic axes."""
    return Section("roc", "Members caught against false alarms", (), "ROC", later=lambda: _curves(audit))


def _curves(audit: Audited) -> tuple[Block, ...]:
    from diffleak.report.figures.audit import key, roc

    lead = audit.verdict.attack
    svg = roc(audit.results, audit.scores.counted, lead)
    read = (
        f"Each point of a line is one threshold, on {audit.tested}. Both axes are logarithmic, because the left end matters most: "
        f"a line that is high there catches many members at few false alarms. A line on the dotted diagonal is guessing.{audit.divisions}"
    )
    band = f"The shaded band is the 95 % interval of {visible(lead or '')}, point by point."
    return (figure(svg, (read, band), key(audit.results, audit.ordered, lead)) if svg else prose(NO_SCORES, ""),)


def timesteps(audit: Audited) -> Section:
    """AUC by timestep on the calibrate part."""
    return Section("timesteps", "AUC by timestep", (), "Timesteps", later=lambda: _sweeps(audit))


def _sweeps(audit: Audited) -> tuple[Block, ...]:
    from diffleak.report.figures.audit import key, timesteps

    lead, repeats = audit.verdict.attack, audit.record.split.repeats
    svg = timesteps(audit.results, lead)
    often = f" (with {repeats} divisions, the one chosen most often)" if repeats > 1 else ""
    read = (
        f"AUC on the calibrate part. The dot is the timestep that was chosen there{often} and then used on the test part. The "
        "table has the AUC on the test part, which tends to be a little lower than the dot."
    )
    none = "No timestep was chosen on these images, so there is no sweep to draw."
    swept = [r for r in audit.ordered if r.timestep is not None]
    return (figure(svg, (read,), key(audit.results, swept, lead)) if svg else prose(none, ""),)


def scores(audit: Audited) -> Section:
    """A histogram of the lead's scores, and small ones of the other attacks."""
    return Section("scores", "How the scores are spread", (), "Scores", later=lambda: _histograms(audit))


def _histograms(audit: Audited) -> list[Block]:
    from diffleak.report.figures.audit import histogram
    from diffleak.report.figures.keys import sides

    lead, samples = audit.lead, audit.scores.counted
    words = counted(audit.record.split.unit)
    svg = histogram(samples, lead, "scores", small=False) if lead else None
    shown: list[Block] = [prose(NO_SCORES, "")]
    if lead and svg:
        read = (
            f"Scores of {visible(lead.attack)} on {audit.tested}. The more the two shapes come apart, the better the attack tells the two "
            f"sides apart. The outermost bars also hold everything beyond them.{audit.divisions}"
        )
        shown = [figure(svg, (read,), sides(words.members, words.all_held_out, threshold=lead.asr.threshold is not None))]
    others = [r for r in audit.results if r is not lead]
    if others:
        small = [(breakable(visible(r.attack)), histogram(samples, r, f"scores-{i}", small=True)) for i, r in enumerate(others)]
        shown += [heading("The other attacks"), drawn("multiples", figures=[(name, Markup(svg)) for name, svg in small if svg])]
    return shown
