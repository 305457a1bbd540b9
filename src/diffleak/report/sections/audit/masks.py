"""The gain by masks: a table with a row per attack and mask, and a sentence per kind of mask."""

from collections.abc import Sequence

from diffleak.errors import one_or_more, visible
from diffleak.records.audit import AuditRecord, Result
from diffleak.records.base import Estimate
from diffleak.records.variants import CONTROLS, control_of
from diffleak.report import selection
from diffleak.report.audited import Audited
from diffleak.report.section import Section, Sentences, Tabulated, prose
from diffleak.report.table import Cell, Column, Table, auc_cell, cell_or, differences, tabulate
from diffleak.report.wording import count, medians, percent

TITLE = "What masks add"
MOST_ROWS = 24  # longer tables are folded away; their summary is not
DROPPED = {
    "influence": "that matter least to the decoded picture",
    "random": "drawn at random (a control)",
    "reverse": "that matter most to the decoded picture (a control)",
}


def section(audit: Audited) -> Section | None:
    """The gain of the attacks by leaving out latent coordinates; None for a record without masks."""
    content = masks_table(audit.record)
    if content is None:
        return None
    why = (
        "This model works on latents, and not every part of a latent matters for the picture. An attack that leaves out the part that "
        "matters least (an influence mask) should see more; the controls leave out as much at random, or the part that matters most, and "
        "should not."
    )
    read = (
        "An attack gains if the 95 % interval of its AUC difference lies above 0, loses if below, and is undecided if 0 is in it. About "
        "one interval in twenty misses by chance: one gain among many comparisons proves little."
    )
    caption = (
        f"Masked minus unmasked on the same images of {audit.tested}, each at its own chosen settings. Small print: 95 % intervals. "
        "Differences of rates are in points of percent. n/e: not estimable, with the reason below."
    )
    folded = f"All {count(len(content.rows))} comparisons" if len(content.rows) > MOST_ROWS else ""
    tabulated = Tabulated(content, caption, folded=folded, flat=True)
    blocks = (prose(why), Sentences(summaries(audit.record)), prose(read, "prose muted"), tabulated)
    return Section("masks", TITLE, blocks, TITLE, TITLE)


def masks_table(record: AuditRecord) -> Table | None:
    """The gain of each attack by each mask; None for a record without masked results."""
    results = selection.masked(record)
    return tabulate(results, _columns(record), lambda r: (r.base, "", False), record.split.unit) if results else None


def _columns(record: AuditRecord) -> tuple[Column, ...]:
    before = lambda r: cell_or(selection.under(record, r.base, None), auc_cell, "the unmasked attack is not in the record")
    return (
        Column(("Mask",), "The share of latent coordinates that is left out, and which; auto: chosen on the calibrate part.", 1, _mask),
        Column(("AUC", "unmasked"), "The attack on all latent coordinates.", 6, before),
        Column(("AUC", "masked"), "The attack on the coordinates that are left.", 5, auc_cell),
        *differences((2, 3, 4)),
    )


def _mask(result: Result) -> Cell:
    chosen = (result.mask or "").endswith(":auto") and result.mask_ratio is not None
    return Cell(visible(result.mask or "-"), (f"chose {percent(result.mask_ratio or 0.0, 0)}",) if chosen else ())


def summaries(record: AuditRecord) -> tuple[str, ...]:
    """For each kind of mask, how many attacks it helps: the interval of the AUC difference above 0, below 0, or around it."""
    results = selection.masked(record)
    kinds = sorted({control_of(r.mask or "") for r in results}, key=lambda k: (*CONTROLS, k).index(k))
    said = tuple(_summary(kind, [r for r in results if control_of(r.mask or "") == kind]) for kind in kinds)
    return (*said, *(medians(record.split.repeats) if said else ()))


def _summary(kind: str, results: Sequence[Result]) -> str:
    masks = list(dict.fromkeys(r.mask for r in results))
    first = next((m for m in (f"{kind}:0.4", f"{kind}:auto") if m in masks), masks[0])
    named, others = [r for r in results if r.mask == first], [r for r in results if r.mask != first]
    share = "a share, chosen on the calibrate part," if str(first).endswith(":auto") else percent(named[0].mask_ratio or 0.0, 0)
    text = f"Leaving out {share} of the latent coordinates, those {DROPPED.get(kind, visible(kind))}: {_counts(named, 'attack')}."
    if others:
        rest = f"Under {visible(others[0].mask or '')}" if len(masks) == 2 else f"The {len(masks) - 1} other {visible(kind)} masks together"
        text += f" {rest}: {_counts(others, 'attack' if len(masks) == 2 else 'comparison')}."
    return text


def _counts(results: Sequence[Result], noun: str) -> str:
    aucs = [r.gain.auc if r.gain else Estimate() for r in results]
    gain = sum((a.low or 0.0) > 0 for a in aucs)
    lose = sum((a.high or 0.0) < 0 for a in aucs)
    unknown = sum(a.low is None or a.high is None for a in aucs)
    counts = [one_or_more(gain, "gains", "gain"), one_or_more(lose, "loses", "lose"), f"{len(aucs) - gain - lose - unknown} undecided"]
    counts += [f"{unknown} not estimable"] if unknown else []
    return f"of {one_or_more(len(aucs), noun)}, {', '.join(counts)}"
