"""What somebody needs who keeps the report for the file: who audited what, on which images, by which version, and what it does not show."""

from collections.abc import Iterator

from diffleak.errors import visible
from diffleak.records.audit import AuditRecord
from diffleak.report.audited import Audited
from diffleak.report.counting import held_out, trained, units
from diffleak.report.judgement import QUESTION
from diffleak.report.section import Facts, Section, prose
from diffleak.report.sections import FOR_THE_FILE, LINE
from diffleak.report.sections.audit import glance
from diffleak.report.wording import at_scale, count, moment

NOT_GIVEN = "not given"
NO_LAW = (
    "This is evidence about the risk that training images can be told apart from others. It names no law or standard as fulfilled. The "
    "SHA-256 numbers reveal accidental edits. They do not prove who wrote a file."
)


IN_PRIVATE = ("Note", "Title", "Signature", "Source of the member list", "What it does not show")  # rows that a public card leaves out


def section(audit: Audited) -> Section:
    """The facts for the file, and a line for a signature."""
    return _section(tuple((term, str(what)) for term, what in _rows(audit)))


def public(audit: Audited) -> Section:
    """The same for everybody."""
    return _section(tuple((term, str(what)) for term, what in _rows(audit) if term not in IN_PRIVATE))


def _section(rows: tuple[tuple[str, str], ...]) -> Section:
    return Section("file", FOR_THE_FILE, (Facts(rows), prose(NO_LAW, "prose muted")), FOR_THE_FILE, FOR_THE_FILE)


def _rows(audit: Audited) -> Iterator[tuple[str, str]]:
    record, plan = audit.record, audit.record.plan
    evidence, valid = record.evidence, audit.verdict.level != "invalid"
    given = lambda value: visible(value) if value else NOT_GIVEN
    if evidence and evidence.title:
        yield "Title", visible(evidence.title)
    yield "Auditor", given(evidence and evidence.auditor)
    if evidence and evidence.note:
        yield "Note", visible(evidence.note)
    yield "Question", QUESTION
    yield "Answer", audit.verdict.title
    if valid:
        yield "Limit agreed", glance.limit(audit)
    yield "Valid", glance.validity(record)
    yield from _model(record)
    beside = record.membership and record.membership.model_split
    why = "the split.json beside the model does not fit these images" if beside else "no split.json lies beside the model"
    unknown = f"number not known: {why}" if record.membership else "number not known"  # a card and an old record do not say why
    yield "Training images", glance.training_size(record) or unknown
    if record.split.unit != "image":
        once = ": images of one group count once" if record.split.unit == "group" else ""
        yield "Counted", f"{trained(record)}, {held_out(record)}{once}"
    yield "Members", f"{count(plan.n_members)} from {visible(plan.members)}"
    yield "Held-out images", f"{count(plan.n_nonmembers)} from {visible(plan.nonmembers)}"
    yield "Hash of the images", visible(plan.data_fingerprint)
    if evidence and evidence.split_digest:
        yield "Hash of the split file", f"sha256:{evidence.split_digest}"
    if record.membership:
        yield "Source of the member list", visible(record.membership.sentence)
    yield "Form of release", glance.released(record)
    if valid and audit.lead:
        yield "Access of the attack", f"{visible(audit.lead.access)}: {glance.NEEDS.get(audit.lead.access, 'see the attack')}"
    yield "Attacks run", ", ".join(dict.fromkeys(visible(str(each["attack"])) for each in plan.attacks)) or "none"
    yield "Attacks not run", glance.missing(record)
    yield "Images used for settings", chosen(record)
    yield "Begun", moment(evidence.started) if evidence and evidence.started else "not recorded"
    yield "Finished", visible(moment(record.created))
    yield (
        "Tool",
        f"diffleak {visible(record.environment.diffleak)}, Python {visible(record.environment.python)}; all versions are in audit.json",
    )
    if audit.sealed:
        yield "audit.json", f"SHA-256 {audit.sealed.audit}"
        yield "Whole record", f"SHA-256 {audit.sealed.whole} over {count(audit.sealed.files)} files; diffleak verify RUN prints both again"
    yield "What it does not show", " ".join(glance.not_tested(record))
    yield "Signature", f"name {LINE} date {LINE} signed {LINE}"


def _model(record: AuditRecord) -> Iterator[tuple[str, str]]:
    plan = record.plan
    yield "Model", visible(plan.model)
    yield "Hash of the model", visible(plan.model_fingerprint)
    for adapter in record.adapters:
        yield "Adapter", f"{visible(adapter.name)} {at_scale(adapter.strength)}, sha256:{visible(adapter.sha256)}"
    if plan.reference is not None:
        yield "Reference", f"{visible(plan.reference)}, {visible(plan.reference_fingerprint or 'hash unknown')}"


def chosen(record: AuditRecord) -> str:
    """What was chosen, and on which images."""
    split = record.split
    if not record.plan.calibration:
        return "none: settings were fixed beforehand, and every image was tested"
    sides = units(record, split.calibrate_members, split.calibrate_nonmembers)
    others = units(record, split.members - split.calibrate_members, split.nonmembers - split.calibrate_nonmembers)
    often = f"; repeated over {count(split.repeats)} random divisions" if split.repeats > 1 else ""
    return (
        f"attack, timestep and threshold were chosen on {sides}, drawn by seed {split.seed}; every number is of the other {others}{often}"
    )
