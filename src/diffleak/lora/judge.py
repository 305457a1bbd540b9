"""What the measurements of a checkpoint decide. No torch.

    with held-out pictures       the verdict of its audit on the excess alone (`report.judgement`), with the check for different sources:
                                 do not publish   a leak is shown
                                 undecided        the verdict is, or no leak is shown and an attack may reach more than the limit
                                 publish          no leak is shown, and no attack on the excess may exceed the limit
    without                      undecided        always. Where more pictures than chance brings have drawings nearer than the base ever
                                                  draws, `Redrawn.look_first` says so

Without held-out pictures a copy and a subject that was learnt well cannot be told apart: both draw near the pictures.
"""

from collections.abc import Mapping, Sequence
from typing import get_args

from diffleak.errors import one_or_more
from diffleak.gating.limits import guessing_reaches, images_needed
from diffleak.records.audit import AuditRecord, Gate, Result
from diffleak.records.headers import PEFT_CONFIG, WORDS
from diffleak.records.lora import Checkpoint, Decision, Excess, Redrawn
from diffleak.report.judgement import Verdict, verdict
from diffleak.report.wording import beside, count, nearer_than_base

NAMED = 5  # pictures in a sentence
WAYS = (
    "To decide: hold pictures out, train again in the same way, and audit that adapter; or run diffleak inquire with at least 20 pictures "
    "that were made after the training."
)


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


def of_audit(record: AuditRecord, attack: str) -> Verdict:
    """The verdict of an audit as if the attacks on the excess were all of it, `attack` chosen beforehand."""
    kept = tuple(result for result in record.results if result.variant == "excess")
    return verdict(record.model_copy(update={"results": kept, "headline": attack}))


def redrawn(of_adapter: Mapping[str, float], of_base: Mapping[str, float]) -> Redrawn:
    """Pictures whose nearest drawing by the adapter is nearer than every nearest drawing by the base; distances by picture.

    Where the adapter draws as the base does, each picture's two distances are exchangeable. The `nearer` smallest of all are then the
    adapter's, of as many different pictures, with probability 2 ** -nearer at most.
    """
    closest = min(of_base.values())
    nearer = sorted((distance, name) for name, distance in of_adapter.items() if distance < closest)
    return Redrawn(
        pictures=len(of_adapter),
        nearer=len(nearer),
        p_value=2.0 ** -len(nearer),
        closest=min(of_adapter.values()),
        closest_of_base=closest,
        nearest=tuple(name for _, name in nearer),
    )


def of_excess(found: Excess, limit: float, judged: Verdict) -> tuple[Decision, str]:
    """The decision of a checkpoint with held-out pictures, and why; judged: the verdict of its audit, see `of_audit`."""
    auc = found.auc
    if auc.value is None or auc.low is None:
        return "undecided", f"nothing can be estimated: {auc.reason}"
    said = f"{found.attack} has AUC {auc.value:.3f} ({auc.low:.3f} to {auc.high:.3f})"
    if judged.level == "leak":
        by = f", and {judged.attack} finds a leak" if judged.attack != found.attack else ""
        return "do not publish", f"{said}{by}: training pictures can be told apart from held-out ones"
    if judged.level != "no-leak-found":
        why = judged.title.removeprefix("Undecided: ").rstrip(".")
        return "undecided", f"{said}; {why[:1].lower()}{why[1:]}"
    if all(gate.passed for gate in found.gates):
        return "publish", f"for every attack the AUC beyond the base is at most {limit:g}, with its whole 95 % interval"
    worst = max((gate.reach for gate in found.gates if gate.reach is not None), default=None)
    reach = "has no interval" if worst is None else f"may be up to {beside(worst, limit)}"
    return "undecided", f"{said}: no leak is shown, but the AUC of an attack {reach}, and the limit is {limit:g}"


