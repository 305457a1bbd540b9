"""The limits that a user sets: can they be met with so many images, and are they met?

A limit is met when what cannot be excluded is at or below it, for every attack that leads:

    max_auc           max(high, 1 - low) of the AUC's 95 % interval: an attack that works with its direction reversed counts
    max_tpr           the upper end of the TPR at 1 % FPR
    max_excess_auc    the upper end of the AUC, of attacks on the excess over the reference alone: reversed, it is the reference that leaks

It can be met if the interval of an attack that guesses exactly (AUC 0.5, TPR 1 %) on the test part lies within it. That is the least:
chance moves the estimate, so messages also name about how many images let one attack that guesses pass with probability PASSING.
No torch.
"""

from collections.abc import Iterator, Sequence
from statistics import NormalDist
from typing import Literal, NamedTuple, get_args

import numpy as np
from jaxtyping import Float64

from diffleak.auditing.config import AuditConfig
from diffleak.data.draw import calibrate_size
from diffleak.errors import UserError
from diffleak.records.audit import Gate, Result
from diffleak.records.plan import Split
from diffleak.stats import metrics

Limit = Literal["max_auc", "max_tpr", "max_excess_auc"]
LIMITS: tuple[Limit, ...] = get_args(Limit)
FPR = 0.01
PASSING = 0.8
MOST = 100_000  # images a side, beyond which the number needed is not worked out


class Reach(NamedTuple):
    """What an attack may reach, and why there is no number where there is none."""

    quantity: str
    value: float | None
    reason: str | None = None


def gates(results: Sequence[Result], config: AuditConfig) -> tuple[Gate, ...]:
    """Each limit of the config against each attack, in the order of LIMITS."""
    return tuple(_gates(results, config))


def _gates(results: Sequence[Result], config: AuditConfig) -> Iterator[Gate]:
    for limit in LIMITS:
        at_most = getattr(config, limit)
        for result in results if at_most is not None else ():
            if result.leads and (limit != "max_excess_auc" or result.variant == "excess"):
                reach = _reach(limit, result)
                passed = reach.value is not None and reach.value <= at_most
                yield Gate(
                    limit=limit,
                    attack=result.attack,
                    quantity=reach.quantity,
                    at_most=at_most,
                    reach=reach.value,
                    passed=passed,
                    reason=reach.reason,
                )


def _reach(limit: Limit, result: Result) -> Reach:
    if limit == "max_tpr":
        rate = result.tpr(FPR)
        return Reach("TPR at 1 % FPR", rate.high, rate.reason if rate.high is None else None)
    auc = result.auc
    if auc.low is None or auc.high is None:
        return Reach("AUC", None, auc.reason)
    if result.variant != "excess" and 1 - auc.low > auc.high:
        return Reach("AUC with the direction reversed (are the sides swapped?)", 1 - auc.low)
    return Reach("AUC", auc.high)


def refuse_unreachable(config: AuditConfig, split: Split) -> None:
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
    number = f"at least {needed:,} images on each side" if needed else f"more than {MOST:,} images on each side"
    often = f", about {passing:,} for an attack that guesses to pass with probability {PASSING:g}" if passing else ""
    ends = "cannot be estimated" if reach is None else f"has an interval up to {reach:.3f}"
    raise UserError(
        f"{flag} cannot be met with {sizes[0]:,} members and {sizes[1]:,} held-out images even if nothing leaks: guessing, {what}, {ends} "
        f"on so few; give {number}{often}, or set a higher limit"
    )


def _room(limit: Limit) -> float:
    """How far chance moves the estimate, in halves of its interval, where it stays in bounds with probability PASSING."""
    tails = 1 if limit != "max_auc" else 2  # the AUC is bounded on both sides
    return NormalDist().inv_cdf(1 - (1 - PASSING) / tails) / metrics.NORMAL


def guessing_reaches(limit: Limit, members: int, nonmembers: int, fraction: float) -> float | None:
    """The upper end of the interval of an attack that guesses exactly, on the test part of so many images; None if not estimable.

    Its scores are the quantiles of one distribution on either side. Repeated divisions of small sets all have this size.
    """
    m, n = (_quantiles(size - calibrate_size(size, fraction)) for size in (members, nonmembers))
    return (metrics.tpr_at_fpr(m, n, FPR) if limit == "max_tpr" else metrics.auc_estimate(m, n)).high


def _quantiles(n: int) -> Float64[np.ndarray, " n"]:
    return (np.arange(n) + 0.5) / n


def images_needed(limit: Limit, at_most: float, members: int, nonmembers: int, fraction: float, room: float = 0.0) -> int | None:
    """The smallest number to fill both sides up to with which `guessing_reaches` lies within a limit; None above MOST.

    `room` is what must be left beside, as a share of what `guessing_reaches` lies above guessing.
    """
    guess = FPR if limit == "max_tpr" else 0.5

    def enough(size: int) -> bool:
        reach = guessing_reaches(limit, max(members, size), max(nonmembers, size), fraction)
        return reach is not None and reach + room * (reach - guess) <= at_most

    low, high = 0, max(2, min(members, nonmembers))
    while not enough(high):
        if high > MOST:
            return None
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high
