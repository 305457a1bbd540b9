"""The first page in the reader's words: the release, the limit agreed, whether the audit is valid, and what was not tested."""

from markupsafe import Markup

from diffleak.errors import visible
from diffleak.records.audit import AuditRecord, Gate
from diffleak.report.audited import Audited
from diffleak.report.counting import held_out, trained, units
from diffleak.report.judgement import NO_VERDICT, RELEASES, wrong_way
from diffleak.report.section import Facts, Section, Sentences, heading, prose
from diffleak.report.sections import UNSHOWN
from diffleak.report.sections.audit.gates import OUTDATED, outcome
from diffleak.report.wording import count
from diffleak.stats.blind import finding

NO_LIMIT = "none was set"
OF_ATTACKS = ("max_auc", "max_tpr", "max_excess_auc")
NO_FINDING = "That does not mean that a leak was found: these images cannot exclude one"
LIMITED = {
    "max_auc": "AUC",
    "max_tpr": "TPR at 1 % FPR",
    "max_excess_auc": "AUC beyond the reference",
    "max_copies": "Copy rate",
    "max_epsilon": "epsilon",
}
UNTESTED = "What was not tested"
UNCONFIRMED = {
    "taken on trust": "that they are the same images is taken on trust",
    "contradicted, ignored": "the model's own split.json says that they are not the same images",
}
NEEDS = {
    "black-box": "images that the model draws for a caption that the attacker chooses (for noise_probe the attacker must also choose the "
    "noise that a drawing starts from), and the image in question",
    "grey-box": "the model's predictions for the image in question, which anyone who has the weights can compute",
    "white-box": "the weights, and the image in question",
}


def section(audit: Audited) -> Section:
    """The facts that a decision rests on, a line each."""
    record, lead = audit.record, audit.lead
    rows = [
        ("Form of release", released(record)),
        *([("What an outsider needs", needs(record, lead.access))] if lead and lead.access in NEEDS else []),
        ("Limit agreed", limit(audit)),
        ("Is the audit valid?", validity(record)),
        ("Images tested", tested(record)),
    ]
    return Section("glance", "", (Facts(tuple(rows)),), kind="summary", brief="In short")


def needs(record: AuditRecord, access: str) -> str:
    """What the attack that is named needs, and whether the form of release gives it."""
    evidence = record.evidence
    if evidence is None or evidence.counts(access):
        return NEEDS[access]
    return f"{NEEDS[access]}. A release of {RELEASES[evidence.released]} does not give that"


def untested(audit: Audited) -> Section:
    """Three lines on what the answer leaves open."""
    more = prose(Markup('More: <a href="#limits">{}</a>.').format(UNSHOWN), "small")
    return Section("untested", "", (heading(UNTESTED), Sentences(not_tested(audit.record)), more), kind="summary", brief=UNTESTED)


def not_tested(record: AuditRecord) -> tuple[str, ...]:
    """What was not tested, in three sentences."""
    size = training_size(record)
    images = f"{trained(record)} were tested, of {size} images. Nothing is shown for the others."
    if size is None:
        images = f"{trained(record)} were tested. It is not known how many images the model was trained on; nothing is shown for others."
    elif size == count(record.plan.n_members):
        images = f"all {trained(record)} were tested."
        if record.membership and record.membership.status != "confirmed":
            images = f"{trained(record)} were tested, as many as the model was trained on; {UNCONFIRMED[record.membership.status]}."
    return (
        f"Attacks not run: {missing(record)} Attacks that train models of their own (shadow models) are not part of diffleak.",
        "Copies: this audit does not say whether the model reproduces its training images; diffleak quality and diffleak extract do.",
        f"Other images: {images}",
    )


def missing(record: AuditRecord) -> str:
    """The attacks that count for the release and were not run, by name."""
    evidence = record.evidence
    if evidence is None:
        return "the record, of an earlier version, does not name those that were not run."
    if evidence.released == "images":
        return "does not apply: no attack of diffleak audit works with drawn images alone, so none counts for this release."
    if not evidence.counting:
        return "all that count for this release, since none of them works with this model; so for this release nothing was tested."
    names = [visible(each.attack) for each in evidence.counting if not each.run]
    them = "it" if len(names) == 1 else "them"
    return f"{', '.join(names)}. Outsiders of this release could run {them}." if names else "none that outsiders of this release could run."


def released(record: AuditRecord) -> str:
    """The form of release, and whether the user gave it."""
    evidence = record.evidence
    given = RELEASES[evidence.released if evidence else "weights"]
    return given if evidence and evidence.release else f"{given} (assumed, as the most cautious form; set it with --release)"


def limit(audit: Audited) -> str:
    """Each limit, whether it is met and, where it is not, by how much it is missed."""
    by: dict[tuple[str, float], list[Gate]] = {}
    for gate in audit.gates:
        by.setdefault((gate.limit, gate.at_most), []).append(gate)
    said = [f"{LIMITED.get(name, name)} at most {at_most:g} {outcome(checks)}" for (name, at_most), checks in by.items()]
    outdated = [OUTDATED] if audit.gated and not audit.gated.holds else []
    missed = {gate.limit for gate in audit.gates if not gate.passed and gate.limit in OF_ATTACKS}
    few_exposed = "max_tpr" in missed and any(r.leads and (r.tpr(0.01).low or 0.0) > 0.01 for r in audit.record.results)
    separated = few_exposed or wrong_way(audit.record) is not None
    unfound = [NO_FINDING] if missed and not separated and audit.verdict.level in ("no-leak-found", "undecided") else []
    return ". ".join(filter(None, ("; ".join((*said, *outdated)), *unfound))).replace(" is not met", " is NOT MET") or NO_LIMIT


def validity(record: AuditRecord) -> str:
    """Says in a few words if the numbers measure membership."""
    if record.valid is False:
        unmeasured = (record.invalid_reason or "").startswith(NO_VERDICT)
        return "no: nothing could be estimated" if unmeasured else "no: the numbers do not measure membership"
    if record.membership and record.membership.status == "contradicted, ignored":
        return "doubtful: the model's own split.json contradicts the two sides"
    found = finding(record.blind)
    few = ", as far as so few images show" if record.blind.p_value is not None else ""
    return {
        "different": "doubtful: the two sides differ without the model, which --allow-shift accepted",
        "unchecked": "not known: it was not checked whether the two sides come from one source",
        "perhaps": "yes, with a reservation: part of what the attacks find may come from a difference between the two sides, and not from "
        "the model",
    }.get(found, f"yes{few}: a check that never sees the model finds no difference between the two sides")


def tested(record: AuditRecord) -> str:
    """How many images, of how many, and what they count as."""
    size, split = training_size(record), record.split
    of = f", of {size} that the model was trained on," if size else ""
    part = ""
    if record.plan.calibration:
        sides = split.members - split.calibrate_members, split.nonmembers - split.calibrate_nonmembers
        often = f"in each of {count(split.repeats)} random divisions " if split.repeats > 1 else ""
        part = f"; {often}some of them were used to choose settings, and all numbers are of the other {units(record, *sides)}"
    return f"{trained(record)}{of} and {held_out(record)}{part}"


def training_size(record: AuditRecord) -> str | None:
    """The number of images that the model was trained on, None where it is not known."""
    known = record.evidence.training_images if record.evidence else None
    return None if known is None else count(known)
