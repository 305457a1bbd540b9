"""What so many images can show: the smallest AUC and TPR at 1 % FPR that an audit tells from chance, and the images that a given one needs.

"Detected": the 95 % interval that `stats.metrics` gives lies above one half, or above 1 %. "Detectable": that happens with
probability POWER.

    AUC    members' scores are those of held-out images, normal, shifted. DeLong's variance is then
           V = (A (1 - A) + (m + n - 2) (Q - A^2)) / (m n),  Q = P(a score beats two of the other side) = F(z) - 2 T(z, 1 / sqrt 3),
           A = F(z), with the normal distribution function F and Owen's T, and the interval is one of log (A / (1 - A))
    TPR    a share of the members scores above every held-out image, the others as held-out images do: a few memorised images, for which
           the rate at 1 % is read. The number of members above the j-th largest held-out score is binomial, and that score's own FPR
           is Beta(j, n - j + 1). j is that of the interval by order statistics below 1,000 held-out images, and of the threshold
           itself, with the quantile of its bootstrap, from there on

The settings of an attack are chosen on other images, so m and n are the images of the test part. `studies/decisions/power.py` compares
with simulation. Attacks that leak otherwise need more images, or fewer.
"""

import math
from collections.abc import Callable
from functools import lru_cache
from statistics import NormalDist

import numpy as np
from jaxtyping import Float64

from diffleak.stats.binomial import at_most
from diffleak.stats.metrics import ALPHA, FEW, NORMAL, clopper_pearson

POWER = 0.8
FPR = 0.01
MOST = 1_000_000  # images a side, beyond which a number is not worked out
QUANTILES = 64  # of the FPR of a held-out score, over which the power is averaged
GRID = 400  # steps between chance and certainty


def auc_power(auc: float, m: int, n: int) -> float:
    """The probability that the interval of an AUC lies above one half, for an attack of AUC `auc` in (0, 1), m members, n others."""
    if min(m, n) < 2:
        return 0.0
    from scipy.special import owens_t

    z = NormalDist().inv_cdf(auc)
    beats_two = auc - 2 * float(owens_t(z, 1 / math.sqrt(3)))
    variance = (auc * (1 - auc) + (m + n - 2) * (beats_two - auc**2)) / (m * n)
    odds, deviation = math.log(auc / (1 - auc)), math.sqrt(variance) / (auc * (1 - auc))
    return NormalDist().cdf(odds / deviation - NORMAL)


def tpr_power(tpr: float, m: int, n: int) -> float:
    """The probability that the interval of the TPR at 1 % FPR lies above 1 %, for a true TPR in (0.01, 1)."""
    if n * FPR < 1 - 1e-9 or m < 1:
        return 0.0
    own, needed = _by_bootstrap(m, n) if n * FPR >= FEW - 1e-9 else _by_order(m, n)
    if needed is None:
        return 0.0
    from scipy.stats import binom

    memorised = (tpr - FPR) / (1 - FPR)
    return float(binom.sf(needed - 1, m, memorised + (1 - memorised) * own).mean())


Bound = tuple[Float64[np.ndarray, " q"], int | None]


def _fpr_of(rank: int, n: int) -> Float64[np.ndarray, " q"]:
    """Quantiles of the true FPR of the rank-th largest of n held-out scores."""
    from scipy.stats import beta

    return beta.ppf((np.arange(QUANTILES) + 0.5) / QUANTILES, rank, n - rank + 1)  # type: ignore[no-any-return]


@lru_cache
def _by_order(m: int, n: int) -> Bound:
    """The FPR of the held-out score that bounds the TPR from below, and how many members must be above it; None where no number will do."""
    sure = np.flatnonzero(1 - at_most(n, FPR)[:-1] >= 1 - ALPHA / 4) + 1
    if not len(sure):  # no held-out score is surely above the quantile, so the lower end is 0
        return np.zeros(0), None
    return _fpr_of(int(sure[-1]), n), fewest(lambda hits: clopper_pearson(hits, m, ALPHA / 2)[0] > FPR, 0, m, m - 1)


@lru_cache
def _by_bootstrap(m: int, n: int) -> Bound:
    """The FPR of the threshold, and how many members must be above it for the lower end of the bootstrap to lie above 1 %.

    A resample has another threshold, whose FPR varies as the threshold's own does, and a binomial number of members above it.
    """
    from scipy.stats import binom

    own = _fpr_of(int(n * FPR + 1e-9) + 1, n)
    most = int(m * FPR + 1e-9)
    below = lambda hits: binom.cdf(most, m, np.clip(hits / m + own - own.mean(), 0, 1)).mean()
    return own, fewest(lambda hits: below(hits) < ALPHA / 2, 0, m, m - 1)  # None where not all of them are enough


def detectable_auc(m: int, n: int) -> float | None:
    """The smallest AUC whose `auc_power` is at least POWER; with few images it may take perfect separation, 1; None where not even that."""
    found = _smallest(0.5 + 0.5 * np.linspace(0, 1, GRID + 1)[1:-1], lambda auc: auc_power(auc, m, n))
    pairs = min(m, n)  # what the interval rests on where the sides are separated
    return 1.0 if found is None and pairs and clopper_pearson(pairs, pairs)[0] > 0.5 else found


def detectable_tpr(m: int, n: int) -> float | None:
    """The smallest TPR at 1 % FPR whose `tpr_power` is at least POWER; None where there is none."""
    return _smallest(FPR ** np.linspace(1, 0, GRID + 1)[1:-1], lambda tpr: tpr_power(tpr, m, n))


def images_for_auc(auc: float) -> int | None:
    """The smallest number of test images on each side with which an AUC above one half is detectable; None above MOST."""
    return fewest(lambda size: auc_power(auc, size, size) >= POWER)


def images_for_tpr(tpr: float) -> int | None:
    """The smallest number of test images on each side with which a TPR at 1 % FPR above 1 % is detectable; None above MOST."""
    return fewest(lambda size: tpr_power(tpr, size, size) >= POWER)


def _smallest(grid: Float64[np.ndarray, " k"], power: Callable[[float], float]) -> float | None:
    """The first value of a rising grid with enough power: for few images the normal approximation falls again near certainty."""
    return next((float(value) for value in grid if power(float(value)) >= POWER), None)


def fewest(enough: Callable[[int], bool], low: int = 1, high: int = 2, most: int = MOST) -> int | None:
    """The smallest number above `low` that is enough, if all larger ones are too; None above `most`. Looks at `high` first."""
    while not enough(high):
        if high > most:
            return None
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high
