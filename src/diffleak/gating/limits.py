"""The limits that a user sets: can they be met with so many images, and are they met?

A limit is met when what cannot be excluded is at or below it, for every attack that leads:

    max_auc           max(high, 1 - low) of the AUC's 95 % interval: an attack that works with its answers reversed counts
    max_tpr           the upper end of the TPR at 1 % FPR
    max_excess_auc    the upper end of the AUC alone, of attacks on the excess over the reference: an AUC far below 0.5 is a leak of
                      the reference

and, of a finished folder, by what else lies in it:

    max_copies        the upper end of the copy rate's 95 % interval
    max_epsilon       the lower bound on epsilon: one above the limit shows that it is broken, one below it proves nothing

Where an audit counts groups of images, these are AUC and TPR of groups. A limit on attacks can be met if the interval of an attack that
guesses exactly (AUC 0.5, TPR 1 %) on the test part lies within it. That is the least: chance moves the estimate, so messages also name
about how many images let one attack that guesses pass with probability PASSING.
No torch.
"""

from collections.abc import Iterator, Sequence
from statistics import NormalDist
from typing import Any, Literal, NamedTuple, get_args

import numpy as np

from diffleak.config import Config
from diffleak.data.draw import calibrate_size
from diffleak.errors import UserError
from diffleak.records.audit import Gate, RateAtFPR, Result
from diffleak.records.base import Estimate
from diffleak.records.comparison import Comparison
from diffleak.records.plan import Split
from diffleak.records.scores import Unit
from diffleak.records.variants import may_lead, speaks_of
from diffleak.report.wording import beside
from diffleak.stats import metrics
from diffleak.stats.calibration import PLAIN
from diffleak.stats.power import fewest

Limit = Literal["max_auc", "max_tpr", "max_excess_auc"]
LIMITS: tuple[Limit, ...] = get_args(Limit)
FPR = 0.01
PASSING = 0.8
MOST = 100_000  # images a side, beyond which the number needed is not worked out


class Judged(NamedTuple):
    """What a limit asks of a result: its name, its numbers, and whether it is one on the excess over a reference."""

    name: str
    auc: Estimate
    tpr: RateAtFPR
    excess: bool


class Reach(NamedTuple):
    """What an attack may reach, and why there is no number where there is none."""

    quantity: str
    value: float | None
    reason: str | None = None
    how: str = ""


def gates(results: Sequence[Result], config: Config, unit: Unit = "image") -> tuple[Gate, ...]:
    """Each limit of the config against each attack, in the order of LIMITS; unit: what the results count.

    A calibrated attack of which nothing was taken out is the attack itself, and is checked once.
    """
    numbers = [Judged(r.attack, r.auc, r.tpr(FPR), r.variant == "excess") for r in results if r.leads and r.complexity != PLAIN]
    return tuple(_gates(numbers, config, " of groups" if unit == "group" else ""))


def gates_compared(record: Comparison, config: Config) -> tuple[Gate, ...]:
    """Each limit against each result of every entry of a comparison but the baseline, which is the undefended model."""
    numbers = [
        Judged(
            f"{entry.name}{f' ({r.run})' if len(entry.runs) > 1 else ''}: {r.attack}", r.auc, r.tpr_at_1pct, speaks_of(r.attack, "excess")
        )
        for entry in record.entries[1:]
        for r in entry.results
        if may_lead(r.mask) and not speaks_of(r.attack, "reference")
    ]
    return tuple(_gates(numbers, config, " of groups" if record.unit == "group" else ""))


def _gates(numbers: Sequence[Judged], config: Config, counted: str) -> Iterator[Gate]:
    for limit in LIMITS:
        at_most = getattr(config, limit)
        for each in numbers if at_most is not None else ():
            if limit != "max_excess_auc" or each.excess:
                reach = _reach(limit, each)
                yield judged(limit, each.name, f"{reach.quantity}{counted}{reach.how}", at_most, reach.value, reach.reason)


def judged(limit: Any, name: str, quantity: str, at_most: float, reach: float | None, reason: str | None) -> Gate:
    """One check: passed where what may be reached is known and within the limit."""
    passed = reach is not None and reach <= at_most
    return Gate(limit=limit, attack=name, quantity=quantity, at_most=at_most, reach=reach, passed=passed, reason=reason)


