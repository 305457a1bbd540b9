"""The members that score highest."""

import numpy as np

from diffleak.errors import visible
from diffleak.report.audited import MOST_PICTURED, Audited, Pictured
from diffleak.report.section import Block, Section, drawn, prose
from diffleak.report.wording import exposed
from diffleak.stats.metrics import exposure

# What the list means, by the verdict.
EXPOSURE = {
    "leak": "These are the members that the leak exposes most.",
    "no-leak-found": "No leak was found, so this list does not show that these members are exposed: every ranking has a top.",
    "undecided": "Whether these members are exposed is undecided, as the verdict is: every ranking has a top.",
}


def section(audit: Audited) -> Section:
    """The members of the test part that the attack is surest of."""
    return Section("exposed", "The members that score highest", (), "Highest scores", later=lambda: _listed(audit))


def _listed(audit: Audited) -> tuple[Block, ...]:
    found = _most_exposed(audit)
    if found:
        part, attack = "of the test part " if audit.record.plan.calibration else "", visible(audit.verdict.attack or "")
        what = EXPOSURE[audit.verdict.level]
        said = prose(f"The members {part}that {attack} is surest of. {what} samples.csv has every image.")
        return said, *audit.no_pictures("are"), drawn("exposed", items=found)
    return (prose("There are no scores of members to rank.", ""),)


def _most_exposed(audit: Audited) -> list[Pictured]:
    """Equal scores in the order of their ids."""
    samples, attack = audit.scores, audit.verdict.attack
    if attack not in samples.scores:
        return []
    scores = samples.scores[attack]
    usable = np.isfinite(scores) & samples.test
    nonmembers = scores[usable & ~samples.member]
    top = sorted(np.flatnonzero(usable & samples.member).tolist(), key=lambda i: (-scores[i], samples.ids[i]))[:MOST_PICTURED]
    if not len(nonmembers) or not top:
        return []
    words = [exposed(float(share), len(nonmembers)) for share in exposure(scores[top], nonmembers)]
    return [audit.pictured(samples.ids[i], said, f"{scores[i]:.4g}") for i, said in zip(top, words, strict=True)]
