"""Which attacks count for the form of release, which of them were run, and which not."""

from diffleak.errors import one_or_more, visible
from diffleak.records.evidence import Evidence, KnownAttack
from diffleak.report.audited import Audited
from diffleak.report.judgement import RELEASES
from diffleak.report.section import Section, Sentences, Tabulated
from diffleak.report.table import Cell, Column, tabulate

TITLE = "Attacks run and not run"
ACCESSES = {
    "weights": "Anyone who has the weights can run every attack that works with the model, so all of these count.",
    "api": "Callers of an interface see drawn images alone, so black-box attacks count (noise_probe only if callers may choose the "
    "starting noise). Choose --release weights if the interface also takes images from its callers, or returns predictions.",
    "images": "Someone with drawn images only cannot query the model, so no attack here counts; the attacks that were run "
    "measure the model, which stays with its owner.",
}


def section(audit: Audited) -> Section | None:
    """A sentence on what counts, and a row for each attack; None for records of earlier versions."""
    evidence = audit.record.evidence
    if evidence is None:
        return None
    run = lambda each: "yes" if each.run else "no" if each.unfit is None else f"no: {visible(each.unfit)}"
    counts = lambda each: Cell("yes" if each in evidence.counting else "no")
    columns = (
        Column(("Run?",), "Whether this audit ran it.", 1, lambda each: Cell(run(each)), look="left"),
        Column(("Counts?",), "Whether an outsider can run it once the model is released in this form.", 2, counts),
        Column(("What it looks at",), "In a sentence.", 3, lambda each: Cell(visible(each.about)), look="how"),
    )
    table = tabulate(evidence.attacks, columns, lambda each: (each.attack, each.access, False))
    caption = "Every attack that this version of diffleak has, and those of the user's own that were run."
    shown = Tabulated(table, caption, folded="Every attack, and what it looks at", where="page")
    return Section("coverage", TITLE, (Sentences(said(evidence), where="file"), shown), "Attacks run", TITLE)


def said(evidence: Evidence) -> tuple[str, ...]:
    """What counts, what of it was run, what was not, and what cannot be run on this model."""
    released = evidence.released
    counting = evidence.counting
    run, others = [e for e in counting if e.run], [e for e in counting if not e.run]
    unfit = [each for each in evidence.attacks if each.unfit is not None]
    lines = [f"Form of release: {RELEASES[released]}. {ACCESSES[released]}"]
    if counting:
        lines.append(
            f"Of {one_or_more(len(counting), 'attack that counts', 'attacks that count')}, {one_or_more(len(run), 'was', 'were')} run"
            f"{_named(run)}."
        )
    if others:
        count = "it counts" if len(others) == 1 else "they count"
        lines.append(f"Not run, though {count}: {', '.join(f'{visible(e.attack)} ({e.access})' for e in others)}.")
    beyond = [each for each in evidence.attacks if each.run and not evidence.counts(each.access)]
    if beyond:
        lines.append(f"Run, but with more access than this release gives{_named(beyond)}.")
    if unfit:
        lines.append(f"Not possible with this model{_named(unfit)}.")
    return tuple(lines)


def _named(attacks: list[KnownAttack]) -> str:
    return f": {', '.join(visible(each.attack) for each in attacks)}" if attacks else ""