def _reach(limit: Limit, result: Judged) -> Reach:
    if limit == "max_tpr":
        rate = result.tpr
        return Reach("TPR at 1 % FPR", rate.high, rate.reason if rate.high is None else None)
    auc = result.auc
    if auc.low is None or auc.high is None:
        return Reach("AUC", None, auc.reason)
    if not result.excess and 1 - auc.low > auc.high:
        swapped = " (are the sides swapped?)" if auc.high < 0.5 else ""
        return Reach("AUC", 1 - auc.low, how=f" with the attack's answers reversed{swapped}")
    return Reach("AUC", auc.high)


def refuse_unreachable(config: Config, split: Split) -> None:
    """Raises `UserError` for a limit that cannot be met with so many images even if nothing leaks, with the number needed."""
    for limit in LIMITS:
        at_most = getattr(config, limit)
        if at_most is not None:
            _refuse(limit, at_most, split)


def _refuse(limit: Limit, at_most: float, split: Split) -> None:
    flag = f"--{limit.replace('_', '-')} {at_most:g}"
    guess, what = (FPR, "a TPR of 0.01 at 1 % FPR") if limit == "max_tpr" else (0.5, "an AUC of 0.5")
    if at_most <= guess:
        raise UserError(f"{flag} cannot be met: guessing has {what}, and its interval reaches above that; set a higher limit")
    sizes = (split.members, split.nonmembers)
    reach = guessing_reaches(limit, *sizes, split.calibrate_fraction)
    if reach is not None and reach <= at_most:
        return
    needed, passing = (images_needed(limit, at_most, *sizes, split.calibrate_fraction, room) for room in (0.0, _room(limit)))
    what_given = "groups" if split.unit == "group" else "images"
    number = f"at least {needed:,} {what_given} on each side" if needed else f"more than {MOST:,} {what_given} on each side"
    often = f", about {passing:,} for an attack that guesses to pass with probability {PASSING:g}" if passing else ""
    ends = "cannot be estimated" if reach is None else f"has an interval up to {beside(reach, at_most)}"
    raise UserError(
        f"{flag} cannot be met with {_sides(split)} even if nothing leaks: guessing, {what}, {ends} "
        f"on so few; give {number}{often}, or set a higher limit"
    )


def _sides(split: Split) -> str:
    if split.unit == "group":
        return f"{split.members:,} groups of members and {split.nonmembers:,} held-out groups"
    return f"{split.members:,} members and {split.nonmembers:,} held-out images"


def _room(limit: Limit) -> float:
    """How far chance moves the estimate, in halves of its interval, where it stays in bounds with probability PASSING."""
    tails = 1 if limit != "max_auc" else 2  # the AUC is bounded on both sides
    return NormalDist().inv_cdf(1 - (1 - PASSING) / tails) / metrics.NORMAL


def guessing_reaches(limit: Limit, members: int, nonmembers: int, fraction: float) -> float | None:
    """The upper end of the interval of an attack that guesses exactly, on the test part of so many images; None if not estimable.

    Its scores are the quantiles of one distribution on either side. Repeated divisions of small sets all have this size.
    """
    tested = (size - calibrate_size(size, fraction) for size in (members, nonmembers))
    m, n = ((np.arange(size) + 0.5) / size for size in tested)
    return (metrics.tpr_at_fpr(m, n, FPR) if limit == "max_tpr" else metrics.auc_estimate(m, n)).high


def images_needed(limit: Limit, at_most: float, members: int, nonmembers: int, fraction: float, room: float = 0.0) -> int | None:
    """The smallest number to fill both sides up to with which `guessing_reaches` lies within a limit; None above MOST.

    `room` is what must be left beside, as a share of what `guessing_reaches` lies above guessing.
    """
    guess = FPR if limit == "max_tpr" else 0.5

    def enough(size: int) -> bool:
        reach = guessing_reaches(limit, max(members, size), max(nonmembers, size), fraction)
        return reach is not None and reach + room * (reach - guess) <= at_most

    return fewest(enough, 0, max(2, min(members, nonmembers)), MOST)
