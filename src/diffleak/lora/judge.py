"""What the measurements of a checkpoint decide. No torch.

    with held-out pictures       do not publish   the attack that the calibrate part chose finds more than the base explains: its interval
                                                  lies above one half
                                 publish          no attack on the excess may exceed the limit
                                 undecided        neither: more pictures would tell
    without                      do not publish   pictures have drawings nearer than the base ever draws, more of them than chance brings
                                 undecided        otherwise: it is not shown that the adapter knows more beyond the base than it should

The second is a reason to look, not a proof: an adapter that learnt a subject well draws near its pictures too.
"""

from collections.abc import Mapping, Sequence
from typing import get_args

from diffleak.records.audit import Gate, Result
from diffleak.records.lora import Checkpoint, Decision, Excess, Redrawn
from diffleak.report.wording import count

GUESSING = 0.5
ALPHA = 0.05


def excess(results: Sequence[Result], gates: Sequence[Gate]) -> Excess:
    """The attack on the excess with the best AUC on the calibrate part, and the limit against all of them."""
    found = [result for result in results if result.variant == "excess" and result.leads]
    best = max(found, key=lambda result: max((point.auc for point in result.per_timestep), default=0.0))
    return Excess(
        attack=best.attack,
        auc=best.auc,
        tpr_at_1pct=best.tpr(0.01),
        gates=tuple(gates),
    )


def redrawn(of_adapter: Mapping[str, float], of_base: Mapping[str, float]) -> Redrawn:
    """Pictures whose nearest drawing by the adapter is nearer than every nearest drawing by the base; distances by picture.

    Where the adapter draws as the base does, each picture's two distances are exchangeable. The `nearer` smallest of all are then the
    adapter's, of as many different pictures, with probability 2 ** -nearer at most.
    """
    closest = min(of_base.values())
    nearer = sorted((distance, name) for name, distance in of_adapter.items() if distance < closest)
    return Redrawn(
        nearer=len(nearer),
        p_value=2.0 ** -len(nearer),
        closest=min(of_adapter.values()),
        closest_of_base=closest,
        nearest=tuple(name for _, name in nearer),
    )


def of_excess(found: Excess, limit: float) -> tuple[Decision, str]:
    """The decision of a checkpoint with held-out pictures, and why."""
    auc = found.auc
    if auc.value is None or auc.low is None:
        return "undecided", f"nothing can be estimated: {auc.reason}"
    said = f"{found.attack} has AUC {auc.value:.3f} ({auc.low:.3f} to {auc.high:.3f})"
    if auc.low > GUESSING:
        return "do not publish", f"{said}: it tells training pictures from held-out ones"
    if all(gate.passed for gate in found.gates):
        return "publish", f"no attack may reach more than {limit:g}"
    worst = max((gate.reach for gate in found.gates if gate.reach is not None), default=None)
    reach = "cannot be bounded" if worst is None else f"may reach {worst:.3f}"
    return "undecided", f"{said}: no leak is shown, but an attack {reach}, and the limit is {limit:g}"


def of_drawings(found: Redrawn, pictures: int) -> tuple[Decision, str]:
    """The decision of a checkpoint without held-out pictures, and why."""
    said = f"{count(found.nearer)} of {count(pictures)} pictures are drawn nearer than the base ever draws"
    if found.p_value < ALPHA:
        return "do not publish", f"{said} (p = {found.p_value:.2g}): look at them first"
    return "undecided", f"{said}, which chance explains (p = {found.p_value:.2g}); nothing held out says what it leaks otherwise"


def answer(checkpoints: Sequence[Checkpoint], pictures: int, held_out: int | None) -> str:
    """One line: which may be published as they are, which not, what is undecided, and what the files give away."""
    by = {decision: [each.name for each in checkpoints if each.decision == decision] for decision in get_args(Decision)}
    parts = []
    if by["do not publish"]:
        parts.append(f"Do not publish as they are: {_named(by['do not publish'], checkpoints)}.")
    if by["publish"]:
        parts.append(f"By the attacks that were run, may be published: {_named(by['publish'], checkpoints)}.")
    if by["undecided"]:
        beside = f" and {count(held_out)} held out" if held_out else " and none held out"
        parts.append(f"Undecided with {count(pictures)} pictures{beside}: {_named(by['undecided'], checkpoints)}.")
    private = [each.header for each in checkpoints if each.header and each.header.counts]
    if private:
        files = "The file" if len(private) == 1 else f"{count(len(private))} files"
        kinds = ", ".join(dict.fromkeys(kind.replace("_", " ") for header in private for kind in header.counts))
        parts.append(f"{files} hold{'s' * (len(private) == 1)} {kinds}: strip with diffleak metadata FILE --strip OUT.")
    return " ".join(parts)


def _named(names: Sequence[str], checkpoints: Sequence[Checkpoint]) -> str:
    """Names of checkpoints; of three or more in a row, the first and the last."""
    order = [each.name for each in checkpoints]
    first, last = order.index(names[0]), order.index(names[-1])
    return f"{names[0]} to {names[-1]}" if len(names) > 2 and last - first == len(names) - 1 else ", ".join(names)
