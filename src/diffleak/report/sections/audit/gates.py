"""The limits that a user set: a line per limit and attack."""

from collections.abc import Sequence

from diffleak.errors import of_them, one_or_more, visible
from diffleak.records.audit import Gate
from diffleak.records.gate import Gated
from diffleak.records.variants import speaks_of
from diffleak.report.audited import Audited
from diffleak.report.section import Section, Sentences, prose
from diffleak.report.wording import beside, count, moment

WITHIN = "is met if the whole 95 % interval of every attack is at or below it."
MET = {
    "max_auc": "A limit on the AUC is met if the whole 95 % interval of every attack lies between 1 minus the limit and the limit: "
    "an attack that works with its answers reversed counts too.",
    "max_tpr": f"A limit on the TPR {WITHIN} Unlike a limit on the AUC, it does not see an attack that works with its answers reversed.",
    "max_excess_auc": f"A limit on the AUC beyond the reference {WITHIN}",
    "max_copies": "A limit on copies is met if the whole 95 % interval of the rate is at or below it.",
    "max_epsilon": "A limit on epsilon is met if the lower bound is at or below it. The true epsilon may still be above it.",
}
PROVES_NOTHING = "; the true epsilon may still be above it"
EXCESS = " Of the excess over a reference only the upper end counts: an AUC far below 0.5 does not speak of a leak that this model adds."
OUTDATED = "diffleak gate checked an earlier record of this folder: repeat it"


def section(audit: Audited) -> Section | None:
    """The limits that are met, and those that are not."""
    return _made(audit.gates, audit.gated if audit.gated and audit.gated.holds else None)


def checked(gated: Gated | None) -> Section | None:
    """What `diffleak gate` found in a sweep or a comparison; None where nobody checked it."""
    if gated is None:
        return None
    if not gated.holds:
        return Section("gates", "Limits", (prose(f"{OUTDATED}."),), "Limits set", "Limits set", "checks")
    return _made(gated.record.checks, gated)


def _made(gates: Sequence[Gate], gated: Gated | None) -> Section | None:
    marks = tuple("passed" if gate.passed else "failed" for gate in gates)
    met = " ".join(dict.fromkeys(MET[gate.limit] for gate in gates))
    met += EXCESS if any(gate.limit == "max_auc" and speaks_of(gate.attack, "excess") for gate in gates) else ""
    by = f" Checked by diffleak gate: {moment(gated.record.created)}." if gated else ""
    passing = gated.record.last_passing if gated else None
    noted = "".join(f" {visible(warning)}." for warning in gated.record.warnings) if gated else ""
    last = f" The last checkpoint that passes: {visible(passing)}." if passing else ""
    blocks = (prose(met + by + last + noted), Sentences(tuple(map(sentence, gates)), marks))
    return Section("gates", _title(gates), blocks, "Limits set", _title(gates), "checks") if gates else None


def _title(gates: Sequence[Gate]) -> str:
    """Counts the checks that failed, of one for each limit and attack."""
    failed = sum(not gate.passed for gate in gates)
    checks = one_or_more(len(gates), "check")
    return f"Limits: {count(failed)} of {checks} failed" if failed else f"Limits: {checks}, none failed"


def sentence(gate: Gate) -> str:
    """States what the attack may reach, against the limit: "sima: AUC may reach 0.712, above the limit of 0.6"."""
    if gate.reach is None:
        reason = visible(gate.reason or "not estimable")
        why = reason if reason.startswith("not estimable") else f"not estimable ({reason})"
        return f"{visible(gate.attack)}: {gate.quantity} is {why}, so the limit of {gate.at_most:g} cannot be confirmed"
    side = "within" if gate.passed else "above"
    if gate.limit == "max_epsilon":
        proves = PROVES_NOTHING if gate.passed else ""
        return f"{visible(gate.attack)}: {_reaches(gate)}, {side} the limit of {gate.at_most:g}{proves}"
    return f"{visible(gate.attack)}: {_reaches(gate)}, {side} the limit of {gate.at_most:g}"


def _reaches(gate: Gate) -> str:
    """What cannot be excluded: "AUC may reach 0.712"."""
    said, kind = ("is at least", "g") if gate.limit == "max_epsilon" else ("may reach", "f")
    return f"{gate.quantity} {said} {'' if gate.reach is None else beside(gate.reach, gate.at_most, kind)}"


def outcome(checks: Sequence[Gate]) -> str:
    """Says if a limit is met by all its checks, or by how much not: "is not met (exceeded by 0.112): AUC may reach 0.712 (sima)"."""
    failed = [each for each in checks if not each.passed]
    worst = max(failed or checks, key=lambda each: float("inf") if each.reach is None else each.reach)
    highest = f", the highest of {count(len(checks))} results" if len(checks) > 1 else ""
    if not failed:
        proves = PROVES_NOTHING if worst.limit == "max_epsilon" else ""
        return f"is met: {_reaches(worst)} ({visible(worst.attack)}{highest}){proves}"
    known = [each for each in failed if each.reach is not None]
    unknown = len(failed) - len(known)
    if not known:
        also = f" ({count(unknown)} of {count(len(checks))} results cannot be estimated)" if len(checks) > 1 else ""
        return f"is not met: {sentence(worst)}{also}"
    nearest = max(known, key=lambda each: each.reach or 0.0)
    above = f"; {of_them(len(known), count(len(checks)))} above the limit" if len(checks) > 1 else ""
    rest = f", {count(unknown)} cannot be estimated" if unknown else ""
    by = beside((nearest.reach or 0.0) - nearest.at_most, 0.0)
    return f"is not met (exceeded by {by}): {_reaches(nearest)} ({visible(nearest.attack)}{highest}{above}{rest})"