def too_few(limit: float, pictures: int, held_out: int, fraction: float, since: str = "") -> str | None:
    """Why no checkpoint can meet a limit with so few pictures, and how many it takes; None where one can.

    fraction: the share of either side that settings are chosen on. since: why fewer count than were given, in words.
    """
    reach = guessing_reaches("max_excess_auc", pictures, held_out, fraction)
    if reach is not None and reach <= limit:
        return None
    needed = images_needed("max_excess_auc", limit, pictures, held_out, fraction)
    so_far = "has no interval" if reach is None else f"may be up to {beside(reach, limit)}"
    least = f"It takes at least {count(needed)} pictures on each side." if needed else "Set a higher limit."
    few = f"With {one_or_more(pictures, 'picture')} and {count(held_out)} held out{since}, no checkpoint can meet the limit of {limit:g}"
    return f"{few}: the AUC of even an attack that only guesses {so_far}. {least}"


def of_drawings(found: Redrawn, pairs: str) -> tuple[Decision, str]:
    """The decision of a checkpoint without held-out pictures, and why; pairs: the page that has the pairs."""
    said = nearer_than_base(found.nearer, found.pictures or 0)
    if not found.look_first:
        return "undecided", (
            f"{said}, which is no more than chance (p = {found.p_value:.2g}); without held-out pictures nothing more can be said. "
            f"The pairs are in {pairs}"
        )
    named = ", ".join(found.nearest[:NAMED]) + (f" and {count(found.nearer - NAMED)} more" if found.nearer > NAMED else "")
    why = "an adapter that reproduces pictures does this, and so does one that learnt their style"
    return "undecided", f"look first: {said} (p = {found.p_value:.2g}); {why}; look at the pairs of {named} in {pairs}"


def answer(checkpoints: Sequence[Checkpoint], pictures: int, held_out: int | None, few: str | None = None) -> str:
    """One line: which may be published as they are, which not, what is undecided, and what the files give away; few: see `too_few`."""
    by = {decision: [each.name for each in checkpoints if each.decision == decision] for decision in get_args(Decision)}
    parts = []
    if by["do not publish"]:
        parts.append(f"Do not publish as they are: {_named(by['do not publish'], checkpoints)}.")
    if by["publish"]:
        parts.append(f"By the attacks that were run, may be published: {_named(by['publish'], checkpoints)}.")
    if by["undecided"]:
        beside = f" and {count(held_out)} held out" if held_out else " and none held out"
        parts.append(f"Undecided: {_named(by['undecided'], checkpoints)} (with {one_or_more(pictures, 'picture')}{beside}).")
    if suspected := [each.name for each in checkpoints if each.redrawn and each.redrawn.look_first]:
        parts.append(f"Look first at the pairs of {_named(suspected, checkpoints)}: their drawings come closer than the base's.")
    if by["undecided"] and not held_out:
        parts.append(WAYS)
    if by["undecided"] and few:
        parts.append(few)
    private = {each.name: each.header for each in checkpoints if each.header and each.header.counts}
    if private:
        one, configs = len(private) == 1, sum(header.config for header in private.values())
        files = f"The header{'s' * (not one)} of {_named([*private], checkpoints)}"
        files += f" and the {PEFT_CONFIG} beside {'it' if one else 'them'}" if configs else ""
        kinds = ", ".join(dict.fromkeys(WORDS[kind][1] for header in private.values() for kind in header.counts))  # type: ignore[index]
        parts.append(f"{files} give{'s' * (one and not configs)} away {kinds}: strip with diffleak metadata FILE --strip OUT.")
    return " ".join(parts)


def _named(names: Sequence[str], checkpoints: Sequence[Checkpoint]) -> str:
    """Names of checkpoints; of three or more in a row, the first and the last."""
    order = [each.name for each in checkpoints]
    first, last = order.index(names[0]), order.index(names[-1])
    in_a_row = len(names) > 2 and last - first == len(names) - 1
    return f"the {count(len(names))} checkpoints from {names[0]} to {names[-1]}" if in_a_row else ", ".join(names)
