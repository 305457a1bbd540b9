"""What calibration by complexity adds: a table with a row per attack and variant, and a sentence that sums it up."""

from diffleak.errors import one_or_more, visible
from diffleak.records.audit import AuditRecord, Result
from diffleak.records.variants import CALIBRATED, base_label
from diffleak.report.audited import Audited
from diffleak.report.section import Section, Sentences, Tabulated, prose
from diffleak.report.table import Cell, Column, auc_cell, cell_or, gain_cell, tabulate, tpr_cell
from diffleak.report.wording import medians
from diffleak.stats.calibration import PLAIN, WORDS

TITLE = "Calibrated by complexity"
FPR = 0.01
CAUGHT = "Share of {members} caught at 1 % false alarms"
DIFFERENCE = "the calibrated attack minus the same attack without calibration, on the same test {several}. In brackets: 95 % interval."


def section(audit: Audited) -> Section | None:
    """The attacks with the complexity of images taken out; None for a record without them."""
    every = tuple(r for r in audit.record.results if r.complexity is not None)
    if not every:
        return None
    results = tuple(r for r in every if r.complexity != PLAIN)
    if not results:
        return Section("calibrated", TITLE, (Sentences(sentences(audit.record), listed=False),), TITLE, TITLE)
    content = tabulate(results, _columns(audit.record), lambda r: (_label(r), "", False), audit.record.split.unit)
    why = (
        "A simple image gets a high score in any model. Its compressed sizes and the energy of its frequencies measure how simple it is. A "
        "regression on the held-out images of the calibrate part predicts the score from them, and the prediction is subtracted. That "
        "takes no further query. The calibrate part chooses which of these numbers are used, and may choose none. For a latent model it "
        "may also choose those of the reconstruction, the image that the decoder makes of the latents."
    )
    caption = f"The same images of {audit.tested}. Small print: 95 % intervals. n/e: not estimable, with the reason below."
    blocks = (prose(why), Sentences(sentences(audit.record)), Tabulated(content, caption, flat=True))
    return Section("calibrated", TITLE, blocks, TITLE, TITLE)


def sentences(record: AuditRecord) -> tuple[str, ...]:
    """Counts where calibration helps; no sentence for a record without it."""
    every = [r for r in record.results if r.complexity is not None]
    gains = [r.gain.auc for r in every if r.complexity != PLAIN and r.gain]
    if not every:
        return ()
    often = f"In the {record.split.repeats} random divisions calibration most often took nothing out of the scores of "
    if all(r.complexity == PLAIN for r in every):
        if record.split.repeats > 1:
            return (f"{often}{'the attack' if len(every) == 1 else f'each of the {len(every)} attacks'}.",)
        which = "the attack" if len(every) == 1 else f"any of the {len(every)} attacks"
        return (f"Calibration changed nothing: on the calibrate part it did not help {which}.",)
    if not gains:
        return ()
    higher = sum(e.low is not None and e.low > 0 for e in gains)
    lower = sum(e.high is not None and e.high < 0 for e in gains)
    attacks = one_or_more(len(gains), "attack")
    said = (
        f"Calibration clearly raises the AUC of {higher} of {attacks} and clearly lowers that of {lower}. Clearly means that the interval "
        "of the difference excludes 0."
    )
    unhelped = ", ".join(visible(_label(r)) for r in every if r.complexity == PLAIN)
    rest = f"On the calibrate part it did not help {unhelped}, so nothing was taken out there."
    rest = f"{often}{unhelped}." if record.split.repeats > 1 else rest
    return (said, *((rest,) if unhelped else ()), *medians(record.split.repeats))


def _columns(record: AuditRecord) -> tuple[Column, ...]:
    by_label = {r.attack: r for r in record.results}
    before = lambda cell: lambda r: cell_or(by_label.get(_label(r)), cell, "the plain attack is not in the record")
    points = f"In points of percent, {DIFFERENCE}"
    auc, tpr = gain_cell(lambda g: g.auc, in_percent=False), gain_cell(lambda g: g.tpr_at_1pct)
    often = ", most often of all random divisions" if record.split.repeats > 1 else ""
    return (
        Column(("AUC", "plain"), "The attack as it is.", 4, before(auc_cell)),
        Column(("AUC", "calibrated"), "The scores of the attack minus those that the complexity of the images predicts.", 1, auc_cell),
        Column(("AUC", "difference"), f"AUC, {DIFFERENCE}", 2, auc),
        Column(("TPR at 1 % FPR", "plain"), f"{CAUGHT} by the attack as it is.", 6, before(tpr_cell(FPR))),
        Column(("TPR at 1 % FPR", "calibrated"), f"{CAUGHT} by the calibrated attack.", 3, tpr_cell(FPR)),
        Column(("TPR at 1 % FPR", "difference (points)"), points, 5, tpr),
        Column(("Taken out",), f"What the calibrate part chose{often}.", 7, lambda r: Cell(taken_out(r))),
    )


def _label(result: Result) -> str:
    """The label without calibration."""
    return base_label(result.attack, CALIBRATED)


def taken_out(result: Result) -> str:
    """What the calibrate part chose to take out of the scores, in words."""
    return WORDS.get(result.complexity or "", visible(result.complexity or "-"))
