"""The leak beyond a reference model: a table with a row per attack, and sentences that sum it up."""

from collections.abc import Sequence

from diffleak.errors import one_or_more, visible
from diffleak.records.audit import AuditRecord, Result
from diffleak.records.base import Estimate
from diffleak.records.variants import VARIANTS
from diffleak.report.audited import Audited
from diffleak.report.section import Section, Sentences, Tabulated, prose
from diffleak.report.table import Column, auc_cell, cell_or, gain_cell, tabulate
from diffleak.report.wording import medians

TITLE = "Beyond the reference"
HIGHER = "That can happen if the reference was trained on the members, if the sides are swapped, or by chance."
DIFFERENCE = "the audited model minus the reference on the same test {several}. In brackets: 95 % interval."


def section(audit: Audited) -> Section | None:
    """The knowledge of the audited model beyond its reference; None for a record without one."""
    rows = tuple(r for r in audit.record.results if r.plain and _of(audit.record, r, "excess"))
    if not rows:
        return None
    content = tabulate(rows, _columns(audit.record), lambda r: (r.attack, "", False), audit.record.split.unit)
    name = visible(audit.record.plan.reference or "")
    why = (
        f"Some images look like members to any model, because they are simple. The reference, {name}, was attacked with the same "
        "images and the same noise. Its scores are those that the images get without the training that is audited, so what the audited "
        "model knows beyond it comes from that training. "
        "The excess is the score in the audited model minus the score in the reference, image by image."
    )
    misses = "If the members were also in the training data of the reference, the excess misses what both models know."
    caption = (
        f"The same images of {audit.tested}, each attack at its own chosen settings. Small print: 95 % intervals. Differences of rates are "
        "in points of percent. n/e: not estimable, with the reason below."
    )
    blocks = (prose(why), Sentences(sentences(audit.record)), prose(misses, "prose muted"), Tabulated(content, caption, flat=True))
    return Section("reference", TITLE, blocks, TITLE, TITLE)


def _of(record: AuditRecord, result: Result, variant: str) -> Result | None:
    return next((r for r in _uncalibrated(record, variant) if r.base == result.attack), None)


def _uncalibrated(record: AuditRecord, variant: str) -> list[Result]:
    return [r for r in record.results if r.variant == variant and r.complexity is None]


def _columns(record: AuditRecord) -> tuple[Column, ...]:
    beside = lambda variant, cell: lambda r: cell_or(_of(record, r, variant), cell, "the reference is not in the record")
    points = f"In points of percent, {DIFFERENCE}"
    auc, asr, tpr = gain_cell(lambda g: g.auc, in_percent=False), gain_cell(lambda g: g.asr), gain_cell(lambda g: g.tpr_at_1pct)
    return (
        Column(("AUC", "model"), "The attack on the audited model.", 5, auc_cell),
        Column(
            ("AUC", "reference"),
            "The attack on the model without the audited training.",
            6,
            beside("reference", auc_cell),
        ),
        Column(("AUC", "difference"), f"AUC, {DIFFERENCE}", 2, beside("reference", auc)),
        Column(("Attack success", "difference (points)"), points, 7, beside("reference", asr)),
        Column(("TPR at 1 % FPR", "difference (points)"), points, 4, beside("reference", tpr)),
        Column(("AUC", "excess"), "The attack on the model's scores minus the reference's, image by image.", 1, beside("excess", auc_cell)),
        Column(("Excess", "against model"), "AUC of the excess minus that of the model's scores alone.", 3, beside("excess", auc)),
    )


def sentences(record: AuditRecord) -> tuple[str, ...]:
    """Sums the differences up; no sentence for a record without a reference."""
    others, excess = (_uncalibrated(record, variant) for variant in VARIANTS)
    if not excess:
        return ()
    higher, lower = _beside([r.gain.auc if r.gain else Estimate() for r in others], 0.0)
    better, worse = _beside([r.auc for r in excess], 0.5)
    attacks, tell = one_or_more(len(excess), "attack"), "tells" if better == 1 else "tell"
    return (
        f"Members stand out more in the audited model than in its reference, {visible(record.plan.reference or '')}, for {higher} of "
        f"{attacks} (the interval of the AUC difference lies above 0), and less for {lower} (it lies below 0).",
        f"On the excess over the reference, {better} of {attacks} {tell} members apart better than by guessing"
        + (f". For {worse}, held-out images rank higher. {HIGHER}" if worse else "."),
        *medians(record.split.repeats),
    )


def _beside(estimates: Sequence[Estimate], level: float) -> tuple[int, int]:
    """Counts the intervals above a level, and those below."""
    above = sum(e.low is not None and e.low > level for e in estimates)
    return above, sum(e.high is not None and e.high < level for e in estimates)
