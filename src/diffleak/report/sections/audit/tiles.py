"""The two rates that matter, large, each beside what guessing gives."""

from typing import Any

from diffleak.records.base import Estimate
from diffleak.report.audited import Audited
from diffleak.report.section import Section, drawn
from diffleak.report.wording import percent, spoken


def section(audit: Audited) -> Section | None:
    """The AUC and the TPR at 1 % FPR of the lead, where they have intervals."""
    lead = audit.lead
    if lead is None:
        return None
    caught = lead.tpr(0.01)
    rates = (("picks the member out of a pair", lead.auc, 0.5), ("of members caught at 1 % false alarms", caught, 0.01))
    tiles = [_tile(title, e, guess) for title, e, guess in rates if None not in (e.value, e.low, e.high)]
    return Section("tiles", "", (drawn("tiles", tiles=tiles),), kind="summary") if tiles else None


def _tile(title: str, estimate: Estimate, guess: float) -> dict[str, Any]:
    value, ends = spoken(estimate)
    return {"title": title, "value": value, "ends": ends, "guess": percent(guess, 0), "at": guess, "estimate": estimate}
