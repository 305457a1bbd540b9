"""One number of several trainings of one recipe: mean and spread over seeds, and an interval that counts the seed. No torch.

    mean over seeds, +- sqrt( (t S / sqrt(K))^2 + (z s)^2 )        K runs, S: standard deviation over them, t: quantile of K - 1 degrees
                                                                   s: root mean square of the standard errors within the runs

S sees how trainings differ. It does not see that all of them may have been tested on the same images, which move every run alike; s does.
Where each run has images of its own, S has that part too, and the interval is too wide rather than too narrow. (Zou and Donner 2008, for
intervals of a sum from those of its parts; simulated in tests/stats/test_pooling.py.)
"""

from collections.abc import Sequence
from math import sqrt
from typing import NamedTuple

import numpy as np

from diffleak.errors import UserError, of_them
from diffleak.records.base import Estimate
from diffleak.stats.metrics import ALPHA, NORMAL

METHOD = "t over seeds, with the standard error within runs"
FEWEST = 2


class Pooled(NamedTuple):
    """A number over seeds: its mean with an interval, and the standard deviation over the seeds."""

    mean: Estimate
    spread: float | None


def pooled(runs: Sequence[Estimate]) -> Pooled:
    """The mean over the runs of one recipe, with an interval within [0, 1].

    runs: the number in each run, in [0, 1], with its 95 % interval. Null with a reason where a run has no number or no interval; raises
    `UserError` for fewer than two runs.
    """
    if len(runs) < FEWEST:
        raise UserError(f"an interval over seeds needs at least {FEWEST} runs; got {len(runs)}")
    values, widths = [run.value for run in runs], [(run.low, run.high) for run in runs]
    known = [value for value in values if value is not None]
    if len(known) < len(runs):
        why = next(run.reason for run in runs if run.value is None)
        return Pooled(Estimate(reason=f"not estimable in {len(runs) - len(known)} of {len(runs)} runs: {why}"), None)
    mean, spread = float(np.mean(known)), float(np.std(known, ddof=1))
    errors = [(high - low) / (2 * NORMAL) for low, high in widths if low is not None and high is not None]
    if lost := len(runs) - len(errors):
        return Pooled(Estimate(value=mean, reason=f"{of_them(lost, f'{len(runs)} runs', 'has', 'have')} no interval"), spread)
    half = sqrt((_quantile(len(runs) - 1) * spread / sqrt(len(runs))) ** 2 + NORMAL**2 * float(np.mean(np.square(errors))))
    return Pooled(Estimate(value=mean, low=max(0.0, mean - half), high=min(1.0, mean + half), method=METHOD), spread)


def difference(first: Estimate, second: Estimate) -> Estimate:
    """The first mean minus the second, from their intervals as if they were independent: wider than pairing would make it."""
    ends = (first.value, first.low, first.high, second.value, second.low, second.high)
    if None in (ends[0], ends[3]):
        return Estimate(reason=first.reason or second.reason)
    a, low_a, high_a, b, low_b, high_b = (0.0 if end is None else end for end in ends)
    if None in ends:
        return Estimate(value=a - b, reason=first.reason or second.reason)
    down, up = sqrt((a - low_a) ** 2 + (high_b - b) ** 2), sqrt((high_a - a) ** 2 + (b - low_b) ** 2)
    return Estimate(value=a - b, low=max(-1.0, a - b - down), high=min(1.0, a - b + up), method=f"{METHOD}, unpaired")


def _quantile(degrees: int) -> float:
    """The upper ALPHA / 2 quantile of Student's t."""
    from scipy.special import stdtrit

    return float(stdtrit(degrees, 1 - ALPHA / 2))
