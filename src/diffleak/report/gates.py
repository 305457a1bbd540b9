"""The limits that a user set, in words: a line per limit and attack."""

from collections.abc import Sequence

from diffleak.errors import visible
from diffleak.records.audit import Gate
from diffleak.report.wording import count


def gates_title(gates: Sequence[Gate]) -> str:
    """How many checks failed, of one for each limit and attack."""
    failed = sum(not gate.passed for gate in gates)
    checks = f"{count(len(gates))} {'check' if len(gates) == 1 else 'checks'}"
    return f"Limits: {count(failed)} of {checks} failed" if failed else f"Limits: {checks}, none failed"


def gate_line(gate: Gate) -> str:
    """One limit and attack: "failed: sima: AUC may reach 0.712, above the limit of 0.6"."""
    return f"{'passed' if gate.passed else 'failed'}: {sentence(gate)}"


def sentence(gate: Gate) -> str:
    """What the attack may reach, against the limit."""
    if gate.reach is None:
        why = visible(gate.reason or "not estimable")
        return f"{visible(gate.attack)}: {gate.quantity} is {why}, so the limit of {gate.at_most:g} cannot be confirmed"
    side = "within" if gate.passed else "above"
    return f"{visible(gate.attack)}: {gate.quantity} may reach {gate.reach:.3f}, {side} the limit of {gate.at_most:g}"
