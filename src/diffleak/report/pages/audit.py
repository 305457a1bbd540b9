"""The report of an audit."""

from collections.abc import Callable, Sequence
from dataclasses import replace

from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from diffleak.errors import visible
from diffleak.records.audit import AuditRecord, Result
from diffleak.records.digests import Sealed
from diffleak.records.epsilon import EpsilonRecord
from diffleak.records.gate import Gated
from diffleak.records.maps import Maps
from diffleak.records.scores import Samples
from diffleak.report import handling
from diffleak.report.audited import Audited
from diffleak.report.counting import held_out, trained
from diffleak.report.judgement import QUESTION
from diffleak.report.section import Page, Section, page_of
from diffleak.report.sections import UNSHOWN, glossary, limits, model, verdict, warnings
from diffleak.report.sections.audit import (
    attacks,
    calibrated,
    coverage,
    epsilon,
    exposed,
    figures,
    file,
    gates,
    geometry,
    glance,
    groups,
    headers,
    made,
    masks,
    reference,
    remedies,
)
from diffleak.report.table import columns, difference_cell
from diffleak.report.wording import count, entries

LIMITS = entries("""
    A lower bound. | Attacks that were not run may find more, and so may stronger ones; none of this proves that nothing leaks.
    The attacker's access. | Each result holds for an attacker with the access that its attack needs. Someone with less access may find
        less; someone with more access may find more.
    The same source. | Members and held-out images must come from one source, divided at random. If they differ in other ways, the
        numbers measure that difference. The check on pixel statistics catches only coarse differences.
    Averages. | AUC is about a typical image. A few images can be fully exposed while it is close to one half. The rates at few false
        alarms can show that.
    One model. | The intervals cover the random choice of images. They do not cover another training run, seed or data set.
    Membership, not copies. | This audit does not say if the model reproduces its training images: diffleak extract and
        diffleak quality do.
""")

Make = Callable[[Audited], Section | None]
ANSWER: tuple[Make, ...] = (
    lambda audit: verdict(audit.verdict, QUESTION),
    glance.section,
    glance.untested,
)
FIRST: tuple[Make, ...] = (  # what a reader needs before any chart
    gates.section,
    remedies.section,
    coverage.section,
    lambda audit: limits(LIMITS, UNSHOWN),
)
SECTIONS: tuple[Make, ...] = (
    *ANSWER,
    lambda audit: warnings(audit.record.warnings),
    figures.tiles,
    *FIRST,
    attacks.section,
    calibrated.section,
    masks.section,
    reference.section,
    figures.roc,
    figures.timesteps,
    figures.scores,
    geometry.section,
    groups.section,
    exposed.section,
    lambda audit: epsilon.section(audit.bound),
    headers.section,
    made.costs,
    file.section,
    lambda audit: glossary(of_attacks=True),
    made.section,
    made.omitted,
)
# why it is, what to do, for the file, what the words mean, and how it was made, which has numbers and is folded away
OF_INVALID: tuple[Make, ...] = (
    ANSWER[0],
    file.section,
    lambda audit: glossary(of_attacks=True),
    lambda audit: replace(made.section(audit), folded="The command and its settings"),
)
ON_PAPER: tuple[Make, ...] = (*ANSWER, remedies.section, FIRST[-1], file.section)  # two pages: the answer, and for the file
ON_CARD: tuple[Make, ...] = (*ANSWER, gates.section, coverage.section, lambda audit: limits(LIMITS), file.public)


def page(
    record: AuditRecord,
    samples: Samples | None = None,
    thumbnail: Callable[[str], bytes] | None = None,
    maps: Maps | None = None,
    sealed: Sealed | None = None,
    bound: EpsilonRecord | None = None,
    gated: Gated | None = None,
) -> Page:
    """The report; only with samples it has figures, and only with thumbnails, an image's PNG by its id, images with their maps.

    sealed: the digests of the files beside it, which it prints. bound: what `diffleak epsilon` found, which gets a section. gated: what
    `diffleak gate` checked.
    """
    audit = Audited(record, samples, thumbnail, maps, bound, sealed, gated)
    invalid = audit.verdict.level == "invalid"
    found = _page(audit, OF_INVALID if invalid else SECTIONS)
    return replace(found, style="maps.css") if maps and thumbnail and not invalid else found


def on_paper(record: AuditRecord, sealed: Sealed | None = None, gated: Gated | None = None) -> Page:
    """The answer and what belongs into the file, without charts and tables: two pages of paper."""
    audit = Audited(record, sealed=sealed, gated=gated)
    return _page(audit, (ANSWER[0], file.section) if audit.verdict.level == "invalid" else ON_PAPER, "paper.css")


def on_card(record: AuditRecord, sealed: Sealed | None = None, gated: Gated | None = None) -> Page:
    """What everybody may know: the answer, what was not tested, and the hashes."""
    audit = Audited(record, sealed=sealed, gated=gated)
    return _page(audit, (ANSWER[0], file.public) if audit.verdict.level == "invalid" else ON_CARD)


def _page(audit: Audited, made: Sequence[Make], style: str = "") -> Page:
    record, invalid = audit.record, audit.verdict.level == "invalid"
    evidence, size = record.evidence, glance.training_size(record)
    of = f", of {size} that the model was trained on;" if size else ","
    sides = f"tested: {trained(record)}{of} {held_out(record)}"
    by = f" · by {visible(evidence.auditor)}" if evidence and evidence.auditor else ""
    return page_of(
        record,
        (make(audit) for make in made),
        title=f"Membership audit of {visible(record.plan.model)}",
        heading=f"Membership audit: {visible(evidence.title)}" if evidence and evidence.title else "Membership audit",
        meta=f"{model(record.plan.model, record.plan.lora)} · {sides}{by}",
        handling="" if invalid or style else handling.on_page(record.plan.anonymous is not None, audit.thumbnail is not None),
        style=style,
    )


def print_calibrated(plain: Result, found: Result, console: Console | None = None) -> None:
    """Prints the statistics of one score file as it is, then those of the calibrated scores and what that adds."""
    console = console or Console()
    print_result(plain, console)
    console.print(Text(f"\n{visible(found.attack)}, taken out: {calibrated.taken_out(found)}", "bold"))
    print_result(found, console)
    if found.gain:
        for name, estimate, in_percent in (("AUC", found.gain.auc, False), ("TPR at 1 % FPR, in points", found.gain.tpr_at_1pct, True)):
            cell = difference_cell(estimate, in_percent)
            console.print(Text(f"{name}: {' '.join((cell.text, *cell.details))} by calibration"))


def print_result(result: Result, console: Console | None = None) -> None:
    """Prints the statistics of one score file, a line each, with the reason where one cannot be estimated."""
    console = console or Console()
    drawn = RichTable(box=None, show_header=False, pad_edge=False)
    drawn.add_column(no_wrap=True)
    drawn.add_column(no_wrap=True, justify="right")
    drawn.add_column(style="dim")
    for column in columns([result]):
        cell = column.cell(result)
        if cell.text != "-":
            drawn.add_row(column.title, cell.text, Text("; ".join([*cell.details, *map(visible, filter(None, [cell.reason]))])))
    console.print(drawn)
    sizes = f"{count(result.n_members)} members, {count(result.n_nonmembers)} non-members"
    console.print(Text(f"{sizes}; convention {result.convention}; intervals are 95 %", "dim"))
